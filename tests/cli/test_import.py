"""Import of the package: no side effects, no heavy packages, one list of names."""

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
def flags():
    return (torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state().tolist())
at_first, before = flags(), set(sys.modules)
import cifarnet
for name in cifarnet.__all__:
    getattr(cifarnet, name)
print(json.dumps({"same": flags() == at_first, "new": sorted(set(sys.modules) - before)}))
"""


def test_import_changes_no_global_state() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    probe = json.loads(done.stdout)
    assert (done.stderr, probe["same"]) == ("", True)
    assert "cifarnet.training.trainer" in probe["new"]
    heavy = {"matplotlib", "pandas", "sklearn", "scipy", "IPython", "onnx", "torch._inductor", "torch._dynamo"}
    assert not heavy & set(probe["new"])


def test_import_of_the_package_does_not_import_torch() -> None:
    code = "import sys, cifarnet; print('torch' in sys.modules, 'Trainer' in dir(cifarnet), cifarnet.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", cifarnet.__version__]


def test_public_names_are_sorted_and_the_same_everywhere() -> None:
    tree = ast.parse(Path(cifarnet.__file__).read_text())
    imported = {
        str(node.module).removeprefix("cifarnet."): tuple(alias.name for alias in node.names)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("cifarnet.")
    }
    assert imported == {home: names for home, names in cifarnet._NAMES.items() if names}
    names = [name for names in cifarnet._NAMES.values() for name in names]
    assert sorted(names) == sorted(cifarnet.__all__) == cifarnet.__all__
    assert all(getattr(cifarnet, name).__name__ == name for name in names)
    assert all(getattr(cifarnet, home).__name__ == f"cifarnet.{home}" for home in cifarnet._NAMES)
    with pytest.raises(AttributeError, match="module 'cifarnet' has no attribute 'Trainr'"):
        _ = cifarnet.Trainr  # type: ignore[attr-defined]
