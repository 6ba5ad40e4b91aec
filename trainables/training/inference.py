"""The fastest passes of a frozen trunk: BatchNorm folded, and on CPUs by ONNX Runtime where that pays.

ONNX Runtime lays feature maps out in blocks that suit depthwise convolutions: EfficientNet-Lite0 passes twice
as many images a second as in torch, other networks with grouped convolutions 1.2 to 1.5 times as many, those
without (VGG, ResNet, ViT) about as many or fewer. So networks with grouped convolutions go there.
"""

from __future__ import annotations

import functools
import logging
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.training.folding import folded

__all__ = ["engine", "fast_passes"]

log = logging.getLogger(__name__)

_BATCH = 32
"""Images in a pass: a graph for one number is simpler, and the maps of more fall out of a CPU's cache."""
_TOLERANCE = 1e-4  # of the largest feature


def engine(trunk: nn.Module, device: torch.device) -> str:
    """What `fast_passes` computes with, as a name that changes when its results could."""
    if device.type == "cpu" and any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in trunk.modules()):
        return f"onnxruntime {onnxruntime.__version__}"
    return "torch" if device.type == "cpu" else "torch tf32"


_one_at_a_time = threading.Lock()


def fast_passes(trunk: nn.Module, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """What maps inputs [B, *shape] to features, float [B, F], as the trunk in evaluation mode does.

    Where the faster way fails, or does not compute the same up to rounding, it is torch's.

    Args:
        trunk: its weights do not change afterwards.
        shape: of one input that it is used with; of images [3, s, s].
    """
    with _one_at_a_time:  # the exporter's state is global
        return _fast_passes(trunk, shape)


@functools.lru_cache(maxsize=4)
def _fast_passes(trunk: nn.Module, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    simple = folded(trunk, shape)
    device = next(trunk.parameters()).device
    if device.type != "cpu":
        return _with_tf32(simple)
    if engine(trunk, device) == "torch":
        return simple
    images = torch.randn(_BATCH, *shape, generator=torch.Generator().manual_seed(0))
    try:
        passes = _onnx_passes(simple, images)
        with torch.no_grad():
            expected, found = simple(images), passes(images)
    except Exception as error:  # of the exporter or the runtime, for an operation that they do not know
        log.warning("ONNX Runtime does not take this backbone, torch computes its features: %s", error)
        return simple
    same = torch.allclose(found, expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max()))
    return passes if same else simple


def _with_tf32(passes: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`passes` with products in TF32, whose mantissa is as long as that of the float16 which is kept.

    cuDNN's convolutions have it anyway; the matrices of a transformer are several times as fast with it.
    """

    def passing(images: Tensor) -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return passes(images)
        finally:
            torch.set_float32_matmul_precision(before)

    return passing


def _onnx_passes(trunk: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other trials want the cores
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # It says that it will go; the exporter that is to replace it takes 15 s for what it does in one.
        warnings.simplefilter("ignore")
        graph = str(Path(folder) / "trunk.onnx")
        torch.onnx.export(trunk, (images,), graph, input_names=["images"], dynamo=False)
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def passes(given: Tensor) -> Tensor:
        parts = []
        for batch in given.split(_BATCH):
            filled = functional.pad(batch, (0, 0) * (batch.ndim - 1) + (0, _BATCH - len(batch)))
            (found,) = session.run(None, {"images": filled.contiguous().numpy()})
            parts.append(torch.from_numpy(found)[: len(batch)])
        return torch.cat(parts)

    return passes
