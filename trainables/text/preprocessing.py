"""How a text becomes what a network takes: which tokenizer, how many tokens, and the network's plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from trainables.errors import BackboneError

__all__ = ["Architecture", "Preprocessing"]

KINDS = ("transformer", "vectors")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
POOLINGS = ("mean", "cls")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The plan of a network that reads tokens.

    Attributes:
        kind: a `transformer`, or `vectors` of words alone.
        vocabulary, width: how many tokens it knows, and the length of their vectors.
        layers, heads, inner: of a transformer.
        positions: how many tokens it can read; 0: any number.
        offset: number of the first position.
        types: how many kinds of token there are in the embeddings; 0: they have none.
        activation: between a layer's two products.
        epsilon: of the norms.
        dropout, attention_dropout: while it trains.
        unknown: token that a mean leaves out; -1: none.
    """

    kind: str
    vocabulary: int
    width: int
    layers: int = 0
    heads: int = 0
    inner: int = 0
    positions: int = 0
    offset: int = 0
    types: int = 0
    activation: str = "gelu"
    epsilon: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0
    unknown: int = -1

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value!r}, but must be {allowed}"
            for name, value, is_good, allowed in self._rules()
            if not is_good
        ]
        if problems:
            raise BackboneError("; ".join(problems))

    def _rules(self) -> list[tuple[str, Any, bool, str]]:
        least = 1 if self.kind == "transformer" else 0
        whole = [("vocabulary", 1), ("width", 1), ("layers", least), ("heads", least), ("inner", least)]
        whole += [("positions", least), ("offset", 0), ("types", 0), ("unknown", -1)]
        rules: list[tuple[str, Any, bool, str]] = [
            ("kind", self.kind, self.kind in KINDS, "one of " + ", ".join(KINDS)),
            (
                "activation",
                self.activation,
                self.activation in ACTIVATIONS,
                "one of " + ", ".join(ACTIVATIONS),
            ),
        ]
        for name, bound in whole:
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and bound <= value < 2**31
            rules.append((name, value, good, f"a whole number of at least {bound}"))
        for name in ("epsilon", "dropout", "attention_dropout"):
            value = getattr(self, name)
            rules.append(
                (name, value, isinstance(value, int | float) and 0 <= value < 1, "from 0 to below 1")
            )
        if all(good for _, _, good, _ in rules) and self.kind == "transformer":
            rules.append(("width", self.width, self.width % self.heads == 0, "a multiple of heads"))
        return rules


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a text becomes the network's input.

    Attributes:
        tokenizer: hex digest of the file that cuts texts into tokens.
        max_length: tokens that are read, special ones too.
        pooling: what of the tokens' features a text has.
        architecture: of the network, which a saved model is built again from.

    Raises:
        BackboneError: on construction, for values that no network can take.
    """

    tokenizer: str
    max_length: int
    pooling: str
    architecture: Architecture

    def __post_init__(self) -> None:
        if not isinstance(self.tokenizer, str) or not self.tokenizer:
            raise BackboneError(f"tokenizer is {self.tokenizer!r}, but must be a digest")
        if self.pooling not in POOLINGS:
            raise BackboneError(f"pooling is {self.pooling!r}, but must be one of {', '.join(POOLINGS)}")
        length = self.max_length
        if isinstance(length, bool) or not isinstance(length, int) or not 4 <= length <= 2**16:
            raise BackboneError(f"max_length is {length!r}, but must be a whole number from 4 to 65536")
        most = self.architecture.positions - self.architecture.offset
        if self.architecture.positions and length > most:
            raise BackboneError(f"max_length is {length}, but the network reads {most} tokens at most")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON, for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The value that `to_dict` described.

        Raises:
            BackboneError: for missing, unknown or impossible values.
        """
        plan = values.get("architecture")
        for kind, given in ((cls, values), (Architecture, plan)):
            known = {each.name for each in fields(kind)}
            if not isinstance(given, Mapping) or set(given) != known:
                had = sorted(given) if isinstance(given, Mapping) else given
                raise BackboneError(f"preprocessing has {had}, but must have exactly {sorted(known)}")
        assert isinstance(plan, Mapping)
        return cls(**{**values, "architecture": Architecture(**plan)})

    def normaliser(self) -> nn.Module:
        """Nothing: the network takes tokens as they are."""
        return nn.Identity()

    def blank(self, count: int) -> Tensor:
        """Texts of one token again and again, as long as can be, int64 [count, 2, L]."""
        return torch.tensor([0, 1])[None, :, None].repeat(count, 1, self.max_length)
