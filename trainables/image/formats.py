"""Readers of the file formats in which published sets come: IDX, and pickles of plain values."""

from __future__ import annotations

import gzip
import pickle
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from trainables.errors import DataError

__all__ = ["read_idx", "read_plain_pickle"]

Pixels = npt.NDArray[np.uint8]

_UNSIGNED_BYTE = 8
_MOST_BYTES = 2**33


def read_idx(path: Path, dimensions: int) -> Pixels:
    """The array of unsigned bytes in an IDX file, gzipped or not.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each one's
    size as a big-endian 32-bit number, then the values (described on Yann LeCun's MNIST page).

    Raises:
        DataError: when the file is another kind, is cut short, or holds more than its header says.
    """
    try:
        with _opened(path) as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UNSIGNED_BYTE:
                raise DataError(
                    f"{path} begins with {head[:4].hex(' ') or 'nothing'}, but an IDX file of "
                    f"bytes begins with 00 00 08 {dimensions:02x}; fetch the file again"
                )
            if head[3] != dimensions or len(head) < 4 + 4 * dimensions:
                raise DataError(
                    f"{path} has {head[3]} dimensions in its header, but must have {dimensions}; "
                    "are the files of images and labels exchanged?"
                )
            shape = tuple(int(size) for size in np.frombuffer(head, dtype=">u4", offset=4))
            wanted = 1
            for size in shape:
                wanted *= size
            body = file.read(wanted + 1) if wanted <= _MOST_BYTES else b""
    except (OSError, EOFError, zlib.error) as exc:
        raise DataError(f"{path} cannot be read: {exc}; fetch the file again") from exc
    if len(body) != wanted:
        held = "more" if len(body) > wanted else f"{len(body):,}"
        raise DataError(
            f"{path} promises {' x '.join(map(str, shape))} = {wanted:,} bytes, but holds {held}; "
            "fetch the file again"
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_gzip else path.open("rb")  # type: ignore[return-value]


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """The dictionary of text, numbers, lists and arrays of bytes in a pickle file.

    Nothing of the file is ever called: the few names that a pickled NumPy array needs stand for
    inert holders here, and every other name is refused.

    Raises:
        DataError: when the file names anything else, or is no such dictionary.
    """
    try:
        with path.open("rb") as file:
            value = _PlainUnpickler(file, encoding="latin1").load()
        if not isinstance(value, dict):
            raise TypeError(f"it holds a {type(value).__name__}, not a dict")
        return {str(key): each.array() if isinstance(each, _Array) else each for key, each in value.items()}
    except MemoryError as exc:
        raise DataError(f"{path} asks for more memory than there is; fetch the file again") from exc
    except Exception as exc:  # what a forged pickle makes the machine stumble on is open
        raise DataError(
            f"{path} is not a plain pickle of lists, text and arrays of bytes "
            f"({type(exc).__name__}: {exc}); it may be damaged or forged: fetch the file again"
        ) from exc


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        place = module.replace("numpy._core", "numpy.core")
        if (place, name) == ("numpy.core.multiarray", "_reconstruct"):
            return _Array
        if (place, name) == ("numpy.core.numeric", "_frombuffer"):
            return lambda *values: _Array.from_buffer(*values)
        if (place, name) == ("numpy", "dtype"):
            return _Dtype
        if (place, name) == ("numpy", "ndarray"):
            return None
        if (place, name) == ("_codecs", "encode"):
            return lambda text, encoding: str(text).encode(str(encoding))
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed")


class _Dtype:
    __slots__ = ("name",)

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, _: Any) -> None:
        """The byte order, which bytes do not have."""


class _Array:
    __slots__ = ("dtype", "raw", "shape")

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype: Any = None
        self.raw: Any = b""

    def __setstate__(self, values: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, is_fortran, self.raw = values
        if is_fortran:
            raise pickle.UnpicklingError("its array is in Fortran order")

    @staticmethod
    def from_buffer(raw: Any, dtype: Any, shape: Any, order: str) -> _Array:
        made = _Array()
        made.__setstate__((1, shape, dtype, order == "F", raw))
        return made

    def array(self) -> Pixels:
        if not isinstance(self.dtype, _Dtype) or self.dtype.name not in ("u1", "uint8"):
            raise pickle.UnpicklingError("it holds an array of other than unsigned bytes")
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else bytes(self.raw)
        return np.frombuffer(raw, dtype=np.uint8).reshape(self.shape)
