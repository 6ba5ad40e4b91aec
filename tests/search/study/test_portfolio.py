"""What did well on other tasks: which of it a space has, and in which order it is tried."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from search.spec.search_spec import SearchSpec
from search.study import space
from search.study.portfolio import Portfolio, portfolio
from search.study.recipes import recipes
from tests.search.specs import small
from trainables.image.hparams import ImageHParams as HParams
from trainables.image.modality import IMAGE
from trainables.text.modality import TEXT

BOTH = """space={strategy: [probe, full], policy: [none, flip_crop], lr: {low: 1e-4, high: 1e-1, log: true},
  trunk_lr: {low: 3e-5, high: 5e-4, log: true}, batch_size: [16, 32]}"""


def spec_of(*changes: str) -> SearchSpec:
    return small(BOTH, "search.trials=60", *changes)


def table() -> Portfolio:
    return Portfolio(
        tasks=("one", "two", "three"),
        configurations=({"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}, {"lr": 0.4}),
        counted=np.array([[0.9, 0.2, 0.7, 0.8], [0.3, 0.8, 0.7, 0.7], [0.5, 0.5, 0.6, 0.5]]),
        test=np.array([[0.9, 0.3, 0.7, 0.6], [0.2, 0.9, 0.7, 0.7], [0.5, 0.5, 0.5, 0.8]]),
    )


def test_each_lowers_the_regret_that_those_before_it_leave() -> None:
    known, every = table(), range(4)
    assert known.complementing(every, 1) == [3]  # the best on the average
    assert known.complementing(every, 2) == [3, 0]  # 0.3 to win on the first task, 0.2 on the second
    assert known.complementing(every) == [3, 0, 1, 2]  # the last would only mislead, on the third
    assert known.complementing((0, 2)) == [2, 0]


def test_what_was_tried_before_is_complemented() -> None:
    assert table().complementing(range(4), 1, after=[0]) == [1]


def test_a_task_that_is_left_out_has_no_say() -> None:
    assert table().complementing(range(4), 1, tasks=[0]) == [0]
    assert table().complementing(range(4), 1, tasks=[1]) == [1]


def test_regret_is_of_what_validation_would_take() -> None:
    known = table()
    assert known.regret(0, [1, 2]) == pytest.approx(0.2)
    assert known.regret(2, [2, 3]) == pytest.approx(0.3)  # validation takes the third, the fourth is better


def test_a_table_reads_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text(table().to_json())
    read = Portfolio.read(file)
    assert read.tasks == table().tasks
    assert read.configurations == table().configurations
    np.testing.assert_array_equal(read.counted, table().counted)
    np.testing.assert_array_equal(read.test, table().test)


def test_the_table_that_is_shipped() -> None:
    assert IMAGE.portfolio is not None
    assert IMAGE.portfolio.stat().st_size < 2**20
    known = Portfolio.read(IMAGE.portfolio)
    assert len(known.tasks) >= 6
    assert known.test.size >= 2000
    assert known.test.shape == known.counted.shape == (len(known.tasks), len(known.configurations))
    for values in known.configurations:
        hparams = HParams.from_dict(dict(values))  # raises for what is no knob, or not allowed
        assert set(values) <= set(hparams.active), "it says what nobody reads"
    assert "seed" not in json.dumps(known.configurations)


def test_a_search_begins_with_recipes_and_then_with_the_portfolio() -> None:
    spec = spec_of()
    first = [space.configured(params, spec) for params in space.first_params(spec)]
    told = [values["strategy"] for values in recipes(spec)]
    assert len(told) < len(first) <= 20  # a third of its trials
    assert len({json.dumps(each, sort_keys=True) for each in first}) == len(first)
    assert [each["strategy"] for each in first if each][: len(told)] == told


def test_few_trials_begin_with_recipes_alone() -> None:
    spec = spec_of("search.trials=6")
    assert len(list(space.first_params(spec))) == len(list(recipes(spec)))


def test_what_a_space_lacks_is_left_out() -> None:
    for values in portfolio(spec_of()):
        assert values["strategy"] in ("probe", "full")
        assert values["policy"] in ("none", "flip_crop")
        assert values.get("features", "last") == "last"
        assert values.get("optimizer", "adamw") == "adamw"  # which a spec that names none has
    assert list(portfolio(spec_of("space.head=mlp"))) == []


def test_what_is_fine_tuned_complements_the_heads() -> None:
    found = list(portfolio(spec_of(), fine_tuned=True))
    assert found
    assert {values["strategy"] for values in found} == {"full"}


def test_the_trunks_rate_is_told_as_the_space_has_it() -> None:
    plain, *_ = portfolio(spec_of(), fine_tuned=True)
    without = spec_of("space.trunk_lr=null", "space.backbone_lr_mult={low: 0.001, high: 1, log: true}")
    as_share, *_ = portfolio(without, fine_tuned=True)
    assert as_share["backbone_lr_mult"] == pytest.approx(plain["trunk_lr"] / plain["lr"])


def test_a_modality_without_a_table_has_none() -> None:
    assert TEXT.portfolio is None
