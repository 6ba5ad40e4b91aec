"""A text model's way into files, and what is compared when they are read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainables.modality import Data, Predictor
from trainables.text.data import TextData
from trainables.text.graphs import HELPER, WholeModel, opset, predictor_of, write_graph
from trainables.text.layouts import TOKENIZER
from trainables.text.modality import FILES
from trainables.training.delta import LoadedModel

__all__ = ["TextExporter"]

_COMPARED = 48  # texts that are compared as they are written
_TOLERANCE = 0.01  # of a probability

_ONNX = """With onnxruntime, tokenizers and numpy, nothing else:

```sh
pip install onnxruntime tokenizers numpy
python classify.py "What a day"         # or lines of texts on the standard input
```

```python
from classify import Classifier
Classifier("model.onnx").classify(["What a day"])
```

The graph `model.onnx` (opset {opset}) takes `tokens` and gives `logits`; `softmax` makes them probabilities.
"""
_PT2 = """With torch, the same graph:

```python
import torch
model = torch.export.load("model.pt2").module()
logits = model(tokens)
```
"""


class TextExporter:
    """Writes a model as graphs, traced once for all formats, and as tensors."""

    needs = ("numpy", "onnxruntime", "tokenizers")

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._whole = WholeModel(loaded)

    def names(self, kind: str) -> Sequence[str]:
        """The model's file, and what helps to use it."""
        return [FILES[kind], HELPER if kind == "onnx" else TOKENIZER]

    def write(self, kind: str, folder: Path) -> None:
        """Writes the files of a format into a folder."""
        write_graph(kind, self._whole, folder, FILES[kind])

    def difference(self, predictor: Predictor, data: Data) -> str:
        """How far what reads texts from a file is from the trained model, in words.

        Raises:
            ValueError: if it is so far that a label may change.
        """
        if not isinstance(data, TextData):
            return ""
        trained = predictor_of(self._loaded.card, self._loaded.model)
        chosen = data.splits["validation"][:_COMPARED].tolist()
        largest = 0.0
        for index in chosen:
            text = data.texts[index]
            expected = trained.probabilities([trained.example(text)])
            found = predictor.probabilities([predictor.example(text)])
            largest = max(largest, float((found - expected).abs().max()))
            if not torch.allclose(found, expected, rtol=0, atol=_TOLERANCE):
                raise ValueError(
                    f"the exported model tells {data.names[index]!r} otherwise than the trained model: a "
                    f"probability differs by {largest:.3f}"
                )
        return f"{len(chosen)} texts as they are written: probabilities differ by at most {largest:.1g}"

    def sample(self, data: Data) -> Mapping[str, str | bytes]:
        """A validation text, as a served model takes it."""
        assert isinstance(data, TextData)
        return {"text": data.texts[int(data.splits["validation"][0])]}

    def facts(self, folder: Path) -> Mapping[str, Any]:
        """How to use the files, in Markdown."""
        how = self._loaded.card.preprocessing
        graph = folder / FILES["onnx"]
        parts = [_ONNX.format(opset=opset(graph))] if graph.exists() else []
        if (folder / FILES["pt2"]).exists():
            parts.append(_PT2)
        parts.append(
            f"Tokens and their mask are int64 [B, 2, L], L at most {how.max_length}: `tokenizer.json`, "
            "which the "
            "files carry too, cuts a text into them, special tokens included; a longer text loses its "
            "end, not the special tokens there. After a text's end both are 0."
        )
        return {"use": "\n".join(parts)}
