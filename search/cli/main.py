"""The command line: parse, delegate, print."""

from __future__ import annotations

import atexit
import csv
import functools
import inspect
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from search import __version__
from search.errors import BadInput, TransferSearchError

if TYPE_CHECKING:
    from search.home import Home
    from search.run.planning import Plan

app = typer.Typer(
    help="Search the hyperparameters of image transfer learning: Ray Tune runs the trials, "
    "Optuna chooses them, MLflow shows them.\n\nBegin with: transfer-search launch "
    "examples/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(stderr=False)
errors = Console(stderr=True)


class Format(StrEnum):
    """What a model is exported as."""

    PT2 = "pt2"
    SAFETENSORS = "safetensors"
    ONNX = "onnx"


HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder of searches; else TRANSFER_SEARCH_HOME, else ./searches.",
        show_default=False,
    ),
]
NameArgument = Annotated[str, typer.Argument(help="The search's name.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar=["TRANSFER_SEARCH_ADDRESS", "RAY_API_SERVER_ADDRESS"],
        help="Do it on the Ray cluster whose dashboard is there, such as https://head:8265.",
        show_default=False,
    ),
]


def _version(asked: bool) -> None:
    if asked:
        console.print(f"transfer-search {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


class _Verbatim(TyperCommand):
    """A command that keeps its words as they were typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)


def here_or_there(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the option --address, which does the same on a Ray cluster."""

    @functools.wraps(command)
    def either(context: typer.Context, address: str | None, **options: Any) -> None:
        from search.home import is_inside

        if not address or is_inside():
            command(**options)
            return
        from search.cluster.jobs import perform

        words = _without_address(context.meta["words"])
        perform(address, str(context.info_name), words, options, console)

    signature = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *signature.parameters.values(),
        inspect.Parameter("address", keyword, default=None, annotation=AddressOption),
    ]
    either.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    either.__annotations__ = {each.name: each.annotation for each in parameters}
    return either


def _without_address(words: list[str]) -> list[str]:
    kept: list[str] = []
    for index, word in enumerate(words):
        value = index > 0 and words[index - 1] == "--address"
        if not (value or word == "--address" or word.startswith("--address=")):
            kept.append(word)
    return kept


@app.command(cls=_Verbatim)
@here_or_there
def launch(
    spec: Annotated[Path, typer.Argument(help="The spec, a YAML file.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="A name in place of the spec's.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="path.to.key=value in place of the spec's; may be repeated."),
    ] = None,
    detach: Annotated[bool, typer.Option(help="Run in the background and return.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Check everything, print the plan, run nothing.")] = False,
    home: HomeOption = None,
) -> None:
    """Check a spec and run its search."""
    from search.home import Home
    from search.spec.search_spec import read_spec

    checked = read_spec(spec, override or (), name=name)
    place = Home.of(checked.name, home)
    if dry_run:
        _dry_run(checked, place)
    elif detach:
        _detach(spec, checked.name, override or [], place)
    else:
        from search.run.launch import launch as run

        outcome = run(checked, place, console)
        _farewell(place, outcome.value)


def _dry_run(checked: Any, place: Home) -> None:
    for line in _planned(checked, place).lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _planned(checked: Any, place: Home) -> Plan:
    from search.console import progress_bar
    from search.run.planning import plan

    with progress_bar(errors) as progress:
        return plan(checked, place, progress)


@app.command()
def footprint(
    spec: Annotated[Path, typer.Argument(help="The spec, a YAML file.", show_default=False)],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="path.to.key=value in place of the spec's; may be repeated."),
    ] = None,
    gpu_gb: Annotated[
        float | None, typer.Option(min=1, help="Memory of the GPUs to pack, GB; else this machine's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what trials take of memory, and propose a fraction of a GPU for each."""
    from search.console import short
    from search.home import Home
    from search.run.packing import needs
    from search.spec.search_spec import read_spec

    checked = read_spec(spec, override or ())
    _planned(checked, Home.of(checked.name))  # so that data or a backbone that is not there is told as ever
    rows = []
    for need in needs(checked, None if gpu_gb is None else int(gpu_gb * 1e9)):
        rows.append({**need.trial, "bytes": need.bytes, "measured_on": need.device, "gpu": need.share})
        if not as_json:
            kind = " ".join(
                f"{name}={short(value)}" for name, value in need.trial.items() if value is not None
            )
            taken = "more than there is" if need.bytes is None else f"{need.bytes / 1e9:.2f} GB"
            fraction = "" if need.share is None else f"  gpu: {need.share:g}"
            console.print(f"{taken:>10} on {need.device}{fraction}  {kind}", markup=False, highlight=False)
    shares = [row["gpu"] for row in rows]
    if as_json:
        _print_json(rows)
    elif None not in shares:
        console.print(f"for all of them: --set resources.gpu={max(shares):g}")
    elif any(shares):
        console.print("not all fit on one GPU; make batch_size or image_size smaller", style="yellow")
    else:
        console.print(
            "no GPU here: give its memory with --gpu-gb for fractions (an estimate, from the CPU's)"
        )


def _detach(spec: Path, name: str, override: list[str], place: Home) -> None:
    """Starts the same launch in a process of its own, and waits until it drives the search."""
    place.make()
    command = [sys.executable, "-m", "search", "launch", str(spec), "--name", name]
    command += [f"--set={each}" for each in override] + ["--home", str(place.root.parent)]
    with (place.root / "output.log").open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    while not place.spec.exists():
        if process.poll() is not None:
            text = (place.root / "output.log").read_text(encoding="utf-8", errors="replace")
            raise BadInput(text.strip().splitlines()[-1] if text.strip() else "the launch ended at once")
        time.sleep(0.2)
    console.print(
        f"search {name} runs in process {process.pid}; watch it with `transfer-search status {name} --watch`",
        markup=False,
        highlight=False,
    )


@app.command(cls=_Verbatim)
@here_or_there
def resume(
    name: NameArgument,
    trials: Annotated[int | None, typer.Option(min=1, help="A new total of trials.")] = None,
    time_left: Annotated[
        str | None, typer.Option("--time", help="Time from now, such as 1h; else what is left.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Run failed trials again, as new ones.")] = False,
    home: HomeOption = None,
) -> None:
    """Go on with a search that was stopped, killed, or given more to do."""
    from search.home import Home
    from search.run.launch import resume as run
    from search.spec.search_spec import seconds_of

    place = Home.existing(name, home)
    seconds = None if time_left is None else seconds_of(time_left)
    outcome = run(place, console, trials=trials, seconds=seconds, retry_failed=retry_failed)
    _farewell(place, outcome.value)


@app.command(cls=_Verbatim)
@here_or_there
def stop(
    name: NameArgument,
    final: Annotated[bool, typer.Option(help="For good: what runs is given up.")] = False,
    home: HomeOption = None,
) -> None:
    """Stop a running search in order; `resume` goes on with it unless --final."""
    import socket

    from search.home import Home

    place = Home.existing(name, home)
    driver = place.driver()
    if driver is not None:
        if driver["host"] != socket.gethostname():
            raise BadInput(f"the search {name!r} is driven on {driver['host']}; stop it there")
        os.kill(driver["pid"], signal.SIGTERM)
        with console.status("stopping"):
            while place.driver() is not None:
                time.sleep(0.2)
    if final:
        from search.run.launch import abandon

        given_up = abandon(place)
        console.print(f"search {name} is over; {given_up} trials were given up")
    elif driver is None:
        console.print(f"search {name} was not running")
    else:
        console.print(f"search {name} is stopped; `transfer-search resume {name}` goes on")


@app.command("list", cls=_Verbatim)
@here_or_there
def list_searches(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """List the searches and how far they are."""
    from search.home import Home
    from search.results.rows import summary

    rows = [summary(place) for place in Home.all(home)]
    if as_json:
        _print_json(rows)
        return
    table = Table("search", "state", "trials", "best", "trial", box=None)
    for row in rows:
        best = "" if row["value"] is None else f"{row['value']:.4f}"
        trials = f"{row['counted']}/{row['budget']}"
        trial = "" if row["best_trial"] is None else str(row["best_trial"])
        table.add_row(row["search"], row["state"].lower(), trials, best, trial)
    console.print(table if rows else "no searches yet; begin with `transfer-search launch SPEC`")


@app.command(cls=_Verbatim)
@here_or_there
def status(
    name: NameArgument,
    watch: Annotated[bool, typer.Option(help="Show it again every two seconds until it ends.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show how far a search is."""
    from search.home import Home
    from search.results.rows import summary

    place = Home.existing(name, home)
    while True:
        row = summary(place)
        if as_json:
            _print_json(row)
        else:
            best = "none yet" if row["value"] is None else f"{row['value']:.4f} (trial {row['best_trial']})"
            console.print(
                f"{name}: {row['state'].lower()}, {row['counted']}/{row['budget']} trials, "
                f"{row['running']} running, {row['pruned']} pruned, {row['failed']} failed, best {best}"
                + (", finalists {ended}/{runs} runs".format(**row["finalists"]) if row["finalists"] else ""),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if not watch or row["state"] != "RUNNING":
            return
        time.sleep(2)


@app.command(cls=_Verbatim)
@here_or_there
def logs(
    name: NameArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as the log grows.")] = False,
    home: HomeOption = None,
) -> None:
    """Print the driver's log."""
    from search.home import Home

    place = Home.existing(name, home)
    if not place.log.exists():
        return
    with place.log.open(encoding="utf-8", errors="replace") as file:
        while True:
            text = file.read()
            if text:
                sys.stdout.write(text)
                sys.stdout.flush()
            elif not follow or place.driver() is None:
                return
            else:
                time.sleep(0.5)


@app.command(cls=_Verbatim)
@here_or_there
def trials(
    name: NameArgument,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    home: HomeOption = None,
) -> None:
    """List a search's trials."""
    from search.console import short
    from search.home import Home
    from search.results.rows import trial_rows

    rows = trial_rows(Home.existing(name, home), linked=as_json or as_csv)
    if as_json:
        _print_json(rows)
    elif as_csv:
        flat = [{**row, "params": json.dumps(row["params"])} for row in rows]
        writer = csv.DictWriter(sys.stdout, fieldnames=list(flat[0]) if flat else ["trial"])
        writer.writeheader()
        writer.writerows(flat)
    else:
        table = Table("trial", "state", "value", "epochs", "hyperparameters", box=None)
        for row in rows:
            value = "" if row["value"] is None else f"{row['value']:.4f}"
            params = " ".join(f"{key}={short(row['params'][key])}" for key in row["sampled"])
            table.add_row(str(row["trial"]), row["state"].lower(), value, str(row["epochs"]), params)
        console.print(table)


@app.command(cls=_Verbatim)
@here_or_there
def best(name: NameArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show the best trial, or the winner among the finalists, and where its model is."""
    from search.home import Home
    from search.results.rows import best_rows

    place = Home.existing(name, home)
    rows = best_rows(place, linked=as_json)
    if as_json:
        _print_json(rows[0] if len(rows) == 1 else rows)
    else:
        for row in rows:
            _show_winner(row)


@app.command(cls=_Verbatim)
@here_or_there
def export(
    name: NameArgument,
    to: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    trial: Annotated[
        int | None, typer.Option(min=0, help="A trial in place of the best, or of the winner.")
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="May be repeated; pt2 and safetensors if not given."),
    ] = None,
    register: Annotated[
        str | None, typer.Option(help="Register the trial's model in MLflow under this name.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Alias of the registered version.")] = None,
    through_mlflow: Annotated[bool, typer.Option(hidden=True)] = False,
    home: HomeOption = None,
) -> None:
    """Write a whole model, check it against the trial's recorded metric, and register it."""
    from search.home import Home
    from search.results.export import export_trial, register_model, stored_export

    place = Home.existing(name, home)
    if alias and not register:
        raise BadInput("--alias needs --register MODEL")
    wanted = [each.value for each in formats or [Format.PT2, Format.SAFETENSORS]]
    stored = None
    if through_mlflow:
        stored = stored_export(place, trial=trial, formats=wanted, console=console)
    else:
        for line in export_trial(place, to, trial=trial, formats=wanted, console=console):
            console.print(line, markup=False, highlight=False)
    if register:
        version = register_model(place, trial, register, alias)
        console.print(f"registered {register} version {version}" + (f" as {alias}" if alias else ""))
    if stored:
        sys.stdout.write(json.dumps(stored) + "\n")  # the last line, for whoever asked from outside
    else:
        console.print(f"next: transfer-search predict {shlex.quote(str(to))} IMAGE...", markup=False)


@app.command()
def report(
    name: NameArgument,
    to: Annotated[Path | None, typer.Option(help="The file; else NAME.html.", show_default=False)] = None,
    home: HomeOption = None,
) -> None:
    """Write the search as one HTML file, with tables and pictures, and log it in MLflow."""
    from search.home import Home
    from search.results.report import write_report
    from search.results.rows import opened
    from search.tracking.runs import log_report

    place = Home.existing(name, home)
    path = to or Path(f"{name}.html")
    text = write_report(place, path)
    console.print(f"report written to {path}", markup=False, highlight=False, soft_wrap=True)
    refused = log_report(*opened(place), text, "report.html")
    if refused:
        errors.print(f"MLflow did not take it: {refused}", style="yellow", markup=False, soft_wrap=True)


@app.command()
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
        _print_json(rows)
    else:
        for row in rows:
            console.print(f"{row['image']}: {row['label']} ({row['probability']:.3f})", markup=False)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    name: Annotated[
        str | None, typer.Option(help="A search, for the store it writes to; else the newest.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Start MLflow's pages on the store of the searches."""
    from search.tracking.runs import ui_command

    command = ui_command(_newest(name, home), port)
    console.print(f"MLflow at http://127.0.0.1:{port} (Ctrl-C ends it)")
    os.execv(command[0], command)


def _newest(name: str | None, home: Path | None) -> str:
    """The tracking address of a search; of the newest where no name is given; else the default."""
    from search.home import Home
    from search.spec.search_spec import Tracking, read_spec

    places = [Home.existing(name, home)] if name else Home.all(home)
    if not places:
        return Tracking().uri
    newest = max(places, key=lambda place: place.spec.stat().st_mtime)
    return read_spec(newest.spec).tracking_uri


@app.command(cls=_Verbatim)
@here_or_there
def doctor(
    name: Annotated[str | None, typer.Argument(help="A search; all if not given.")] = None,
    repair: Annotated[bool, typer.Option(help="Mend what can be mended.")] = False,
    caller: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Check that Optuna, MLflow and the home agree; with --address and no NAME, the cluster too."""
    from search.home import Home
    from search.results.doctor import all_well, examine, show

    checks = []
    if caller and not name:
        from search.cluster.health import checks as cluster_checks

        checks = [vars(check) for check in cluster_checks(caller)]
    places = [Home.existing(name, home)] if name else Home.all(home)
    found = {
        "cluster": checks,
        "searches": {place.name: examine(place, repair=repair) for place in places},
    }
    if caller:
        sys.stdout.write(json.dumps(found) + "\n")  # the last line, for whoever asked from outside
        return
    show(found, console, as_json=as_json)
    if not all_well(found) and not repair:
        raise typer.Exit(1)


@app.command("cache")
def show_cache(
    max_gb: Annotated[
        float | None, typer.Option(min=0, help="Evict the least recently used until this is left; 0: all.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--dir", help="The cache; else the node's own.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what this node keeps of images and frozen features; prune it. Safe at any time."""
    from trainables.files.cache import FETCHED, Cache, default_root

    cache = Cache(root or default_root())
    freed = 0 if max_gb is None else cache.sweep(int(max_gb * 1e9))
    entries = cache.entries()
    fetched = [size for path, size, _ in entries if path.parent.name == FETCHED]
    images = [size for path, size, _ in entries if path.parent.name == "data"]
    features = [size for path, size, _ in entries if path.suffix]
    if as_json:
        told = {"features": len(features), "features_bytes": sum(features)}
        told |= {"sources": len(images), "images_bytes": sum(images)}
        told |= {"fetched": len(fetched), "fetched_bytes": sum(fetched), "freed_bytes": freed}
        _print_json({"root": str(cache.root), **told})
        return
    console.print(f"{cache.root}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"  frozen features: {sum(features) / 1e9:.3f} GB in {len(features)} entries")
    console.print(f"  decoded images: {sum(images) / 1e9:.3f} GB of {len(images)} sources")
    console.print(f"  fetched files: {sum(fetched) / 1e9:.3f} GB of {len(fetched)} sources")
    if max_gb is not None:
        console.print(f"  freed {freed / 1e9:.3f} GB")


@app.command("backbones")
def list_backbones(
    pattern: Annotated[str | None, typer.Argument(help="A part of a name, or a glob: 'timm/*lite*'.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the backbones, and whether their weights are on this machine."""
    from trainables.image.backbones import available

    found = available(pattern)
    if as_json:
        _print_json([vars(info) for info in found])
        return
    table = Table("backbone", "parameters", "image size", "weights at hand", box=None)
    for info in found:
        parameters = "" if info.parameters is None else f"{info.parameters:,}"
        table.add_row(info.name, parameters, str(info.image_size), "yes" if info.weights_at_hand else "")
    console.print(table)


@app.command("policies")
def list_policies(
    preview: Annotated[Path | None, typer.Option(help="Draw every policy on this image file.")] = None,
    to: Annotated[Path, typer.Option(help="Where the drawing goes.")] = Path("policies.png"),
    as_json: JsonOption = False,
) -> None:
    """List the augmentation policies and what each does; draw them on an image."""
    from search.cli.previews import draw_policies, policy_lines

    lines = policy_lines()
    if as_json:
        _print_json(lines)
    else:
        for policy, steps in lines.items():
            console.print(f"{policy}: {'; '.join(steps)}", markup=False, highlight=False)
    if preview is not None:
        draw_policies(preview, to)
        console.print(f"drawn to {to}")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _show_winner(row: dict[str, Any]) -> None:
    from search.console import short

    if "finalists" in row:
        _show_finalists(row)
    else:
        console.print(f"best trial {row['trial']}: {row['value']:.4f} at epoch {row['epoch']}", style="bold")
    params = "  ".join(f"{key}={short(row['params'][key])}" for key in row["sampled"])
    console.print(f"  {params}", markup=False, highlight=False, soft_wrap=True)
    if row["mlflow_run_url"]:
        console.print(f"  MLflow: {row['mlflow_run_url']}", markup=False, soft_wrap=True)


def _show_finalists(row: dict[str, Any]) -> None:
    from search.study.finalists import table, verdict

    console.print(table(row["finalists"], row["objective"]))
    console.print(f"winner: {verdict(row['finalists'])}", style="bold", markup=False, soft_wrap=True)
    console.print(
        f"  its best fresh run: {row['objective']} {row['value']:.4f} at epoch {row['epoch']}",
        highlight=False,
    )


def _farewell(place: Home, outcome: str) -> None:
    """What the search found and what to type next."""
    from search.results.rows import best_rows, summary

    row = summary(place)
    console.print(
        f"search {place.name}: {outcome.lower().replace('_', ' ')}; {row['completed']} completed, "
        f"{row['pruned']} pruned, {row['failed']} failed, {row['running']} interrupted",
        markup=False,
        highlight=False,
    )
    if row["best_trial"] is None:
        console.print(f"no trial completed; see `transfer-search logs {place.name}`", style="yellow")
        if outcome == "FINISHED":
            raise typer.Exit(1)
        return
    for winner in best_rows(place, linked=False):
        _show_winner(winner)
    commands = ["ui", f"trials {place.name}", f"export {place.name} --to exports/{place.name}"]
    if outcome != "FINISHED":
        commands.insert(0, f"resume {place.name}")
    console.print("next:", *(f"  transfer-search {command}" for command in commands), sep="\n", markup=False)


@contextmanager
def _explained() -> Any:
    """Turns the errors that a user can meet into one message and an exit code."""
    try:
        yield
    except TransferSearchError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted", style="yellow")
        sys.exit(130)
    except Exception as error:
        if os.environ.get("TRANSFER_SEARCH_DEBUG"):
            raise
        logging.getLogger(__name__).exception("unexpected")
        errors.print(
            f"error: {type(error).__name__}: {error}\nThis is a defect of transfer-search, or of what "
            "lies under it; set TRANSFER_SEARCH_DEBUG=1 to see where, and report it",
            style="red",
            markup=False,
            highlight=False,
        )
        sys.exit(1)


def main(run: Callable[[], Any] = app) -> None:
    """Runs a command and exits as it says."""
    with _explained():
        run()


def entry() -> NoReturn:
    """Entry point of the console script: as `main`, but leaves Python's imports as they are.

    After those of torch and Ray, to undo them takes seconds.
    """
    code: int | str | None = 0
    try:
        main()
    except SystemExit as exit_:
        code = exit_.code
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else bool(code))
