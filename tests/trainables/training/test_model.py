from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.image import backbones
from trainables.image.backbones import Backbone, Preprocessing
from trainables.image.hparams import ImageHParams as HParams
from trainables.training.card import Card, ModelError, make_card
from trainables.training.delta import _same_bits, load_delta, save_delta
from trainables.training.model import TransferModel, build_model, frozen_groups, unfreeze

CLASSES = tuple(f"class {number}" for number in range(10))
PROBE = HParams(head="linear", image_size=64)


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    torch.set_num_threads(1)
    return backbones.build("efficientnet_lite0", image_size=64)


def block(width: int) -> nn.Sequential:
    """A block with all that a frozen part must hold still."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, width, 3) if width else nn.Conv2d(4, 4, 3),
            norm=nn.BatchNorm2d(width or 4),
            drop=nn.Dropout(0.5),
        )
    )


def tiny() -> Backbone:
    """Three blocks with BatchNorm and dropout; the last dropout stands alone at the end."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = nn.Sequential(
            OrderedDict(
                token=nn.Dropout(0.5),
                first=block(4),
                second=block(0),
                third=block(0),
                pool=nn.AdaptiveAvgPool2d(1),
                flat=nn.Flatten(),
                last=nn.Dropout(0.5),
            )
        ).eval()
    names = list(trunk.state_dict())
    groups = tuple(
        tuple(name for name in names if name.startswith(stage)) for stage in ("first", "second", "third")
    )
    preprocessing = Preprocessing(
        image_size=8, frame_size=8, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    return Backbone("tiny", "pretrained", trunk, 4, groups, preprocessing, "0")


def state_hash(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def trunk_hash(network: TransferModel, names: Any = None) -> str:
    state = network.trunk.state_dict()
    return state_hash({name: state[name] for name in (state if names is None else names)})


def random_inputs(size: int, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def take_steps(network: TransferModel, size: int, steps: int = 2) -> None:
    """Steps of SGD in training mode, after the detour through evaluation of every epoch."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(steps):
        network.eval()
        network.train()
        loss = cross_entropy(network(random_inputs(size)), torch.arange(4) % 2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


# What the network computes


def test_inputs_are_normalised_as_the_weights_want(lite0: Backbone) -> None:
    network = build_model(lite0, PROBE, 10).eval()
    inputs = random_inputs(64, 2)
    with torch.no_grad():
        # Another memory layout sums in another order.
        features = lite0.module((inputs.float() / 255 - 0.5) / 0.5)
        assert torch.allclose(network.features(inputs), features, atol=1e-4)
        assert torch.equal(network.features(inputs.float()), network.features(inputs))
        assert torch.equal(network(inputs), network.head(network.features(inputs)))
    assert network(inputs).shape == (2, 10)


def test_each_channel_has_its_own_mean() -> None:
    backbone = tiny()
    own = replace(backbone.preprocessing, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    network = build_model(replace(backbone, preprocessing=own), HParams(backbone="tiny"), 2)
    white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert network.normalised(white).flatten().tolist() == [1.0, 1.0, 0.0]


def test_building_leaves_the_backbone_alone() -> None:
    backbone = tiny()
    before = state_hash(backbone.module.state_dict())
    hparams = HParams(strategy="full", batch_norm="train")
    network = build_model(backbone, hparams, 2)
    unfreeze(network, backbone.groups, hparams, "trunk")
    take_steps(network, 8)
    assert trunk_hash(network) != before
    assert state_hash(backbone.module.state_dict()) == before
    assert not backbone.module.training


def test_the_head_follows_from_the_seed_alone(lite0: Backbone) -> None:
    before = torch.random.get_rng_state()
    heads = [
        build_model(lite0, HParams(seed=seed, head=kind), 3).head
        for kind in ("linear", "mlp")
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    for one, same, other in (heads[:3], heads[3:]):
        pairs = zip(one.parameters(), same.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
        assert not torch.equal(next(one.parameters()), next(other.parameters()))
        assert all(parameter.isfinite().all() for parameter in one.parameters())
        # Nobody starts with a favourite class.
        assert not list(one.parameters())[-1].any()


def test_the_mlp_head_has_one_hidden_layer_and_dropout(lite0: Backbone) -> None:
    head = build_model(lite0, HParams(head="mlp", dropout=0.3), 3).head
    linear = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(1280, 512), (512, 3)]
    assert [layer.p for layer in head.modules() if isinstance(layer, nn.Dropout)] == [0.3]


def test_one_class_is_refused(lite0: Backbone) -> None:
    with pytest.raises(ModelError, match="two classes"):
        build_model(lite0, PROBE, 1)


# Freezing


@pytest.mark.parametrize(
    ("strategy", "freeze", "phase", "expected"),
    [
        ("probe", 0.0, "head", 4),
        ("probe", 0.0, "trunk", 4),
        ("full", 1.0, "trunk", 0),
        ("full", 1.0, "head", 4),
        ("partial", 0.5, "trunk", 2),
        ("partial", 0.7, "trunk", 3),
        ("partial", 1.0, "trunk", 4),
        ("lp_ft", 0.25, "head", 4),
        ("lp_ft", 0.25, "trunk", 1),
    ],
)
def test_what_each_strategy_freezes(strategy: str, freeze: float, phase: str, expected: int) -> None:
    hparams = HParams(strategy=strategy, freeze=freeze)
    assert frozen_groups([("a",), ("b",), ("c",), ("d",)], hparams, phase) == expected


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(ValueError, match="'warm', but must be head or trunk"):
        frozen_groups([], PROBE, "warm")


def test_a_frozen_trunk_does_not_move(lite0: Backbone) -> None:
    network = build_model(lite0, PROBE, 2)
    assert network.trunk_is_frozen
    unfreeze(network, lite0.groups, PROBE, "head")
    before = trunk_hash(network)
    head = network.head.state_dict()["output.weight"].clone()
    take_steps(network, 64)
    assert trunk_hash(network) == before
    assert not torch.equal(network.head.state_dict()["output.weight"], head)
    assert all(parameter.grad is None for parameter in network.trunk.parameters())


def test_frozen_groups_do_not_move_and_the_others_do() -> None:
    backbone = tiny()
    hparams = HParams(strategy="partial", freeze=0.4, batch_norm="train")
    network = build_model(backbone, hparams, 2)
    unfreeze(network, backbone.groups, hparams, "trunk")
    frozen, second, third = (trunk_hash(network, group) for group in backbone.groups)
    running = network.trunk.state_dict()["third.norm.running_mean"].clone()
    take_steps(network, 8)
    assert trunk_hash(network, backbone.groups[0]) == frozen
    assert trunk_hash(network, backbone.groups[1]) != second
    assert trunk_hash(network, backbone.groups[2]) != third
    assert not torch.equal(network.trunk.state_dict()["third.norm.running_mean"], running)


def test_batch_norm_eval_holds_running_statistics_in_trained_groups() -> None:
    backbone = tiny()
    hparams = HParams(strategy="full", batch_norm="eval")
    network = build_model(backbone, hparams, 2)
    unfreeze(network, backbone.groups, hparams, "trunk")
    buffers = [name for name, _ in network.trunk.named_buffers()]
    before = trunk_hash(network, buffers)
    scale = network.trunk.get_parameter("third.norm.weight").detach().clone()
    take_steps(network, 8)
    assert trunk_hash(network, buffers) == before
    assert not torch.equal(network.trunk.get_parameter("third.norm.weight"), scale)
    assert network.trunk.get_submodule("third.drop").training


def test_dropout_is_off_in_what_is_frozen() -> None:
    backbone = tiny()
    network = build_model(backbone, HParams(dropout=0.5), 2)
    network.train()
    assert network.head.training
    inputs = random_inputs(8)
    assert torch.equal(network.features(inputs), network.features(inputs))
    assert not any(module.training for module in network.trunk.modules())

    hparams = HParams(strategy="partial", freeze=0.7)
    unfreeze(network, backbone.groups, hparams, "trunk")
    training = {name for name, module in network.trunk.named_modules() if module.training}
    # What has no state goes with what stands before it, or at the start with what follows.
    assert {"third.drop", "last"} <= training
    assert not {"token", "first", "first.drop", "second.drop"} & training


def test_each_phase_trains_its_own_part() -> None:
    backbone = tiny()
    hparams = HParams(strategy="lp_ft", freeze=0.4)
    network = build_model(backbone, hparams, 2)
    unfreeze(network, backbone.groups, hparams, "head")
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} == {"head"}
    take_steps(network, 8)
    before = trunk_hash(network, backbone.groups[2])
    unfreeze(network, backbone.groups, hparams, "trunk")
    assert not network.trunk_is_frozen
    take_steps(network, 8)
    assert trunk_hash(network, backbone.groups[2]) != before
    unfreeze(network, backbone.groups, hparams, "head")
    assert network.trunk_is_frozen
    assert all(parameter.grad is None for parameter in network.trunk.parameters())


def test_evaluation_mode_is_whole() -> None:
    backbone = tiny()
    hparams = HParams(strategy="full", batch_norm="train")
    network = build_model(backbone, hparams, 2).eval()
    unfreeze(network, backbone.groups, hparams, "trunk")
    assert not any(module.training for module in network.modules())


def test_a_real_trunk_freezes_in_part(lite0: Backbone) -> None:
    hparams = HParams(strategy="partial", freeze=0.5, batch_norm="train")
    network = build_model(lite0, hparams, 2)
    unfreeze(network, lite0.groups, hparams, "trunk")
    count = frozen_groups(lite0.groups, hparams, "trunk")
    assert 0 < count < len(lite0.groups)
    frozen = [name for group in lite0.groups[:count] for name in group]
    before = trunk_hash(network, frozen)
    take_steps(network, 64, steps=1)
    assert trunk_hash(network, frozen) == before
    now, start = network.trunk.state_dict(), lite0.module.state_dict()
    for group in lite0.groups[count:]:
        assert any(not torch.equal(now[name], start[name]) for name in group)


# Saving and loading


def saved(directory: Path, backbone: Backbone, hparams: HParams, steps: int = 1) -> TransferModel:
    network = build_model(backbone, hparams, len(CLASSES))
    phase = "head" if hparams.strategy == "probe" else "trunk"
    unfreeze(network, backbone.groups, hparams, phase)
    if steps:
        take_steps(network, backbone.preprocessing.image_size, steps)
    card = make_card(backbone, hparams, CLASSES, {"val_accuracy": 0.5})
    save_delta(directory, network, backbone, card)
    return network.eval()


def assert_same_model(one: TransferModel, other: TransferModel) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_probe_is_saved_in_kilobytes_and_comes_back(lite0: Backbone, tmp_path: Path) -> None:
    network = saved(tmp_path / "model", lite0, PROBE)
    files = {file.name: file.stat().st_size for file in (tmp_path / "model").iterdir()}
    assert set(files) == {"delta.safetensors", "model.json"}
    assert sum(files.values()) < 200_000
    loaded = load_delta(tmp_path / "model")
    assert_same_model(loaded.model, network)
    inputs = random_inputs(64)
    with torch.no_grad():
        assert torch.equal(loaded.model(inputs), network(inputs))
    assert loaded.card == make_card(lite0, PROBE, CLASSES, {"val_accuracy": 0.5})
    assert not any(module.training for module in loaded.model.modules())


def test_only_what_changed_is_saved(lite0: Backbone, tmp_path: Path) -> None:
    hparams = HParams(strategy="partial", freeze=0.9, batch_norm="train", head="mlp", image_size=64)
    network = saved(tmp_path, lite0, hparams)
    names = set(safetensors.torch.load_file(tmp_path / "delta.safetensors"))
    start, now = lite0.module.state_dict(), network.trunk.state_dict()
    changed = {f"trunk.{name}" for name in now if not torch.equal(now[name], start[name])}
    assert changed
    assert names == changed | {name for name in network.state_dict() if name.startswith("head.")}
    assert_same_model(load_delta(tmp_path).model, network)


def test_a_change_of_bits_alone_is_saved(lite0: Backbone, tmp_path: Path) -> None:
    network = build_model(lite0, PROBE, 10)
    unfreeze(network, lite0.groups, replace(PROBE, strategy="full"), "trunk")  # a trunk of its own
    state = network.trunk.state_dict()
    name = next(name for name in state if name.endswith("running_mean"))
    state[name][0] = float("nan")
    start = lite0.module.state_dict()
    assert not _same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert _same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    save_delta(tmp_path, network, lite0, make_card(lite0, PROBE, CLASSES, {}))
    delta = safetensors.torch.load_file(tmp_path / "delta.safetensors")
    assert set(delta) == {f"trunk.{name}", "head.output.weight", "head.output.bias"}
    assert not start[name].isnan().any()


def test_random_weights_are_saved_whole(tmp_path: Path) -> None:
    hparams = HParams(backbone="shufflenet_v2_x0_5", weights="none", image_size=32)
    backbone = backbones.build(hparams.backbone, weights="none", image_size=32, seed=7)
    network = saved(tmp_path, backbone, hparams)
    assert_same_model(load_delta(tmp_path).model, network)


def test_weights_from_a_file_are_found_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = backbones.build("shufflenet_v2_x0_5", weights="none", image_size=32)
    torch.save(start.module.state_dict(), tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    hparams = HParams(backbone="shufflenet_v2_x0_5", weights="w.pth", image_size=32)
    backbone = backbones.build(hparams.backbone, weights="w.pth", image_size=32)
    network = saved(tmp_path / "model", backbone, hparams)
    monkeypatch.chdir("/")
    assert_same_model(load_delta(tmp_path / "model").model, network)
    assert (tmp_path / "model" / "delta.safetensors").stat().st_size < 100_000

    start.module.get_parameter("conv1.0.weight").data[0] += 1
    torch.save(start.module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="not those that the model was trained from"):
        load_delta(tmp_path / "model")
    (tmp_path / "w.pth").unlink()
    with pytest.raises(ModelError, match="no such file"):
        load_delta(tmp_path / "model")


def test_the_preprocessing_it_was_trained_with_comes_back(lite0: Backbone, tmp_path: Path) -> None:
    other = replace(lite0, preprocessing=replace(lite0.preprocessing, mean=(0.1, 0.2, 0.3)))
    saved(tmp_path, other, PROBE, steps=0)
    loaded = load_delta(tmp_path)
    assert loaded.model.normaliser.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_saving_replaces_whole_files(
    lite0: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = saved(tmp_path, lite0, PROBE)
    real, calls = os.replace, []

    def crash(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == at:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", crash)
    at = 1
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, lite0, PROBE, steps=2)
    assert {file.name for file in tmp_path.iterdir()} == {"delta.safetensors", "model.json"}
    assert_same_model(load_delta(tmp_path).model, first)
    at, calls = 2, []
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, lite0, PROBE, steps=2)
    # Never a mixture that looks whole.
    with pytest.raises(ModelError, match=r"not the one that model\.json was written with"):
        load_delta(tmp_path)


def test_a_model_of_another_backbone_or_head_is_not_saved(lite0: Backbone, tmp_path: Path) -> None:
    card = make_card(lite0, PROBE, CLASSES, {})
    with pytest.raises(ModelError, match="not one of efficientnet_lite0"):
        save_delta(tmp_path, build_model(tiny(), PROBE, 10), lite0, card)
    with pytest.raises(ModelError, match="3 classes apart, but the card names 10"):
        save_delta(tmp_path, build_model(lite0, PROBE, 3), lite0, card)


# Files that cannot be trusted


@pytest.fixture(scope="module")
def pristine(lite0: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pristine")
    saved(directory, lite0, PROBE, steps=0)
    return directory


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "model")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((folder / "model.json").read_text())
    change(values)
    (folder / "model.json").write_text(json.dumps(values))


def put_delta(folder: Path, delta: bytes) -> None:
    (folder / "delta.safetensors").write_bytes(delta)
    digest = hashlib.sha256(delta).hexdigest()
    rewrite(folder, lambda values: values.update(delta_sha256=digest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format=2), "format 1"),
        (lambda v: v.pop("delta_sha256"), "delta_sha256"),
        (lambda v: v.pop("classes"), "must have exactly"),
        (lambda v: v.update(more=1), "must have exactly"),
        (lambda v: v.update(backbone=3), "backbone is 3"),
        (lambda v: v.update(backbone="resnet18"), "hparams says otherwise"),
        (lambda v: v.update(head="mlp"), "hparams says otherwise"),
        (lambda v: v.update(weights=["pretrained"]), "weights is"),
        (lambda v: v.update(weights="/etc/passwd"), "path of a file that ends in"),
        (lambda v: v.update(weights="none"), "is missing"),
        (lambda v: v.update(weights_hash="0"), "not those that the model was trained from"),
        (lambda v: v.update(weights_hash=None), "weights_hash is None"),
        (lambda v: v.update(image_size=96), "preprocessing says"),
        (lambda v: v.update(image_size="64"), "preprocessing says"),
        (lambda v: v["preprocessing"].update(std=[0, 1, 1]), "std is"),
        (lambda v: v.update(preprocessing=[]), "preprocessing must be a mapping"),
        (lambda v: v.update(classes="abc"), "classes must be a list"),
        (lambda v: v.update(classes=["a", 2]), "list of names"),
        (lambda v: v.update(classes=["a", "a"]), "all different"),
        (lambda v: v.update(classes=["a", "b"]), r"must be torch.float32 \[2, 1280\]"),
        (lambda v: v["hparams"].update(momentun=1), "unknown hyperparameters: momentun"),
        (lambda v: v["hparams"].update(lr=-1), "lr is -1"),
        (lambda v: v["hparams"].update(batch_size=float("inf")), "batch_size is inf"),
        (lambda v: v["hparams"].update(sub_policies=7), "not iterable"),
        (lambda v: v.update(hparams=[]), "hparams must be a mapping"),
        (lambda v: v.update(metric={"val_accuracy": "high"}), "metric must map"),
        (lambda v: v.update(metric=[1]), "metric must map"),
    ],
)
def test_a_strange_card_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(ModelError, match=message):
        load_delta(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b"null"]
)
def test_a_card_that_is_no_card_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.json"):
        load_delta(folder)


def test_a_huge_card_is_not_read_whole(folder: Path) -> None:
    with (folder / "model.json").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(ModelError, match="larger than a card can be"):
        load_delta(folder)


@pytest.mark.parametrize("name", ["model.json", "delta.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name} cannot be read"):
        load_delta(folder)


def test_a_changed_delta_is_noticed(folder: Path) -> None:
    path = folder / "delta.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="not the one"):
        load_delta(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("head.output.bias"), "head.output.bias is missing"),
        (lambda d: d.update({"trunk.nothing": torch.zeros(1)}), "'trunk.nothing' is unknown"),
        (lambda d: d.update({"mean": torch.zeros(1, 3, 1, 1)}), "'mean' is unknown"),
        (lambda d: d.update({"head.output.bias": torch.zeros(11)}), r"\[11\], but must be"),
        (
            lambda d: d.update({"head.output.bias": torch.zeros(10, dtype=torch.float64)}),
            "float64",
        ),
    ],
)
def test_a_strange_delta_is_refused(
    folder: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    delta = safetensors.torch.load_file(folder / "delta.safetensors")
    change(delta)
    put_delta(folder, safetensors.torch.save(delta))
    with pytest.raises(ModelError, match=message):
        load_delta(folder)


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 100, b"\x80\x04K\x01."])
def test_a_delta_that_is_no_safetensors_is_refused(folder: Path, content: bytes) -> None:
    put_delta(folder, content)
    with pytest.raises(ModelError, match="is damaged"):
        load_delta(folder)


def test_the_card_checks_itself(lite0: Backbone) -> None:
    card = make_card(lite0, PROBE, CLASSES, {"val_accuracy": 1})
    assert Card.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    with pytest.raises(ModelError, match="at least two names"):
        make_card(lite0, PROBE, ["one"], {})


@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm/test_vit"])
def test_biases_and_norms_alone_are_a_small_part_of_the_trunk(name: str) -> None:
    backbone = backbones.build(name, weights="none")
    hparams = HParams(strategy="bias")
    model = build_model(backbone, hparams, 3)
    unfreeze(model, backbone.groups, hparams, "trunk")
    trained = {name: p for name, p in model.trunk.named_parameters() if p.requires_grad}
    every = dict(model.trunk.named_parameters())
    assert {each for each in every if each.endswith(".bias")} <= trained.keys()
    assert not any(len(parameter.shape) > 1 for parameter in trained.values())
    assert 0 < sum(p.numel() for p in trained.values()) < 0.05 * sum(p.numel() for p in every.values())
    unfreeze(model, backbone.groups, hparams, "head")
    assert model.trunk_is_frozen
