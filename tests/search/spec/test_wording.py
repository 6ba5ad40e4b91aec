"""Specs as people write them: read where the meaning is clear, else told in a person's words."""

from __future__ import annotations

import re

import pytest

from search.errors import SpecError
from search.spec.domains import Range
from search.spec.search_spec import read_spec
from tests.search.specs import SMALL, small

_STRANGE = re.compile(r"input should|validation error|\^|\[A-Z|pydantic|dictionary|NoneType", re.IGNORECASE)


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read_spec(text, overrides)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: small", "name: on", "YAML reads on, yes or true as true"),
        ("name: small", "name: my search", "made of letters (a to z), digits, dots"),
        ("trials: 6", "trials: 010", "is read by YAML as an octal number, 8"),
        ("trials: 6", "trials: 2\n  time: 1:30", "a number to base 60, 90; write 90s"),
        ("trials: 6", "trials: 2.5", "search.trials (line 9) is 2.5: must be a whole number"),
        ("trials: 6", "trials: -1", "must be greater than or equal to 1"),
        ("trials: 6", "trials: 2\n  pruner: off", "YAML reads off, no or false as false"),
        ("trials: 6", "trials: 2\n  objective: val_accuracy", "such as {val_accuracy: maximize}"),
        ("trials: 6", "trials: 2\n  objective: [val_accuracy]", "such as {val_accuracy: maximize}"),
        (
            "trials: 6",
            "trials: 2\n  objective: {accuracy: maximize}",
            "must be one of 'train_loss', 'val_loss', 'val_accuracy'",
        ),
        ("trials: 6", "n_trials: 6", "did you mean trials?"),
        ("max_epochs: 4", "epochs: 4", "did you mean max_epochs?"),
        ("policy: [none, classic]", "policy: No", "YAML reads off, no or false as false"),
        ("policy: [none, classic]", "policy: [none, on]", "YAML reads on, yes or true as true"),
        ("source: digits", "path: digits", "did you mean source?"),
        (
            "limit: {train: 200, validation: 100, test: 50}",
            "limit: 100",
            "such as {train: 100, validation: 50}",
        ),
        ("image_size: 32", "image_size: 32x32", "must be a whole number"),
        ("  lr: {", "  learning_rate: {", "did you mean lr?"),
        ("  lr: {", "  model: resnet50\n  lr: {", "did you mean backbone?"),
    ],
)
def test_what_is_wrong_is_told_in_a_persons_words(old: str, new: str, says: str) -> None:
    assert old in SMALL
    told = problems(SMALL.replace(old, new))
    assert any(says in each for each in told), told
    assert not [each for each in told if _STRANGE.search(each)]


def test_overrides_are_read_as_the_file_is() -> None:
    assert "octal" in problems(SMALL, "search.trials=010")[0]
    assert "base 60" in problems(SMALL, "search.time=1:30")[0]


def test_a_mistake_in_a_range_is_the_only_one_told() -> None:
    text = SMALL.replace("policy: [none, classic]", "policy: none").replace("batch_size: [32, 64]", "")
    assert problems(text.replace("high: 1.0e-1", "hihg: 1.0e-1"))[0].startswith("space.lr.high")
    assert not any("fixes every" in each for each in problems(text.replace("high: 1.0e-1", "hihg: 1.0e-1")))


@pytest.mark.parametrize("other", ["[1e-6]", "[0.000001]", "1e-6"])
def test_numbers_are_read_alike_beside_a_range(other: str) -> None:
    domain = small(f"space.weight_decay={{low: 1e-4, high: 1e-2, or: {other}}}").space["weight_decay"]
    assert isinstance(domain, Range)
    assert domain.alternatives == (1e-6,)


@pytest.mark.parametrize(("given", "seconds"), [("1.5h", 5400), ("1h 30m", 5400), ("90", 90), ("0.5m", 30)])
def test_times(given: str, seconds: float) -> None:
    assert small(f"search.time={given}").search.time == seconds


def test_an_objective_that_is_turned_round_is_warned_of() -> None:
    assert small("search.objective={val_loss: minimize}").warnings == []
    (told,) = small("search.objective={val_loss: maximize}").warnings
    assert "did you mean minimize?" in told
