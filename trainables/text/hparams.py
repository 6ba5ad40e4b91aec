"""What a trial on texts can vary, beside what every trial can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainables.training.hparams import HParams
from trainables.training.knobs import Knob, Rows, knob

__all__ = ["BINS", "OPERATIONS", "POLICIES", "TextHParams"]

OPERATIONS = ("deletion", "swap", "insertion", "synonyms", "masking")
"""What can be done to the words of a text; each is a policy by itself too."""
POLICIES = ("none", *OPERATIONS, "sampled")

BINS = 11
"""How many strengths an operation of a sampled sub-policy has."""

_SUB_POLICIES = Rows(
    columns=(
        Knob(name="operation", default="deletion", doc="What is done.", choices=OPERATIONS),
        Knob(name="probability", default=0.5, doc="How often.", low=0.0, high=1.0),
        Knob(name="magnitude", default=3, doc="How strongly.", low=0, high=BINS - 1, integer=True),
    ),
    steps=2,
    most=10,
)


@dataclass(frozen=True, kw_only=True)
class TextHParams(HParams):
    """One trial's hyperparameters, of texts.

    Raises:
        ValueError: on construction, naming every value that is not allowed.
    """

    modality: ClassVar[str] = "text"

    backbone: str = knob("all-minilm-l6-v2", "Name of the pretrained network.")
    weights: str = knob(
        "pretrained",
        "`pretrained`, `none` (random), or the path of a folder in Hugging Face's layout.",
    )
    max_length: int = knob(
        128,
        "Tokens of a text that are read; the rest is cut off.",
        low=4,
        high=4096,
        integer=True,
        space=[64, 128],
    )
    pooling: str = knob(
        "mean",
        "What a text's features are: the `mean` of its tokens', or the class token's (`cls`).",
        choices=("mean", "cls"),
        unless={"backbone": ("glove-6b-50d",)},
        space=["mean", "cls"],
    )
    policy: str = knob("none", "The augmentation policy.", choices=POLICIES, space=list(POLICIES))
    edited: float = knob(
        0.1,
        "Share of a text's words that the policy edits.",
        low=0.0,
        high=1.0,
        when={"policy": OPERATIONS},
        space=[0.05, 0.1, 0.2, 0.3],
    )
    sub_policies: tuple[tuple[tuple[str, float, int], ...], ...] = knob(
        (),
        "The sampled policy: sub-policies of (operation, probability, magnitude bin) in a row.",
        when={"policy": ("sampled",)},
        rows=_SUB_POLICIES,
        space=3,
    )
