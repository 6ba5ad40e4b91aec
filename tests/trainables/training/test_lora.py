"""Low-rank updates: they begin as nothing, alone train and are saved, and merge exactly."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainables.image import backbones
from trainables.image.data import ImageData
from trainables.image.hparams import ImageHParams as HParams
from trainables.modality import Backbone
from trainables.training import delta
from trainables.training.card import ModelError
from trainables.training.loop import Training
from trainables.training.lora import UpdatedLinear, is_update, linear_layers, merge
from trainables.training.model import build_model, unfreeze
from trainables.training.optim import parameter_groups
from trainables.training.regularisers import regulariser
from trainables.training.settings import Settings

LORA: dict[str, Any] = {"strategy": "lora", "lora_rank": 3}


@pytest.fixture(scope="module")
def vit() -> Backbone:
    """A tiny transformer whose random weights stand for pretrained ones."""
    return replace(backbones.build("timm/test_vit", weights="none", image_size=32), weights="pretrained")


def begun(data: ImageData, vit: Backbone, **knobs: Any) -> Training:
    given = {"backbone": vit.name, "image_size": 32, "trunk_lr": 1e-2, "max_epochs": 2, "batch_size": 8}
    return Training(HParams(**LORA, **given, **knobs), data, vit, settings=Settings(threads=1))


def test_it_begins_as_the_trunk_and_changes_no_other_model(vit: Backbone) -> None:
    plain, updated = (build_model(vit, HParams(**LORA), 3).eval() for _ in range(2))
    unfreeze(updated, vit.groups, HParams(**LORA), "trunk")
    inputs = torch.rand(2, 3, 32, 32)
    assert torch.equal(updated.eval()(inputs), plain(inputs))
    assert not any(map(is_update, vit.module.state_dict()))
    trained = [name for name, p in updated.named_parameters() if p.requires_grad]
    assert all(is_update(name) or name.startswith("head.") for name in trained)
    assert len(trained) == 2 + 2 * sum(isinstance(m, UpdatedLinear) for m in updated.trunk.modules())


@pytest.mark.parametrize("rates", ["multiplier", "decay"])
def test_each_update_is_in_the_group_of_its_layer(vit: Backbone, rates: str) -> None:
    hparams = HParams(**LORA, layer_rates=rates, trunk_lr=1e-3)
    model = build_model(vit, hparams, 3)
    unfreeze(model, vit.groups, hparams, "trunk")
    groups = parameter_groups(model, vit.groups, hparams)
    every = [id(p) for group in groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len({group["lr"] for group in groups}) == 2 if rates == "multiplier" else len(groups) > 3


@pytest.mark.parametrize("kind", ["l2_sp", "delta", "bss"])
def test_regularisers_hold_it_near_the_trunk(vit: Backbone, kind: str) -> None:
    hparams = HParams(**LORA, regulariser=kind, regulariser_strength=1.0)
    model = build_model(vit, hparams, 3)
    unfreeze(model, vit.groups, hparams, "trunk")
    penalty = regulariser(model, vit, hparams)
    assert penalty is not None
    inputs = torch.rand(4, 3, 32, 32)

    def told() -> float:
        with torch.no_grad():
            return float(penalty(inputs, model.features(inputs)))

    before = told()
    with torch.no_grad():
        for layer in model.trunk.modules():
            if isinstance(layer, UpdatedLinear):
                layer.lora_up.add_(0.1)
    assert told() != before
    if kind != "bss":
        assert before == pytest.approx(0, abs=1e-6)


def test_a_saved_model_is_its_updates_and_loads_as_plain_layers_to_the_bit(
    few_digits: ImageData, vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "_backbone", lambda card: replace(vit, module=deepcopy(vit.module)))
    training = begun(few_digits, vit)
    training.run_epoch()
    training.save_model(tmp_path)
    saved = load_file(tmp_path / "model" / "delta.safetensors")
    assert all(is_update(name) or name.startswith("head.") for name in saved)
    assert any(float(tensor.abs().max()) > 0 for name, tensor in saved.items() if name.endswith("lora_up"))
    loaded = delta.load_delta(tmp_path / "model")
    assert not any(isinstance(module, UpdatedLinear) for module in loaded.model.modules())
    inputs = torch.rand(4, 3, 32, 32)
    assert torch.equal(loaded.model(inputs), training.model.eval()(inputs))
    whole = delta.whole_model(loaded.card, loaded.model.state_dict(), tmp_path)
    assert torch.equal(whole.model(inputs), loaded.model(inputs))
    part = delta.Part(folder=tmp_path / "model", name="one", share=0.5, factor=1.0)
    delta.save_ensemble(tmp_path / "both", [part, replace(part, name="two")], {"val_accuracy": 1.0})
    both = delta.load_delta(tmp_path / "both")
    torch.testing.assert_close(both.model(inputs).softmax(1), loaded.model(inputs).softmax(1))
    damaged = {name: tensor for name, tensor in saved.items() if not name.endswith("lora_up")}
    with pytest.raises(ModelError, match="lora_up is missing"):
        delta._fill(delta._empty(loaded.card, updated=True), damaged, tmp_path, loaded.card)


def test_a_trial_resumes_bit_for_bit(few_digits: ImageData, vit: Backbone, tmp_path: Path) -> None:
    whole, half, rest = (begun(few_digits, vit, policy="flip_crop") for _ in range(3))
    whole.run_epoch()
    whole.run_epoch()
    half.run_epoch()
    half.save_state(tmp_path)
    assert rest.load_state(tmp_path)
    rest.run_epoch()
    ours, theirs = whole.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_merging_is_the_same_function(vit: Backbone) -> None:
    model = build_model(vit, HParams(**LORA), 3)
    unfreeze(model, vit.groups, HParams(**LORA), "trunk")
    for layer in model.trunk.modules():
        if isinstance(layer, UpdatedLinear):
            torch.nn.init.normal_(layer.lora_up)
    inputs = torch.rand(2, 3, 32, 32)
    before = model.eval()(inputs)
    merge(model)
    assert torch.equal(model(inputs), before)


def test_a_network_without_linear_layers_is_refused(small_lite0: Backbone) -> None:
    hparams = HParams(strategy="lora")
    with pytest.raises(ModelError, match="efficientnet_lite0 has none: take bias"):
        unfreeze(build_model(small_lite0, hparams, 3), small_lite0.groups, hparams, "trunk")


def test_attention_that_reads_its_layers_itself_is_left_alone() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16)
    assert {tuple(each.weight.shape) for each in linear_layers(layer)} == {(16, 8), (8, 16)}
