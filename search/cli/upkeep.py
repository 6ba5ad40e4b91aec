"""Commands for what lies around searches: MLflow's pages, the doctor, leftovers, the cache."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.answers import answer
from search.cli.addressed import Verbatim, here_or_there
from search.cli.options import HomeOption, JsonOption
from search.cli.printing import console, errors, print_json
from search.errors import BadInput, SpecError, TransferSearchError
from search.processes import environment

if TYPE_CHECKING:
    from search.home import Home

__all__ = ["commands"]

commands = typer.Typer()

_END_SECONDS = 10.0


@commands.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    name: Annotated[
        str | None, typer.Option(help="Show the MLflow store of this search; else of the newest search.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Show the trials in MLflow's pages, in a browser on this machine."""
    from search.run.signals import interruptible
    from search.tracking.links import told_port, ui_command

    uri, place = _newest(name, home)
    _check_free(port)
    console.print("starting MLflow's server …")
    # What MLflow would start for jobs of language models is seven processes, and takes most of its start.
    surroundings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment()}
    with (
        interruptible(),
        subprocess.Popen(ui_command(uri, port), env=surroundings, start_new_session=True) as server,
        told_port(uri, port),
    ):
        try:
            while not _answers(port):
                if server.poll() is not None:
                    raise TransferSearchError(f"MLflow's server ended at once, exit code {server.returncode}")
                time.sleep(0.2)
            link = _first_page(place) or f"http://127.0.0.1:{port}/?workflowType=machine_learning"
            told = f"MLflow at {link} (Ctrl-C ends it)"
            console.print(told, markup=False, highlight=False, soft_wrap=True)
            server.wait()
        except KeyboardInterrupt:
            console.print("ending MLflow's server")
        finally:
            _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends a process and those that it has started, as it is the first of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_END_SECONDS)
            return


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BadInput(
                f"port {port} is in use or not allowed: {error.strerror}; give another with --port"
            ) from error


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _first_page(place: Home | None) -> str | None:
    """Where a search's trials are shown, the best first; None where there are none yet."""
    from search.search import Search

    if place is None:
        return None
    try:
        return Search.open(place).links.view
    except TransferSearchError:  # its study is gone, which other commands tell
        return None


def _newest(name: str | None, home: Path | None) -> tuple[str, Home | None]:
    """The tracking address and home of the named search, or the newest; without any the default and None."""
    from search.home import Home
    from search.spec.search_spec import read_spec
    from search.spec.sections import Tracking

    places = [Home.existing(name, home)] if name else Home.all(home)
    if not places:
        return Tracking().uri, None
    broken: Exception | None = None
    for place in sorted(places, key=lambda place: place.root.stat().st_mtime, reverse=True):
        try:
            return read_spec(place.spec).tracking_uri, place
        except SpecError as error:
            broken = broken or error
    raise broken or AssertionError("there are places")


@commands.command(cls=Verbatim)
@here_or_there
def doctor(
    name: Annotated[str | None, typer.Argument(help="A search; all if not given.")] = None,
    repair: Annotated[bool, typer.Option(help="Repair what is wrong, as far as that is possible.")] = False,
    caller: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Check that Optuna, MLflow and the home agree; with no NAME, the machine or the cluster too."""
    from search.home import Home, searches_root
    from search.results.doctor import all_well, show

    checks, machine = [], []
    if caller and not name:
        from search.cluster.health import checks as cluster_checks

        checks = [vars(check) for check in cluster_checks(caller)]
    elif not name:
        from search.run.machine import checks as machine_checks

        machine = [vars(check) for check in machine_checks(searches_root(home))]
    places = [Home.existing(name, home)] if name else Home.all(home)
    found = {
        "cluster": checks,
        "machine": machine,
        "searches": {place.name: _examined(place, repair) for place in places},
    }
    if caller:
        del found["machine"]
        sys.stdout.write(answer("examined", **found))
        return
    show(found, console, as_json=as_json)
    if not all_well(found):
        raise typer.Exit(1)


def _say(place: Home, text: str) -> None:
    """What is mended; not among what a program reads."""
    errors.print(f"{place.name}: {text}", markup=False, highlight=False, soft_wrap=True)


def _examined(place: Home, repair: bool) -> list[str]:
    from search.results.doctor import examine
    from search.results.rows import told
    from search.search import Search

    try:
        return examine(Search.open(place), repair=repair, tell=lambda text: _say(place, text))
    except Exception as error:  # of whatever a damaged file makes its reader stumble on
        return [f"cannot be examined: {told(error)}"]


@commands.command()
def clean(
    dry_run: Annotated[bool, typer.Option(help="Only say what would go.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Remove what no search needs: what killed processes left, states of trials that have ended."""
    from search.results.leftovers import leftovers, remove

    found = list(leftovers(home))
    for each in found:
        if not dry_run:
            remove(each)
        if not as_json:
            line = f"{each.path}: {each.why} ({each.size / 1e6:.1f} MB)"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    freed = sum(each.size for each in found)
    if as_json:
        told = [{"path": str(each.path), "why": each.why, "bytes": each.size} for each in found]
        print_json({"leftovers": told, "bytes": freed, "removed": not dry_run})
    elif not found:
        console.print("nothing is left over")
    else:
        done = "would go" if dry_run else "removed"
        console.print(f"{len(found)} leftovers {done}, {freed / 1e6:.1f} MB", highlight=False)


@commands.command("cache")
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
        print_json({"root": str(cache.root), **told})
        return
    console.print(f"{cache.root}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"  frozen features: {sum(features) / 1e9:.3f} GB in {len(features)} entries")
    console.print(f"  decoded images: {sum(images) / 1e9:.3f} GB of {len(images)} sources")
    console.print(f"  fetched files: {sum(fetched) / 1e9:.3f} GB of {len(fetched)} sources")
    if max_gb is not None:
        console.print(f"  freed {freed / 1e9:.3f} GB")
