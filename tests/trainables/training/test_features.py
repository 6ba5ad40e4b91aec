from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainables.files.cache import Cache
from trainables.image import augment, backbones
from trainables.image.augment import Policy
from trainables.image.backbones import Backbone
from trainables.image.data import ImageData
from trainables.image.hparams import ImageHParams as HParams
from trainables.seeds import derived_seed, sample_seeds
from trainables.training.features import FrozenFeatures
from trainables.training.model import TransferModel, build_model, stages_read

CHUNKS = 2  # of the 150 training images


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def model(small_lite0: Backbone) -> TransferModel:
    return build_model(small_lite0, HParams(), 10)


def policy(name: str, backbone: Backbone, **knobs: Any) -> Policy:
    return augment.build(HParams(policy=name, **knobs), image_size=backbone.preprocessing.image_size)


def features(
    data: ImageData, backbone: Backbone, cache: Cache | None, name: str = "flip_crop", **changes: Any
) -> FrozenFeatures:
    preprocessing = backbone.preprocessing
    known: dict[str, Any] = {
        "model": build_model(backbone, HParams(), 10),
        "trunk_key": f"{backbone.name} {backbone.weights_hash} {preprocessing}",
        "examples": data.examples(preprocessing),
        "indices": data.splits["train"],
        "policy": policy(name, backbone),
        "data_key": data.fingerprint,
        "cache": cache,
        "dtype": torch.float16,
        "device": torch.device("cpu"),
    }
    return FrozenFeatures(**{**known, **changes})


def test_a_view_is_what_the_trunk_makes_of_the_augmented_frames(
    digits: ImageData, small_lite0: Backbone, model: TransferModel, cache: Cache
) -> None:
    found = features(digits, small_lite0, cache, dtype=torch.float32)
    indices = digits.splits["train"]
    seeds = sample_seeds(derived_seed("view", 3), indices)
    inputs = found.policy(found.examples[indices], seeds)
    with torch.no_grad():
        expected = model.eval().features(inputs)
    view = found.view(3)
    assert view.shape == (150, small_lite0.features)
    torch.testing.assert_close(view, expected, rtol=1e-4, atol=1e-5)
    half = features(digits, small_lite0, None).view(3)  # of a folded trunk
    torch.testing.assert_close(half, view.half(), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["none", "flip_crop"])
def test_parts_that_are_computed_at_once_are_the_same(
    digits: ImageData, small_lite0: Backbone, cache: Cache, name: str
) -> None:
    at_once = features(digits, small_lite0, cache, name, at_once=2).view(1)
    assert cache.usage.computed == 2
    assert at_once.equal(features(digits, small_lite0, None, name).view(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_kept_view_is_the_computed_one_bit_for_bit(
    digits: ImageData, small_lite0: Backbone, cache: Cache, dtype: torch.dtype
) -> None:
    online = features(digits, small_lite0, None, dtype=dtype).view(1)
    first = features(digits, small_lite0, cache, dtype=dtype).view(1)
    from_disk = features(digits, small_lite0, Cache(cache.root), dtype=dtype).view(1)
    in_memory = features(digits, small_lite0, cache, dtype=dtype).view(1)
    assert online.dtype == dtype
    for view in (first, from_disk, in_memory):
        assert view.dtype == dtype
        assert torch.equal(view, online)
    assert (cache.usage.computed, cache.usage.hits, cache.usage.resident) == (CHUNKS, 0, 1)


def test_the_identity_has_one_view(digits: ImageData, small_lite0: Backbone, cache: Cache) -> None:
    told: list[tuple[str, int, int]] = []
    found = features(digits, small_lite0, cache, "none", progress=lambda *progress: told.append(progress))
    assert torch.equal(found.view(0), found.view(5))
    assert cache.usage.computed == CHUNKS
    assert told == [("features, view 0", n + 1, CHUNKS) for n in range(CHUNKS)]


def test_what_could_change_a_view_changes_its_keys(
    digits: ImageData, few_digits: ImageData, small_lite0: Backbone, cache: Cache
) -> None:
    larger = backbones.build("efficientnet_lite0", image_size=40)
    random = [
        backbones.build("efficientnet_lite0", weights="none", image_size=32, seed=seed) for seed in (0, 1)
    ]
    everything = [
        features(digits, small_lite0, cache),
        features(digits, small_lite0, cache, dtype=torch.float32),
        features(digits, small_lite0, cache, indices=digits.splits["validation"]),
        features(digits, small_lite0, cache, data_key="other pixels"),
        features(few_digits, small_lite0, cache),
        features(digits, larger, cache),
        *(features(digits, backbone, cache) for backbone in random),
        *(features(digits, small_lite0, cache, name) for name in ("none", "classic", "rand_augment")),
        *(
            features(digits, small_lite0, cache, policy=policy("rand_augment", small_lite0, **knobs))
            for knobs in ({"ra_ops": 1}, {"ra_magnitude": 10}, {"random_erasing": 0.1})
        ),
    ]
    keys = [
        found._key(chunk, number, ())
        for found in everything
        for chunk in found.indices.split(64)
        for number in (0, 1)
    ]
    assert len(set(keys)) == len(keys)
    again = features(digits, small_lite0, None)
    assert again._key(again.indices[:64], 0, ()) == keys[0]


def test_the_arithmetic_is_part_of_the_key(digits: ImageData, small_lite0: Backbone) -> None:
    found = features(digits, small_lite0, None)
    one = found._key(found.indices, 0, ())
    try:
        torch.set_num_threads(2)
        assert found._key(found.indices, 0, ()) != one
    finally:
        torch.set_num_threads(1)
    assert found._key(found.indices, 0, ()) == one


def test_computing_a_view_moves_no_generator(digits: ImageData, small_lite0: Backbone) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    features(digits, small_lite0, None, "trivial_augment").view(0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_pass_is_kept_for_every_head_that_is_beside(
    digits: ImageData, small_lite0: Backbone, cache: Cache, dtype: torch.dtype
) -> None:
    kinds = ("last", "stages", "grid")
    beside = tuple(stages_read(small_lite0, kind) for kind in kinds)

    def of(kind: str, cache: Cache | None) -> torch.Tensor:
        model = build_model(small_lite0, HParams(features=kind), 10)
        return features(digits, small_lite0, cache, model=model, dtype=dtype, beside=beside).view(2)

    found = {kind: of(kind, cache) for kind in kinds}
    assert (cache.usage.computed, cache.usage.hits) == (CHUNKS, 2 * CHUNKS)
    for kind in kinds:
        torch.testing.assert_close(found[kind], of(kind, None), rtol=2e-3, atol=2e-3)
