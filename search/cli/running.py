"""Commands that run a search: launch, footprint, resume, stop."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli.addressed import Verbatim, here_or_there
from search.cli.options import HomeOption, JsonOption, NameArgument
from search.cli.printing import console, errors, farewell, print_json
from search.errors import BadInput, TransferSearchError
from search.processes import environment, python

if TYPE_CHECKING:
    from search.home import Home
    from search.run.planning import Plan

__all__ = ["commands"]

commands = typer.Typer()


@commands.command(cls=Verbatim)
@here_or_there
def launch(
    spec: Annotated[Path, typer.Argument(help="The spec, a YAML file.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(help="Call the search this instead of the name in the spec.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="path.to.key=value in place of the spec's; may be repeated."),
    ] = None,
    detach: Annotated[bool, typer.Option(help="Run in the background and return.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Check everything, print the plan, run nothing.")] = False,
    home: HomeOption = None,
) -> None:
    """Check a spec and run its search."""
    if not dry_run:
        console.print(f"checking {spec}", markup=False, highlight=False, soft_wrap=True)
    from search.home import Home
    from search.spec.search_spec import read_spec

    checked = read_spec(spec, override or (), name=name)
    place = Home.of(checked.name, home)
    if dry_run:
        _dry_run(checked, place)
    elif detach:
        _detach(spec, checked.name, override or [], place)
    else:
        from search.console import lasting_output
        from search.run.launch import launch as run

        with lasting_output():
            farewell(*run(checked, place, console))


def _dry_run(checked: Any, place: Home) -> None:
    from search.console import progress_bar
    from search.run.preflight import preflight

    place.check_free()
    with progress_bar(errors) as progress:
        planned = preflight(checked, place, progress)
    for line in planned.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _planned(checked: Any, place: Home) -> Plan:
    from search.console import progress_bar
    from search.run.planning import plan

    with progress_bar(errors) as progress:
        return plan(checked, place, progress)


def _detach(spec: Path, name: str, override: list[str], place: Home) -> None:
    """Starts the same launch in a process of its own, and waits until it drives the search."""
    place.check_free()
    place.make()
    command = python("search", "launch", str(spec), "--name", name)
    command += [f"--set={each}" for each in override] + ["--home", str(place.root.parent)]
    with (place.root / "output.log").open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while not place.spec.exists():
        if process.poll() is not None:
            raise _ended_at_once(place, process.returncode)
        time.sleep(0.2)
    console.print(
        f"search {name} runs in process {process.pid}; watch it with `transfer-search status {name} --watch`",
        markup=False,
        highlight=False,
    )


def _ended_at_once(place: Home, code: int) -> TransferSearchError:
    """What a launch in the background said before it came to nothing; nothing of it stays."""
    output = place.root / "output.log"
    said = output.read_text(encoding="utf-8", errors="replace").strip().removeprefix("error: ")
    output.unlink()
    with suppress(OSError):  # it is another launch's
        place.root.rmdir()
    error = BadInput if code == BadInput.exit_code else TransferSearchError
    return error(said or f"the launch ended at once, with exit code {code}")


@commands.command()
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
        print_json(rows)
    elif None not in shares:
        console.print(f"for all of them: --set resources.gpu={max(shares):g}")
    elif any(shares):
        console.print("not all fit on one GPU; make batch_size or image_size smaller", style="yellow")
    else:
        console.print(
            "no GPU here: give its memory with --gpu-gb for fractions (an estimate, from the CPU's)"
        )


@commands.command(cls=Verbatim)
@here_or_there
def resume(
    name: NameArgument,
    trials: Annotated[int | None, typer.Option(min=1, help="A new total of trials.")] = None,
    time_left: Annotated[
        str | None,
        typer.Option(
            "--time",
            help="How long to go on from now, such as 1h; if not given, what is left of the spec's time.",
        ),
    ] = None,
    device_hours: Annotated[
        float | None,
        typer.Option(min=0, help="The same in hours that trials hold GPUs, or CPUs where they take no GPU."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Run failed trials again, as new ones.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="Where data or MLflow is now: data.source=DIR, tracking.uri=URL."),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Go on with a search that was stopped, killed, or given more to do."""
    from search.console import lasting_output
    from search.home import Home
    from search.run.launch import resume as run
    from search.spec.values import seconds_of

    place = Home.existing(name, home)
    seconds = None if time_left is None else seconds_of(time_left)
    with lasting_output():
        farewell(
            *run(
                place,
                console,
                trials=trials,
                seconds=seconds,
                device_hours=device_hours,
                retry_failed=retry_failed,
                overrides=override or (),
            )
        )


@commands.command(cls=Verbatim)
@here_or_there
def stop(
    name: NameArgument,
    final: Annotated[
        bool, typer.Option(help="End the search for good: trials that are not done are counted as failed.")
    ] = False,
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
