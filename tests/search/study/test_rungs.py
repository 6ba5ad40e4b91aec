"""When trials are compared, and that each kind of curve survives in the share that it deserves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from search.study.rungs import FACTOR, Curve, below_the_median, bracket, comparable, kind_of, promoted, rungs
from trainables.training.hparams import HParams


@pytest.mark.parametrize(
    ("hparams", "epochs", "found"),
    [
        (HParams(max_epochs=1), [], []),
        (HParams(max_epochs=3), [], []),
        (HParams(max_epochs=4), [2], [2]),
        (HParams(max_epochs=8), [2, 3, 4], [2]),
        (HParams(max_epochs=10), [2, 3, 4, 5], [2]),
        (HParams(max_epochs=16), [2, 3, 4, 5, 6, 7, 8], [2, 6]),
        (HParams(max_epochs=40), list(range(2, 21)), [2, 6, 18]),
        (HParams(max_epochs=12, warmup_epochs=2.5), [4, 5, 6], [4]),
        (HParams(max_epochs=8, strategy="lp_ft", lp_share=0.5), [2, 3, 4], [2]),
        (HParams(max_epochs=16, strategy="lp_ft", lp_share=0.25), [2, 3, 4, 7, 8], [2, 7]),
        (HParams(max_epochs=16, strategy="lp_ft", lp_share=0.25, warmup_epochs=3), [4, 8], [4]),
        (HParams(max_epochs=16, solver="ridge"), [], []),
        (HParams(max_epochs=12, strategy="lp_ft", solver="ridge"), [3, 4, 5, 6], [3]),
        (HParams(max_epochs=16, strategy="full"), [2, 3, 4, 5, 6, 7, 8], [2, 6]),
    ],
)
def test_rungs_lie_between_the_second_epoch_and_half_the_horizon(
    hparams: HParams, epochs: list[int], found: list[int]
) -> None:
    assert comparable(hparams) == epochs
    assert rungs(hparams) == found


def test_no_rung_is_near_to_where_the_backbone_unfreezes() -> None:
    for total in range(2, 60):
        for share in (0.1, 0.25, 0.5, 0.9):
            hparams = HParams(max_epochs=total, strategy="lp_ft", lp_share=share)
            _, _, unfrozen = kind_of(hparams)
            assert not {unfrozen + 1, unfrozen + 2} & set(rungs(hparams))
            assert all(2 <= epoch <= total / 2 for epoch in rungs(hparams))
            assert all(one < other for one, other in pairwise(rungs(hparams)))


def curves(*values: float, kind: str = "probe") -> list[Curve]:
    return [Curve(kind=kind, value=value) for value in values]


def test_of_three_at_a_rung_one_goes_on() -> None:
    assert promoted(Curve(kind="probe", value=0.1), []), "the first of its kind"
    assert promoted(Curve(kind="probe", value=0.6), curves(0.5))
    assert not promoted(Curve(kind="probe", value=0.4), curves(0.5))
    assert promoted(Curve(kind="probe", value=0.5), curves(0.9, 0.3, 0.2, 0.1, 0.4))
    assert not promoted(Curve(kind="probe", value=0.5), curves(0.9, 0.8, 0.2, 0.1, 0.4))
    assert promoted(Curve(kind="lp_ft", value=0.1), curves(0.9, 0.8, 0.7)), "others tell nothing yet"


def test_kinds_meet_by_what_they_are_expected_to_end_at() -> None:
    ended = [Curve(kind="full", value=0.2, final=0.8)] * 2 + [Curve(kind="probe", value=0.7, final=0.72)] * 2
    assert promoted(Curve(kind="full", value=0.3), ended), "0.9 against 0.8 and 0.72"
    assert not promoted(Curve(kind="probe", value=0.75), ended), "0.77 is third"
    assert below_the_median(Curve(kind="probe", value=0.7), ended)
    assert not below_the_median(Curve(kind="full", value=0.25), ended)
    assert not below_the_median(Curve(kind="full", value=0.0), [])


@pytest.mark.parametrize("rungs", [1, 2, 3])
def test_brackets_have_hyperbands_shares(rungs: int) -> None:
    counts = Counter(bracket(number, rungs) for number in range(2000))
    sizes = [-(-(rungs + 1) * FACTOR**left // (left + 1)) for left in range(rungs, -1, -1)]
    for skipped, size in enumerate(sizes):
        assert counts[skipped] / 2000 == pytest.approx(size / sum(sizes), abs=0.01)
    assert {bracket(number, 0) for number in range(9)} == {0}


# Survival, simulated


def lp_ft(final: float, epoch: int) -> float:
    """A probe that rises at once, falls when the trunk unfreezes at 4 of 16, and passes it."""
    return final - 0.12 + 0.02 * min(epoch, 4) if epoch <= 4 else final - 0.1 * 0.7 ** (epoch - 4)


def full(final: float, epoch: int) -> float:
    return final - 0.5 * 0.75**epoch


def lp_ft_trails(final: float, epoch: int) -> float:
    return final - 0.3 + 0.02 * min(epoch, 4) if epoch <= 4 else final - 0.25 * 0.6 ** (epoch - 4)


def survivors(shapes: Sequence[Callable[[float, int], float]], ahead: float, seed: int) -> list[int]:
    """The kinds of the trials that ASHA lets end, of 120 each; the first kind ends `ahead` on average."""
    numbers = random.Random(seed)
    hparams = [
        HParams(max_epochs=16, strategy="lp_ft", lp_share=0.25),
        HParams(max_epochs=16, strategy="full"),
    ]
    field: list[list[tuple[int, int, float]]] = [[], []]  # at each rung: trial, kind, value
    finals: dict[int, float] = {}
    ended = []
    for number in range(240):
        kind = number % 2
        final = 0.75 + numbers.gauss(0, 0.03) + (ahead if kind == 0 else 0.0)
        for stage, epoch in enumerate(rungs(hparams[kind])):
            value = shapes[kind](final, epoch) + numbers.gauss(0, 0.005)
            others = [
                Curve(kind=each, value=seen, final=finals.get(trial)) for trial, each, seen in field[stage]
            ]
            field[stage].append((number, kind, value))
            if not promoted(Curve(kind=kind, value=value), others):
                break
        else:
            finals[number] = final
            ended.append(kind)
    return ended


@pytest.mark.parametrize(("ahead", "least", "most"), [(-0.06, 0.0, 0.2), (0.0, 0.3, 0.7), (0.06, 0.8, 1.0)])
@pytest.mark.parametrize("shape", [lp_ft, lp_ft_trails])
def test_a_kind_survives_in_the_share_that_its_end_deserves(
    shape: Callable[[float, int], float], ahead: float, least: float, most: float
) -> None:
    shares = []
    for seed in range(5):
        ended = survivors((shape, full), ahead, seed)
        assert len(ended) > 20
        shares.append(ended.count(0) / len(ended))
    share = sum(shares) / len(shares)
    print(f"{shape.__name__} ahead by {ahead:+.2f}: {share:.2f} of survivors")
    assert least <= share <= most
