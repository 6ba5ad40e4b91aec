"""Several models as one: what they average, a trunk's passes, which are chosen, how they are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainables.image.backbones import Backbone
from trainables.image.data import ImageData
from trainables.record import MODEL_FOLDER
from trainables.training.card import Card, ModelError
from trainables.training.delta import LoadedModel, Part, load_delta, save_ensemble, whole_model
from trainables.training.ensemble import EnsembleModel
from trainables.training.loop import Training
from trainables.training.selection import select

Begin = Callable[..., Training]
HEADS = ({"solver": "ridge", "features": "stages"}, {"solver": "ridge"}, {"lr": 0.01})


@pytest.fixture
def folders(begin: Begin, tmp_path: Path) -> list[Path]:
    """Two solved heads and a stepped one, on one trunk, and a trunk that trained."""
    found = []
    for number, knobs in enumerate((*HEADS, {"strategy": "full", "lr": 0.001, "max_epochs": 1})):
        training = begin(**{"max_epochs": 2, "strategy": "probe", **knobs})
        while not training.finished:
            training.run_epoch()
        training.save_model(tmp_path / str(number))
        found.append(tmp_path / str(number) / MODEL_FOLDER)
    return found


@pytest.fixture
def parts(folders: list[Path]) -> list[Part]:
    return [
        Part(folder=folder, name=f"trial {number}", share=share, factor=factor)
        for number, (folder, share, factor) in enumerate(
            zip(folders, (0.4, 0.3, 0.2, 0.1), (1.0, 2.0, 0.5, 1.5), strict=True)
        )
    ]


def test_it_averages_calibrated_probabilities_in_one_pass(
    parts: list[Part], few_digits: ImageData, tmp_path: Path
) -> None:
    card = save_ensemble(tmp_path / "all", parts, {"val_accuracy": 0.5})
    loaded = load_delta(tmp_path / "all")
    model = loaded.model
    assert isinstance(model, EnsembleModel)
    assert loaded.card == card
    assert [member.trunk for member in card.members] == [0, 0, 0, 1]
    inputs = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    expected = torch.zeros(6, len(few_digits.classes))
    passes = []
    for trunk in model.trunks:
        trunk.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        for part in parts:
            logits = load_delta(part.folder).model(inputs)
            expected += part.share * (part.factor * logits).softmax(1)
        torch.testing.assert_close(model(inputs).softmax(1), expected, atol=1e-5, rtol=1e-4)
    assert len(passes) == 2, "a pass of each trunk"
    sizes = [
        sum(file.stat().st_size for file in folder.iterdir())
        for folder in (tmp_path / "all", parts[3].folder)
    ]
    assert sizes[0] < sizes[1] + 400_000, "heads are small"


def test_its_tensors_need_no_weights(parts: list[Part], tmp_path: Path) -> None:
    save_ensemble(tmp_path / "all", parts, {})
    loaded = load_delta(tmp_path / "all")
    card = Card.from_dict(json.loads(json.dumps(loaded.card.to_dict())))
    state = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    again = whole_model(card, state, tmp_path)
    inputs = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again.model(inputs), loaded.model(inputs))
    broken = {**card.to_dict(), "members": [{"name": "trial 0"}]}
    with pytest.raises(ModelError, match="a member must have exactly"):
        Card.from_dict(broken)
    state.pop("heads.1.output.bias")
    with pytest.raises(ModelError, match=r"heads.1.output.bias is missing"):
        whole_model(card, state, tmp_path)


def guesses(count: int, *sizes: float) -> tuple[Tensor, Tensor]:
    """Logits of models that know the class as well as a signal of some size, each with noise of its own."""
    numbers = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 5
    truth = torch.nn.functional.one_hot(labels, 5).float()
    noise = torch.randn(len(sizes), count, 5, generator=numbers)
    return torch.tensor(sizes)[:, None, None] * truth + noise, labels


def test_models_that_err_apart_make_an_ensemble() -> None:
    logits, labels = guesses(400, 2.0, 1.9, 1.8, 0.0)
    found = select(logits, labels)
    assert found.pays
    assert set(found.shares) == {0, 1, 2}
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.accuracy > found.winner_accuracy + 0.03
    sure = select(torch.stack([logits[0], 50 * logits[1], logits[2], logits[3]]), labels)
    assert sure.factors[1] == pytest.approx(found.factors[1] / 50, rel=0.05), "the temperature undoes it"
    assert sure.accuracy == pytest.approx(found.accuracy, abs=0.01)


def test_what_adds_nothing_does_not_pay() -> None:
    logits, labels = guesses(400, 3.0, 0.0)
    assert not select(logits, labels).pays
    assert list(select(logits[:1].expand(3, -1, -1), labels).shares) == [0]
    few, few_labels = guesses(20, 2.0, 1.0)
    assert not select(few, few_labels).pays, "of twenty images nobody can tell"


def test_an_ensemble_of_unlike_models_is_refused(
    parts: list[Part], small_lite0: Backbone, begin: Begin, tmp_path: Path
) -> None:
    card = json.loads((parts[0].folder / "model.json").read_text())
    card["classes"] = card["classes"][::-1]
    (parts[0].folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="has other classes"):
        save_ensemble(tmp_path / "all", parts, {})
    assert isinstance(load_delta(parts[1].folder), LoadedModel)
