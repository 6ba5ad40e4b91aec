"""What a model was made with: this code, the libraries and the machine, as far as results depend on them."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["changes", "code_version", "made_with"]

_PACKAGE = "transfer-search"
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "onnxruntime", "scipy")
_CPUINFO = Path("/proc/cpuinfo")


@functools.lru_cache(maxsize=1)
def code_version() -> str:
    """The version of this package, with a digest of the code that trains, which changes more often."""
    digest = hashlib.blake2b(digest_size=6)
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{_version(_PACKAGE)}+{digest.hexdigest()}"


def made_with(device: str) -> dict[str, str]:
    """By name, what the last bits of a trial's results depend on beside its data, weights and seeds."""
    import torch  # not above: the names of what differs are told without it

    told = {_PACKAGE: code_version(), "python": platform.python_version()}
    told |= {name: _version(name) for name in _LIBRARIES}
    told["cpu"] = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    if device.startswith("cuda"):
        told["gpu"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return told


def changes(was: Mapping[str, str], now: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """What differs: its name, what it was and what it is."""
    return [
        (name, was.get(name, "not there"), now.get(name, "not there"))
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    ]


@functools.cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    """What the processor calls itself."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
