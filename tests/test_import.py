from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import cifarnet

PROBE = """
import json, sys
import torch, torchvision
state = torch.get_rng_state()
def flags():
    return (torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(), torch.is_grad_enabled())
at_first, before = flags(), set(sys.modules)
import cifarnet
for name in cifarnet.__all__:
    getattr(cifarnet, name)
same = torch.equal(state, torch.get_rng_state()) and flags() == at_first
print(json.dumps({"same": same, "new": sorted(set(sys.modules) - before)}))
"""


def test_importing_changes_no_global_state_and_brings_no_matplotlib() -> None:
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    probe = json.loads(result.stdout)
    assert result.stderr == ""
    assert probe["same"]
    assert "cifarnet.training.trainer" in probe["new"]
    heavy = {"matplotlib", "pandas", "sklearn", "IPython", "onnx", "torch._inductor", "torch._dynamo"}
    assert not heavy & set(probe["new"])


def test_importing_alone_imports_no_torch() -> None:
    code = "import sys, cifarnet; print('torch' in sys.modules, 'Trainer' in dir(cifarnet), cifarnet.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True", cifarnet.__version__]


def test_the_public_names_are_a_sorted_literal_and_all_there() -> None:
    assert list(cifarnet.__all__) == sorted(cifarnet.__all__)
    for name in cifarnet.__all__:
        assert getattr(cifarnet, name).__name__ == name


def test_type_checkers_are_told_the_same_homes() -> None:
    tree = ast.parse(Path(cifarnet.__file__).read_text())
    told = {
        alias.name: str(node.module).removeprefix("cifarnet.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("cifarnet.")
        for alias in node.names
    }
    assert told == cifarnet._HOMES
    assert sorted(told) == cifarnet.__all__


def test_submodules_are_attributes_and_a_wrong_name_is_an_error() -> None:
    for name in cifarnet._MODULES:
        assert getattr(cifarnet, name).__name__ == f"cifarnet.{name}"
    with pytest.raises(AttributeError, match="module 'cifarnet' has no attribute 'Trainr'"):
        _ = cifarnet.Trainr  # type: ignore[attr-defined]
