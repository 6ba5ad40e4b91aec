"""The networks that read tokens: encoders of transformer layers, and vectors of words under a mean.

An encoder is that of BERT (Devlin et al., 2019): embeddings of tokens and places, then layers of attention
and of two products, each with a norm after its sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.text.preprocessing import Architecture

__all__ = ["Encoder", "TextTrunk", "WordVectors", "build_trunk", "groups_of"]

_STEP = 8
"""Lengths of batches are multiples of this: fewer different shapes."""
_DEVIATION = 0.02  # of random weights, as BERT began


class TextTrunk(nn.Module):
    """Maps tokens and their mask, [B, 2, L], to features float [B, width]."""

    def __init__(self, architecture: Architecture, pooling: str) -> None:
        super().__init__()
        self.architecture, self.pooling = architecture, pooling

    def pooled(self, output: Tensor, inputs: Tensor) -> Tensor:
        """The vector, float [B, F], of an output float [B, L', F] for inputs [B, 2, L], L' at most L."""
        if output.ndim != 3:
            return output
        if self.pooling == "cls":
            return output[:, 0]
        weights = self._counted(inputs.long()[:, :, : output.shape[1]]).to(output.dtype).unsqueeze(2)
        return (output * weights).sum(1) / weights.sum(1).clamp(min=1)

    def _counted(self, inputs: Tensor) -> Tensor:
        """Which tokens a mean is over, [B, L]."""
        ids, mask = inputs[:, 0], inputs[:, 1]
        unknown = self.architecture.unknown
        return mask if unknown < 0 else mask * (ids != unknown)

    @staticmethod
    def trimmed(inputs: Tensor) -> Tensor:
        """The inputs without the padding that all of a batch have; a graph keeps it, whose shapes are
        fixed."""
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return inputs
        longest = int(inputs[:, 1].sum(1).max()) if len(inputs) else 0
        return inputs[:, :, : max(_STEP, -(-longest // _STEP) * _STEP)]


class Encoder(TextTrunk):
    """Layers of attention."""

    def __init__(self, architecture: Architecture, pooling: str) -> None:
        super().__init__(architecture, pooling)
        self.embeddings = Embeddings(architecture)
        self.layers = nn.ModuleList(Layer(architecture) for _ in range(architecture.layers))

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.trimmed(inputs.long())
        states = self.embeddings(tokens[:, 0])
        # Added to the scores: what is masked gets no weight, and a text of no token the same of all.
        bias = (1 - tokens[:, 1]).to(states.dtype)[:, None, None] * -1e4
        for layer in self.layers:
            states = layer(states, bias)
        return self.pooled(states, tokens)


class Embeddings(nn.Module):
    """Vectors of tokens and of their places, float [B, L, width], of ids [B, L]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.width
        self.offset = architecture.offset
        self.words = nn.Embedding(architecture.vocabulary, width)
        self.positions = nn.Embedding(architecture.positions, width)
        self.types = nn.Embedding(architecture.types, width) if architecture.types else None
        self.norm = nn.LayerNorm(width, eps=architecture.epsilon)
        self.dropout = nn.Dropout(architecture.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device) + self.offset
        states = self.words(ids) + self.positions(places)
        if self.types is not None:
            states = states + self.types.weight[0]
        found: Tensor = self.dropout(self.norm(states))
        return found


class Layer(nn.Module):
    """Attention, then two products; states float [B, L, width] to the same."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, epsilon = architecture.width, architecture.epsilon
        self.heads, self.attention_dropout = architecture.heads, architecture.attention_dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.up = nn.Linear(width, architecture.inner)
        self.down = nn.Linear(architecture.inner, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.dropout = nn.Dropout(architecture.dropout)
        self.activation = architecture.activation

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        count, length, width = states.shape
        shape = (count, length, self.heads, width // self.heads)
        query, key, value = (
            part(states).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        dropped = self.attention_dropout if self.training else 0.0
        read = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias.to(query.dtype), dropout_p=dropped
        )
        read = read.transpose(1, 2).reshape(count, length, width)
        states = self.attention_norm(states + self.dropout(self.out(read)))
        inner = _ACTIVATIONS[self.activation](self.up(states))
        found: Tensor = self.norm(states + self.dropout(self.down(inner)))
        return found


class WordVectors(TextTrunk):
    """A vector for each word, and their mean over the words that are known."""

    def __init__(self, architecture: Architecture, pooling: str) -> None:
        super().__init__(architecture, "mean")
        self.words = nn.Embedding(architecture.vocabulary, architecture.width)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.trimmed(inputs.long())
        return self.pooled(self.words(tokens[:, 0]), tokens)


def _gelu_tanh(states: Tensor) -> Tensor:
    return functional.gelu(states, approximate="tanh")


_ACTIVATIONS: dict[str, Any] = {"gelu": functional.gelu, "gelu_tanh": _gelu_tanh, "relu": functional.relu}


def build_trunk(architecture: Architecture, pooling: str) -> TextTrunk:
    """A network of random numbers."""
    trunk = (Encoder if architecture.kind == "transformer" else WordVectors)(architecture, pooling)
    for module in trunk.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=_DEVIATION)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return trunk


def groups_of(trunk: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The names of a trunk's state: of its embeddings, then of each layer."""
    groups: dict[int, list[str]] = {}
    for name in trunk.state_dict():
        place = int(name.split(".")[1]) + 1 if name.startswith("layers.") else 0
        groups.setdefault(place, []).append(name)
    return tuple(tuple(groups[place]) for place in sorted(groups))
