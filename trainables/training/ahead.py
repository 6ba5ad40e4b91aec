"""Batches made ahead: on a GPU the next one is loaded and augmented while the last one trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch import Tensor

__all__ = ["ahead", "placed"]

Batch = tuple[Tensor, ...]


def ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches in the same order, on a GPU each made while the caller works on the one before.

    There a thread makes them on a stream of its own, so that neither reading frames from the disk nor
    the small kernels of an augmentation, which wait for each other, hold up the network. At most one
    batch waits. An error in making a batch is raised where the batch would have come.
    """
    if device.type != "cuda":
        return iter(batches)
    return _by_thread(batches, torch.cuda.Stream(device))


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` from the CPU on `device`; a copy to a GPU takes its turn in the stream, and nobody waits."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _by_thread(batches: Iterable[Batch], stream: torch.cuda.Stream | None) -> Iterator[Batch]:
    """Batches made by a thread, on `stream` where there is one."""
    source = iter(batches)

    def made() -> tuple[Batch, torch.cuda.Event | None] | None:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            batch = next(source, None)
            if batch is None:
                return None
            return batch, None if stream is None else stream.record_event()

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        coming = thread.submit(made)
        while (found := coming.result()) is not None:
            coming = thread.submit(made)
            batch, ready = found
            if ready is not None:
                consumer = torch.cuda.current_stream(ready.device)
                consumer.wait_event(ready)
                for tensor in batch:
                    tensor.record_stream(consumer)  # its memory is not reused before this stream is done
            yield batch
