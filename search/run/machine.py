"""Is this machine fit for searches? Versions, GPUs, Ray's token, folders, room, ports."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from trainables.files.cache import default_root

__all__ = ["Check", "checks"]

_LEAST_BYTES = 2**30
_SHARED_BYTES = 256 * 2**20  # of Ray's object store


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a search needs.

    Attributes:
        subject: what was looked at.
        wrong: what is wrong with it and what to set; empty if nothing.
        told: what was found.
    """

    subject: str
    wrong: str = ""
    told: str = ""


def checks(searches: Path) -> Iterator[Check]:
    """Examines this machine.

    Args:
        searches: where searches live.
    """
    yield _versions()
    yield _gpus()
    yield _token(Path.home() / ".ray" / "auth_token")
    yield _ports()
    folders = {"searches": searches, "cache": default_root(), "temporary files": Path(tempfile.gettempdir())}
    for name, folder in folders.items():
        yield _folder(name, folder)
    yield _shared_memory(Path("/dev/shm"))


def _versions() -> Check:
    """Whether what is installed is what this version was tested with."""
    wrong, told = [], []
    for each in map(Requirement, requires("transfer-search") or ()):
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(each.name)
        except PackageNotFoundError:
            wrong.append(f"{each.name} is not installed")
            continue
        told.append(f"{each.name} {found}")
        if not each.specifier.contains(found, prereleases=True):
            wrong.append(f"{each.name} is {found}, but must be {each.specifier}")
    mend = "; mend it with `pip install -U transfer-search`" if wrong else ""
    shown = [each for each in told if each.split()[0] in ("ray", "optuna", "mlflow", "torch", "torchvision")]
    return Check(subject="versions", wrong="; ".join(wrong) + mend, told=", ".join(shown))


def _gpus() -> Check:
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return Check(subject="GPU", told="none")
    import torch  # takes seconds, and only a machine with GPUs has anything to ask it

    if not torch.cuda.is_available():
        wrong = f"PyTorch {torch.__version__} sees none of this machine's GPUs; install one for its driver"
        return Check(subject="GPU", wrong=wrong)
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return Check(subject="GPU", told=", ".join(names))


def _token(file: Path) -> Check:
    """Ray's token, with which anybody on this machine could run code as this user."""
    if not file.exists():
        return Check(subject="Ray's token", told="none yet")
    if file.stat().st_mode & 0o077:
        wrong = f"{file} can be read by others, who then run code as you; chmod 600 {file}"
        return Check(subject="Ray's token", wrong=wrong)
    return Check(subject="Ray's token", told=str(file))


def _ports() -> Check:
    try:
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            with closing(socket.create_connection(server.getsockname(), timeout=5)):
                return Check(subject="ports", told="processes reach each other on 127.0.0.1")
    except OSError as error:
        wrong = f"no process reaches another on 127.0.0.1: {error}; see the firewall and the device lo"
        return Check(subject="ports", wrong=wrong)


def _folder(name: str, folder: Path) -> Check:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    except OSError as error:
        return Check(subject=name, wrong=f"{folder} cannot be written: {error.strerror}")
    free = shutil.disk_usage(folder).free
    if free < _LEAST_BYTES:
        wrong = f"the disk of {folder} has {free / 1e9:.2f} GB left; make room"
        return Check(subject=name, wrong=wrong)
    return Check(subject=name, told=f"{folder}, {free / 1e9:.1f} GB free")


def _shared_memory(folder: Path) -> Check:
    if not folder.is_dir():
        return Check(subject="shared memory", told="none; Ray uses files")
    free = shutil.disk_usage(folder).free
    if free < _SHARED_BYTES:
        wrong = f"{folder} has {free / 2**20:.0f} MiB free, and Ray wants 256; in a container: --shm-size=1g"
        return Check(subject="shared memory", wrong=wrong)
    return Check(subject="shared memory", told=f"{free / 1e9:.1f} GB free")
