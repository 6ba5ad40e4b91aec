"""torch is used without its compiler, with the same numbers, until somebody imports that."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRAINED = """
import sys
if {lean}:
    from trainables import lean
    lean.install()
import timm
import torch
import torchvision.transforms.v2
from torchvision.ops import roi_align

torch.manual_seed(0)
for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
    layer = torch.nn.Linear(3, 3)
    optimizer = kind(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    again = kind(layer.parameters(), lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    print(kind.__name__, type(optimizer).__name__, layer.weight.tolist(), layer.weight.requires_grad)
assert ("torch._dynamo" in sys.modules) != {lean}
print(roi_align(torch.ones(1, 3, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2).shape)
compiled = torch.compile(lambda x: x + 1, backend="eager")
print(compiled(torch.ones(2)))
optimizer.step()
optimizer.zero_grad()
print("torch._dynamo" in sys.modules, sys.modules["torch._dynamo.utils"].is_compile_supported("cpu"))
"""


def printed(code: str) -> str:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_it_is_the_same_torch() -> None:
    assert printed(TRAINED.format(lean=True)) == printed(TRAINED.format(lean=False))


def test_a_trials_process_does_not_import_the_compiler() -> None:
    code = "import sys, trainables.image_transfer; print('torch._dynamo' in sys.modules)"
    assert printed(code) == "False\n"
