"""Values of a spec that are more than a number or a name: times, addresses, what the environment holds."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from search.errors import BadInput
from search.spec.section import SECRET
from trainables.errors import did_you_mean
from trainables.record import COSTS, REPORTED

__all__ = [
    "ELSEWHERE",
    "SMALLER_IS_BETTER",
    "STORAGE_VARIABLE",
    "TRACKING_VARIABLE",
    "Address",
    "Direction",
    "Duration",
    "Location",
    "Metric",
    "expanded",
    "seconds_of",
    "shared",
    "with_driver",
]


_AMOUNT = r"\d+(?:\.\d+)?"


def _seconds(value: Any) -> Any:
    """`90`, `90s`, `30m`, `1h30m` or `2d` as seconds."""
    if not isinstance(value, str):
        return value
    parts = re.fullmatch("".join(rf"(?:({_AMOUNT}){unit})?" for unit in "dhms"), re.sub(r"\s", "", value))
    if not parts or not any(parts.groups()):
        raise ValueError("must be a time such as 90s, 30m, 1.5h or 1h30m")
    days, hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def seconds_of(text: str) -> float:
    """A time such as 90s, 30m or 1h30m in seconds.

    Raises:
        BadInput: if it is none.
    """
    try:
        return float(_seconds(text))
    except ValueError as error:
        raise BadInput(f"the time {text!r} {error}") from error


def expanded(value: str) -> str:
    """`value` with ${VARIABLE} taken from the environment."""
    missing = [name for name in re.findall(r"\$\{(\w+)\}", value) if name not in os.environ]
    if missing:
        raise ValueError(f"needs the environment variable {', '.join(missing)}, which is not set")
    return re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], value)


def with_driver(url: str) -> str:
    """A database's address with the driver that the package's extras install, whatever the default is."""
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def _no_secret(value: str | None, info: ValidationInfo) -> str | None:
    """Refuses a password in the text, which the home and MLflow would keep."""
    if value is not None and SECRET.search(value):
        raise ValueError(
            "must not contain a password, since the spec is kept; put the address into an "
            "environment variable and write ${ITS_NAME} here"
        )
    if value is not None and not (info.context or {}).get(ELSEWHERE):
        expanded(value)
    return value


_KEY = re.compile(r"://[^/?]*:|[?&][^=&]*(secret|key|token|password)[^=&]*=", re.IGNORECASE)
"""What an address of files has where it holds a key; no bucket has a port."""


def _keyless(value: str) -> str:
    """Refuses a key or a password in an address of files."""
    if _KEY.search(value):
        raise ValueError(
            "must not contain a key or a password; each machine's environment has them (for S3 "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or its role does"
        )
    return value


def shared(value: str) -> str:
    if not (value.startswith("/") or "://" in value):
        raise ValueError("must be an address such as s3://bucket/prefix, or an absolute path")
    return value


SMALLER_IS_BETTER = ("val_loss", "train_loss", "epoch_seconds", "val_calibration_error", *COSTS)
_CALLED = {
    "log_loss": "val_loss",
    "top5": "val_top5_accuracy",
    "latency": "latency_ms",
    "ece": "val_calibration_error",
}
"""What others call some of the metrics."""


def _known_metric(name: str) -> str:
    if name not in REPORTED:
        plain = name.lower().removeprefix("val_").replace("-", "").replace("_accuracy", "")
        meant = _CALLED.get(plain) or _CALLED.get(name.lower().removeprefix("val_"))
        hint = f"; did you mean {meant}?" if meant else did_you_mean(name, REPORTED)
        raise ValueError(f"must be one of {', '.join(map(repr, REPORTED))}{hint}")
    return name


ELSEWHERE = "elsewhere"
STORAGE_VARIABLE = "TRANSFER_SEARCH_STORAGE"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"

Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Address = Annotated[str, AfterValidator(_no_secret)]
Location = Annotated[str, AfterValidator(_keyless)]
Direction = Literal["maximize", "minimize"]
Metric = Annotated[str, AfterValidator(_known_metric)]
