"""What people and `.ci/run` check alike: `nox` runs all of it here, `nox -s static` what takes seconds.

Every session uses the environment that nox itself is in, as the README's command makes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["static", "tests"]

BIN = Path(sys.executable).parent
STATIC = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports",),
)


@nox.session
def static(session: nox.Session) -> None:
    """Style, types and import contracts."""
    for program, *words in STATIC:
        session.run(str(BIN / program), *words, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite; words after `--` go to pytest."""
    session.run(sys.executable, "-m", "pytest", "-q", *session.posargs, external=True)


@nox.session(name="all")
def every(session: nox.Session) -> None:
    """The suite with the tests that take long and guard what seldom changes: before a release."""
    session.run(sys.executable, "-m", "pytest", "-q", *session.posargs, external=True, env={"TESTS": "all"})


@nox.session
def ci(session: nox.Session) -> None:
    """Exactly what CI runs, in a clean copy of this checkout."""
    session.run("bash", ".ci/run", external=True)
