"""Commands for what a search has found: best, export, report, predict."""

from __future__ import annotations

import json
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from search.cli.addressed import Verbatim, here_or_there
from search.cli.options import HomeOption, JsonOption, NameArgument
from search.cli.printing import console, errors, print_json, show_winner
from search.errors import BadInput

__all__ = ["commands"]

commands = typer.Typer()


class Format(StrEnum):
    """What a model is exported as."""

    ONNX = "onnx"
    PT2 = "pt2"
    SAFETENSORS = "safetensors"


@commands.command(cls=Verbatim)
@here_or_there
def best(name: NameArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show the best trial, or the winner among the finalists, and where its model is."""
    from search.home import Home
    from search.results.rows import best_rows
    from search.search import Search

    rows = best_rows(Search.open(Home.existing(name, home)), linked=as_json)
    if as_json:
        documents = [row.document() for row in rows]
        print_json(documents[0] if len(documents) == 1 else documents)
    else:
        for row in rows:
            show_winner(row)


@commands.command(cls=Verbatim)
@here_or_there
def export(
    name: NameArgument,
    to: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    trial: Annotated[
        int | None, typer.Option(min=0, help="A trial in place of the best, or of the winner.")
    ] = None,
    finalist: Annotated[
        int | None, typer.Option(min=0, help="A trial among the finalists: the best of its fresh runs.")
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="May be repeated; all three if not given."),
    ] = None,
    register: Annotated[
        str | None, typer.Option(help="Register the trial's model in MLflow under this name.")
    ] = None,
    alias: Annotated[
        str | None,
        typer.Option(help="Alias of the registered version; it moves only to a model that is no worse."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Move the alias to a worse model too.")] = False,
    through_mlflow: Annotated[bool, typer.Option(hidden=True)] = False,
    home: HomeOption = None,
) -> None:
    """Write a whole model, check it against the trial's recorded metric, and register it."""
    from search.home import Home
    from search.results.export import export_trial, stored_export
    from search.results.registration import Registration
    from search.search import Search

    if alias and not register:
        raise BadInput("--alias needs --register MODEL")
    if trial is not None and finalist is not None:
        raise BadInput("--trial and --finalist name different models; give one of them")
    search = Search.open(Home.existing(name, home))
    wanted = [each.value for each in dict.fromkeys(formats or Format)]
    registration = None
    if register:
        registration = Registration(search, trial, finalist, register, alias)
        registration.check(force=force)
    stored = None
    if through_mlflow:
        stored = stored_export(search, trial=trial, finalist=finalist, formats=wanted, console=console)
    else:
        for line in export_trial(search, to, trial=trial, finalist=finalist, formats=wanted, console=console):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if registration:
        version = registration.make(None if through_mlflow else to)
        console.print(f"registered {register} version {version}" + (f" as {alias}" if alias else ""))
    if stored:
        sys.stdout.write(json.dumps(stored) + "\n")  # the last line, for whoever asked from outside
    else:
        console.print(f"next: transfer-search predict {shlex.quote(str(to))} IMAGE...", markup=False)


@commands.command()
def report(
    name: NameArgument,
    to: Annotated[Path | None, typer.Option(help="The file; else NAME.html.", show_default=False)] = None,
    home: HomeOption = None,
) -> None:
    """Write the search as one HTML file, with tables and pictures, and log it in MLflow."""
    from search.home import Home
    from search.results.report import write_report
    from search.search import Search
    from search.tracking.artifacts import log_report

    search = Search.open(Home.existing(name, home))
    path = to or Path(f"{name}.html")
    text = write_report(search, path)
    console.print(f"report written to {path}", markup=False, highlight=False, soft_wrap=True)
    refused = log_report(search.spec, search.study, text, "report.html")
    if refused:
        errors.print(f"MLflow did not take it: {refused}", style="yellow", markup=False, soft_wrap=True)


@commands.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `export` wrote.", show_default=False)],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Classify image files with an exported model."""
    from search.results.export import open_export

    missing = [str(path) for path in images if not path.is_file()]
    if missing:
        raise BadInput(f"there is no file {', '.join(missing)}; give the paths of image files")
    classifier = open_export(folder)
    try:
        found = classifier.predict(images)
    except ValueError as error:
        raise BadInput(str(error)) from error
    rows = [
        {
            "image": str(path),
            "label": row["label"],
            "probability": float(row["probability"]),
            "probabilities": dict(
                zip(classifier.card.classes, map(float, row["probabilities"]), strict=True)
            ),
        }
        for path, row in zip(images, found.to_dict("records"), strict=True)
    ]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            console.print(f"{row['image']}: {row['label']} ({row['probability']:.3f})", markup=False)
