"""Addresses without what is secret in them: every text of another library that may name one passes here."""

from __future__ import annotations

import logging
import re

__all__ = ["MaskingFilter", "masked"]

_USER = re.compile(r"(?<=://)[^/\s@'\"]*@(?=[^\s/@])")
_NAMED = re.compile(
    r"(?i)\b(password|passwd|pwd|token|secret|api_?key|access_key|secret_key)(=|%3D|['\"]?:\s?['\"]?)[^&\s'\",;)]+"
)


def masked(text: str) -> str:
    """The text with `***` in place of the user and the password of an address, and of named secrets."""
    return _NAMED.sub(r"\1\2***", _USER.sub("***@", text))


class MaskingFilter(logging.Filter):
    """Masks what is logged, tracebacks included."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = masked(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = masked(record.exc_text)
        return True
