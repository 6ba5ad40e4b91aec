"""What a training text goes through: policies by name.

A policy maps tokens with their words' numbers, int64 [B, 3, L], to a network's inputs, int64 [B, 2, L]. It
edits whole words, whatever tokens they have. Each text's random numbers come from its own seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainables.text.edits import Draws, Edit, Language, Words, edited
from trainables.text.hparams import BINS, OPERATIONS, TextHParams
from trainables.text.preprocessing import Architecture, Preprocessing
from trainables.text.synonyms import Lexicon, lexicon
from trainables.text.tokens import tokenizer_of
from trainables.training.sub_policies import check_sub_policies

__all__ = ["Policy", "build", "described", "plain"]

VERSION = 1
"""To be raised with every change here or in `edits` that changes a policy's output."""

_MOST = 0.5
"""Share of the words that the strongest bin of a sampled sub-policy edits."""
_WITH_SYNONYMS = ("insertion", "synonyms")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Policy:
    """A policy as built: call it with tokens and one seed for each text.

    Attributes:
        sub_policies: edits in a row, of which each text draws one sub-policy; none: the identity.
        preprocessing: whose tokens they are.
        keep_negations: whether negations stay as they are.
        lexicon: what knows synonyms, where an edit needs them.
    """

    sub_policies: tuple[tuple[Edit, ...], ...]
    preprocessing: Preprocessing
    keep_negations: bool = False
    lexicon: Lexicon | None = None

    def __call__(self, examples: Tensor, seeds: Tensor) -> Tensor:
        """Inputs, int64 [B, 2, L], of tokens int64 [B, 3, L] and seeds int64 [B].

        Raises:
            ValueError: if the shapes or types are others.
        """
        if examples.dtype != torch.int64 or examples.ndim != 3 or examples.shape[1] != 3:
            raise ValueError(
                f"texts are {examples.dtype} {list(examples.shape)}, but must be int64 [B, 3, L]"
            )
        if seeds.dtype != torch.int64 or seeds.shape != examples.shape[:1]:
            raise ValueError(
                f"seeds are {seeds.dtype} {list(seeds.shape)}, but must be int64 [{len(examples)}]"
            )
        if self.is_identity:
            return examples[:, :2].contiguous()
        language = Language(tokenizer_of(self.preprocessing), self.lexicon, self.keep_negations)
        rows = examples.cpu().numpy()
        drawn = np.zeros((len(rows), 2, rows.shape[2]), dtype=np.int64)
        for row, target, seed in zip(rows, drawn, seeds.tolist(), strict=True):
            self._edit(row, target, Draws(seed), language)
        return torch.from_numpy(drawn).to(examples.device)

    def _edit(self, row: Rows, target: Rows, draws: Draws, language: Language) -> None:
        """Writes one text, edited, into `target` [2, L]."""
        before, words, after = _taken_apart(row)
        for edit in self.sub_policies[draws.below(len(self.sub_policies))]:
            words = edited(words, edit, language, draws)
        inner = [token for word in words for token in word]
        tokens = [*before, *inner[: len(target[0]) - len(before) - len(after)], *after]
        target[0, : len(tokens)] = tokens
        target[1, : len(tokens)] = 1

    @property
    def is_identity(self) -> bool:
        """Whether no text is edited, whatever the seed."""
        return not self.sub_policies

    @property
    def key(self) -> str:
        """Text that changes with everything that changes what a text and a seed become."""
        if self.is_identity:
            return "text: nothing"
        negations = "kept" if self.keep_negations else "as other words"
        known = "" if self.lexicon is None else f", synonyms of {self.lexicon.key}"
        return f"text {VERSION}: {self.sub_policies}, negations {negations}{known}"

    def describe(self) -> list[str]:
        """What it does, line by line, for a person."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.is_identity:
            yield "texts as they are"
            return
        if len(self.sub_policies) > 1:
            yield f"one of {len(self.sub_policies)} sub-policies, drawn for each text:"
        for row in self.sub_policies:
            indent = "  " if len(self.sub_policies) > 1 else ""
            yield indent + ", then ".join(edit.describe() for edit in row)
        if self.lexicon is not None:
            yield f"synonyms are from {self.lexicon.name}"
        if self.keep_negations:
            yield "negations stay as they are"


def _taken_apart(row: Rows) -> tuple[list[int], Words, list[int]]:
    """The special tokens before a text's words, these, and the special tokens after them."""
    count = int(row[1].sum())
    ids, numbers = row[0, :count].tolist(), row[2, :count].tolist()
    inner = [place for place, number in enumerate(numbers) if number >= 0]
    if not inner:
        return ids, [], []
    first, last = inner[0], inner[-1] + 1
    words: Words = []
    before = -1
    for token, number in zip(ids[first:last], numbers[first:last], strict=True):
        if number == before and number >= 0:
            words[-1] = (*words[-1], token)
        else:
            words.append((token,))
        before = number
    return ids[:first], words, ids[last:]


def plain(preprocessing: Preprocessing) -> Policy:
    """The identity."""
    return Policy((), preprocessing)


def build(hparams: TextHParams, preprocessing: Preprocessing, *, negations_matter: bool = False) -> Policy:
    """The policy that `hparams` asks for.

    Raises:
        ValueError: for a sampled policy whose sub-policies are missing or not allowed, and where synonyms are
            asked for and there are none.
    """
    rows: tuple[tuple[Edit, ...], ...]
    if hparams.policy == "none":
        return plain(preprocessing)
    if hparams.policy == "sampled":
        rows = _sampled(hparams.sub_policies)
    elif hparams.policy in OPERATIONS:
        rows = ((Edit(hparams.policy, 1.0, hparams.edited),),)
    else:
        raise ValueError(f"policy is {hparams.policy!r}, but must be one of none, {', '.join(OPERATIONS)}")
    needs = any(edit.name in _WITH_SYNONYMS for row in rows for edit in row)
    return Policy(rows, preprocessing, negations_matter, lexicon() if needs else None)


def described(hparams: TextHParams) -> list[str]:
    """What the policy that `hparams` asks for does; or why it cannot be had on this machine."""
    blank = Architecture(kind="vectors", vocabulary=1, width=1)
    try:
        return build(
            hparams, Preprocessing(tokenizer="-", max_length=4, pooling="mean", architecture=blank)
        ).describe()
    except ValueError as error:
        return [f"not here: {error}"]


def _sampled(rows: tuple[tuple[tuple[str, float, int], ...], ...]) -> tuple[tuple[Edit, ...], ...]:
    check_sub_policies(rows, OPERATIONS, BINS)
    return tuple(
        tuple(Edit(name, float(chance), _MOST * int(level) / (BINS - 1)) for name, chance, level in row)
        for row in rows
    )
