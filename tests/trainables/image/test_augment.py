from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from trainables.image import augment, transforms
from trainables.image import mixing as mixing_of
from trainables.image import operations as ops
from trainables.image.hparams import POLICIES
from trainables.image.hparams import ImageHParams as HParams
from trainables.image.ranges import Ranges

ROWS = ((("Rotate", 0.5, 12), ("Color", 0.8, 20)), (("Equalize", 1.0, 0),))
FRAME, SIZE = 37, 32


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def policy(name: str, size: int = SIZE, upright: bool = False, **knobs: Any) -> augment.Policy:
    if name == "sampled":
        knobs.setdefault("sub_policies", ROWS)
    return augment.build(HParams(policy=name, **knobs), image_size=size, orientation_matters=upright)


def frames(count: int, side: int = FRAME) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return (10 + 230 * smooth).to(torch.uint8)


def seeds(count: int, root: int = 0) -> torch.Tensor:
    return ops.derived_seeds(root, torch.arange(count))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("side", "size"), [(37, 32), (33, 33), (41, 7), (8, 8)])
def test_every_policy_keeps_type_and_returns_the_size(name: str, side: int, size: int) -> None:
    for upright in (False, True):
        built = policy(name, size, upright, random_erasing=0.5)
        images = frames(9, side)
        before = images.clone()
        out = built(images, seeds(9))
        assert out.dtype == torch.uint8
        assert out.shape == (9, 3, size, size)
        assert out.is_contiguous()
        assert torch.equal(images, before)
        assert built(images[:0], seeds(0)).shape == (0, 3, size, size)
        assert built.describe()


@pytest.mark.parametrize("name", POLICIES)
def test_a_sample_depends_on_its_seed_alone(name: str) -> None:
    built = policy(name, random_erasing=0.4)
    images, keys = frames(45), seeds(45)
    out = built(images, keys)
    torch.manual_seed(99)
    torch.rand(3)
    assert torch.equal(built(images, keys), out)
    order = torch.randperm(45)
    assert torch.equal(built(images[order], keys[order]), out[order])
    for i in (0, 13, 44):
        assert torch.equal(built(images[i : i + 1], keys[i : i + 1])[0], out[i])
    assert torch.equal(built(images[3:20], keys[3:20]), out[3:20])
    assert not torch.equal(built(images, seeds(45, root=1)), out)


def test_none_is_the_centre_crop_and_only_it_is_the_identity() -> None:
    built = policy("none")
    images = frames(5)
    assert built.is_identity
    assert torch.equal(built(images, seeds(5)), reference.center_crop(images, [SIZE, SIZE]))
    assert not policy("none", random_erasing=0.1).is_identity
    assert not any(policy(name).is_identity for name in POLICIES if name != "none")


def test_operations_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}

    def counted(images: Any, names: Any, choice: Any, magnitude: Any) -> Any:
        for index, number in enumerate(torch.bincount(choice, minlength=len(names)).tolist()):
            counts[names[index]] = counts.get(names[index], 0) + number
        return images

    monkeypatch.setattr(ops, "applied", counted)
    policy("trivial_augment", 2)(torch.zeros(14_000, 3, 2, 2, dtype=torch.uint8), seeds(14_000))
    assert set(counts) == set(v2.TrivialAugmentWide._AUGMENTATION_SPACE)
    assert all(abs(number - 1000) < 4.5 * math.sqrt(1000) for number in counts.values())


def test_trivial_augment_draws_every_bin_in_both_directions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.Tensor] = []

    def kept(images: Any, names: Any, choice: Any, magnitude: Any) -> Any:
        seen.append(magnitude[choice == names.index("Rotate")])
        return images

    monkeypatch.setattr(ops, "applied", kept)
    policy("trivial_augment", 2)(torch.zeros(20_000, 3, 2, 2, dtype=torch.uint8), seeds(20_000))
    values = {round(value, 3) + 0.0 for value in seen[0].tolist()}
    assert values == {round(sign * 4.5 * bin_, 3) + 0.0 for sign in (-1, 1) for bin_ in range(31)}
    assert abs((seen[0] > 0).float().mean() - 30 / 62) < 0.06


def test_rand_augment_repeats_at_its_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[torch.Tensor] = []

    def kept(images: Any, names: Any, choice: Any, magnitude: Any) -> Any:
        turns.append(magnitude[choice == names.index("Rotate")].abs())
        return images

    monkeypatch.setattr(ops, "applied", kept)
    built = policy("rand_augment", 2, ra_ops=3, ra_magnitude=10)
    built(torch.zeros(500, 3, 2, 2, dtype=torch.uint8), seeds(500))
    assert len(turns) == 3
    torch.testing.assert_close(torch.cat(turns), torch.full((sum(map(len, turns)),), 10.0))


def test_auto_augment_is_the_published_policy() -> None:
    published = v2.AutoAugment()._policies
    ours = [[(name, p, level) for name, p, level in row] for row in augment._AUTO_AUGMENT]
    theirs = [[(name, p, level or 0) for name, p, level in row] for row in published]
    assert ours == theirs


def test_sampled_applies_its_rows_with_their_probabilities() -> None:
    rows = ((("Invert", 0.25, 0),), (("Posterize", 1.0, 30), ("Solarize", 0.0, 30)))
    built = policy("sampled", FRAME, True, sub_policies=rows)
    images = frames(1).expand(4000, -1, -1, -1)[..., :12, :12].contiguous()
    out = policy("sampled", 12, True, sub_policies=rows)(images, seeds(4000))
    inverted = (out == ~images).flatten(1).all(1)
    posterized = (out == (images & 0xF0)).flatten(1).all(1)
    untouched = (out == images).flatten(1).all(1)
    assert bool((inverted | posterized | untouched).all())
    assert abs(inverted.float().mean() - 0.125) < 0.03
    assert abs(posterized.float().mean() - 0.5) < 0.04
    assert "Posterize 1 30, then Solarize 0 30" in "\n".join(built.describe())


def test_sampled_names_every_problem_at_once() -> None:
    with pytest.raises(ValueError, match="at least one"):
        policy("sampled", sub_policies=())
    with pytest.raises(ValueError, match=r"'Twirl'.*probability 1\.5.*bin 31.*\[1\] is empty"):
        policy("sampled", sub_policies=((("Twirl", 1.5, 31),), ()))


def test_augmix_mixes_between_the_image_and_its_chains() -> None:
    images = frames(300)
    out = policy("augmix", FRAME, True)(images, seeds(300))
    apart = (out.int() - images.int()).abs().float().mean((1, 2, 3))
    assert apart.min() < 3
    assert 4 < apart.mean() < 60
    flat = torch.full((50, 3, 9, 9), 200, dtype=torch.uint8)
    colours = dataclasses.replace(transforms.AugMix(names=("AutoContrast", "Equalize"), ranges=Ranges()))
    # Both leave a flat image alone, so weights that sum to 1 must too.
    assert torch.equal(colours(flat, seeds(50)), flat)


def position(count: int, side: int, size: int, name: str) -> torch.Tensor:
    """Where a random crop of a ramp begins, [count, 2]."""
    ramp = torch.arange(side).expand(side, side)
    image = torch.stack([ramp, ramp.T, torch.zeros_like(ramp)]).to(torch.uint8)
    built = policy(name, size, True, sub_policies=((("Invert", 0.0, 0),),))
    return built(image.expand(count, -1, -1, -1), seeds(count))[:, :2, 0, 0].long()


def test_crops_move_evenly_over_the_frame() -> None:
    counts = torch.bincount(position(6000, 20, 15, "sampled").flatten(), minlength=6)
    assert len(counts) == 6
    assert bool(((counts - 2000).abs() < 200).all())


@pytest.mark.parametrize("name", ["flip_crop", "classic", "trivial_augment", "sampled"])
def test_flips_are_one_half_and_none_where_orientation_matters(name: str) -> None:
    # The left half is bright; operations that hide which side that is are left out of the count.
    image = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    image[..., :12] = 200
    knobs = {"sub_policies": ((("Sharpness", 1.0, 3),),)} if name == "sampled" else {}
    for upright, expected in ((False, 0.5), (True, 1.0)):
        out = policy(name, 22, upright, **knobs)(image.expand(1200, -1, -1, -1), seeds(1200))
        left, right = out[..., 1:8, :7].float(), out[..., 1:8, 15:].float()
        left, right = left.mean((1, 2, 3)), right.mean((1, 2, 3))
        if name == "trivial_augment":
            # Solarize at its strongest inverts.
            kept = (left - right).abs() > 60
            assert abs((left > right)[kept].float().mean() - expected) < 0.08
        elif upright:
            assert bool((left > right).all())
        else:
            assert abs((left > right).float().mean() - expected) < 0.06


@pytest.mark.parametrize("name", ["classic", "trivial_augment", "rand_augment", "augmix"])
def test_an_upright_line_stays_upright_where_orientation_matters(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bright vertical bar on black leans by no more than 15 degrees, whatever is drawn."""
    for kernel in set(ops.KERNELS) - set(ops.GEOMETRY):
        monkeypatch.setitem(ops.KERNELS, kernel, lambda images, magnitude: images)
    side = 61
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    image[..., 28:33] = 255
    most = 0.0
    for upright in (False, True):
        built = policy(name, side, upright, ra_ops=3, ra_magnitude=30)
        light = built(image.expand(600, -1, -1, -1), seeds(600)).float().mean(1)
        middle = (light * torch.arange(side)).sum(2) / light.sum(2).clamp(min=1e-3)
        # A bar that was shifted out of the frame at either end has no lean to be measured.
        whole = light.sum(2)[:, 10:51].min(1).values > 4 * 255
        lean = ((middle[:, 50] - middle[:, 10]) / 40).atan().rad2deg().abs()[whole]
        assert whole.float().mean() > 0.5
        most = float(lean.max())
        assert upright or most > 15.5 or name == "augmix"
    # Three readings at the nearest pixel add up to a little more.
    assert 1 < most < 16.5


def test_flip_crop_equals_torchvision_inside_the_crop() -> None:
    images = frames(8, 60)
    stage = transforms.ResizedCrop(size=48, flip=False)
    out = stage(images, seeds(8))
    area, ratio, top, left, _ = ops.uniform(seeds(8), transforms._Stream.CROP, 5).double().unbind(1)
    height, width = transforms._rectangles(area, ratio, stage.scale, stage.ratio, 60)
    share = height * width / 3600
    assert share.min() >= 0.3
    for i in range(8):
        box = [
            int(top[i] * (60 - height[i] + 1)),
            int(left[i] * (60 - width[i] + 1)),
            int(height[i]),
            int(width[i]),
        ]
        theirs = reference.resized_crop(images[i], *box, [48, 48], antialias=False)
        off = (out[i].int() - theirs.int()).abs()[:, 1:-1, 1:-1]
        assert off.max() <= 1


def test_flip_crop_covers_its_range() -> None:
    draws = ops.uniform(seeds(5000), 0, 2).double()
    height, width = transforms._rectangles(draws[:, 0], draws[:, 1], (0.35, 1.0), (3 / 4, 4 / 3), 200)
    area = height * width / 200**2
    assert 0.34 < area.min() < 0.36
    assert area.max() > 0.97
    assert abs((width > height).float().mean() - 0.5) < 0.03
    assert (width / height).max() < 1.36


def test_erasing_fills_with_the_mean_at_its_probability() -> None:
    images = frames(3000, 16)
    erased = policy("none", 16, random_erasing=0.3)(images, seeds(3000))
    changed = (erased != images).any(1)
    share = changed.flatten(1).float().mean(1)
    assert abs((share > 0).float().mean() - 0.3) < 0.03
    assert share.max() < 0.36
    i = int(share.argmax())
    where = changed[i].nonzero()
    y, x = where[len(where) // 2].tolist()
    assert torch.equal(erased[i, :, y, x].long(), images[i].long().sum((1, 2)) // 256)
    assert torch.equal(policy("none", 16)(images, seeds(3000)), images)


def test_erasing_leaves_the_rest_of_the_policy_as_it_was() -> None:
    images = frames(40)
    plain = policy("trivial_augment")(images, seeds(40))
    erased = policy("trivial_augment", random_erasing=0.5)(images, seeds(40))
    same = (plain == erased).flatten(1).all(1).float().mean()
    assert 0.2 < same < 0.8


@pytest.mark.parametrize("name", POLICIES)
def test_key_follows_the_knobs_that_are_read_and_no_others(name: str) -> None:
    key = policy(name).key
    assert policy(name, lr=0.01, seed=7, batch_size=8, mixing="mixup", dropout=0.2).key == key
    assert policy(name, 31).key != key
    assert policy(name, random_erasing=0.1).key != key
    assert (policy(name, ra_ops=1).key != key) == (name == "rand_augment")
    assert (policy(name, ra_magnitude=1).key != key) == (name == "rand_augment")
    other = policy(name, sub_policies=((("Rotate", 0.5, 13),),)).key
    assert (other != key) == (name == "sampled")
    assert (policy(name, upright=True).key != key) == (name != "none")


def test_key_changes_with_the_policy_and_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {policy(name).key for name in POLICIES}
    assert len(keys) == len(POLICIES)
    monkeypatch.setattr(augment, "VERSION", augment.VERSION + 1)
    assert not keys & {policy(name).key for name in POLICIES}


def test_operations_are_known_kernels() -> None:
    assert augment.operations(False) == augment.OPERATIONS == tuple(ops.KERNELS)
    assert set(augment.operations(True)) <= set(augment.OPERATIONS)
    for name in augment.operations(True):
        policy("sampled", upright=True, sub_policies=(((name, 1.0, 30),),))(frames(2), seeds(2))


def test_bad_input_says_what_and_what_is_allowed() -> None:
    built = policy("none")
    with pytest.raises(ValueError, match="uint8"):
        built(frames(2).float(), seeds(2))
    with pytest.raises(ValueError, match="at least 32"):
        built(frames(2, 30), seeds(2))
    with pytest.raises(ValueError, match=r"int64 \[2\]"):
        built(frames(2), seeds(3))
    with pytest.raises(ValueError, match="30x30"):
        transforms.center_crop(frames(1, 30), 32)


def mixed(kind: str, alpha: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch whose image i has the value i everywhere, mixed."""
    inputs = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 20, 20)
    mixing = mixing_of.build_mixing(HParams(mixing=kind, mixing_alpha=alpha), 8)
    return mixing(inputs.contiguous(), torch.eye(8), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["none", "mixup", "cutmix", "both"])
def test_mixed_targets_are_distributions_that_match_the_pixels(kind: str) -> None:
    for seed in range(40):
        inputs, targets = mixed(kind, 0.1 + seed / 20, seed)
        assert inputs.dtype == targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        # The mean of image i's pixels is the mean of its partners' values by their targets.
        torch.testing.assert_close(inputs.mean((1, 2, 3)), targets @ torch.arange(8.0))
        whole = inputs == inputs.round()
        if kind == "cutmix":
            assert bool(whole.all())
    if kind == "none":
        assert torch.equal(targets, torch.eye(8))


def test_both_is_each_as_often_and_the_shares_follow_beta() -> None:
    fractions = [bool((out == out.round()).all()) for out, _ in (mixed("both", 1.0, s) for s in range(400))]
    assert abs(sum(fractions) / 400 - 0.5) < 0.08
    shares = torch.stack([mixed("mixup", 0.5, s)[1].diagonal() for s in range(400)])
    shares = shares[shares < 1]
    # Beta(1/2, 1/2): mean 1/2, variance 1/8.
    assert abs(shares.mean() - 0.5) < 0.06
    assert abs(shares.var() - 0.125) < 0.03


def test_mixing_depends_on_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = mixed("both", 0.3, 5)
    torch.manual_seed(2)
    again = mixed("both", 0.3, 5)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    generator = torch.Generator().manual_seed(0)
    mixing = mixing_of.build_mixing(HParams(mixing="mixup", mixing_alpha=1.0), 8)
    inputs = torch.rand(8, 3, 4, 4)
    one = mixing(inputs, torch.eye(8), generator)[1]
    assert not torch.equal(mixing(inputs, torch.eye(8), generator)[1], one)
    with pytest.raises(ValueError, match=r"\[8, 8\]"):
        mixing(inputs, torch.eye(7), generator)


def test_preview_shows_the_originals_first_and_repeats() -> None:
    images = frames(5)
    built = policy("trivial_augment")
    picture = augment.preview(built, images, seed=3, rows=2, draws=4)
    assert picture.size == (5 * (SIZE + 2) - 2, 2 * (SIZE + 2) - 2)
    original = reference.pil_to_tensor(picture)[:, :SIZE, :SIZE]
    assert torch.equal(original, transforms.center_crop(images, SIZE)[0])
    assert picture.tobytes() == augment.preview(built, images, 3, 2, 4).tobytes()
    assert picture.tobytes() != augment.preview(built, images, 4, 2, 4).tobytes()
    with pytest.raises(ValueError, match="rows is 0"):
        augment.preview(built, images, 3, 0)
