from __future__ import annotations

import json
import subprocess
import sys

import cifarnet

PROBE = """
import json, sys
import torch, torchvision
state = torch.get_rng_state()
flags = (torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(),
         torch.get_default_dtype(), torch.is_grad_enabled())
before = set(sys.modules)
import cifarnet
same = torch.equal(state, torch.get_rng_state()) and flags == (
    torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(),
    torch.get_default_dtype(), torch.is_grad_enabled())
print(json.dumps({"same": same, "new": sorted(set(sys.modules) - before)}))
"""


def test_importing_changes_no_global_state_and_brings_no_matplotlib() -> None:
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    probe = json.loads(result.stdout)
    assert result.stderr == ""
    assert probe["same"]
    heavy = {"matplotlib", "pandas", "sklearn", "IPython", "onnx", "torch._inductor", "torch._dynamo"}
    assert not heavy & set(probe["new"])


def test_the_public_names_are_a_sorted_literal_and_all_there() -> None:
    assert list(cifarnet.__all__) == sorted(cifarnet.__all__)
    assert all(hasattr(cifarnet, name) for name in cifarnet.__all__)
