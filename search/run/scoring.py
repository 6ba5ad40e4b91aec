"""What saved models say of a split, computed where trials are: with a trial's share of cores and of a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from search.spec.search_spec import SearchSpec
from trainables.files.cache import default_root
from trainables.files.trial_folder import CARD_FILE, DELTA_FILE
from trainables.modalities import modality
from trainables.training.delta import load_delta
from trainables.training.ensemble import EnsembleModel

__all__ = ["logits_of"]

_BATCH = 64


def logits_of(
    spec: SearchSpec, config: Mapping[str, Any], folder: Path, split: str, *, by_member: bool = False
) -> Tensor:
    """Logits [N, C] of an ensemble's folder on a split; `by_member` those of each, [M, N, C].

    Args:
        spec: the search's, for what a trial takes.
        config: what is the same for all trials, as `planning.trial_config` gives it.
        folder: of a model; the machine that computes need not see it.
        split: whose examples.
    """
    files = {name: (folder / name).read_bytes() for name in (CARD_FILE, DELTA_FILE)}
    task = ray.remote(_logits).options(num_cpus=spec.resources.cpu, num_gpus=spec.resources.gpu)
    found: Tensor = ray.get(task.remote(files, dict(config), split, by_member))
    return found.clone()  # what Ray gives cannot be written to


def _logits(files: Mapping[str, bytes], config: Mapping[str, Any], split: str, by_member: bool) -> Tensor:
    settings = config["settings"]
    torch.set_num_threads(settings["threads"])
    device = torch.device(settings["device"])
    with tempfile.TemporaryDirectory(prefix="transfer-search-") as place:
        for name, content in files.items():
            (Path(place) / name).write_bytes(content)
        loaded = load_delta(Path(place))
    model = loaded.model.to(device)
    assert isinstance(model, EnsembleModel)
    kind = modality(config["modality"])
    root = Path(config["cache_dir"] or default_root())
    data = kind.load(config["data"], cache_dir=root)
    examples, plain = data.examples(loaded.card.preprocessing), kind.plain(loaded.card.preprocessing)
    parts = []
    with torch.no_grad():
        for batch in data.splits[split].split(_BATCH):
            inputs = plain(
                examples[batch].to(device), torch.zeros(len(batch), dtype=torch.int64, device=device)
            )
            found = torch.stack(model.members(inputs)) if by_member else model(inputs)
            parts.append(found.float().cpu())
    return torch.cat(parts, -2)
