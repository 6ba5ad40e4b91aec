"""Machines that a test makes on this one: namespaces with a network, processes and disks of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["USER", "Machine", "machines", "missing"]

USER = "searcher"
_ID = 61_234
_BRIDGE = "transfersearch"
_NETWORK = "10.199.77"
T = TypeVar("T")
_HIDDEN = ("/tmp", "/home", "/root", "/run")  # every machine has its own

_ENTER = ["unshare", "-n", "-m", "-p", "-u", "-i", "-f", "--kill-child", "--mount-proc"]

# /mnt/searches is the disk that all machines share. What of this machine lies in a hidden folder and is
# needed inside (the interpreter, the checkout) is carried over to where it was.
_START = r"""
set -e
hostname {name}
mount --make-rprivate /
number=0
for path in {carried}; do
  number=$((number + 1)); mkdir -p {room}/{name}/$number; mount --bind $path {room}/{name}/$number
done
mount --bind {room}/passwd /etc/passwd
mount --bind {room}/group /etc/group
mount --bind {room}/hosts /etc/hosts
mkdir -p /mnt
mount -t tmpfs none /mnt
mkdir -p /mnt/room /mnt/searches
mount --rbind {room} /mnt/room
mount --bind {room}/shared /mnt/searches
for path in {hidden}; do mount -t tmpfs -o mode=755 none $path; done
chmod 1777 /tmp
number=0
for path in {carried}; do
  number=$((number + 1)); mkdir -p $path; mount --bind /mnt/room/{name}/$number $path
done
mkdir -p /run/sshd /home/{user}/.ssh
cp /mnt/room/key.pub /home/{user}/.ssh/authorized_keys
cp /mnt/room/key /home/{user}/.ssh/transfer-search
cp /etc/skel/.bashrc /etc/skel/.profile /home/{user}/ 2> /dev/null || touch /home/{user}/.bashrc
chown -R {id}:{id} /home/{user}
ip link set lo up
{sshd} -D -e -h /mnt/room/host_key -o UsePAM=no -o StrictModes=no -o PidFile=none &
while true; do sleep 3600 & wait $!; done
"""


@dataclass(frozen=True)
class Machine:
    """A made machine: its name, its address, and the number of its first process."""

    name: str
    address: str
    pid: int

    def run(self, command: str, *, timeout: float = 120, check: bool = True) -> str:
        """What a command of the machine's user prints, errors too; fails where it fails."""
        inside = ["nsenter", "-t", str(self.pid), "-a", "runuser", "-u", USER, "--"]
        ran = subprocess.run(
            [*inside, "env", "-i", f"HOME=/home/{USER}", f"USER={USER}", "TERM=dumb", f"PATH={os.defpath}",
             "bash", "-c", command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=timeout, cwd="/", start_new_session=True,
        )  # fmt: skip
        assert ran.returncode == 0 or not check, f"{self.name}: {command}\n{ran.stdout}"
        return ran.stdout


def missing() -> str:
    """Why machines cannot be made here; empty where they can."""
    absent = [
        name for name in ("ip", "nsenter", "unshare", "runuser", "ssh-keygen", "rsync") if not _which(name)
    ]
    if absent or not _which("sshd"):
        return f"needs {', '.join([*absent, 'sshd'])} (Debian: iproute2, rsync, openssh-server)"
    if os.geteuid() != 0:
        return "needs root, to make namespaces"
    tried = subprocess.run([*_ENTER, "true"], capture_output=True)
    return "" if tried.returncode == 0 else "namespaces are not allowed here"


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def machines(names: list[str], carried: list[Path]) -> Iterator[list[Machine]]:
    """Machines with sshd for `USER`, joined by a bridge; gone with all their processes afterwards.

    Args:
        names: of the machines.
        carried: folders of this machine that are to be there, too.
    """
    with ExitStack() as stack:
        room = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="machines", ignore_cleanup_errors=True))
        )
        addresses = {name: f"{_NETWORK}.{10 + index}" for index, name in enumerate(names)}
        _furnish(room, addresses)
        _ip(f"link add {_BRIDGE} type bridge")
        stack.callback(_ip, f"link delete {_BRIDGE}")
        _ip(f"link set {_BRIDGE} up")
        yield [
            _started(stack, room, name, address, [*map(str, carried)], f"ts{index}")
            for index, (name, address) in enumerate(addresses.items())
        ]


def _furnish(room: Path, addresses: dict[str, str]) -> None:
    """What the machines find when they start: accounts, each other's names, keys, the shared disk."""
    room.chmod(0o755)
    users = f"{USER}:*:{_ID}:{_ID}::/home/{USER}:/bin/bash\n"
    (room / "passwd").write_text(Path("/etc/passwd").read_text() + users)
    (room / "group").write_text(Path("/etc/group").read_text() + f"{USER}:x:{_ID}:\n")
    hosts = [f"{address} {name}\n" for name, address in addresses.items()]
    (room / "hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts))
    for key in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", room / key], check=True)
    (room / "shared").mkdir()
    os.chown(room / "shared", _ID, _ID)


def _started(stack: ExitStack, room: Path, name: str, address: str, carried: list[str], link: str) -> Machine:
    script = _START.format(
        name=name, room=room, user=USER, id=_ID, sshd=_which("sshd"), hidden=" ".join(_HIDDEN),
        carried=" ".join(path for path in carried if path.startswith(_HIDDEN)),
    )  # fmt: skip
    with (room / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [*_ENTER, "bash", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    stack.callback(process.wait)
    stack.callback(process.kill)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pid = int(_awaited(lambda: children.read_text().split() or None)[0])
    _ip(f"link add {link} type veth peer name eth0 netns {pid}")
    stack.callback(_ip, f"link delete {link}")  # a namespace can outlive its processes by minutes
    _ip(f"link set {link} master {_BRIDGE} up")
    for command in (
        f"addr add {address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {_NETWORK}.1",
    ):
        subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *command.split()], check=True)
    _awaited(lambda: "listening" in (room / f"{name}.log").read_text() or None, room / f"{name}.log")
    return Machine(name, address, pid)


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def _awaited(found: Callable[[], T | None], log: Path | None = None) -> T:
    for _ in range(100):
        value = found()
        if value is not None:
            return value
        time.sleep(0.1)
    raise AssertionError(log.read_text() if log else "the machine did not start")
