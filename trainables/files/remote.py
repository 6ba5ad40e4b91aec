"""Files below an address: s3://bucket/prefix, file:///folder, or the path of a folder that others see too.

Credentials are each machine's own, never in an address. A file is there whole or not at all: an object
store promises that of every object, and on a disk a file is written under another name and renamed.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import pyarrow
from pyarrow import fs

from trainables.files.whole import replacing

__all__ = ["ALLOWED", "Entry", "Remote", "RemoteError", "below", "is_uri"]

ALLOWED = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, abfs://…, file:///FOLDER, or the absolute path of a folder"
_SCHEMES = ("s3", "gs", "abfs", "abfss", "file", "")
_TEMPORARY = ".tmp"


class RemoteError(Exception):
    """What is stored under an address cannot be read or written."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file.

    Attributes:
        name: its path below the address, which never leads out of a folder that it is joined to.
        size: in bytes.
        mtime_ns: when it was written.
    """

    name: str
    size: int
    mtime_ns: int


def is_uri(text: str) -> bool:
    """Whether it is an address rather than a path."""
    return "://" in text


def below(uri: str, name: str) -> str:
    """The address of `name` below an address, whose query stays."""
    if not is_uri(uri):
        return f"{uri.rstrip('/')}/{name}"
    parts = urlsplit(uri)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}").geturl()


class Remote:
    """The files below an address.

    Raises:
        RemoteError: from everything here, if the address is none, or what is there cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        scheme = urlsplit(uri).scheme if is_uri(uri) else ""
        if scheme not in _SCHEMES or not (is_uri(uri) or uri.startswith("/")):
            raise RemoteError(f"{uri} is no address of files; give {ALLOWED}")
        with self._translated("opened"):
            self._files, root = fs.FileSystem.from_uri(uri)
        self._root = root.rstrip("/")
        if not self._root:
            raise RemoteError(f"{uri} names no folder or bucket; give {ALLOWED}")
        self._is_disk = isinstance(self._files, fs.LocalFileSystem)

    def entries(self) -> list[Entry]:
        """Every file at any depth, by name; none where there is no such folder.

        Raises:
            RemoteError: also if a name would lead out of a folder.
        """
        with self._translated("listed"):
            found = self._files.get_file_info(
                fs.FileSelector(self._root, recursive=True, allow_not_found=True)
            )
        entries = [
            Entry(name=self._name(info.path), size=info.size, mtime_ns=info.mtime_ns or 0)
            for info in found
            if info.type == fs.FileType.File and not info.path.endswith(_TEMPORARY)
        ]
        return sorted(entries, key=lambda entry: entry.name)

    def fetch(self, name: str, to: Path) -> None:
        """Copies a file to the path `to`, which then is whole."""
        to.parent.mkdir(parents=True, exist_ok=True)
        with replacing(to) as temporary, self._translated(f"read ({name})"):
            fs.copy_files(self._at(name), str(temporary), source_filesystem=self._files)

    def send(self, file: Path, name: str) -> None:
        """Copies a file of this machine there, in place of what has that name."""
        with self._translated(f"written ({name})"), self._placed(name) as place:
            fs.copy_files(str(file), place, destination_filesystem=self._files)

    def read(self, name: str) -> bytes | None:
        """What a small file holds; None where there is none."""
        with self._translated(f"read ({name})"):
            try:
                with self._files.open_input_stream(self._at(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Writes a small file."""
        with self._translated(f"written ({name})"), self._placed(name) as place:
            with self._files.open_output_stream(place) as stream:
                stream.write(data)

    def remove(self) -> None:
        """Removes all that lies below the address."""
        with self._translated("removed"):
            if self._files.get_file_info(self._root).type == fs.FileType.Directory:
                self._files.delete_dir(self._root)

    def check(self) -> None:
        """Sees that files can be written, read and removed."""
        folder = f".probe-{uuid.uuid4().hex}"
        self.write(f"{folder}/probe", b"probe")
        if self.read(f"{folder}/probe") != b"probe":
            raise RemoteError(f"{self.uri} does not keep what is written there; give another address")
        with self._translated("removed"):
            self._files.delete_dir(self._at(folder))

    @contextmanager
    def _placed(self, name: str) -> Iterator[str]:
        """Where to write a file that takes its name when the block ends well."""
        place = self._at(name)
        if not self._is_disk:
            yield place
            return
        self._files.create_dir(place.rpartition("/")[0])
        temporary = f"{place}.{uuid.uuid4().hex}{_TEMPORARY}"
        try:
            yield temporary
            self._files.move(temporary, place)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _name(self, path: str) -> str:
        name = path.removeprefix(f"{self._root}/")
        if name == path or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise RemoteError(
                f"{self.uri} holds {path!r}, whose name could lead out of a folder; rename or remove it"
            )
        return name

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            said = re.sub(r"\s*\(?Request ID: .*", "", str(error).strip().partition("\n")[0])
            raise RemoteError(f"{self.uri} cannot be {what}: {said}; {self._fix()}") from error

    def _fix(self) -> str:
        fix = "see that the address is right and that this machine has access"
        if not self.uri.startswith("s3:"):
            return fix
        return (
            f"{fix}: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in its environment, or its role, and for a "
            "server of your own AWS_ENDPOINT_URL"
        )
