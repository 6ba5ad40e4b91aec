"""What a trial takes of memory, and the bound that it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainables.image.data import DataConfig
from trainables.image.hparams import ImageHParams as HParams
from trainables.training.footprint import GIB, keep_within, peak_bytes
from trainables.training.settings import Settings

DIGITS = DataConfig(source="digits").to_dict()


def peak(batch_size: int, folder: Path, device: str = "cpu") -> int:
    trial = HParams(strategy="full", batch_size=batch_size, image_size=64)
    taken = peak_bytes(trial, DIGITS, cache_dir=folder, settings=Settings(device=device))
    assert taken is not None
    return taken


@pytest.mark.long
def test_a_larger_batch_takes_more(tmp_path: Path) -> None:
    small, large = peak(8, tmp_path), peak(128, tmp_path)
    assert 20 * 2**20 < small < large < 8 * GIB
    assert large - small > 100 * 2**20


def test_without_a_gpu_there_is_no_bound_to_keep() -> None:
    keep_within(0.25)
    keep_within(0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_trial_keeps_within_its_share_of_a_card(tmp_path: Path) -> None:
    whole = torch.cuda.get_device_properties(0).total_memory
    try:
        keep_within(0.25)
        torch.empty(whole // 8, dtype=torch.uint8, device="cuda")
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(whole // 3, dtype=torch.uint8, device="cuda")
        keep_within(1)
        assert peak(8, tmp_path, "cuda") < whole
    finally:
        keep_within(1)
