"""What is planted in data is found: wrong labels, copies across splits, leaking groups."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.search.commands import both_streams, transfer_search
from trainables.training.doubts import confusions, doubts
from trainables.training.twins import twins

SPEC = """
name: doubts
data: {{source: {source}, image_size: 32, orientation_matters: true}}
space: {{backbone: efficientnet_lite0, strategy: probe, policy: [none, classic]}}
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str], set[frozenset[str]]]:
    """A manifest of digits; the images with a wrong label, and the pairs of copies."""
    from sklearn.datasets import load_digits

    place = tmp_path_factory.mktemp("planted")
    digits, numbers = load_digits(), np.random.default_rng(0)
    rows, wrong, copies = [], set(), set()
    for at in range(240):
        name, label = f"{at}.png", int(digits.target[at])
        pixels = np.kron(digits.images[at] * 15, np.ones((4, 4))).astype(np.uint8)
        Image.fromarray(pixels).save(place / name)
        if at % 20 == 7:
            label, _ = (label + int(numbers.integers(1, 10))) % 10, wrong.add(name)
        split = ("train", "train", "train", "validation", "test")[at // 10 % 5]
        rows.append((name, label, split, f"scan{at // 10}"))
        if at % 24 == 5 and split == "train":
            again, copy = io.BytesIO(), f"{at}-again.png"
            Image.fromarray(np.roll(pixels, 2, axis=1)).save(again, "JPEG", quality=80)
            Image.open(again).resize((40, 40)).save(place / copy)
            rows.append((copy, int(digits.target[at]), "test", f"scan{at // 10}-again"))
            copies.add(frozenset((name, copy)))
    Image.fromarray(numbers.integers(0, 256, (32, 32)).astype(np.uint8)).save(place / "999.png")
    rows.append(("999.png", 3, "train", "scan999"))
    with (place / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "scan"), *rows])
    (place / "spec.yaml").write_text(SPEC.format(source=place / "images.csv"))
    return place, wrong, copies


def test_it_finds_what_was_planted_and_draws_it(
    planted: tuple[Path, set[str], set[frozenset[str]]], tmp_path: Path
) -> None:
    place, wrong, copies = planted
    sheet = tmp_path / "sheet.png"
    plan = ("launch", place / "spec.yaml", "--dry-run")
    assert "outliers: not looked for" in transfer_search(*plan)
    output, errors = both_streams("inspect", place / "spec.yaml", "--json", "--sheet", sheet, code=0)
    found = json.loads(output)
    assert found["outliers"][0]["name"] == "999.png"
    assert len(found["outliers"]) < 10
    leaks = sum(each["leak"] for each in found["twins"])
    told = f"{len(found['suspects'])} labels that are probably wrong, {leaks} pairs of copies in different"
    assert f"inspected: {told} splits" in transfer_search(*plan)
    doubted = [each["name"] for each in found["suspects"][: len(wrong)]]
    assert len(wrong & set(doubted)) >= 0.7 * len(wrong), "of so few images"
    pairs = {frozenset(each["names"]): each for each in found["twins"]}
    assert copies <= pairs.keys()
    assert all(pairs[copy]["leak"] for copy in copies)
    assert found["confused"][0]["count"] <= found["confused"][0]["of"]
    assert 0.8 < found["accuracy"] < 1
    assert f"images drawn into {sheet}" in errors
    assert Image.open(sheet).width > 500


def test_people_get_lists_and_leaks(planted: tuple[Path, set[str], set[frozenset[str]]]) -> None:
    place, *_ = planted
    printed = transfer_search("inspect", place / "spec.yaml", "--set", "data.group=([0-9]+)")
    assert "labels that are probably wrong: " in printed
    assert "nearly the same, in different splits: " in printed
    assert "pairs of classes that are confused: " in printed
    assert "group 5: 5.png (train), for 5-again.png (test)" in printed
    assert "images of groups that leak, left out: 8" in printed


def test_a_spec_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC.format(source=tmp_path / "nothing"))
    assert "does not exist" in transfer_search("inspect", tmp_path / "spec.yaml", code=2)


def test_doubts_are_ranked_by_how_improbable_the_label_is() -> None:
    shares = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.05, 0.95], [0.3, 0.7]])
    labels = torch.tensor([0, 0, 1, 0, 0, 0])
    assert [(each.place, each.label, each.likely) for each in doubts(shares, labels)] == [
        (4, 0, 1),
        (3, 0, 1),
    ]
    assert confusions(shares, labels) == [(1, 0, 3, 6)]


def test_twins_are_alike_and_noise_is_not() -> None:
    numbers = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(60, 1, 8, 8, generator=numbers), (32, 32), mode="bicubic"
    )
    images = torch.cat([smooth[:, 0], smooth[:10, 0].roll(2, 2) + 0.01])
    features = torch.randn(70, 40, generator=numbers)
    assert {(one, two) for one, two, _ in twins(images, features)} == {(n, 60 + n) for n in range(10)}
    assert twins(images[:1], features[:1]) == []
    assert [each[:2] for each in twins(images[[0, 1, 60]], features[[0, 1, 60]])] in ([], [(0, 2)])
    assert twins(torch.zeros(6, 32, 32), torch.zeros(6, 3)) == []


def test_many_copies_of_one_image_are_found_as_one_is() -> None:
    numbers = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(60, 1, 8, 8, generator=numbers), (32, 32), mode="bicubic"
    )[:, 0]
    copies = torch.stack([smooth[0].roll(place % 3 - 1, place % 2) for place in range(1, 9)])
    images = torch.cat([smooth, copies + 0.01 * torch.randn(8, 32, 32, generator=numbers)])
    features = torch.randn(68, 40, generator=numbers)
    found = [(one, two) for one, two, _ in twins(images, features)]
    own = {0, *range(60, 68)}
    assert {each for pair in found for each in pair} == own
    assert all(one in own and two in own for one, two in found)
