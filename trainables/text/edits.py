"""What is done to the words of a text, each a tuple of tokens; all chance comes from the text's own seed.

Deletion, swaps, and insertion and replacement by synonyms are those of Wei and Zou, "EDA: Easy Data
Augmentation Techniques for Boosting Performance on Text Classification Tasks", EMNLP 2019.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trainables.text.synonyms import Lexicon
from trainables.text.tokens import Tokenizer

__all__ = ["Draws", "Edit", "Words", "edited"]

Word = tuple[int, ...]
Words = list[Word]

_NEGATIONS = frozenset(
    "no not nor never none nobody nothing neither nowhere without cannot hardly scarcely barely n't".split()
)
_FUNCTION_WORDS = frozenset(
    "a about after all also am an and any are as at be been before being both but by can could did do "
    "does for "
    "from had has have he her here hers him his how i if in into is it its just may me might more most "
    "must my of "
    "off on one only or other our out over own same shall she should so some such than that the their "
    "them then "
    "there these they this those to too under until up us very was we were what when where which while "
    "who whom whose why will with would you your".split()
)
"""Have no synonyms: what a dictionary has for *a* or *in* are units, and what stands near *and* is *both*."""
_STEMS = frozenset(
    "ain aren can couldn didn doesn don hadn hasn haven isn mightn mustn needn shan shouldn wasn weren won "
    "wouldn do does did is are was were has have had could would should must might need wo ca sha".split()
)
"""Before `'t` or `n't`, whatever a tokenizer makes of `don't`."""
_APOSTROPHES = ("'", "\N{RIGHT SINGLE QUOTATION MARK}")
_CONTRACTED = tuple(f"n{mark}t" for mark in _APOSTROPHES)


class Draws:
    """The random numbers of one text."""

    def __init__(self, seed: int) -> None:
        # Of a random.Random this alone is promised to stay the same from one Python to the next.
        self.share = random.Random(seed & 0xFFFFFFFFFFFFFFFF).random

    def below(self, count: int) -> int:
        """A whole number below `count`."""
        return int(self.share() * count)

    def some(self, places: Sequence[int], count: int) -> list[int]:
        """So many of the places, each at most once, in the order in which they were drawn."""
        left = list(places)
        return [left.pop(self.below(len(left))) for _ in range(min(count, len(left)))]


@dataclass(frozen=True)
class Edit:
    """One operation.

    Attributes:
        name: one of `hparams.OPERATIONS`.
        probability: that it is done at all.
        share: of the words that are edited.
    """

    name: str
    probability: float
    share: float

    def describe(self) -> str:
        """What it does, for a person."""
        often = "" if self.probability == 1 else f", with probability {self.probability:g}"
        return f"{_TOLD[self.name].format(share=f'{self.share:.0%}')}{often}"


_TOLD: Mapping[str, str] = {
    "deletion": "{share} of the words are left out",
    "swap": "{share} of the words change places with others",
    "insertion": "synonyms of {share} of the words are put in anywhere",
    "synonyms": "{share} of the words are replaced by synonyms",
    "masking": "{share} of the words are masked",
}


@dataclass(frozen=True)
class Language:
    """What edits know of words."""

    tokenizer: Tokenizer
    lexicon: Lexicon | None
    keep_negations: bool

    def editable(self, words: Words) -> list[int]:
        """The places of what is a word, and not a negation where these are kept."""
        texts, kept = self._texts(words), self._kept(words)
        return [
            place for place, text in enumerate(texts) if place not in kept and any(map(str.isalnum, text))
        ]

    def gaps(self, words: Words) -> list[int]:
        """The places before which a word may be put, the end too: not amid a negation that is kept."""
        kept = self._kept(words)
        return [place for place in range(len(words) + 1) if not {place - 1, place} <= kept]

    def _texts(self, words: Words) -> list[str]:
        return [self.tokenizer.word(word) for word in words]

    def _kept(self, words: Words) -> set[int]:
        return _negations(self._texts(words)) if self.keep_negations else set()

    def synonym(self, word: Word, draws: Draws) -> Word | None:
        """The tokens of a synonym, if there is any."""
        assert self.lexicon is not None, "the policy was built with one"
        text = self.tokenizer.word(word)
        known = self.lexicon.of(text) if text not in _FUNCTION_WORDS else ()
        return self.tokenizer.pieces(known[draws.below(len(known))]) if known else None


def _negations(texts: Sequence[str]) -> set[int]:
    """The places of negations, `don't` in however many parts."""
    found = {place for place, text in enumerate(texts) if text in _NEGATIONS or text.endswith(_CONTRACTED)}
    for place in range(len(texts) - 2):
        stem, mark, end = texts[place : place + 3]
        if stem in _STEMS and mark in _APOSTROPHES and end == "t":
            found |= {place, place + 1, place + 2}
    for place in range(len(texts) - 1):
        if texts[place] in _STEMS and texts[place + 1] in ("n't", "'t"):
            found |= {place, place + 1}
    return found


def edited(words: Words, edit: Edit, language: Language, draws: Draws) -> Words:
    """The words after an operation."""
    if draws.share() >= edit.probability or not words or edit.share == 0:
        return words
    count = max(1, round(edit.share * len(words)))
    return _DONE[edit.name](list(words), count, language, draws)


def _deletion(words: Words, count: int, language: Language, draws: Draws) -> Words:
    left_out = set(draws.some(language.editable(words), min(count, len(words) - 1)))
    return [word for place, word in enumerate(words) if place not in left_out]


def _swap(words: Words, count: int, language: Language, draws: Draws) -> Words:
    places = language.editable(words)
    for _ in range(count if len(places) > 1 else 0):
        one, other = draws.some(places, 2)
        words[one], words[other] = words[other], words[one]
    return words


def _insertion(words: Words, count: int, language: Language, draws: Draws) -> Words:
    for place in draws.some(language.editable(words), count):
        new = language.synonym(words[place], draws)
        if new:
            gaps = language.gaps(words)
            words.insert(gaps[draws.below(len(gaps))], new)
    return words


def _synonyms(words: Words, count: int, language: Language, draws: Draws) -> Words:
    places = language.editable(words)
    done = 0
    for place in draws.some(places, len(places)):
        new = language.synonym(words[place], draws)
        if new:
            words[place], done = new, done + 1
        if done == count:
            break
    return words


def _masking(words: Words, count: int, language: Language, draws: Draws) -> Words:
    for place in draws.some(language.editable(words), count):
        words[place] = (language.tokenizer.mask,) * len(words[place])
    return words


_DONE: Mapping[str, Callable[[Words, int, Language, Draws], Words]] = {
    "deletion": _deletion,
    "swap": _swap,
    "insertion": _insertion,
    "synonyms": _synonyms,
    "masking": _masking,
}
