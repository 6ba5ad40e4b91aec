"""Commands for what a search has found: best, export, report, predict."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.answers import answer as as_answer
from search.cli.addressed import Verbatim, here_or_there
from search.cli.options import HomeOption, JsonOption, NameArgument
from search.cli.printing import console, errors, print_json, show_view, show_winner
from search.errors import BadInput

if TYPE_CHECKING:
    from search.results.predictions import Prediction

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
    """Show the best trial or the winner among the finalists, and where its model, or its refit's, is."""
    from search.home import Home
    from search.results.rows import best_rows, model_folder
    from search.search import Search

    search = Search.open(Home.existing(name, home))
    rows = best_rows(search, linked=as_json)
    if as_json:
        documents = [row.document() for row in rows]
        print_json(documents[0] if len(documents) == 1 else documents)
    else:
        for row in rows:
            show_winner(row)
            told = f"  model: {model_folder(search, row)}"
            console.print(told, markup=False, highlight=False, soft_wrap=True)
        show_view(search)


@commands.command(cls=Verbatim)
@here_or_there
def export(
    name: NameArgument,
    to: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    trial: Annotated[
        int | None, typer.Option(min=0, help="A trial in place of the best, the winner or its refit.")
    ] = None,
    finalist: Annotated[
        int | None, typer.Option(min=0, help="A trial among the finalists: its run on the first fresh seed.")
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="May be repeated; all that there are if not given."),
    ] = None,
    register: Annotated[
        str | None, typer.Option(help="Register the trial's model in MLflow under this name.")
    ] = None,
    alias: Annotated[
        str | None,
        typer.Option(help="Alias of the registered version; it moves only to a model that is no worse."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Move the alias to a worse model too.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="Where data or MLflow is now: data.source=DIR, tracking.uri=URL."),
    ] = None,
    unchecked: Annotated[
        bool, typer.Option(help="Write the model without checking it on the data, which may be gone.")
    ] = False,
    through_mlflow: Annotated[bool, typer.Option(hidden=True)] = False,
    home: HomeOption = None,
) -> None:
    """Write a whole model, check it against the trial's recorded metric, and register it."""
    from search.home import Home
    from search.results.export import export_trial, stored_export
    from search.results.registration import Registration
    from search.run.premises import check_movable
    from search.search import Search
    from search.spec.search_spec import read_spec

    if alias and not register:
        raise BadInput("--alias needs --register MODEL")
    if trial is not None and finalist is not None:
        raise BadInput("--trial and --finalist name different models; give one of them")
    if unchecked and (register or through_mlflow):
        raise BadInput("--unchecked writes files alone, on this machine; leave out --register and --address")
    check_movable(override or ())
    place = Home.existing(name, home)
    search = Search.open(place, read_spec(place.spec, override or ()))
    wanted = [each.value for each in dict.fromkeys(formats or ())] or list(search.spec.modality.export_files)
    registration = None
    if register:
        registration = Registration(search, trial, finalist, register, alias)
        registration.check(force=force)
    stored = None
    if through_mlflow:
        stored = stored_export(search, trial=trial, finalist=finalist, formats=wanted, console=console)
    else:
        for line in export_trial(
            search,
            to,
            trial=trial,
            finalist=finalist,
            formats=wanted,
            unchecked=unchecked,
            console=console,
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if registration:
        version = registration.make(None if through_mlflow else to)
        console.print(f"registered {register} version {version}" + (f" as {alias}" if alias else ""))
    if stored:
        sys.stdout.write(as_answer("exported", **stored))
    else:
        console.print(f"next: transfer-search predict {shlex.quote(str(to))} FILE...", markup=False)


@commands.command(cls=Verbatim)
@here_or_there
def report(
    name: NameArgument,
    to: Annotated[Path | None, typer.Option(help="The file; else NAME.html.", show_default=False)] = None,
    through_mlflow: Annotated[bool, typer.Option(hidden=True)] = False,
    home: HomeOption = None,
) -> None:
    """Write the search as one HTML file, with tables and pictures, and log it in MLflow."""
    from search.home import Home
    from search.results.report import write_report
    from search.search import Search
    from search.tracking.artifacts import REPORT, log_report, stored_report

    search = Search.open(Home.existing(name, home))
    path = to or Path(f"{name}.html")
    text = write_report(search, path)
    refused = log_report(search.spec, search.study, text, REPORT)
    if through_mlflow:
        sys.stdout.write(as_answer("reported", **stored_report(search.spec, search.study, refused)))
        return
    console.print(f"report written to {path}", markup=False, highlight=False, soft_wrap=True)
    if refused:
        errors.print(f"MLflow did not take it: {refused}", style="yellow", markup=False, soft_wrap=True)


@commands.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `export` wrote.", show_default=False)],
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Image or text files, folders of them, or globs.", show_default=False
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name for each.")] = 1,
    lines: Annotated[
        bool, typer.Option("--lines", help="Take each line of the files for a text; - is standard input.")
    ] = False,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Classify image or text files with an exported model; 1 is the exit code where one cannot be read."""
    from search.results.export import open_export
    from search.results.predictions import example_files, lines_of, predictions
    from trainables.modalities import modality

    classifier = open_export(folder)
    kind = modality(classifier.card.hparams.modality)
    items: Sequence[Path | str]
    if lines:
        items = lines_of(given)
    else:
        items = example_files(given, kind.suffixes, kind.item)
    answers = predictions(classifier, items, None if as_json else top)
    write = _json_answers if as_json else _csv_answers if as_csv else _lines
    broken = write(answers, top, kind.item)
    if broken:
        errors.print(
            f"{broken} of {len(items)} {'lines' if lines else 'files'} could not be read", style="yellow"
        )
        raise typer.Exit(1)


def _json_answers(answers: Iterable[Prediction], top: int, name: str) -> int:
    """Prints a list with an object an example as it comes; returns how many could not be read."""
    broken, separator = 0, "[\n"
    for answer in answers:
        row: dict[str, Any] = {name: str(answer.item)}
        if answer.error:
            broken += 1
            row["error"] = answer.error
        else:
            label, probability = answer.top[0]
            row |= {"label": label, "probability": probability, "probabilities": dict(answer.top)}
            row |= {} if answer.within is None else {"set": list(answer.within)}
        sys.stdout.write(separator + json.dumps(row))
        separator = ",\n"
    sys.stdout.write("\n]\n")
    return broken


def _csv_answers(answers: Iterable[Prediction], top: int, name: str) -> int:
    writer = csv.writer(sys.stdout)
    ranks = [""] if top == 1 else [f"_{rank + 1}" for rank in range(top)]
    columns = [f"{name}{rank}" for rank in ranks for name in ("label", "probability")]
    writer.writerow([name, *columns, "error"])
    broken = 0
    for answer in answers:
        broken += bool(answer.error)
        cells: list[Any] = [cell for pair in answer.top for cell in pair]
        writer.writerow([answer.item, *cells, *[""] * (2 * len(ranks) - len(cells)), answer.error])
    return broken


def _lines(answers: Iterable[Prediction], top: int, name: str) -> int:
    broken = 0
    for answer in answers:
        broken += bool(answer.error)
        told = ", ".join(f"{label} ({probability:.3f})" for label, probability in answer.top)
        told += "" if answer.within is None else f"  one of: {', '.join(answer.within)}"
        console.print(
            f"{answer.item}: {told or answer.error}",
            style="red" if answer.error else None,
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return broken
