from __future__ import annotations

import gc
import hashlib
import json
import math
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from trainables.files.cache import Cache
from trainables.files.sealed import Damaged
from trainables.image import backbones, transforms
from trainables.image.backbones import Backbone
from trainables.image.data import ImageData
from trainables.image.hparams import ImageHParams as HParams
from trainables.record import APPLIED_FILE, METRICS, MODEL_FOLDER, PREVIEW_FILE, STATE_FILE
from trainables.training.delta import load_delta
from trainables.training.keeping import BEST_EPOCH, EXPECTED, value_of
from trainables.training.loop import Training, _class_weights, fit
from trainables.training.metrics import Scores, scores
from trainables.training.phases import Phase, phases
from trainables.training.settings import Monitor, Settings, dtype_of

Begin = Callable[..., Training]
CHUNKS = 2  # of either split, where they are small
TIMINGS = ("epoch_seconds", "images_per_second")


def steady(metrics: dict[str, float] | None) -> dict[str, float]:
    """The metrics that do not depend on the clock."""
    assert metrics is not None
    return {name: value for name, value in metrics.items() if name.removeprefix(EXPECTED) not in TIMINGS}


def plain(value: Any) -> Any:
    """`value` with every tensor as the digest of its type, shape and bytes."""
    if isinstance(value, Tensor):
        return fingerprint([("", value)])
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    text = hashlib.sha256()
    for name, tensor in sorted(tensors):
        text.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        text.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return text.hexdigest()


def weights(training: Training) -> str:
    return fingerprint(training.model.state_dict().items())


def run(training: Training) -> list[dict[str, float]]:
    """The steady metrics of the remaining epochs."""
    history: list[dict[str, float]] = []
    fit(training, lambda epoch, metrics: history.append(steady(metrics)))
    return history


# Resuming

RESUMED: dict[str, dict[str, Any]] = {
    "probe, plateau, momentum, dropout, EMA": {
        "strategy": "probe",
        "max_epochs": 6,
        "schedule": "plateau",
        "optimizer": "sgd",
        "lr": 1e-6,
        "head": "mlp",
        "dropout": 0.4,
        "ema": 0.9,
        "policy": "trivial_augment",
    },
    "probe, cosine, warm-up, AdamW, classes weighed": {
        "strategy": "probe",
        "max_epochs": 5,
        "warmup_epochs": 1.5,
        "dropout": 0.2,
        "class_weights": True,
        "clip_grad": 0.1,
    },
    "partial, step, Adam, both mixings, BatchNorm, EMA": {
        "strategy": "partial",
        "freeze": 0.7,
        "schedule": "step",
        "optimizer": "adam",
        "mixing": "both",
        "batch_norm": "train",
        "ema": 0.9,
        "policy": "rand_augment",
        "random_erasing": 0.3,
        "clip_grad": 1.0,
    },
    "full, cosine, warm-up, momentum, mixup, L2-SP": {
        "strategy": "full",
        "optimizer": "sgd",
        "lr": 1e-2,
        "warmup_epochs": 1.0,
        "mixing": "mixup",
        "dropout": 0.3,
        "regulariser": "l2_sp",
        "layer_rates": "decay",
    },
    "partial, plateau, AdamW, DELTA": {
        "strategy": "partial",
        "freeze": 0.8,
        "max_epochs": 4,
        "schedule": "plateau",
        "lr": 1e-7,
        "regulariser": "delta",
    },
    "bias, cosine, AdamW": {"strategy": "bias", "trunk_lr": 1e-3, "policy": "flip_crop"},
    "lp_ft, plateau, momentum, dropout, cutmix, EMA": {
        "strategy": "lp_ft",
        "max_epochs": 6,
        "lp_share": 0.7,
        "schedule": "plateau",
        "optimizer": "sgd",
        "lr": 1e-6,
        "dropout": 0.3,
        "mixing": "cutmix",
        "ema": 0.9,
        "batch_norm": "train",
        "policy": "flip_crop",
    },
    "lp_ft, constant, AdamW, warm-up, BSS": {
        "strategy": "lp_ft",
        "max_epochs": 4,
        "schedule": "constant",
        "warmup_epochs": 0.5,
        "regulariser": "bss",
        "freeze": 0.8,
    },
}


SOON = ("probe, plateau", "partial, plateau", "full, cosine", "lp_ft, constant")
"""What the shorter suite resumes."""


@pytest.mark.parametrize(
    "knobs",
    [
        pytest.param(knobs, id=name, marks=() if name.startswith(SOON) else pytest.mark.long)
        for name, knobs in RESUMED.items()
    ],
)
def test_a_training_that_resumes_equals_one_that_was_not_interrupted(
    begin: Begin, tmp_path: Path, knobs: dict[str, Any]
) -> None:
    knobs = {"max_epochs": 3, **knobs}
    cache = Cache(tmp_path / "cache")
    whole = begin(cache=cache, **knobs)
    history, bests = [], []
    while True:
        whole.save_state(tmp_path / str(whole.epoch))
        bests.append(whole.best)
        if whole.finished:
            break
        history.append(steady(whole.run_epoch()))
    assert len(history) == knobs["max_epochs"]
    if knobs.get("schedule") == "plateau":
        assert len({metrics["learning_rate"] for metrics in history}) > 1
    for epoch in range(len(history) + 1):
        resumed = begin(cache=cache, **knobs)
        assert resumed.load_state(tmp_path / str(epoch))
        assert (resumed.epoch, resumed.best) == (epoch, bests[epoch])
        # An epoch from each state to the next is the whole way; one goes it by itself, to the end.
        alone = epoch == max(1, whole.phases[-1].first)
        stop = len(history) if alone else min(epoch + 1, len(history))
        assert [steady(resumed.run_epoch()) for _ in range(epoch, stop)] == history[epoch:stop]
        assert kept_state(resumed, tmp_path / "again") == kept_state(None, tmp_path / str(stop))
        if stop == len(history):
            assert weights(resumed) == weights(whole)


def kept_state(training: Training | None, folder: Path) -> dict[str, Any]:
    """The state in the folder, after saving it if there is a training; but for what the clock says."""
    if training is not None:
        training.save_state(folder)
    state = plain(torch.load(folder / STATE_FILE))
    epochs = {epoch: steady(metrics) for epoch, metrics in state["epochs"].items()}
    return {**state, "best": state["best"] and steady(state["best"]), "epochs": epochs}


def test_where_there_is_no_state_nothing_changes(begin: Begin, tmp_path: Path) -> None:
    training = begin(max_epochs=1)
    before = weights(training)
    assert not training.load_state(tmp_path)
    assert (training.epoch, training.best, weights(training)) == (0, None, before)


def test_a_state_carries_all_its_epochs_and_tells_when_it_is_damaged(begin: Begin, tmp_path: Path) -> None:
    training = begin(max_epochs=2)
    told = {1: training.run_epoch(), 2: training.run_epoch()}
    training.save_state(tmp_path)
    again = begin(max_epochs=2)
    assert again.load_state(tmp_path)
    assert again.epochs == told
    path = tmp_path / STATE_FILE
    whole = path.read_bytes()
    middle = len(whole) // 2
    damages = {
        "half of it": whole[:middle],
        "zeros": bytes(len(whole)),
        "one bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "nothing": b"",
    }
    for content in damages.values():
        path.write_bytes(content)
        with pytest.raises(Damaged, match=STATE_FILE):
            begin(max_epochs=2).load_state(tmp_path)
    path.write_bytes(whole)
    with pytest.raises(Damaged, match="other hyperparameters"):
        begin(max_epochs=2, seed=7).load_state(tmp_path)


def test_a_state_of_a_version_before_goes_on(begin: Begin, tmp_path: Path) -> None:
    training = begin(max_epochs=2)
    training.run_epoch()
    training.save_state(tmp_path)
    state = torch.load(tmp_path / STATE_FILE)
    del state["epochs"], state["hparams"]
    torch.save(state, tmp_path / STATE_FILE)
    again = begin(max_epochs=2)
    assert again.load_state(tmp_path)
    assert (again.epoch, again.best) == (1, training.best)
    assert steady(again.run_epoch()) == steady(training.run_epoch())


def test_a_state_that_is_replaced_leaves_one_file(begin: Begin, tmp_path: Path) -> None:
    training = begin(max_epochs=2)
    for _ in range(2):
        training.run_epoch()
        training.save_state(tmp_path / "trial")
    assert [path.name for path in (tmp_path / "trial").iterdir()] == [STATE_FILE]
    # A probe's state holds no trunk.
    assert (tmp_path / "trial" / STATE_FILE).stat().st_size < 300_000


# Warm and fresh processes

KNOBS = {
    "strategy": "lp_ft",
    "max_epochs": 2,
    "mixing": "both",
    "dropout": 0.3,
    "ema": 0.9,
    "policy": "trivial_augment",
    "batch_norm": "train",
    "seed": 5,
}
FRESH = """
import json, sys
from pathlib import Path
from trainables.image import backbones
from trainables.image.data import DataConfig, load
from trainables.image.hparams import ImageHParams as HParams
from trainables.training.loop import Training, fit
from trainables.training.settings import Settings
data = DataConfig(source="digits", train_limit=24, validation_limit=20, test_limit=20)
training = Training(
    HParams.from_dict(json.loads(sys.argv[2])),
    load(data, cache_dir=Path(sys.argv[1])),
    backbones.build("efficientnet_lite0", image_size=32),
    settings=Settings(threads=1),
)
history = []
fit(training, lambda epoch, metrics: history.append(metrics))
import torch
torch.save({"history": history, "model": training.model.state_dict()}, sys.argv[3])
"""


def test_a_trial_on_a_warm_process_equals_one_on_a_fresh_process(
    begin: Begin, data_cache: Path, tmp_path: Path
) -> None:
    before = begin(strategy="full", max_epochs=1, mixing="mixup", policy="auto_augment", seed=9)
    run(before)
    torch.rand(17)
    warm = begin(**KNOBS)
    history = run(warm)
    hparams = json.dumps(warm.hparams.to_dict())
    command = [sys.executable, "-c", FRESH, str(data_cache), hparams, str(tmp_path / "fresh.pt")]
    subprocess.run(command, check=True, timeout=120)
    fresh = torch.load(tmp_path / "fresh.pt")
    assert [steady(metrics) for metrics in fresh["history"]] == history
    assert fingerprint(fresh["model"].items()) == weights(warm)


def test_seeds_make_the_difference(begin: Begin) -> None:
    knobs = {"max_epochs": 1, "dropout": 0.2}
    one, same, other = (run(begin(seed=seed, **knobs)) for seed in (1, 1, 2))
    assert one == same != other


# Freezing


def parts(training: Training) -> tuple[str, str]:
    """Fingerprints of what of the trunk is frozen, and of the rest."""
    state = training.model.trunk.state_dict()
    frozen = training.model.frozen
    return (
        fingerprint((name, each) for name, each in state.items() if name in frozen),
        fingerprint((name, each) for name, each in state.items() if name not in frozen),
    )


def statistics(training: Training, *, frozen: bool) -> str:
    return fingerprint(
        (name, tensor)
        for name, tensor in training.model.trunk.state_dict().items()
        if "running_" in name and (name in training.model.frozen) == frozen
    )


def held(training: Training) -> set[int]:
    return {id(p) for group in training._optimisation.optimizer.param_groups for p in group["params"]}


def test_a_probe_moves_nothing_in_the_trunk(begin: Begin, small_lite0: Backbone) -> None:
    pretrained = fingerprint(small_lite0.module.state_dict().items())
    training = begin(strategy="probe", max_epochs=2, policy="flip_crop", weight_decay=0.1)
    run(training)
    assert training.model.trunk_is_frozen
    assert fingerprint(training.model.trunk.state_dict().items()) == pretrained
    assert not any(p.requires_grad or p.grad is not None for p in training.model.trunk.parameters())
    assert held(training) == {id(p) for p in training.model.head.parameters()}


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
@pytest.mark.parametrize("strategy", ["partial", "full", "bias"])
def test_what_is_frozen_holds_and_the_rest_moves(
    begin: Begin, small_lite0: Backbone, strategy: str, batch_norm: str
) -> None:
    pretrained = fingerprint(small_lite0.module.state_dict().items())
    training = begin(
        strategy=strategy, freeze=0.6, max_epochs=1, batch_norm=batch_norm, ema=0.9, weight_decay=0.1
    )
    assert bool(training.model.frozen) == (strategy != "full")
    (frozen, rest), moving = parts(training), statistics(training, frozen=False)
    still = statistics(training, frozen=True)
    run(training)
    assert parts(training)[0] == frozen
    assert parts(training)[1] != rest
    assert statistics(training, frozen=True) == still
    assert (statistics(training, frozen=False) == moving) == (batch_norm == "eval")
    for name, module in training.model.train().trunk.named_modules():
        if isinstance(module, _BatchNorm):
            own = {f"{name}.{each}" for each in module.state_dict()}
            assert module.training == (batch_norm == "train" and not own <= training.model.frozen)
    # The backbone that other trials start from is as it was.
    assert fingerprint(small_lite0.module.state_dict().items()) == pretrained


def test_after_the_switch_the_optimizer_holds_what_was_unfrozen(begin: Begin, small_lite0: Backbone) -> None:
    training = begin(strategy="lp_ft", freeze=0.6, lp_share=0.5, max_epochs=4, policy="flip_crop")
    assert training.phases == (Phase("head", 0, 2), Phase("trunk", 2, 2))
    pretrained = fingerprint(training.model.trunk.state_dict().items())
    for _ in range(2):
        training.run_epoch()
        assert fingerprint(training.model.trunk.state_dict().items()) == pretrained
        assert held(training) == {id(p) for p in training.model.head.parameters()}
    training.run_epoch()
    frozen, rest = parts(training)
    trained = {id(p) for p in training.model.parameters() if p.requires_grad}
    assert held(training) == trained
    assert len(trained) > len(list(training.model.head.parameters()))
    original = small_lite0.module.state_dict()
    for name, parameter in training.model.trunk.named_parameters():
        assert torch.equal(parameter, original[name]) == (name in training.model.frozen), name
    training.run_epoch()
    assert parts(training)[0] == frozen
    assert parts(training)[1] != rest


@pytest.mark.parametrize("rates", ["multiplier", "decay"])
def test_rates_are_those_of_the_hyperparameters(begin: Begin, rates: str) -> None:
    training = begin(
        strategy="full", max_epochs=2, lr=0.01, layer_rates=rates, backbone_lr_mult=0.05, layer_decay=0.5,
        weight_decay=0.02, schedule="constant",
    )  # fmt: skip
    names = {id(p): name for name, p in training.model.named_parameters()}
    count = len(training.backbone.groups)
    place = {name: n for n, group in enumerate(training.backbone.groups) for name in group}
    seen: set[str] = set()
    for group in training._optimisation.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in seen
            seen.add(name)
            expected = 0.01
            if name.startswith("trunk."):
                inner = place[name.removeprefix("trunk.")]
                expected *= 0.05 if rates == "multiplier" else 0.5 ** (count - inner)
            assert group["lr"] == pytest.approx(expected)
            assert group["weight_decay"] == (0.02 if parameter.ndim > 1 else 0.0)
    assert seen == set(names.values())
    assert training.run_epoch()["learning_rate"] == 0.01


# Features of a frozen trunk


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.training.features._CHUNK", 12)


@pytest.mark.parametrize("policy", ["none", "trivial_augment"])
def test_cached_features_give_the_very_metrics_of_online_ones(
    begin: Begin, tmp_path: Path, small_chunks: None, policy: str
) -> None:
    knobs = {"max_epochs": 3, "policy": policy, "dropout": 0.3, "head": "mlp", "ema": 0.9}
    settings = Settings(threads=1, views=2)
    online = begin(settings=settings, **knobs)
    history = run(online)
    assert online.applied()["phases"][0]["features"] == "online: the cache is off"
    for resident_bytes in (0, 2**28):
        cache = Cache(tmp_path / "cache", resident_bytes=resident_bytes)
        cached = begin(settings=settings, cache=cache, **knobs)
        assert run(cached) == history
        assert weights(cached) == weights(online)
        assert cached.applied()["phases"][0]["features"] == "cached"
        used = cached.applied()["cache"]
        assert (used["computed"] > 0) == (resident_bytes == 0)  # the first of the two
        assert used["hits"] > 0
        assert used["seconds_saved"] > 0


@pytest.mark.parametrize(("views", "seen"), [(1, [1, 1, 1]), (2, [1, 2, 2]), (None, [1, 2, 3])])
def test_views_are_computed_when_asked_for_and_no_more_than_the_settings_say(
    begin: Begin, tmp_path: Path, small_chunks: None, views: int | None, seen: list[int]
) -> None:
    cache = Cache(tmp_path / "cache")
    settings = Settings(threads=1, views=views)
    knobs = {"max_epochs": 3, "policy": "flip_crop"}
    training = begin(settings=settings, cache=cache, **knobs)
    assert cache.usage.computed == 0
    for count in seen:
        training.run_epoch()
        assert cache.usage.computed == CHUNKS * (1 + count)  # the validation images, and so many views
    # A trial with the same policy, though another seed and head, computes nothing ...
    other = Cache(cache.root)
    run(begin(settings=settings, cache=other, seed=1, head="mlp", **knobs))
    assert other.usage.computed == 0
    # ... and one with another policy only its own views: validation images are never augmented.
    knobs["policy"] = "classic"
    run(begin(settings=settings, cache=other, **knobs))
    assert other.usage.computed == CHUNKS * seen[-1]


def test_a_cached_epoch_reads_nothing_from_the_disk(begin: Begin, tmp_path: Path, small_chunks: None) -> None:
    cache = Cache(tmp_path / "cache")
    training = begin(settings=Settings(threads=1, views=2), cache=cache, max_epochs=6,
                     policy="flip_crop")  # fmt: skip
    for _ in range(2):
        training.run_epoch()
    for _ in range(4):
        training.run_epoch()
    assert cache.usage.bytes_read == 0
    assert cache.usage.resident == 4 + 5  # views of the training images; the validation images
    assert cache.usage.computed == CHUNKS * (1 + 2)


@pytest.mark.parametrize("strategy", ["probe", "full"])
def test_validation_is_on_the_centre_crops(begin: Begin, few_digits: ImageData, strategy: str) -> None:
    knobs = {"policy": "trivial_augment", "random_erasing": 1.0}
    if strategy == "full":
        knobs["mixing"] = "mixup"
    training = begin(strategy=strategy, max_epochs=1, **knobs)
    metrics = training.run_epoch()
    preprocessing = training.backbone.preprocessing
    frames = few_digits.frames(preprocessing.frame_size, preprocessing.interpolation)
    indices = few_digits.splits["validation"]
    with torch.no_grad():
        logits = training.model.eval()(transforms.center_crop(frames[indices], preprocessing.image_size))
    expected = scores(logits, few_digits.labels[indices])
    assert metrics["val_accuracy"] == expected.accuracy
    assert metrics["val_macro_f1"] == expected.macro_f1
    assert metrics["val_loss"] == pytest.approx(expected.loss, rel=1e-5)


def test_probes_of_other_sizes_and_weights_share_nothing(
    begin: Begin, tmp_path: Path, small_chunks: None
) -> None:
    cache = Cache(tmp_path / "cache")
    computed = 0
    for backbone in (
        backbones.build("efficientnet_lite0", image_size=32),
        backbones.build("efficientnet_lite0", image_size=36),
        backbones.build("efficientnet_lite0", image_size=32, weights="none", seed=1),
        backbones.build("efficientnet_lite0", image_size=32, weights="none", seed=2),
    ):
        run(begin(backbone=backbone, cache=cache, max_epochs=1))
        assert cache.usage.computed == computed + 2 * CHUNKS
        computed = cache.usage.computed


# The epoch that is kept, and what it is worth


def test_the_monitor_prefers_the_better_the_earlier_and_numbers() -> None:
    most, least = Monitor(), Monitor(metric="val_loss", maximize=False)
    assert most.better(0.5, None)
    assert most.better(0.6, 0.5)
    assert not most.better(0.4, 0.5)
    assert least.better(0.4, 0.5)
    assert not least.better(0.6, 0.5)
    for monitor in (most, least):
        assert not monitor.better(0.5, 0.5)
        assert not monitor.better(math.nan, 0.5)
        assert not monitor.better(math.nan, None)


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        (Monitor(rule=BEST_EPOCH), [0.2, 0.5, 0.5, 0.4], 2),
        (Monitor(rule=BEST_EPOCH), [math.nan, 0.1, math.nan, 0.1], 2),
        (Monitor(metric="val_loss", maximize=False, rule=BEST_EPOCH), [0.3, 0.2, 0.4, 0.2], 2),
        (Monitor(rule=BEST_EPOCH), [math.nan] * 4, None),
        (Monitor(), [0.2, 0.5, 0.5, 0.4], 4),
        (Monitor(), [0.2, 0.5, 0.5, math.nan], 3),
        (Monitor(metric="val_loss", maximize=False), [0.2, 0.5, 0.5, 0.6], 4),
        (Monitor(), [math.nan] * 4, None),
    ],
)
def test_the_kept_epoch_is_the_monitors(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, monitor: Monitor, values: list[float], best: int | None
) -> None:
    training = begin(max_epochs=4, settings=Settings(threads=1, monitor=monitor))
    scripted(training, monkeypatch, values)
    improved = []
    for _ in values:
        metrics = training.run_epoch()
        assert set(metrics) == set(METRICS)
        improved.append(training.improved)
    if best is None:
        assert training.best is None
        assert not any(improved)
    else:
        assert training.best is not None
        assert training.best["epoch"] == best
        assert training.best[monitor.metric] == values[best - 1]
        assert max(n for n, each in enumerate(improved, 1) if each) == best


def scripted(training: Training, monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Lets the training measure `values`, epoch after epoch."""
    left = iter(values)

    def measured() -> Scores:
        value = next(left)
        return Scores(loss=value, accuracy=value, macro_f1=value)

    monkeypatch.setattr(training, "_measure", measured)


def test_a_trial_is_worth_the_mean_of_its_last_epochs(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    training = begin(max_epochs=6)
    scripted(training, monkeypatch, [0.1, 0.2, 0.9, 0.4, 0.5, 0.3])
    worth = []
    for _ in range(6):
        training.run_epoch()
        assert training.best is not None
        worth.append(value_of(training.best, "val_accuracy"))
    assert worth == pytest.approx([0.1, 0.15, 0.4, 0.5, 0.6, 0.4])
    assert training.best["val_accuracy"] == 0.3, "the kept model is that of the last epoch"


def test_a_fine_tune_that_collapses_is_not_worth_its_probe(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = begin(max_epochs=4, strategy="lp_ft", lp_share=0.5, freeze=0.9)
    scripted(training, monkeypatch, [0.7, 0.72, 0.1, 0.1])
    while not training.finished:
        training.run_epoch()
    assert training.best is not None
    assert value_of(training.best, "val_accuracy") == pytest.approx(0.1)


def test_a_training_that_diverges_has_no_best_epoch(begin: Begin) -> None:
    training = begin(max_epochs=1, optimizer="sgd", lr=1.0)
    with torch.no_grad():
        training.model.head.output.weight.fill_(math.nan)  # type: ignore[union-attr, operator]
    metrics = training.run_epoch()
    assert math.isnan(metrics["train_loss"])
    assert math.isnan(metrics["val_accuracy"])
    assert training.best is None


@pytest.mark.parametrize(
    "knobs",
    [
        {"strategy": "probe", "ema": 0.9, "policy": "flip_crop", "max_epochs": 4},
        {"strategy": "probe", "head": "mlp", "dropout": 0.5, "max_epochs": 3},
        {"strategy": "partial", "freeze": 0.7, "ema": 0.9, "batch_norm": "train", "max_epochs": 2},
        {"strategy": "full", "regulariser": "delta", "mixing": "mixup", "lr": 0.02, "max_epochs": 2},
    ],
    ids=lambda knobs: knobs["strategy"],
)
def test_the_kept_model_reproduces_the_best_epochs_metrics(
    begin: Begin, few_digits: ImageData, tmp_path: Path, knobs: dict[str, Any]
) -> None:
    training = begin(lr=knobs.pop("lr", 0.01), **knobs)
    while not training.finished:
        training.run_epoch()
        live = weights(training)
        if training.improved:
            training.save_model(tmp_path)
        assert weights(training) == live  # the average was only lent
    loaded = load_delta(tmp_path / MODEL_FOLDER)
    assert training.best is not None
    assert loaded.card.metric == training.best
    assert loaded.card.classes == few_digits.classes
    preprocessing = loaded.card.preprocessing
    frames = few_digits.frames(preprocessing.frame_size, preprocessing.interpolation)
    indices = few_digits.splits["validation"]
    with torch.no_grad():
        logits = loaded.model(transforms.center_crop(frames[indices], preprocessing.image_size))
    found = scores(logits, few_digits.labels[indices])
    assert found.accuracy == training.best["val_accuracy"]
    assert found.macro_f1 == training.best["val_macro_f1"]
    assert found.loss == pytest.approx(training.best["val_loss"], rel=1e-5)
    if knobs.get("head", "linear") == "linear" and knobs["strategy"] == "probe":
        assert sum(path.stat().st_size for path in (tmp_path / MODEL_FOLDER).iterdir()) < 200_000


# The rest


@pytest.mark.parametrize(
    ("strategy", "share", "epochs", "head"),
    [
        ("probe", 0.5, 4, 4),
        ("partial", 0.5, 4, 0),
        ("full", 0.5, 4, 0),
        ("lp_ft", 0.25, 8, 2),
        ("lp_ft", 0.0, 8, 1),
        ("lp_ft", 1.0, 8, 7),
        ("lp_ft", 0.5, 1, 0),
    ],
)
def test_phases_share_out_the_epochs(strategy: str, share: float, epochs: int, head: int) -> None:
    found = phases(HParams(strategy=strategy, lp_share=share, max_epochs=epochs))
    assert [phase.kind for phase in found] == ["head"] * (head > 0) + ["trunk"] * (head < epochs)
    assert sum(phase.epochs for phase in found) == epochs
    assert all(phase.epochs for phase in found)
    assert found[0].first == 0
    assert found[-1].first == (head if head < epochs else 0)


def test_fit_stops_where_the_report_says_so(begin: Begin) -> None:
    training = begin(max_epochs=5)
    seen: list[int] = []

    def report(epoch: int, metrics: dict[str, float]) -> bool:
        seen.append(epoch)
        return epoch == 2

    assert fit(training, report) == training.best
    assert seen == [1, 2]
    assert not training.finished
    assert fit(training, lambda *_: None) == training.best
    with pytest.raises(RuntimeError, match="all 5 epochs have run"):
        training.run_epoch()


def test_loss_is_averaged_over_images_of_uneven_batches(begin: Begin, few_digits: ImageData) -> None:
    # At a rate of next to nothing the mean over uneven batches is that over all images.
    knobs = {"lr": 1e-7, "max_epochs": 1, "label_smoothing": 0.0, "weight_decay": 0.0}
    losses = [run(begin(batch_size=size, **knobs))[0]["train_loss"] for size in (7, 16, 24)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_where_batch_norm_trains_no_batch_is_of_one_image(
    begin: Begin, few_digits: ImageData, size: int
) -> None:
    knobs = {"strategy": "full", "batch_size": size}
    train = few_digits.splits["train"]
    images = len(train) - 1 + len(train) % 2  # an odd number
    data = replace(few_digits, splits={**few_digits.splits, "train": train[:images]})
    sizes = {
        norm: {
            len(part)
            for part in torch.arange(images).tensor_split(
                begin(batch_norm=norm, data=data, **knobs)._batches.count
            )
        }
        for norm in ("train", "eval")
    }
    assert sizes == {"train": {2, 3}, "eval": {1, size}}


def test_a_class_that_is_not_in_the_training_split_has_a_finite_weight(few_digits: ImageData) -> None:
    labels = few_digits.labels[few_digits.splits["train"]]
    labels = labels[labels != 3]
    found = _class_weights(labels, 10)
    assert found.isfinite().all()
    assert float(found[labels].mean()) == pytest.approx(0.9)


def test_a_rare_class_weighs_more(begin: Begin, few_digits: ImageData) -> None:
    training = begin(class_weights=True)
    assert training._weights is not None
    labels = few_digits.labels[few_digits.splits["train"]]
    assert float(training._weights[labels].mean()) == pytest.approx(1)
    counts = torch.bincount(labels)
    assert torch.allclose(training._weights * counts, torch.full((10,), len(labels) / 10))


def test_what_was_built_is_on_record(begin: Begin, tmp_path: Path) -> None:
    training = begin(strategy="lp_ft", freeze=0.5, max_epochs=2, policy="classic")
    parameters = []
    while not training.finished:
        training.run_epoch()
        assert training.phase_began
        training.save_record(tmp_path)
        record = json.loads((tmp_path / APPLIED_FILE).read_text())
        assert record == json.loads(json.dumps(training.applied()))
        assert len(record["phases"]) == training.epoch
        phase = record["phases"][-1]
        assert phase["optimizer"] == "AdamW"
        assert sum(group["parameters"] for group in phase["groups"]) == phase["trainable_parameters"]
        parameters.append(phase["trainable_parameters"])
    assert 0 < parameters[0] < parameters[1] < record["parameters"]
    assert record["backbone"] == "efficientnet_lite0"
    assert any("rotation" in line for line in record["policy"])
    assert (tmp_path / PREVIEW_FILE).is_file()


def test_a_phase_that_is_entered_anew_lets_go_of_the_last_regulariser(begin: Begin, tmp_path: Path) -> None:
    training = begin(strategy="full", regulariser="delta", max_epochs=1)

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in training.model.trunk.modules())

    before = hooks()
    assert before > 0
    training.save_state(tmp_path)
    training.load_state(tmp_path)
    assert hooks() == before


def test_a_training_that_is_over_leaves_nothing_behind(begin: Begin) -> None:
    training = begin(strategy="full", regulariser="delta", ema=0.9, max_epochs=1)
    training.run_epoch()
    model = weakref.ref(training.model)
    del training
    gc.collect()
    assert model() is None


# Precision


def test_passes_in_bf16_train_parameters_in_fp32(begin: Begin, tmp_path: Path) -> None:
    knobs = {"strategy": "full", "max_epochs": 2, "clip_grad": 1.0}
    half, full = (begin(settings=Settings(precision=name), **knobs) for name in ("bf16", "fp32"))
    seen = set()
    half.model.trunk.register_forward_hook(lambda module, given, out: seen.add((module.training, out.dtype)))
    history, other = run(half), run(full)
    assert (True, torch.bfloat16) in seen
    assert (False, torch.float32) in seen, "evaluation is in full precision"
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert half.applied()["passes"] == "torch.bfloat16"
    losses = [[metrics["train_loss"] for metrics in each] for each in (history, other)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_precision_follows_the_device() -> None:
    assert dtype_of("auto", torch.device("cpu")) == torch.float32
    for name in ("fp16", "fp8"):
        with pytest.raises(ValueError, match="precision is"):
            dtype_of(name, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_mixed_precision_trains_and_resumes_on_a_gpu(begin: Begin, tmp_path: Path, precision: str) -> None:
    settings = Settings(device="cuda", precision=precision)
    knobs = {"strategy": "full", "max_epochs": 3, "clip_grad": 1.0}
    whole = begin(settings=settings, **knobs)
    history = run(whole)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    first = begin(settings=settings, **knobs)
    first.run_epoch()
    first.save_state(tmp_path)
    again = begin(settings=settings, **knobs)
    assert again.load_state(tmp_path)
    assert again._scaler.state_dict() == first._scaler.state_dict()
    assert run(again)[-1]["train_loss"] == pytest.approx(history[-1]["train_loss"], rel=0.05)


# Parts of a batch


@pytest.mark.parametrize("knobs", [{"mixing": "both", "label_smoothing": 0.1}, {"clip_grad": 0.5}])
def test_a_batch_in_parts_trains_as_in_one(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, knobs: dict[str, Any]
) -> None:
    trained, largest = [], []
    for part in (5, 10_000):
        monkeypatch.setattr("trainables.training.loop._PART", part)
        training = begin(strategy="full", max_epochs=1, batch_size=16, optimizer="sgd", lr=1e-2, **knobs)
        largest.append(max(len(targets) for step in training._steps() for _, targets, _, _ in step))
        history = run(training)
        trained.append((history, training.model.head.get_parameter("output.weight").detach().clone()))
    assert largest == [5, 12]
    (history, weight), (whole, expected) = trained
    assert history[0]["train_loss"] == pytest.approx(whole[0]["train_loss"], rel=1e-4)
    torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "knobs",
    [{"batch_norm": "train"}, {"regulariser": "bss", "regulariser_strength": 0.1}, {"class_weights": True}],
)
def test_what_looks_at_a_whole_batch_gets_it_whole(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, knobs: dict[str, Any]
) -> None:
    monkeypatch.setattr("trainables.training.loop._PART", 5)
    training = begin(strategy="full", max_epochs=1, batch_size=16, **knobs)
    sizes = [len(targets) for step in training._steps() for _, targets, _, _ in step]
    assert min(sizes) > 5
