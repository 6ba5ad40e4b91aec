"""A tiny encoder in Hugging Face's layout, and texts that a bag of words tells apart."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = "the a cat dog fish sun rain snow is was not good bad hot cold runs sleeps today day my your".split()
CONFIG: Mapping[str, Any] = {
    "model_type": "bert",
    "vocab_size": 0,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
}
TOPICS = {"animals": ("cat", "dog", "fish"), "weather": ("sun", "rain", "snow")}


def write_tokenizer(folder: Path) -> int:
    """Writes `tokenizer.json`; returns how many tokens it knows."""
    letters = [*string.ascii_lowercase, *"'.,!?"]
    names = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters,
        *(f"##{each}" for each in letters),
    ]
    vocabulary = {name: place for place, name in enumerate(dict.fromkeys(names))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    (folder / "tokenizer.json").write_text(made.to_str())
    return len(vocabulary)


def tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as BERT's files have them."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    yield "embeddings.word_embeddings.weight", (config["vocab_size"], width)
    yield "embeddings.position_embeddings.weight", (config["max_position_embeddings"], width)
    yield "embeddings.token_type_embeddings.weight", (config["type_vocab_size"], width)
    yield "embeddings.LayerNorm.weight", (width,)
    yield "embeddings.LayerNorm.bias", (width,)
    for layer in range(config["num_hidden_layers"]):
        own = f"encoder.layer.{layer}"
        for name, (out, into) in {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (inner, width),
            "output.dense": (width, inner),
        }.items():
            yield f"{own}.{name}.weight", (out, into)
            yield f"{own}.{name}.bias", (out,)
        for name in ("attention.output", "output"):
            yield f"{own}.{name}.LayerNorm.weight", (width,)
            yield f"{own}.{name}.LayerNorm.bias", (width,)
    yield "pooler.dense.weight", (width, width)


def write_encoder(folder: Path, prefix: str = "", **changed: Any) -> Path:
    """Writes a folder with a tokenizer, a configuration and random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "vocab_size": write_tokenizer(folder), **changed}
    (folder / "config.json").write_text(json.dumps(config))
    numbers = torch.Generator().manual_seed(0)
    state = {
        f"{prefix}{name}": torch.ones(shape)
        if "LayerNorm.weight" in name
        else torch.randn(shape, generator=numbers) * 0.3
        for name, shape in tensors(config)
    }
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """So many different texts of each topic, with its name."""
    draw = random.Random(seed)
    others = [word for word in WORDS if word not in sum(TOPICS.values(), ())]
    found: dict[str, str] = {}
    for topic, own in TOPICS.items():
        while sum(label == topic for label in found.values()) < count:
            words = [*draw.sample(others, draw.randint(1, 5)), *draw.choices(own, k=3)]
            draw.shuffle(words)
            found.setdefault(" ".join(words), topic)
    return list(found.items())


def write_table(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    """Writes JSON lines of texts and labels."""
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path
