"""The same commands on a Ray cluster: each is a Ray job on its head, and its output comes back here.

The code and the spec travel in the job's working directory, so the cluster runs what the caller has.
Nothing is pickled on the way. Secrets stay where they are: the head's environment has those of MLflow
and of Optuna's storage, the caller's that of Ray's token.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.exceptions
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import search
import trainables
from search.answers import for_people, said
from search.errors import BadInput, Refused, TransferSearchError
from search.home import INSIDE
from search.run.ray_compat import JOB_STOP_SECONDS, NOISY_LOGGERS, asks_for_token, output_of_job
from search.spec.search_spec import SearchSpec, read_spec

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Cluster", "perform"]

_LOUD = "exec python -m search {words}"
_QUIET = 'e=$(mktemp); python -m search {words} 2>"$e"; c=$?; [ $c = 0 ] || cat "$e"; rm "$e"; exit $c'
"""Entry points: with all that is printed in the log, or only what was asked for unless it fails."""
_SPEC = "spec.yaml"
_SEARCH = "transfer_search.search"
_COMMAND = "transfer_search.command"
_POLL_SECONDS = 0.2
_STOP_SECONDS = 60
_ALIVE = (JobStatus.PENDING, JobStatus.RUNNING)
_DRIVERS = ("launch", "resume")


def perform(
    address: str, command: str, words: Sequence[str], options: Mapping[str, Any], console: Console
) -> None:
    """Does on the cluster at `address` what a command does on this machine.

    Args:
        address: of Ray's dashboard, such as https://head:8265.
        command: its name.
        words: its arguments as they were typed, without the address.
        options: the same, parsed.
        console: where to show what it prints.

    Raises:
        TransferSearchError: as the command on the cluster does, or where the cluster refuses it.
    """
    if options.get("home"):
        raise BadInput("--home is a folder of this machine, and --address another machine; give one of them")
    name = str(options.get("name") or "")
    if command == "launch":  # first, since what is wrong with it needs no cluster to be seen
        spec = read_spec(options["spec"], options["override"] or (), name=name or None, elsewhere=True)
    cluster = Cluster(address)
    match command:
        case "launch":
            _launch(cluster, spec, console, detach=options["detach"], dry_run=options["dry_run"])
        case "resume":
            job = cluster.submit(["resume", *words], search_name=name, job=_new_id(name, "resume"))
            _attend(cluster, job, name, console)
        case "stop":
            if cluster.stop(name) and not options["final"]:
                console.print(f"search {name} is stopped; `transfer-search resume {name}` goes on")
            else:
                cluster.show(["stop", *words])
        case "export":
            _export(cluster, words, options, console)
        case "report":
            _report(cluster, name, options["to"], console)
        case "doctor":
            _diagnose(cluster, words, options, console)
        case _ if options.get("watch") or options.get("follow"):
            cluster.attend([command, *words])
        case _:
            cluster.show([command, *words])


class Cluster:
    """A Ray cluster, through the jobs interface of its dashboard.

    Raises:
        Refused: if it wants a token, and was given none or a wrong one.
        BadInput: if no cluster answers at the address.
    """

    def __init__(self, address: str) -> None:
        self.address = address if "://" in address else f"http://{address}"
        if not self.address.startswith(("http://", "https://")):
            raise BadInput(
                f"the address {address!r} must be that of the cluster's dashboard, such as https://head:8265"
            )
        if importlib.util.find_spec("aiohttp") is None:
            raise BadInput("a cluster is reached through Ray's jobs: pip install 'transfer-search[cluster]'")
        for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            os.environ.pop(variable, None)  # either would win over the address
        for logger in NOISY_LOGGERS:
            logging.getLogger(logger).setLevel(logging.ERROR)
        with self._translated():
            self._client = JobSubmissionClient(self.address)

    def submit(
        self,
        words: Sequence[str],
        *,
        job: str,
        search_name: str = "",
        spec: SearchSpec | None = None,
        entrypoint: str = _LOUD,
    ) -> str:
        """Starts `transfer-search WORDS` on the head as the job `job`; with the file spec.yaml if given."""
        with tempfile.TemporaryDirectory() as folder, self._translated():
            _pack(Path(folder), spec)
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint.format(words=shlex.join(words)),
                    submission_id=job,
                    runtime_env={"working_dir": folder, "env_vars": _environment()},
                    metadata={_SEARCH: search_name, _COMMAND: words[0]},
                )
            )

    def show(self, words: Sequence[str], spec: SearchSpec | None = None) -> None:
        """Runs a command that ends soon, and prints what it prints."""
        sys.stdout.write(self.output(words, spec))

    def output(self, words: Sequence[str], spec: SearchSpec | None = None) -> str:
        """What a command that ends soon prints.

        Raises:
            TransferSearchError: as the command does.
        """
        job = self.submit(words, job=_new_id(words[0]), spec=spec, entrypoint=_QUIET)
        try:
            details = self.ended(job)
            text = self.log(job)
        finally:
            self._forget(job)
        _check(details, text)
        return text

    def attend(self, words: Sequence[str]) -> None:
        """Runs a command that goes on, and prints what it prints until it ends; Ctrl-C ends it."""
        job = self.submit(words, job=_new_id(words[0]))
        try:
            self.follow(job)
            _leave(self.ended(job))
        finally:
            self._forget(job)

    def follow(self, job: str) -> None:
        """Prints a job's log as it grows until the job ends."""
        shown = ""

        async def tail() -> None:
            nonlocal shown
            seen = ""
            async for chunk in self._client.tail_job_logs(job):
                seen += chunk
                text = for_people(output_of_job(job, seen))
                if len(text) > len(shown):
                    sys.stdout.write(text[len(shown) :])
                    sys.stdout.flush()
                    shown = text

        while True:
            with self._translated():
                asyncio.run(tail())
            if self.details(job).status not in _ALIVE:
                return
            time.sleep(_POLL_SECONDS)  # the connection broke: once more from the beginning

    def log(self, job: str) -> str:
        """What a job has printed."""
        with self._translated():
            return output_of_job(job, self._client.get_job_logs(job))

    def details(self, job: str) -> JobDetails:
        with self._translated():
            return self._client.get_job_info(job)

    def ended(self, job: str) -> JobDetails:
        """A job's details, once it has ended."""
        while (details := self.details(job)).status in _ALIVE:
            time.sleep(_POLL_SECONDS)
        return details

    def drivers(self, name: str) -> list[JobDetails]:
        """The jobs that were launches or resumptions of a search, the newest first."""
        with self._translated():
            jobs = self._client.list_jobs()
        mine = [
            job
            for job in jobs
            if (job.metadata or {}).get(_SEARCH) == name and job.metadata[_COMMAND] in _DRIVERS
        ]
        return sorted(mine, key=lambda job: job.start_time or 0, reverse=True)

    def stop(self, name: str) -> bool:
        """Ends the jobs that drive a search, in order; whether there were any."""
        running = [job.submission_id for job in self.drivers(name) if job.status in _ALIVE]
        for job in running:
            with self._translated():
                self._client.stop_job(job)
        for job in running:
            self.ended(job)
        return bool(running)

    def _forget(self, job: str) -> None:
        """Removes a job that only answered a question from the cluster's list."""
        with self._translated():
            if self._client.stop_job(job):
                self.ended(job)
            self._client.delete_job(job)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ray.exceptions.AuthenticationError as error:
            raise Refused(_refusal(self.address, error)) from error
        except (ConnectionError, requests.RequestException) as error:
            raise BadInput(
                f"no Ray cluster answers at {self.address}; give the address of its dashboard, such as "
                "https://head:8265, and see that it can be reached from here"
            ) from error
        except RuntimeError as error:
            raise TransferSearchError(f"the cluster at {self.address} refused: {error}") from error


def _refusal(address: str, error: Exception) -> str:
    if asks_for_token(error):
        return (
            f"the cluster at {address} asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to "
            "the cluster's token (or keep it in ~/.ray/auth_token)"
        )
    return (
        f"the cluster at {address} does not know this token; set RAY_AUTH_TOKEN to the cluster's token, or "
        "keep that in ~/.ray/auth_token and unset RAY_AUTH_TOKEN"
    )


def _launch(cluster: Cluster, spec: SearchSpec, console: Console, *, detach: bool, dry_run: bool) -> None:
    if dry_run:
        cluster.show(["launch", _SPEC, "--dry-run"], spec)
        return
    digest = hashlib.blake2b(spec.to_yaml().encode(), digest_size=6).hexdigest()
    job = f"{spec.name}-launch-{digest}"
    known = [each for each in cluster.drivers(spec.name) if (each.submission_id or "").startswith(job)]
    if known and known[0].status in (*_ALIVE, JobStatus.SUCCEEDED):
        job = known[0].submission_id
        console.print(f"search {spec.name} was launched before, as the job {job}", markup=False)
    else:
        job += f"-{len(known)}" if known else ""
        job = cluster.submit(["launch", _SPEC], search_name=spec.name, job=job, spec=spec)
    if not detach:
        _attend(cluster, job, spec.name, console)
        return
    while said(cluster.log(job), "launched") is None:
        details = cluster.details(job)
        if details.status not in _ALIVE:
            _check(details, cluster.log(job))
            break
        time.sleep(_POLL_SECONDS)
    console.print(
        f"search {spec.name} runs as the job {job} of {cluster.address}; watch it with "
        f"`transfer-search status {spec.name} --watch --address {cluster.address}`",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _attend(cluster: Cluster, job: str, name: str, console: Console) -> None:
    """Prints a driver's log until it ends; Ctrl-C leaves the search alone."""
    try:
        cluster.follow(job)
    except KeyboardInterrupt:
        console.print(
            f"search {name} goes on without you; `transfer-search stop {name} --address {cluster.address}` "
            "ends it",
            markup=False,
            highlight=False,
        )
        return
    _leave(cluster.ended(job))


def _diagnose(cluster: Cluster, words: Sequence[str], options: Mapping[str, Any], console: Console) -> None:
    """Has the head examine itself and its searches, and prints what it found; exits 1 if that is not well."""
    from search.cluster.health import versions
    from search.results.doctor import all_well, show

    text = cluster.output(["doctor", *words, "--caller", versions()])
    found = _answered(text, "examined")
    show(found, console, as_json=options["as_json"])
    if not all_well(found) and not options["repair"]:
        sys.exit(1)


def _export(cluster: Cluster, words: Sequence[str], options: Mapping[str, Any], console: Console) -> None:
    """Exports on the head, and fetches the files through MLflow."""
    from search.results.export import replaceable
    from search.tracking.artifacts import fetch_files

    to: Path = options["to"]
    replaceable(to)
    text = cluster.output(["export", *words, "--through-mlflow"])
    stored = _answered(text, "exported")
    sys.stdout.write(for_people(text))
    fetch_files(stored, to)
    console.print(f"trial {stored['trial']} is exported to {to}", markup=False, highlight=False)
    console.print(f"next: transfer-search predict {shlex.quote(str(to))} FILE...", markup=False)


def _report(cluster: Cluster, name: str, to: Path | None, console: Console) -> None:
    """Has the head write the report, and fetches it through MLflow."""
    from search.tracking.artifacts import fetch_files

    path = to or Path(f"{name}.html")
    fetch_files(_answered(cluster.output(["report", name, "--through-mlflow"]), "reported"), path)
    console.print(f"report written to {path}", markup=False, highlight=False, soft_wrap=True)


def _answered(text: str, kind: str) -> dict[str, Any]:
    """The answer of a command that has ended well.

    Raises:
        TransferSearchError: if it gave none.
    """
    content = said(text, kind)
    if content is None:
        last = next(reversed(text.strip().splitlines()), "nothing")
        raise TransferSearchError(f"the cluster gave no answer that this program knows; it said: {last}")
    return content


def _pack(folder: Path, spec: SearchSpec | None) -> None:
    """Fills a job's working directory: the two packages, and a spec."""
    for package in (search, trainables):
        (source,) = package.__path__
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(source, folder / package.__name__, ignore=ignored)
    if spec is not None:
        (folder / _SPEC).write_text(spec.to_yaml(), encoding="utf-8")


def _environment() -> dict[str, str]:
    """Variables of the job and of its workers; all who may use the cluster can read them."""
    return {
        INSIDE: "1",
        "COLUMNS": str(shutil.get_terminal_size().columns),
        "PYTHONWARNINGS": "ignore",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # Ray kills a stopped job after 3 s; to end a search in order takes longer.
        JOB_STOP_SECONDS: str(_STOP_SECONDS),
    }


def _new_id(*parts: str) -> str:
    return "-".join([*parts, uuid.uuid4().hex[:8]])


def _leave(details: JobDetails) -> None:
    """Exits as a command whose log was shown; one that was stopped has ended as it should."""
    if details.status == JobStatus.FAILED:
        sys.exit(details.driver_exit_code or 1)


def _check(details: JobDetails, text: str) -> None:
    """Raises what a command that failed on the cluster has said."""
    if details.status == JobStatus.SUCCEEDED:
        return
    code = details.driver_exit_code
    failed = said(text, "failed") or {"message": next(reversed(text.strip().splitlines()), details.message)}
    error = TransferSearchError(str(failed["message"]).strip())
    error.exit_code = code if code is not None and code > 0 else 1
    raise error
