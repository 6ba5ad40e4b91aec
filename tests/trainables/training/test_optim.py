from __future__ import annotations

import io
import math
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.image import backbones
from trainables.image.backbones import Backbone, Preprocessing
from trainables.image.hparams import ImageHParams as HParams
from trainables.training import averaging, optim, regularisers
from trainables.training.card import make_card
from trainables.training.delta import load_delta, save_delta
from trainables.training.model import TransferModel, build_model, unfreeze

FULL = HParams(strategy="full", batch_norm="train")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny() -> Backbone:
    """Two blocks of a convolution and BatchNorm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = nn.Sequential(
            OrderedDict(
                first=nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
                second=nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
                pool=nn.AdaptiveAvgPool2d(1),
                flat=nn.Flatten(),
            )
        ).eval()
    names = list(trunk.state_dict())
    groups = tuple(tuple(name for name in names if name.startswith(stage)) for stage in ("first", "second"))
    preprocessing = Preprocessing(
        image_size=8, frame_size=8, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    return Backbone("tiny", "pretrained", trunk, 6, groups, preprocessing, "0")


def network_of(backbone: Backbone, hparams: HParams, phase: str = "trunk") -> TransferModel:
    network = build_model(backbone, hparams, 3)
    unfreeze(network, backbone.groups, hparams, phase)
    return network


def inputs(size: int = 8, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def step(network: TransferModel, optimizer: torch.optim.Optimizer) -> None:
    network.train()
    loss = cross_entropy(network(inputs()), torch.arange(6) % 3)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def named_groups(
    network: TransferModel, backbone: Backbone, hparams: HParams
) -> dict[str, tuple[dict[str, Any], set[str]]]:
    """The groups by name, each with the names of its parameters."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = optim.parameter_groups(network, backbone.groups, hparams)
    assert len({group["name"] for group in found}) == len(found)
    return {group["name"]: (group, {names[id(p)] for p in group["params"]}) for group in found}


# Parameter groups


@pytest.mark.parametrize("strategy", ["probe", "partial", "full", "lp_ft", "bias"])
@pytest.mark.parametrize("layer_rates", ["multiplier", "decay"])
@pytest.mark.parametrize("name", ["tiny", "timm/test_vit", "timm/test_convnext"])
def test_each_trainable_parameter_is_in_one_group(name: str, layer_rates: str, strategy: str) -> None:
    backbone = tiny() if name == "tiny" else backbones.build(name, weights="none")
    hparams = HParams(strategy=strategy, freeze=0.5, layer_rates=layer_rates)
    network = network_of(backbone, hparams)
    found = optim.parameter_groups(network, backbone.groups, hparams)
    members = [id(parameter) for group in found for parameter in group["params"]]
    trainable = {id(p) for p in network.parameters() if p.requires_grad}
    assert len(members) == len(set(members))
    assert set(members) == trainable
    assert (len(trainable) == 2) == (strategy == "probe")
    for group in found:
        for parameter in group["params"]:
            if parameter.numel() == max(parameter.shape):
                assert group["weight_decay"] == 0


def test_vectors_are_not_decayed() -> None:
    hparams = replace(FULL, weight_decay=0.3)
    found = named_groups(network_of(tiny(), hparams), tiny(), hparams)
    assert {name: members for name, (_, members) in found.items()} == {
        "trunk.decay": {"trunk.first.0.weight", "trunk.second.0.weight"},
        "trunk.no_decay": {
            *("trunk.first.0.bias", "trunk.first.1.weight", "trunk.first.1.bias"),
            *("trunk.second.0.bias", "trunk.second.1.weight", "trunk.second.1.bias"),
        },
        "head.decay": {"head.output.weight"},
        "head.no_decay": {"head.output.bias"},
    }
    decays = {name: group["weight_decay"] for name, (group, _) in found.items()}
    assert decays == {
        "trunk.decay": 0.3,
        "trunk.no_decay": 0.0,
        "head.decay": 0.3,
        "head.no_decay": 0.0,
    }


def test_what_a_network_names_and_tokens_are_not_decayed() -> None:
    backbone = backbones.build("timm/test_vit", weights="none")
    found = named_groups(network_of(backbone, FULL), backbone, FULL)
    assert {"trunk.pos_embed", "trunk.cls_token"} <= found["trunk.no_decay"][1]
    assert "trunk.blocks.0.mlp.fc1.weight" in found["trunk.decay"][1]


def test_the_multiplier_is_the_trunks_rate_over_the_heads() -> None:
    hparams = replace(FULL, lr=0.01, backbone_lr_mult=0.2)
    found = named_groups(network_of(tiny(), hparams), tiny(), hparams)
    rates = {name: (group["lr"], group["share"]) for name, (group, _) in found.items()}
    assert rates["head.decay"] == (0.01, 1.0)
    assert rates["trunk.decay"] == rates["trunk.no_decay"] == pytest.approx((0.002, 0.2))


def test_layer_decay_falls_from_the_head_to_the_input() -> None:
    hparams = replace(FULL, lr=0.01, layer_rates="decay", layer_decay=0.5)
    found = named_groups(network_of(tiny(), hparams), tiny(), hparams)
    assert {name: group["lr"] for name, (group, _) in found.items()} == pytest.approx(
        {
            "trunk.0.decay": 0.0025,
            "trunk.0.no_decay": 0.0025,
            "trunk.1.decay": 0.005,
            "trunk.1.no_decay": 0.005,
            "head.decay": 0.01,
            "head.no_decay": 0.01,
        }
    )


def test_the_trunk_may_have_a_rate_of_its_own() -> None:
    hparams = replace(FULL, lr=0.01, trunk_lr=0.002, backbone_lr_mult=0.5)
    found = named_groups(network_of(tiny(), hparams), tiny(), hparams)
    rates = {name: group["lr"] for name, (group, _) in found.items() if name.endswith(".decay")}
    assert rates == pytest.approx({"trunk.decay": 0.002, "head.decay": 0.01})
    falling = replace(hparams, layer_rates="decay", layer_decay=0.5)
    found = named_groups(network_of(tiny(), falling), tiny(), falling)
    rates = {name: group["lr"] for name, (group, _) in found.items() if name.endswith(".decay")}
    assert rates == pytest.approx({"trunk.0.decay": 0.001, "trunk.1.decay": 0.002, "head.decay": 0.01})


def test_l2_sp_takes_the_place_of_the_trunks_decay() -> None:
    hparams = replace(FULL, regulariser="l2_sp", weight_decay=0.3)
    found = named_groups(network_of(tiny(), hparams), tiny(), hparams)
    assert set(found) == {"trunk.no_decay", "head.decay", "head.no_decay"}


def test_the_trunk_moves_after_it_is_unfrozen() -> None:
    backbone = tiny()
    hparams = HParams(strategy="lp_ft", freeze=0.5, lr=0.1, optimizer="sgd")
    network = build_model(backbone, hparams, 3)
    moved = []
    for phase in ("head", "trunk"):
        unfreeze(network, backbone.groups, hparams, phase)
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        groups = optim.parameter_groups(network, backbone.groups, hparams)
        step(network, optim.build_optimizer(groups, hparams))
        now = network.named_parameters()
        moved.append({name for name, p in now if not torch.equal(p, before[name])})
    assert {name.split(".")[0] for name in moved[0]} == {"head"}
    assert {name.rpartition(".")[0] for name in moved[1]} >= {"trunk.second.0", "head.output"}
    assert not any("first" in name for name in moved[1])


# Optimizers


def test_optimizers_have_the_knobs_of_the_trial() -> None:
    groups = [{"name": "head", "params": [nn.Parameter(torch.ones(2, 2))], "lr": 0.5}]
    sgd = optim.build_optimizer(groups, HParams(optimizer="sgd", momentum=0.7))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["lr"]) == (0.7, 0.5)
    assert sgd.param_groups[0]["name"] == "head"
    for name in ("adam", "adamw"):
        adam = optim.build_optimizer(groups, HParams(optimizer=name, beta2=0.99))
        assert adam.param_groups[0]["betas"] == (0.9, 0.99)
        assert isinstance(adam, torch.optim.AdamW) == (name == "adamw")
    # What was asked for is not changed: the next phase may use it again.
    assert set(groups[0]) == {"name", "params", "lr"}


@pytest.mark.parametrize(("name", "expected"), [("adamw", 1 - 0.1 * 0.5), ("adam", 1 - 0.1)])
def test_only_adamw_decays_apart_from_the_gradient(name: str, expected: float) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    group = {"params": [weight], "lr": 0.1, "weight_decay": 0.5}
    optimizer = optim.build_optimizer([group], HParams(optimizer=name))
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.allclose(weight, torch.full((2, 2), expected), atol=1e-6)


# Schedules


def scheduled(
    schedule: str, *, warmup: float = 0.0, epochs: int = 4, mode: Any = "min"
) -> tuple[torch.optim.Optimizer, optim.Schedule]:
    """Two groups with rates 1 and 0.1, five steps an epoch."""
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [p], "lr": lr} for p, lr in zip(parameters, (1.0, 0.1), strict=True)]
    )
    hparams = HParams(schedule=schedule, warmup_epochs=warmup)
    return optimizer, optim.build_schedule(optimizer, hparams, 5, epochs, mode=mode)


def run(optimizer: torch.optim.Optimizer, schedule: optim.Schedule, values: list[float]) -> list[float]:
    """The first group's rate at each step, over one epoch for each monitored value."""
    rates = []
    for value in values:
        for _ in range(5):
            first, second = (group["lr"] for group in optimizer.param_groups)
            assert second == pytest.approx(first / 10)
            rates.append(first)
            optimizer.step()
            schedule.step()
        schedule.epoch_end(value)
    return rates


def test_constant() -> None:
    assert run(*scheduled("constant"), [1.0] * 4) == [1.0] * 20


def test_cosine() -> None:
    rates = run(*scheduled("cosine"), [1.0] * 4)
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * t / 20)) for t in range(20)])


def test_step() -> None:
    rates = run(*scheduled("step"), [1.0] * 4)
    assert rates == pytest.approx([1.0] * 10 + [0.1] * 5 + [0.01] * 5)


def test_warm_up_is_linear_and_never_zero() -> None:
    rates = run(*scheduled("cosine", warmup=0.8), [1.0] * 4)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == pytest.approx([0.5 * (1 + math.cos(math.pi * t / 16)) for t in range(1, 16)])


def test_a_warm_up_longer_than_the_phase_still_rises() -> None:
    rates = run(*scheduled("constant", warmup=50.0, epochs=1), [1.0])
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_steps_beyond_the_end_stay_at_the_end() -> None:
    assert run(*scheduled("cosine", epochs=1), [1.0] * 2)[5:] == [0.0] * 5


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_plateau_falls_when_the_value_stays(mode: str, sign: int) -> None:
    values = [sign * value for value in (5.0, 4.0, 4.0, 4.0, 4.0, 3.0)]
    rates = run(*scheduled("plateau", epochs=6, mode=mode), values)[::5]
    assert rates == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.1, 0.1])


def test_plateau_does_not_count_the_warm_up() -> None:
    optimizer, schedule = scheduled("plateau", warmup=3.0, epochs=6)
    rates = run(optimizer, schedule, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    assert rates[:15] == pytest.approx([(t + 1) / 16 for t in range(15)])
    assert rates[15:25] == [1.0] * 10


@pytest.mark.parametrize("warmup", [0.0, 2.5])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "plateau"])
def test_a_schedule_goes_on_exactly(schedule: str, warmup: float) -> None:
    values = [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]
    whole = run(*scheduled(schedule, warmup=warmup, epochs=9), values)
    for cut in range(1, 9):
        optimizer, first = scheduled(schedule, warmup=warmup, epochs=9)
        rates = run(optimizer, first, values[:cut])
        file = io.BytesIO()
        torch.save((optimizer.state_dict(), first.state_dict()), file)
        file.seek(0)
        states = torch.load(file, weights_only=True)
        for order in (0, 1):
            optimizer, second = scheduled(schedule, warmup=warmup, epochs=9)
            targets: list[Any] = [optimizer, second]
            for index in (order, 1 - order):
                targets[index].load_state_dict(states[index])
            assert rates + run(optimizer, second, values[cut:]) == whole


def test_an_optimizer_that_was_loaded_first_keeps_its_peaks() -> None:
    optimizer, schedule = scheduled("cosine")
    rates = run(optimizer, schedule, [1.0] * 2)
    other = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(2))], "lr": 9.0} for _ in "ab"])
    other.load_state_dict(optimizer.state_dict())
    later = optim.build_schedule(other, HParams(schedule="cosine"), 5, 4)
    later.load_state_dict(schedule.state_dict())
    assert rates + run(other, later, [1.0] * 2) == run(*scheduled("cosine"), [1.0] * 4)


# Regularisers


def penalised(name: str, strength: float = 0.5) -> HParams:
    return replace(FULL, regulariser=name, regulariser_strength=strength)


@pytest.mark.parametrize("name", ["l2_sp", "delta", "bss"])
def test_nothing_is_penalised_where_the_trunk_is_frozen(name: str) -> None:
    backbone = tiny()
    hparams = replace(penalised(name), strategy="lp_ft", freeze=0.0)
    network = network_of(backbone, hparams, "head")
    assert regularisers.regulariser(network, backbone, hparams) is None
    unfreeze(network, backbone.groups, hparams, "trunk")
    assert regularisers.regulariser(network, backbone, hparams) is not None
    probe = replace(hparams, strategy="probe")
    assert regularisers.regulariser(network, backbone, probe) is None
    assert regularisers.regulariser(network, backbone, FULL) is None


def test_l2_sp_by_hand() -> None:
    backbone = tiny()
    hparams = replace(penalised("l2_sp"), strategy="partial", freeze=0.5)
    network = network_of(backbone, hparams)
    penalty = regularisers.regulariser(network, backbone, hparams)
    assert penalty is not None
    features = network.features(inputs())
    assert penalty(inputs(), features).item() == 0.0
    weight = network.trunk.get_parameter("second.0.weight")
    with torch.no_grad():
        weight[0, 0, 0, 0] += 3.0
        network.trunk.get_parameter("second.1.bias")[0] += 1.0
        # Neither the head nor what is frozen is pulled anywhere.
        network.trunk.get_parameter("first.0.weight").add_(1.0)
        network.head.get_parameter("output.weight").add_(1.0)
    value = penalty(inputs(), features)
    assert value.item() == pytest.approx(0.5 * 0.5 * (9 + 1), rel=1e-5)
    value.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad[0, 0, 0, 0].item() == pytest.approx(0.5 * 3.0, rel=1e-5)


def test_delta_by_hand() -> None:
    backbone = tiny()
    hparams = replace(penalised("delta"), batch_norm="eval")
    network = network_of(backbone, hparams)
    penalty = regularisers.regulariser(network, backbone, hparams)
    assert penalty is not None
    assert penalty(inputs(), network.features(inputs())).item() == 0.0
    with torch.no_grad():
        # One of six channels of the last maps moves by 2, everywhere.
        network.trunk.get_parameter("second.1.bias")[1] += 2.0
    value = penalty(inputs(), network.features(inputs()))
    assert value.item() == pytest.approx(0.5 * 0.5 * 4.0, rel=1e-4)
    value.backward()  # type: ignore[no-untyped-call]
    assert network.trunk.get_parameter("first.0.weight").grad is not None
    assert all(p.grad is None for p in backbone.module.parameters())


def test_delta_compares_the_pass_of_the_step() -> None:
    backbone = tiny()
    network = network_of(backbone, penalised("delta"))
    penalty = regularisers.regulariser(network, backbone, penalised("delta"))
    assert penalty is not None
    network.eval()
    with torch.no_grad():
        features = network.features(inputs())
    with pytest.raises(RuntimeError, match="needs the model's pass"):
        penalty(inputs(), features)
    penalty.close()
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("efficientnet_lite0", 32),
        ("timm/test_vit", None),
        ("timm/test_convnext", 64),
    ],
)
@pytest.mark.parametrize("freeze", [0.0, 0.8])
def test_delta_finds_the_maps_of_any_trunk(name: str, size: int | None, freeze: float) -> None:
    backbone = backbones.build(name, weights="none", image_size=size)
    size = backbone.preprocessing.image_size
    hparams = replace(penalised("delta", 1.0), strategy="partial", freeze=freeze, batch_norm="eval")
    network = network_of(backbone, hparams)
    penalty = regularisers.regulariser(network, backbone, hparams)
    assert penalty is not None
    # Stochastic depth differs between passes.
    network.eval()
    batch = inputs(size, 2)
    assert penalty(batch, network.features(batch)).item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    assert penalty(batch, network.features(batch)).item() > 1e-6


def test_positions_are_counted_in_any_layout() -> None:
    assert regularisers._positions(torch.empty(2, 5, 3, 3)) == 9
    assert regularisers._positions(torch.empty(2, 3, 3, 5)) == 9
    assert regularisers._positions(torch.empty(2, 7, 5)) == 7
    assert regularisers._positions(torch.empty(2, 5)) == 1


def test_bss_is_the_smallest_singular_value_squared() -> None:
    backbone = tiny()
    penalty = regularisers.regulariser(network_of(backbone, penalised("bss")), backbone, penalised("bss"))
    assert penalty is not None
    features = torch.diag(torch.tensor([3.0, 2.0, 0.5])).requires_grad_()
    value = penalty(inputs(), features)
    assert value.item() == pytest.approx(0.5 * 0.25)
    value.backward()  # type: ignore[no-untyped-call]
    expected = torch.zeros(3, 3)
    expected[2, 2] = 0.5 * 2 * 0.5
    assert features.grad is not None
    assert torch.allclose(features.grad, expected, atol=1e-6)
    assert penalty(inputs(), features.detach().half()).isfinite()


# Averages


def test_an_average_by_hand() -> None:
    backbone = tiny()
    network = network_of(backbone, FULL)
    assert averaging.build_ema(network, FULL) is None
    ema = averaging.build_ema(network, replace(FULL, ema=0.5))
    assert ema is not None
    weight = network.trunk.get_parameter("first.0.weight")
    running = network.trunk.get_buffer("first.1.running_mean")
    counter = network.trunk.get_buffer("first.1.num_batches_tracked")
    expected = [tensor.detach().clone() for tensor in (weight, running)]
    for number in range(1, 15):
        with torch.no_grad():
            weight.add_(1.0)
            running.sub_(2.0)
            counter.add_(1)
        ema.update()
        decay = min(0.5, number / (number + 9))
        for average, live in zip(expected, (weight, running), strict=True):
            average.copy_(decay * average + (1 - decay) * live.detach())
    kept = [tensor.detach().clone() for tensor in (weight, running)]
    with ema.applied():
        assert torch.allclose(weight, expected[0])
        assert torch.allclose(running, expected[1])
        assert counter.item() == 14
        assert not torch.allclose(weight, kept[0])
    assert torch.equal(weight, kept[0])
    assert torch.equal(running, kept[1])


def test_the_average_is_what_is_saved(tmp_path: Path) -> None:
    hparams = HParams(
        backbone="shufflenet_v2_x0_5", weights="none", strategy="full", batch_norm="train", ema=0.9
    )
    backbone = backbones.build(hparams.backbone, weights="none", image_size=32)
    hparams = replace(hparams, image_size=32)
    network = network_of(backbone, hparams)
    ema = averaging.build_ema(network, hparams)
    assert ema is not None
    groups = optim.parameter_groups(network, backbone.groups, hparams)
    optimizer = optim.build_optimizer(groups, hparams)
    for _ in range(3):
        network.train()
        cross_entropy(network(inputs(32)), torch.arange(6) % 3).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        ema.update()
    network.eval()
    with torch.no_grad(), ema.applied():
        evaluated = network(inputs(32))
        save_delta(tmp_path, network, backbone, make_card(backbone, hparams, ["a", "b", "c"], {}))
    with torch.no_grad():
        assert torch.equal(load_delta(tmp_path).model(inputs(32)), evaluated)
        assert not torch.equal(network(inputs(32)), evaluated)


def test_a_failure_leaves_the_live_weights() -> None:
    network = network_of(tiny(), FULL)
    ema = averaging.EMA(network, 0.9)
    with torch.no_grad():
        network.head.get_parameter("output.weight").add_(1.0)
    live = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ZeroDivisionError), ema.applied():
        _ = 1 / 0
    assert all(torch.equal(tensor, live[name]) for name, tensor in network.state_dict().items())


def test_an_average_goes_on_exactly() -> None:
    backbone = tiny()

    def trained(cut: int | None) -> dict[str, Tensor]:
        network = network_of(backbone, FULL)
        groups = optim.parameter_groups(network, backbone.groups, FULL)
        optimizer = optim.build_optimizer(groups, FULL)
        ema = averaging.EMA(network, 0.8)
        for number in range(8):
            if number == cut:
                file = io.BytesIO()
                torch.save(ema.state_dict(), file)
                file.seek(0)
                ema = averaging.EMA(network, 0.8)
                ema.load_state_dict(torch.load(file, weights_only=True))
            step(network, optimizer)
            ema.update()
        with ema.applied():
            return {name: tensor.clone() for name, tensor in network.state_dict().items()}

    whole, resumed = trained(None), trained(5)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_only_what_moves_is_averaged() -> None:
    backbone = tiny()
    hparams = HParams(strategy="lp_ft", freeze=0.5)
    network = network_of(backbone, hparams, "head")
    ema = averaging.EMA(network, 0.9)
    assert set(ema.state_dict()["average"]) == {"head.output.weight", "head.output.bias"}
    unfreeze(network, backbone.groups, hparams, "trunk")
    ema.update()
    assert set(ema.state_dict()["average"]) == {
        "head.output.weight",
        "head.output.bias",
        *(f"trunk.{name}" for name in backbone.groups[1]),
    }
