"""The command line: every group of commands, and how an error ends."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from search import __version__
from search.cli import catalogue, results, running, upkeep, watching
from search.cli.printing import console, errors
from search.errors import TransferSearchError
from search.masking import masked

__all__ = ["app", "entry", "main"]

app = typer.Typer(
    help="Search the hyperparameters of image transfer learning: Ray Tune runs the trials, "
    "Optuna chooses them, MLflow shows them.\n\nBegin with: transfer-search launch "
    "examples/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for each in (running, watching, results, upkeep, catalogue):  # as help lists them
    app.add_typer(each.commands)


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


@contextmanager
def _explained() -> Any:
    """Turns the errors that a user can meet into one message and an exit code."""
    try:
        yield
    except TransferSearchError as error:
        errors.print(
            f"error: {masked(str(error))}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted", style="yellow")
        sys.exit(130)
    except Exception as error:
        if os.environ.get("TRANSFER_SEARCH_DEBUG"):
            raise
        logging.getLogger(__name__).exception("unexpected")
        errors.print(
            f"error: {type(error).__name__}: {masked(str(error))}\nThis is a defect of transfer-search, or "
            "of what lies under it; set TRANSFER_SEARCH_DEBUG=1 to see where, and report it",
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
