"""timm's networks, as `timm/NAME`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from trainables.errors import BackboneError
from trainables.image.backbones.source import READERS, Source, State, Unloadable, first_lines
from trainables.image.preprocessing import Preprocessing

__all__ = ["Timm", "preprocessing_of"]


class Timm(Source):
    """The networks of timm, with or without the tag of a set of weights."""

    prefix = "timm/"

    def names(self) -> Iterable[str]:
        return sorted({*timm.list_models(), *timm.list_pretrained()})

    def preprocessing(self, name: str) -> Preprocessing:
        return preprocessing_of(name)

    def parameters(self, name: str) -> None:
        return None

    def file(self, name: str) -> Path | None:
        config = timm.get_pretrained_cfg(name)
        if config is None:
            return None
        if config.url:
            path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(config.url).path).name
            if path.is_file() and path.suffix in READERS:
                return path
        if config.hf_hub_id:
            repository, _, revision = config.hf_hub_id.partition("@")
            own = [config.hf_hub_filename] if config.hf_hub_filename else []
            for file in (*own, "model.safetensors", "pytorch_model.bin"):
                found = try_to_load_from_cache(repository, file, revision=revision or None)
                if isinstance(found, str) and Path(found).suffix in READERS:
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
                raise Unloadable(first_lines(error)) from error
            raise BackboneError(
                f"timm/{name} cannot be built at image_size {image_size} "
                f"({first_lines(error)}): leave it out for its own size, {own}"
            ) from error
        model.reset_classifier(0)
        # The state that was loaded would otherwise live on, and be copied, with the module.
        model.pretrained_cfg = model.default_cfg = {}
        trunk: nn.Module = model
        return trunk


_TIMM_ERRORS = (
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def preprocessing_of(name: str) -> Preprocessing:
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
