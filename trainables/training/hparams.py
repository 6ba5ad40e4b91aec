"""Everything a trial can vary: one frozen value, with the documentation, bounds and condition of each knob.

`HParams` is the only place that knows which knobs exist, what they may be, and when one is read.
A search space is made of these knobs; the command line's help, the default space and the checks of
a spec are all read from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any

__all__ = ["TRUNK_TRAINS", "HParams", "Knob", "is_active", "knobs"]

TRUNK_TRAINS = ("partial", "full", "lp_ft")
"""The strategies that train at least a part of the trunk at some time."""

POLICIES = (
    "none",
    "flip_crop",
    "classic",
    "trivial_augment",
    "rand_augment",
    "auto_augment",
    "augmix",
    "sampled",
)
REGULARISERS = ("none", "l2_sp", "delta", "bss")


@dataclass(frozen=True, kw_only=True)
class Knob:
    """What is known of one knob: its default, what it may be, and when anything reads it.

    Attributes:
        name: field of `HParams`.
        default: the recipe's value, always part of the first trial.
        doc: one sentence for help and error messages.
        choices: the allowed values, where there are finitely many.
        low, high: the bounds of a number, both inclusive.
        optional: whether `None` is allowed.
        integer: whether the number must be whole.
        when: knob names and the values they must have for this knob to be read.
        space: what `space: default` samples, in the spec's own notation; `None`: the default alone.
    """

    name: str
    default: Any
    doc: str
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    optional: bool = False
    integer: bool = False
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    space: Any = None

    @property
    def allowed(self) -> str:
        """What the knob may be, in words."""
        if self.choices is not None:
            text = "one of " + ", ".join(str(choice) for choice in self.choices)
        elif self.low is not None and self.high is not None:
            kind = "a whole number" if self.integer else "a number"
            text = f"{kind} from {self.low:g} to {self.high:g}"
        else:
            text = "text" if isinstance(self.default, str) else "rows of (operation, probability, bin)"
        return f"{text}, or null" if self.optional else text

    @property
    def condition(self) -> str:
        """When the knob is read, in words; empty if always."""
        return " and ".join(
            f"{name} is " + " or ".join(map(str, values)) for name, values in self.when.items()
        )

    def accepts(self, value: Any) -> bool:
        """Whether `value` is allowed, whatever the other knobs are."""
        if value is None:
            return self.optional
        if self.choices is not None:
            # By type too: 1 equals True, but is no answer to yes or no.
            return any(isinstance(value, type(each)) and value == each for each in self.choices)
        if self.low is None:
            return isinstance(value, type(self.default))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.integer and isinstance(value, float) and not value.is_integer():
            return False
        assert self.high is not None
        return self.low <= value <= self.high  # neither NaN nor infinity is


def knob(default: Any, doc: str, **known: Any) -> Any:
    """A field of `HParams` that carries its own `Knob`."""
    return field(default=default, metadata={"doc": doc, **known})


_TRUNK = {"strategy": TRUNK_TRAINS}


@dataclass(frozen=True, kw_only=True)
class HParams:
    """One trial's hyperparameters.

    Raises:
        ValueError: on construction, naming every value that is not allowed.
    """

    # What is transferred
    backbone: str = knob("efficientnet_lite0", "Name of the pretrained network.")
    weights: str = knob(
        "pretrained",
        "`pretrained`, `none` (random), or the path of a state dict or safetensors file.",
    )
    image_size: int | None = knob(
        None,
        "Side of the network's input in pixels; null: the weights' own.",
        low=8,
        high=1024,
        integer=True,
        optional=True,
    )

    # What is trained
    strategy: str = knob(
        "probe",
        "`probe`: the head alone; `partial`: the head and the last groups; `full`: all; "
        "`lp_ft`: probe first, then unfreeze.",
        choices=("probe", *TRUNK_TRAINS),
        space=["probe", "partial", "full", "lp_ft"],
    )
    freeze: float = knob(
        0.5,
        "Share of the ordered groups, from the input, that stays frozen.",
        low=0.0,
        high=1.0,
        when={"strategy": ("partial", "lp_ft")},
        space={"low": 0.0, "high": 0.9},
    )
    lp_share: float = knob(
        0.5,
        "Share of the epochs that trains the head alone before unfreezing.",
        low=0.0,
        high=1.0,
        when={"strategy": ("lp_ft",)},
        space=[0.25, 0.5],
    )
    batch_norm: str = knob(
        "eval",
        "Whether BatchNorm in trained groups uses batch statistics (`train`) or not (`eval`).",
        choices=("eval", "train"),
        when=_TRUNK,
        space=["eval", "train"],
    )
    head: str = knob("linear", "The classifier on top.", choices=("linear", "mlp"))
    dropout: float = knob(
        0.0, "Dropout before the classifier.", low=0.0, high=0.9, space={"low": 0.0, "high": 0.4}
    )

    # How it is trained
    max_epochs: int = knob(8, "Horizon of the schedule, in epochs.", low=1, high=10_000, integer=True)
    batch_size: int = knob(
        64, "Images in a step.", low=1, high=4096, integer=True, space=[16, 32, 64, 128, 256]
    )
    optimizer: str = knob(
        "adamw", "The optimizer.", choices=("adamw", "adam", "sgd"), space=["adamw", "adam", "sgd"]
    )
    lr: float = knob(
        2e-3,
        "Peak learning rate of the head.",
        low=1e-7,
        high=10.0,
        space={"low": 1e-5, "high": 1e-2, "log": True},
    )
    momentum: float = knob(
        0.9,
        "Momentum of SGD.",
        low=0.0,
        high=0.999,
        when={"optimizer": ("sgd",)},
        space={"low": 0.0, "high": 0.99},
    )
    beta2: float = knob(
        0.999,
        "Decay of Adam's second moment.",
        low=0.5,
        high=0.99999,
        when={"optimizer": ("adam", "adamw")},
        space=[0.99, 0.999],
    )
    layer_rates: str = knob(
        "multiplier",
        "How the trunk's rates follow from the head's.",
        choices=("multiplier", "decay"),
        when=_TRUNK,
        space=["multiplier", "decay"],
    )
    backbone_lr_mult: float = knob(
        0.1,
        "Rate of the trunk over the head's.",
        low=1e-6,
        high=1.0,
        when={**_TRUNK, "layer_rates": ("multiplier",)},
        space={"low": 1e-3, "high": 1.0, "log": True},
    )
    layer_decay: float = knob(
        0.75,
        "Factor of the rate from each group to the one before it.",
        low=0.01,
        high=1.0,
        when={**_TRUNK, "layer_rates": ("decay",)},
        space=[0.65, 0.75],
    )
    weight_decay: float = knob(
        1e-4,
        "Weight decay of matrices and kernels; never of biases and norms.",
        low=0.0,
        high=1.0,
        space={"low": 1e-5, "high": 1e-1, "log": True, "or": [0.0]},
    )
    schedule: str = knob(
        "cosine",
        "How the rate falls.",
        choices=("constant", "cosine", "step", "plateau"),
        space=["constant", "cosine", "step", "plateau"],
    )
    warmup_epochs: float = knob(0.0, "Epochs of linear warm-up.", low=0.0, high=100.0, space=[0.0, 1.0])
    label_smoothing: float = knob(0.1, "Smoothing of the targets.", low=0.0, high=0.9, space=[0.0, 0.05, 0.1])
    class_weights: bool = knob(
        False, "Whether the loss weighs classes by their inverse frequency.", choices=(False, True)
    )
    clip_grad: float | None = knob(
        None,
        "Largest norm of the gradient; null: any.",
        low=1e-3,
        high=1e4,
        optional=True,
        space=[None, 1.0, 10.0],
    )
    ema: float | None = knob(
        None,
        "Decay of the averaged weights that are evaluated and saved; null: none.",
        low=0.5,
        high=0.99999,
        optional=True,
        space=[None, 0.99, 0.999],
    )
    regulariser: str = knob(
        "none",
        "What pulls the trunk towards its pretrained self.",
        choices=REGULARISERS,
        when=_TRUNK,
        space=list(REGULARISERS),
    )
    regulariser_strength: float = knob(
        1e-2,
        "Weight of the regulariser.",
        low=1e-8,
        high=100.0,
        when={**_TRUNK, "regulariser": REGULARISERS[1:]},
        space={"low": 1e-4, "high": 1e-1, "log": True},
    )

    # What it sees
    policy: str = knob("none", "The augmentation policy.", choices=POLICIES, space=list(POLICIES))
    ra_ops: int = knob(
        2,
        "Operations in a row.",
        low=1,
        high=8,
        integer=True,
        when={"policy": ("rand_augment",)},
        space=[1, 2, 3],
    )
    ra_magnitude: int = knob(
        9,
        "Magnitude bin of every operation.",
        low=0,
        high=30,
        integer=True,
        when={"policy": ("rand_augment",)},
        space={"low": 0, "high": 30},
    )
    sub_policies: tuple[tuple[tuple[str, float, int], ...], ...] = knob(
        (),
        "The sampled policy: sub-policies of (operation, probability, magnitude bin) in a row.",
        when={"policy": ("sampled",)},
        space=3,
    )
    mixing: str = knob(
        "none",
        "Mixing of the images of a batch.",
        choices=("none", "mixup", "cutmix", "both"),
        when=_TRUNK,
        space=["none", "mixup", "cutmix", "both"],
    )
    mixing_alpha: float = knob(
        0.2,
        "Both parameters of the Beta distribution that mixing draws from.",
        low=0.01,
        high=10.0,
        when={**_TRUNK, "mixing": ("mixup", "cutmix", "both")},
        space={"low": 0.1, "high": 1.0},
    )
    random_erasing: float = knob(
        0.0,
        "Probability that a rectangle of a training image is erased.",
        low=0.0,
        high=1.0,
        space={"low": 0.0, "high": 0.3},
    )

    seed: int = knob(0, "Root of every random number of the trial.", low=0, high=2**63 - 1, integer=True)

    def __post_init__(self) -> None:
        problems = [
            f"{known.name} is {getattr(self, known.name)!r}, but must be {known.allowed}"
            for known in knobs().values()
            if not known.accepts(getattr(self, known.name))
        ]
        if problems:
            raise ValueError("; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON, for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HParams:
        """The value that `to_dict` described, whole numbers and tuples restored.

        Raises:
            ValueError: for a name that is no knob, or a value that is not allowed.
        """
        unknown = sorted(set(values) - set(knobs()))
        if unknown:
            raise ValueError(f"unknown hyperparameters: {', '.join(unknown)}")
        clean = dict(values)
        if "sub_policies" in clean:
            clean["sub_policies"] = tuple(
                tuple((str(op), float(probability), int(magnitude)) for op, probability, magnitude in row)
                for row in clean["sub_policies"]
            )
        for name, value in clean.items():
            if knobs()[name].integer and isinstance(value, float) and value.is_integer():
                clean[name] = int(value)
        return cls(**clean)

    def watched(self, reads: set[str]) -> HParams:
        """The same value, which adds to `reads` the name of every knob that is read from it.

        Looking at all at once, as `to_dict` and `active` do, is not reading.
        """
        watched = _Watched(**{name: getattr(self, name) for name in knobs()})
        object.__setattr__(watched, "_reads", reads)
        reads.clear()
        return watched

    @property
    def active(self) -> dict[str, Any]:
        """The knobs that something reads, given the others."""
        values = self.to_dict()
        return {name: value for name, value in values.items() if is_active(name, values)}


class _Watched(HParams):
    """An `HParams` that tells which of its knobs were read."""

    def __getattribute__(self, name: str) -> Any:
        reads = object.__getattribute__(self, "__dict__").get("_reads")
        if reads is not None and name in knobs():
            reads.add(name)
        return object.__getattribute__(self, name)

    def to_dict(self) -> dict[str, Any]:
        return {name: object.__getattribute__(self, name) for name in knobs()}


@cache
def knobs() -> dict[str, Knob]:
    """Every knob by name, in the order in which a space draws them: conditions come first."""
    return {
        each.name: Knob(name=each.name, default=each.default, **each.metadata) for each in fields(HParams)
    }


def is_active(name: str, values: Mapping[str, Any]) -> bool:
    """Whether anything reads the knob `name` when the others have `values` (defaults where absent)."""
    return all(
        is_active(other, values) and values.get(other, knobs()[other].default) in allowed
        for other, allowed in knobs()[name].when.items()
    )
