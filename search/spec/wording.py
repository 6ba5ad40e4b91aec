"""What is wrong with a value, in the words of a person: not pydantic's, not YAML's, no regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trainables.errors import did_you_mean

__all__ = ["misread", "number_as_yaml_reads_it", "reworded", "unknown_key"]

_EXAMPLES = {
    "data": "{source: ./images}",
    "data.splits": "{validation: 0.2, test: 0.2}",
    "data.limit": "{train: 100, validation: 50}",
    "search": "{trials: 32, max_epochs: 8}",
    "search.objective": "{val_accuracy: maximize}",
    "search.finalists": "{top: 3, seeds: 3}",
    "resources": "{cpu: 1, gpu: 0}",
    "tracking": "{uri: sqlite:///mlflow.db}",
    "cache": "{max_gb: 20}, or off",
}
_KINDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list, such as [0, 0.5]",
    "list_type": "must be a list, such as [0, 0.5]",
    "string_pattern_mismatch": (
        "must be made of letters (a to z), digits, dots, dashes and underscores, start with a letter or "
        "digit, and have at most 63 of them"
    ),
}
_MEANT = {
    "algorithm": "sampler",
    "arch": "backbone",
    "architecture": "backbone",
    "aug": "policy",
    "augment": "policy",
    "augmentation": "policy",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "bs": "batch_size",
    "cpus": "cpu",
    "dataset": "source",
    "dev": "validation",
    "dir": "source",
    "drop": "dropout",
    "drop_rate": "dropout",
    "early_stopping": "pruner",
    "epochs": "max_epochs",
    "eta": "lr",
    "folder": "source",
    "gpus": "gpu",
    "holdout": "test",
    "image": "image_size",
    "img_size": "image_size",
    "l2": "weight_decay",
    "learning_rate": "lr",
    "max_time": "time",
    "metric": "objective",
    "model": "backbone",
    "n_trials": "trials",
    "network": "backbone",
    "num_gpus": "gpu",
    "num_samples": "trials",
    "num_trials": "trials",
    "opt": "optimizer",
    "optim": "optimizer",
    "path": "source",
    "resolution": "image_size",
    "sched": "schedule",
    "scheduler": "schedule",
    "size": "image_size",
    "timeout": "time",
    "transform": "policy",
    "transforms": "policy",
    "val": "validation",
    "wd": "weight_decay",
}
"""What other programs call what is called otherwise here."""


def unknown_key(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """What to say of a key that a section does not have."""
    meant = _MEANT.get(name.lower().replace("-", "_"))
    hint = f"; did you mean {meant}?" if meant in known else did_you_mean(name, known)
    return f"is not a known key{hint}; allowed: {', '.join(known)}"


def reworded(kind: str, place: str, value: Any, message: str) -> str:
    """What pydantic says of a value, as a colleague would.

    Args:
        kind: pydantic's name of the error.
        place: dotted path of the field.
        value: what was given.
        message: pydantic's own.
    """
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        told = f"must be a mapping, such as {_EXAMPLES.get(place, '{key: value}')}"
    else:
        told = _KINDS.get(kind) or message.removeprefix("Value error, ").replace("Input should be", "must be")
    return told[:1].lower() + told[1:] + misread(value)


def misread(value: Any) -> str:
    """What YAML may have made of a word that was written without quotes."""
    if isinstance(value, bool):
        words = "on, yes or true" if value else "off, no or false"
        return f' (YAML reads {words} as {str(value).lower()}: write the word in "quotes" if it is text)'
    return ""


def number_as_yaml_reads_it(text: str) -> str | None:
    """What is odd about how YAML 1.1 reads a plain number; None for ordinary ones."""
    if re.fullmatch(r"[-+]?0[0-7_]+", text):
        return f"is read by YAML as an octal number, {int(text.replace('_', ''), 8)}; write it without the 0"
    if re.fullmatch(r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+", text):
        total = 0
        for part in text.split(":"):
            total = total * 60 + int(part)
        return f'is read by YAML as a number to base 60, {total}; write {total}s, or put it in "quotes"'
    return None
