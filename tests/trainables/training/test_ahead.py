"""Batches made ahead by a thread are those that would have been made in turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trainables.training.ahead import _by_thread, ahead, placed

CPU = torch.device("cpu")


def numbered(count: int, made: list[int]) -> Iterator[tuple[Tensor]]:
    for number in range(count):
        made.append(number)
        yield (torch.tensor(number),)


def test_a_thread_gives_the_same_batches_in_order_and_makes_one_ahead() -> None:
    made: list[int] = []
    seen = []
    for (batch,) in _by_thread(numbered(20, made), None):
        seen.append(int(batch))
        assert len(made) <= len(seen) + 1
    assert seen == made == list(range(20))
    assert list(_by_thread([], None)) == []


def test_an_error_comes_where_the_batch_would_have_come() -> None:
    def failing() -> Iterator[tuple[Tensor]]:
        yield from numbered(3, [])
        raise torch.OutOfMemoryError("no room")

    batches = _by_thread(failing(), None)
    assert [int(next(batches)[0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        next(batches)


def test_a_caller_that_stops_early_leaves_no_thread() -> None:
    batches = _by_thread(numbered(1000, []), None)
    next(batches)
    assert any(each.name.startswith("batches") for each in threading.enumerate())
    batches.close()  # type: ignore[attr-defined]
    assert not any(each.name.startswith("batches") for each in threading.enumerate())


def test_on_a_cpu_nothing_is_made_before_it_is_asked_for() -> None:
    made: list[int] = []
    batches = ahead(numbered(3, made), CPU)
    next(batches)
    assert made == [0]
    tensor = torch.arange(3)
    assert placed(tensor, CPU) is tensor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_batches_are_whole_when_they_are_used() -> None:
    device = torch.device("cuda")

    def made() -> Iterator[tuple[Tensor]]:
        for number in range(50):
            yield (placed(torch.full((1 << 20,), number), device) + 1,)

    sums = [batch.sum() for (batch,) in ahead(made(), device)]
    assert [int(each) for each in sums] == [(number + 1) << 20 for number in range(50)]
