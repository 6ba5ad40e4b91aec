"""How the names of image files end."""

from __future__ import annotations

__all__ = ["EXTENSIONS"]

EXTENSIONS = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
"""File name endings, in lower case, that a folder's images may have."""
