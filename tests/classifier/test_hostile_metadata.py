"""Hostile metadata of a checkpoint raises a typed error before memory is allocated for it."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cifarnet import CifarCNN, Classifier
from cifarnet.checkpoint.file import encode
from cifarnet.checkpoint.state_tree import flatten
from cifarnet.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError

NETWORK = {"num_classes": 3, "in_channels": 3, "image_size": 8, "widths": (64, 4), "hidden": 8, "dropout": 0.5}
SOUND: dict[str, Any] = {
    "model": {"name": "CifarCNN", "arguments": NETWORK},
    "preprocess": {"size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
    "classes": ["a", "b", "c"],
    "precision": "float32",
    "selected_by": {"monitor": "val_accuracy", "epoch": 2, "value": 0.5},
    "data": {"name": "images", "num_images": 9, "fingerprint": "0" * 64},
}
WEIGHTS = CifarCNN(**NETWORK).state_dict()  # type: ignore[arg-type]


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the sound description with another value at ``a/b/c``; ``...`` removes it."""
    description = copy.deepcopy(SOUND)
    *parents, key = path.split("/")
    at = functools.reduce(dict.__getitem__, parents, description)
    at[key] = value
    if value is ...:
        del at[key]
    return description


def write(path: Path, description: dict[str, Any]) -> Path:
    path.write_bytes(encode(WEIGHTS, flatten(description)[1], kind="best"))  # with its hashes right
    return path


def load(tmp_path: Path, description: dict[str, Any]) -> Classifier:
    return Classifier.load(write(tmp_path / "best.safetensors", description), device="cpu")


def test_sound_metadata_is_read(tmp_path: Path) -> None:
    """The control of all tests below."""
    classifier = load(tmp_path, SOUND)
    assert (classifier.classes, classifier.preprocess.size, classifier.temperature) == (("a", "b", "c"), 8, 1)
    assert isinstance(classifier.model, CifarCNN)
    assert classifier.model.arguments["batch_norm"] is True  # a later argument than the file
    for temperature in (1, 1.5, 1e-3, 1e3):
        assert load(tmp_path, changed("temperature", temperature)).temperature == temperature
    for path, value in (("data", None), ("selected_by/value", None), ("classes", []), ("notes", {"x": 1})):
        load(tmp_path, changed(path, value))


ARGUMENTS = "model/arguments"
WRONG: dict[str, list[Any]] = {
    f"{ARGUMENTS}/num_classes": [2**33, 2**1000, 2**20, True, 3.0, "3", None],
    f"{ARGUMENTS}/in_channels": [-3, 4],
    f"{ARGUMENTS}/image_size": [2**20],
    f"{ARGUMENTS}/widths": [(-4, 4), (True, 4), 5, "44", {"a": 4, "b": 4}, (2**20, 2**20)],
    f"{ARGUMENTS}/hidden": [2**62, [8]],
    f"{ARGUMENTS}/dropout": [float("nan"), 10**300],
    f"{ARGUMENTS}/batch_norm": [1, False],
    f"{ARGUMENTS}/unknown": [1],
    ARGUMENTS: [{1: 2}, [1], "x", ..., dict.fromkeys(("image_size", "hidden", "num_classes"), 2**20)],
    "model/name": [1, ["CifarCNN"]],
    "model": ["x", None],
    "preprocess/size": [10**6, 2**1000, 3000, -8, True, 8.0],
    "preprocess/mean": [
        (float("nan"), 0.5, 0.5),
        (2**1000, 0.5, 0.5),
        ("0.5", 0.5, 0.5),
        (0.5, 0.5),
        0.5,
        [0.5] * 10**5,
    ],
    "preprocess/std": [(value, 1.0, 1.0) for value in (float("inf"), 0.0, -1.0)],
    "classes": [5, "abc", [1, 2, 3], ["a", None, "c"], {"a": 0, "b": 1, "c": 2}, ...],
    "precision": ["float8", 32, ["float32"]],
    "selected_by": ["me"],
    "selected_by/epoch": [-1, True],
    "selected_by/monitor": [None],
    "selected_by/value": ["0.5"],
    "data": [5],
    "data/num_images": ["many"],
    "temperature": [0, -1.0, 1e-4, 1e4, 2**1000, float("nan"), float("inf"), "1", True, None, [1.0]],
    "metadata": [5, "x"],
    "more": [1],
}


@pytest.mark.parametrize("path", WRONG)
def test_hostile_metadata_is_refused(path: str, tmp_path: Path) -> None:
    for value in WRONG[path]:
        with pytest.raises(CheckpointCorruptError, match=r"\.safetensors (has invalid metadata|contradicts itself)"):
            load(tmp_path, changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("preprocess/size", 2000, "CifarCNN cannot take"),
        ("classes", ["a"] * 4, "CifarCNN returns logits"),
        ("classes", ["a"] * 3, "must be distinct"),
        ("model/name", "CifarNext", "holds a CifarNext, which is not one of the library's networks"),
    ],
)
def test_parts_of_a_file_that_do_not_fit_are_refused(path: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatchError, match=message):
        load(tmp_path, changed(path, value))


@pytest.mark.parametrize("depth", [60, 10_000])
def test_nesting_of_any_depth_is_a_checkpoint_error(depth: int, tmp_path: Path) -> None:
    file = write(tmp_path / "best.safetensors", changed("classes", ["@"]))
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    text = content[8:end].rstrip().replace(b'[\\"@\\"]', b"[" * depth + b"]" * depth)
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        Classifier.load(file, device="cpu")


LIMITED = """
import resource, sys
from pathlib import Path
from cifarnet import Classifier
Classifier.load(sys.argv[1], device="cpu")  # torch maps memory at its first use
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 500 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[2:]:
    try:
        Classifier.load(path, device="cpu")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
def test_sizes_in_hostile_metadata_are_not_allocated(tmp_path: Path) -> None:
    sound = write(tmp_path / "sound.safetensors", SOUND)
    huge = [
        changed(ARGUMENTS, {**NETWORK, "num_classes": 2**20, "hidden": 1000}),  # 4 GB
        changed(ARGUMENTS, {**NETWORK, "widths": (2**14, 2**14)}),  # 10 GB
        changed("preprocess/size", 2300),  # 1.3 GB behind the first convolution
    ]
    files = [write(tmp_path / f"{number}.safetensors", described) for number, described in enumerate(huge)]
    command = [sys.executable, "-c", LIMITED, str(sound), *map(str, files), str(sound)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    errors = [line.split()[0] for line in done.stdout.splitlines()]
    assert errors == ["CheckpointCorruptError"] * 2 + ["CheckpointMismatchError"], done
    assert "allocate" not in done.stdout  # as in the error of a failed allocation
