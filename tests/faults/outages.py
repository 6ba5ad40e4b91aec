"""Servers that a test takes away: a gate before MLflow, and PostgreSQL as this machine's own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from search.processes import environment
from tests.search.hosts import postgresql_binaries, until

__all__ = ["Gate", "PostgreSQL", "free_port", "mlflow_server", "postgresql"]

_NOBODY = 65534
_ANSWER = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Gate:
    """Passes connections on to a server, as its `mode` says.

    `open`: all. `hanging`: takes them and never answers. `failing`: answers 500. `closed`: refuses them.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._mode = "open"
        self._lock = threading.Lock()
        self._held: list[socket.socket] = []
        self.port = free_port()
        self._listening: socket.socket | None = None
        self.mode = "open"

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        """From now on, of connections that stand as well."""
        with self._lock:
            self._mode = mode
            for each in self._held:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self._held.clear()
            if mode == "closed":
                self._close()
            elif self._listening is None:
                self._listening = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
                threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def _close(self) -> None:
        if self._listening is not None:
            with suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
            self._listening = None

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with self._lock:
                mode = self._mode
                self._held.append(connection)
            if mode == "failing":
                threading.Thread(target=self._fail, args=(connection,), daemon=True).start()
            elif mode == "open":
                there = socket.create_connection(("127.0.0.1", self._server))
                self._held.append(there)
                for one, other in ((connection, there), (there, connection)):
                    threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()

    def _fail(self, connection: socket.socket) -> None:
        with suppress(OSError):
            connection.recv(65536)
            connection.sendall(_ANSWER)
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.mode = "closed"


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    for each in (one, other):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


class PostgreSQL:
    """A server of this machine alone, which trusts whoever asks."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder / "postgresql", port
        self._binaries = postgresql_binaries(folder)
        self._server: subprocess.Popen[bytes] | None = None
        self._folder.mkdir()
        os.chown(self._folder, _NOBODY, _NOBODY)
        for each in (folder, *folder.parents):  # nobody is to find the way
            if each.stat().st_uid == os.geteuid() and each != Path("/"):
                each.chmod(each.stat().st_mode | 0o011)
        self._run("initdb", "-D", str(self._folder), "-U", "postgres", "-A", "trust", "--no-sync")

    def _command(self, program: str, *words: str) -> list[str]:
        drop = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        return [*drop, str(self._binaries / program), *words]

    def _run(self, program: str, *words: str) -> None:
        subprocess.run(self._command(program, *words), check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        words = ["-D", str(self._folder), "-p", str(self._port), "-c", "listen_addresses=127.0.0.1"]
        words += ["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=32MB"]
        self._server = subprocess.Popen(
            self._command("postgres", *words), cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: self._answers(), "PostgreSQL")

    def _answers(self) -> bool:
        try:
            self.ask("select 1")
        except subprocess.CalledProcessError:
            return False
        return True

    def ask(self, command: str) -> None:
        self._run("psql", "-h", "127.0.0.1", "-p", str(self._port), "-U", "postgres", "-c", command)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}"

    def stop(self) -> None:
        """At once, whoever is connected."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(60)
            self._server = None


@contextmanager
def postgresql(folder: Path, port: int) -> Iterator[PostgreSQL]:
    """A PostgreSQL that does not run yet, and has ended after the block."""
    made = PostgreSQL(folder, port)
    try:
        yield made
    finally:
        made.stop()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """The port of an MLflow server of this machine alone."""
    port = free_port()
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    words += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            env={**environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(lambda: _answers(port), "MLflow's server")
        yield port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        time.sleep(0.2)
        return False
