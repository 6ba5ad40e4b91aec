"""Everything a trial can vary: one frozen value, with the documentation, bounds and condition of each knob.

`HParams` has the knobs of every trial; a modality's subclass adds its own. These classes are the only places
that know which knobs exist, what they may be, and when one is read: a search space is made of them; the
command line's help, the default space and the checks of a spec are all read from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, ClassVar, Self

from trainables.training.knobs import is_active, knob, knobs

__all__ = ["TRUNK_TRAINS", "HParams"]

TRUNK_TRAINS = ("partial", "full", "lp_ft", "bias", "lora")
"""The strategies that train at least a part of the trunk at some time."""

SOLVERS = ("gradient", "ridge", "logistic")
SCHEDULES = ("constant", "cosine", "step", "plateau")
REGULARISERS = ("none", "l2_sp", "delta", "bss")


WHILE_TRUNK_TRAINS = {"strategy": TRUNK_TRAINS}
"""The condition of a knob that is read where at least a part of the trunk trains."""
_SOLVED = {"strategy": ("probe",), "solver": SOLVERS[1:]}
"""A head that is solved takes no steps: nothing that is about steps is read."""


@dataclass(frozen=True, kw_only=True)
class HParams:
    """One trial's hyperparameters: those of every modality.

    Attributes:
        modality: name of the modality whose trials have these; set by its subclass.

    Raises:
        ValueError: on construction, naming every value that is not allowed.
    """

    modality: ClassVar[str] = ""

    # What is transferred
    backbone: str = knob("", "Name of the pretrained network.")
    weights: str = knob(
        "pretrained",
        "`pretrained`, `none` (random), or the path of a state dict or safetensors file.",
    )

    features: str = knob(
        "last",
        "What of the trunk the head reads: its `last` features, or the pooled outputs of its `stages`.",
        choices=("last", "stages"),
        space=["last", "stages"],
    )

    # What is trained
    strategy: str = knob(
        "probe",
        "`probe`: the head alone; `partial`: the head and the last groups; `full`: all; "
        "`lp_ft`: probe first, then unfreeze; `bias`: the head, biases and norms; `lora`: the head, and "
        "low-rank updates of linear layers, for transformers.",
        choices=("probe", *TRUNK_TRAINS),
        space=["probe", "partial", "full", "lp_ft"],
    )
    head: str = knob("linear", "The classifier on top.", choices=("linear", "mlp"))
    solver: str = knob(
        "gradient",
        "How a head on a frozen trunk is found: in steps (`gradient`), or solved for a path of strengths, as "
        "`ridge` or `logistic` regression; for `lp_ft` the solved head takes the place of the first epochs.",
        choices=SOLVERS,
        when={"strategy": ("probe", "lp_ft"), "head": ("linear",)},
        space=["ridge", "logistic", "gradient"],
    )
    freeze: float = knob(
        0.5,
        "Share of the ordered groups, from the input, that stays frozen.",
        low=0.0,
        high=1.0,
        when={"strategy": ("partial", "lp_ft")},
        space={"low": 0.0, "high": 0.9},
    )
    lora_rank: int = knob(
        8,
        "Rank of the updates.",
        low=1,
        high=512,
        integer=True,
        when={"strategy": ("lora",)},
    )
    lp_share: float = knob(
        0.5,
        "Share of the epochs that trains the head alone before unfreezing.",
        low=0.0,
        high=1.0,
        when={"strategy": ("lp_ft",)},
        unless={"solver": SOLVERS[1:]},
        space=[0.25, 0.5],
    )
    batch_norm: str = knob(
        "eval",
        "Whether BatchNorm in trained groups uses batch statistics (`train`) or not (`eval`).",
        choices=("eval", "train"),
        when=WHILE_TRUNK_TRAINS,
        space=["eval", "train"],
    )
    dropout: float = knob(
        0.0,
        "Dropout before the classifier.",
        low=0.0,
        high=0.9,
        unless=_SOLVED,
        space={"low": 0.0, "high": 0.4},
    )

    # How it is trained
    max_epochs: int = knob(
        8, "Horizon of the schedule, in epochs.", low=1, high=10_000, integer=True, unless=_SOLVED
    )
    batch_size: int = knob(
        64,
        "Examples in a step; two at least where BatchNorm trains.",
        low=1,
        high=4096,
        integer=True,
        unless=_SOLVED,
        space=[16, 32, 64, 128, 256],
    )
    optimizer: str = knob(
        "adamw",
        "The optimizer.",
        choices=("adamw", "adam", "sgd"),
        unless=_SOLVED,
        space=["adamw", "adam", "sgd"],
    )
    lr: float = knob(
        2e-3,
        "Peak learning rate of the head.",
        low=1e-7,
        high=10.0,
        unless=_SOLVED,
        space={"low": 3e-4, "high": 3e-2, "log": True},
    )
    momentum: float = knob(
        0.9,
        "Momentum of SGD.",
        low=0.0,
        high=0.999,
        when={"optimizer": ("sgd",)},
        unless=_SOLVED,
        space={"low": 0.0, "high": 0.99},
    )
    beta2: float = knob(
        0.999,
        "Decay of Adam's second moment.",
        low=0.5,
        high=0.99999,
        when={"optimizer": ("adam", "adamw")},
        unless=_SOLVED,
    )
    trunk_lr: float | None = knob(
        None,
        "Peak learning rate of the trunk; null: it follows from the head's.",
        low=1e-8,
        high=1.0,
        optional=True,
        when=WHILE_TRUNK_TRAINS,
        space={"low": 3e-5, "high": 5e-4, "log": True},
    )
    layer_rates: str = knob(
        "multiplier",
        "Whether the trunk has one rate (`multiplier`), or one that falls from group to group towards the "
        "input (`decay`).",
        choices=("multiplier", "decay"),
        when=WHILE_TRUNK_TRAINS,
        space=["multiplier", "decay"],
    )
    backbone_lr_mult: float = knob(
        0.1,
        "Rate of the trunk over the head's.",
        low=1e-6,
        high=1.0,
        when={**WHILE_TRUNK_TRAINS, "trunk_lr": (None,), "layer_rates": ("multiplier",)},
    )
    layer_decay: float = knob(
        0.75,
        "Factor of the rate from each group to the one before it.",
        low=0.01,
        high=1.0,
        when={**WHILE_TRUNK_TRAINS, "layer_rates": ("decay",)},
        space=[0.65, 0.75],
    )
    weight_decay: float = knob(
        1e-4,
        "Weight decay of matrices and kernels; never of biases and norms.",
        low=0.0,
        high=1.0,
        unless=_SOLVED,
    )
    schedule: str = knob(
        "cosine",
        "How the rate falls.",
        choices=SCHEDULES,
        unless=_SOLVED,
        space=list(SCHEDULES),
    )
    warmup_epochs: float = knob(
        0.0, "Epochs of linear warm-up.", low=0.0, high=100.0, unless=_SOLVED, space=[0.0, 1.0]
    )
    label_smoothing: float = knob(
        0.1, "Smoothing of the targets.", low=0.0, high=0.9, unless=_SOLVED, space=[0.0, 0.05, 0.1]
    )
    class_weights: bool = knob(
        False, "Whether the loss weighs classes by their inverse frequency.", choices=(False, True)
    )
    clip_grad: float | None = knob(
        None,
        "Largest norm of the gradient; null: any.",
        low=1e-3,
        high=1e4,
        optional=True,
        unless=_SOLVED,
    )
    ema: float | None = knob(
        None,
        "Decay of the averaged weights that are evaluated and saved; null: none.",
        low=0.5,
        high=0.99999,
        optional=True,
        unless=_SOLVED,
        space=[None, 0.99, 0.999],
    )
    regulariser: str = knob(
        "none",
        "What pulls the trunk towards its pretrained self.",
        choices=REGULARISERS,
        when=WHILE_TRUNK_TRAINS,
        space=list(REGULARISERS),
    )
    regulariser_strength: float = knob(
        1e-2,
        "Weight of the regulariser.",
        low=1e-8,
        high=100.0,
        when={**WHILE_TRUNK_TRAINS, "regulariser": REGULARISERS[1:]},
        space={"low": 1e-4, "high": 1e-1, "log": True},
    )

    # What it sees
    policy: str = knob("none", "The augmentation policy.", choices=("none",))

    seed: int = knob(0, "Root of every random number of the trial.", low=0, high=2**63 - 1, integer=True)

    def __post_init__(self) -> None:
        problems = [
            f"{known.name} is {getattr(self, known.name)!r}, but must be {known.allowed}"
            for known in knobs(type(self)).values()
            if not known.may_be(getattr(self, known.name))
        ]
        if problems:
            raise ValueError("; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON, for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The value that `to_dict` described, whole numbers and tuples restored.

        Raises:
            ValueError: for a name that is no knob, or a value that is not allowed.
        """
        unknown = sorted(set(values) - set(knobs(cls)))
        if unknown:
            raise ValueError(f"unknown hyperparameters: {', '.join(unknown)}")
        clean = dict(values)
        for name, value in clean.items():
            known = knobs(cls)[name]
            if known.rows is not None:
                clean[name] = known.rows.restored(value)
            elif known.integer and isinstance(value, float) and value.is_integer():
                clean[name] = int(value)
        return cls(**clean)

    def watched(self, reads: set[str]) -> Self:
        """The same value, which adds to `reads` the name of every knob that is read from it.

        Looking at all at once, as `to_dict` and `active` do, is not reading.
        """
        kind: Any = type(self)
        watched: Self = _watching(kind)(**{name: getattr(self, name) for name in knobs(kind)})
        object.__setattr__(watched, "_reads", reads)
        reads.clear()
        return watched

    @property
    def trunk_rate(self) -> float:
        """Peak learning rate of the trunk's last group that trains, given as it is or over the head's."""
        if self.trunk_lr is not None:
            return self.trunk_lr
        return self.lr * (self.layer_decay if self.layer_rates == "decay" else self.backbone_lr_mult)

    @property
    def head_is_solved(self) -> bool:
        """Whether a head on the frozen trunk is solved for, instead of found in steps."""
        return self.solver != "gradient" and is_active("solver", self.to_dict(), type(self))

    @property
    def epochs(self) -> int:
        """How many epochs the trial has: solving a head is one."""
        return 1 if self.strategy == "probe" and self.head_is_solved else self.max_epochs

    @property
    def active(self) -> dict[str, Any]:
        """The knobs that something reads, given the others."""
        values = self.to_dict()
        return {name: value for name, value in values.items() if is_active(name, values, type(self))}


class _Watched:
    """What makes an `HParams` tell which of its knobs were read."""

    def __getattribute__(self, name: str) -> Any:
        reads = object.__getattribute__(self, "__dict__").get("_reads")
        if reads is not None and name in knobs(type(self)):
            reads.add(name)
        return object.__getattribute__(self, name)

    def to_dict(self) -> dict[str, Any]:
        return {name: object.__getattribute__(self, name) for name in knobs(type(self))}


@cache
def _watching(kind: Any) -> Any:
    """The subclass of a kind of `HParams` whose values tell what is read from them."""
    return type(f"Watched{kind.__name__}", (_Watched, kind), {})
