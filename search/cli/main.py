"""The command line: every group of commands, and how an error ends."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn

import typer

from search import __version__
from search.answers import answer
from search.cli import catalogue, checking, results, running, upkeep, watching
from search.cli.printing import console, errors
from search.console import writable_in_any_terminal
from search.errors import BadInput, TransferSearchError
from search.home import is_inside
from search.masking import masked
from trainables import lean
from trainables.errors import DataError

__all__ = ["app", "entry", "main"]

_INTERRUPTED = 130

app = typer.Typer(
    help="Search the hyperparameters of image transfer learning: Ray Tune runs the trials, "
    "Optuna chooses them, MLflow shows them.\n\nBegin with: transfer-search launch "
    "examples/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for each in (running, watching, results, checking, upkeep, catalogue):  # as help lists them
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
        _fail("\n".join([str(error), *getattr(error, "__notes__", ())]), error.exit_code)
    except DataError as error:  # of data that has moved or changed under a search
        _fail(str(error), BadInput.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted", style="yellow")
        sys.exit(_INTERRUPTED)
    except SystemExit as ended:
        if ended.code in (_INTERRUPTED, signal.SIGTERM):  # so Typer and Ray end a command, without a word
            errors.print("interrupted", style="yellow")
            sys.exit(_INTERRUPTED)
        raise
    except BrokenPipeError:
        sys.exit(1)  # nobody reads any more
    except OSError as error:
        if os.environ.get("TRANSFER_SEARCH_DEBUG"):
            raise
        logging.getLogger(__name__).debug("a file or the output", exc_info=True)
        _fail(_of_a_file(error), code=1)
    except Exception as error:
        if os.environ.get("TRANSFER_SEARCH_DEBUG"):
            raise
        logging.getLogger(__name__).exception("unexpected")
        _fail(
            f"{type(error).__name__}: {error}\nThis is a defect of transfer-search, or of what is under it; "
            "set TRANSFER_SEARCH_DEBUG=1 to see where, and report it",
            code=1,
        )


def _fail(message: str, code: int) -> NoReturn:
    """Says what went wrong to people, and to whoever asked from outside a cluster; then exits."""
    message = masked(message)
    errors.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    if is_inside():
        sys.stderr.write(answer("failed", message=message, code=code))
    sys.exit(code)


def _of_a_file(error: OSError) -> str:
    """What the system says of a file, of the disk or of the output."""
    place = str(error.filename) if error.filename else "what is printed, or a file,"
    fixes = {
        errno.ENOSPC: "make room on that disk",
        errno.EDQUOT: "make room within your quota",
        errno.EACCES: "give a folder that you may write",
        errno.EROFS: "give a folder that you may write",
        errno.EMFILE: "raise the limit of open files (ulimit -n 4096)",
        errno.ENOMEM: "end other programs, or use smaller images and batches",
    }
    fix = fixes.get(error.errno or 0, "set TRANSFER_SEARCH_DEBUG=1 to see where")
    return f"{place} cannot be read or written: {error.strerror or error}; {fix}"


def main(run: Callable[[], Any] = app) -> None:
    """Runs a command and exits as it says."""
    with _explained():
        run()


def entry() -> NoReturn:
    """Entry point of the console script: as `main`, but leaves Python's imports as they are.

    After those of torch and Ray, to undo them takes seconds.
    """
    code: int | str | None = 0
    writable_in_any_terminal(sys.stdout, sys.stderr)
    lean.install()
    try:
        main()
    except SystemExit as exit_:
        code = exit_.code
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it, or its disk is full, which has been told
            stream.flush()
    os._exit(code if isinstance(code, int) else bool(code))
