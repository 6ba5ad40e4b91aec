"""Classifies texts with the ONNX model beside this file; needs onnxruntime, tokenizers and numpy alone.

    python classify.py "What a day" "Nothing works"     # a line a text; --json for a program
    python classify.py < lines.txt                      # a text a line

    from classify import Classifier
    Classifier("model.onnx").classify(["What a day"])

A text is a string, or bytes in UTF-8. MLflow loads this file too, by `_load_pyfunc`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import tokenizers

_BATCH = 32


class NoText(ValueError):
    """What was given is no text; the message says why."""


class Classifier:
    """The model of a file.

    Args:
        model: `model.onnx`, which carries the names of its classes and its tokenizer.

    Attributes:
        classes: their names, in the order of the probabilities.
    """

    def __init__(self, model: str | Path) -> None:
        self._session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        told = self._session.get_modelmeta().custom_metadata_map
        card = json.loads(told["transfer_search.card"])
        self.classes: list[str] = card["classes"]
        self._least = card.get("calibration", {}).get("conformal", {}).get("threshold")
        self._length: int = card["preprocessing"]["max_length"]
        self._tokenizer = tokenizers.Tokenizer.from_str(told["transfer_search.tokenizer"])
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def classify(self, texts: Iterable[str | bytes]) -> list[dict[str, Any]]:
        """For each text its `label`, `probability`, and `probabilities` by class.

        Where its card has conformal sets, `set` has classes of which one is true as often as it says.

        Raises:
            NoText: for the first that is none.
        """
        every = [_text(each) for each in texts]
        rows = []
        for start in range(0, len(every), _BATCH):
            rows += [self._told(shares) for shares in self.probabilities(every[start : start + _BATCH])]
        return rows

    def probabilities(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Of texts, float [B, C]."""
        tokens = [self._tokens(each) for each in self._tokenizer.encode_batch(texts)]
        batch = np.zeros((len(tokens), 2, max(2, *map(len, tokens))), dtype=np.int64)
        for row, own in zip(batch, tokens, strict=True):
            row[0, : len(own)], row[1, : len(own)] = own, 1
        (logits,) = self._session.run(["logits"], {"tokens": batch})
        powers = np.exp(logits - logits.max(1, keepdims=True))
        shares: npt.NDArray[np.float32] = powers / powers.sum(1, keepdims=True)
        return shares

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """As MLflow calls it: a frame with the column `text`, or texts, to a frame of a row a text."""
        import pandas as pd

        if isinstance(model_input, pd.DataFrame):
            if "text" not in model_input:
                raise NoText(f"the frame has {list(model_input)}, but must have a column `text`")
            model_input = list(model_input["text"])
        elif isinstance(model_input, str | bytes):
            model_input = [model_input]
        rows = self.classify(model_input)
        return pd.DataFrame(
            {
                "label": [row["label"] for row in rows],
                "probability": [row["probability"] for row in rows],
                "probabilities": [list(row["probabilities"].values()) for row in rows],
            }
        )

    def _tokens(self, encoding: Any) -> list[int]:
        """The tokens of a text; one that is too long loses its end, not the special tokens after it."""
        ids: list[int] = encoding.ids
        inner = [place for place, word in enumerate(encoding.word_ids) if word is not None]
        ending = len(ids) - 1 - inner[-1] if inner else 0
        if len(ids) > self._length:
            ids = [*ids[: self._length - ending], *ids[len(ids) - ending :]]
        return ids

    def _told(self, shares: npt.NDArray[np.float32]) -> dict[str, Any]:
        best = int(shares.argmax())
        told = {
            "label": self.classes[best],
            "probability": float(shares[best]),
            "probabilities": dict(zip(self.classes, map(float, shares), strict=True)),
        }
        if self._least is not None:
            order = shares.argsort()[::-1]
            told["set"] = [self.classes[i] for i in order if i == best or shares[i] >= self._least]
        return told


def _text(item: Any) -> str:
    if isinstance(item, bytes):
        try:
            item = item.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise NoText(f"a text is in UTF-8, but these bytes are not: {error}") from error
    if not isinstance(item, str) or not item.strip():
        raise NoText(f"{item!r} is no text")
    return item


def _load_pyfunc(path: str) -> Classifier:
    """What `mlflow.pyfunc.load_model` calls with the path of the model."""
    return Classifier(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Classifies texts.")
    parser.add_argument("texts", nargs="*", help="the texts; none: the lines of the standard input")
    parser.add_argument("--model", default=str(Path(__file__).with_name("model.onnx")))
    parser.add_argument("--json", action="store_true", help="a JSON list, with all probabilities")
    given = parser.parse_args()
    texts = given.texts or [line for line in sys.stdin.read().split("\n") if line.strip()]
    try:
        rows = Classifier(given.model).classify(texts)
    except NoText as error:
        print(error, file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps([{"text": text, **row} for text, row in zip(texts, rows, strict=True)], indent=2))
        return 0
    for text, row in zip(texts, rows, strict=True):
        print(f"{row['label']} ({row['probability']:.3f})\t{' '.join(text.split())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
