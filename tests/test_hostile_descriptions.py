"""What a checkpoint says of its weights is not believed: a typed error, before memory is taken for it."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cifarnet import CifarCNN, Classifier
from cifarnet.checkpoint.file import encode
from cifarnet.checkpoint.state_tree import flatten
from cifarnet.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError

SOUND: dict[str, Any] = {
    "model": {
        "name": "CifarCNN",
        "arguments": {
            "num_classes": 3,
            "in_channels": 3,
            "image_size": 8,
            "widths": (64, 4),
            "hidden": 8,
            "dropout": 0.5,
        },
    },
    "preprocess": {"size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
    "classes": ["a", "b", "c"],
    "precision": "float32",
    "selected_by": {"monitor": "val_accuracy", "epoch": 2, "value": 0.5},
    "data": {"name": "images", "num_images": 9, "fingerprint": "0" * 64},
}
WEIGHTS = CifarCNN(3, image_size=8, widths=(64, 4), hidden=8).state_dict()


def changed(path: str, value: Any) -> dict[str, Any]:
    """The sound description with another value at ``a/b/c``; ``...`` takes it away."""
    description = copy.deepcopy(SOUND)
    *parents, key = path.split("/")
    at = description
    for parent in parents:
        at = at[parent]
    at[key] = value
    if value is ...:
        del at[key]
    return description


def write(path: Path, description: dict[str, Any]) -> Path:
    path.write_bytes(encode(WEIGHTS, flatten(description)[1], kind="best"))  # with its hashes right
    return path


def test_the_sound_file_is_loaded(tmp_path: Path) -> None:
    """The control for everything below."""
    path = write(tmp_path / "best.safetensors", SOUND)
    assert Classifier.load(path, device="cpu").classes == ("a", "b", "c")
    assert Classifier.load(path, CifarCNN(3, image_size=8, widths=(64, 4), hidden=8), device="cpu").preprocess.size == 8
    assert Classifier.load(path, device="cpu").temperature == 1
    older = Classifier.load(path, device="cpu").model  # batch_norm was no argument yet
    assert older.state_dict().keys() == WEIGHTS.keys()
    assert isinstance(older, CifarCNN)
    assert older.arguments["batch_norm"] is True
    for temperature in (1, 1.5, 1e-3, 1e3):
        write(path, changed("temperature", temperature))
        assert Classifier.load(path, device="cpu").temperature == temperature
    for described in (changed("data", None), changed("selected_by/value", None), changed("classes", [])):
        Classifier.load(write(path, described), device="cpu")


ARGUMENTS = "model/arguments"
WRONG: list[tuple[str, Any]] = [
    (f"{ARGUMENTS}/num_classes", 2**33),
    (f"{ARGUMENTS}/num_classes", 2**1000),
    (f"{ARGUMENTS}/num_classes", 2**20),
    (f"{ARGUMENTS}/num_classes", True),
    (f"{ARGUMENTS}/num_classes", 3.0),
    (f"{ARGUMENTS}/num_classes", "3"),
    (f"{ARGUMENTS}/num_classes", None),
    (f"{ARGUMENTS}/in_channels", -3),
    (f"{ARGUMENTS}/in_channels", 4),
    (f"{ARGUMENTS}/image_size", 2**20),
    (f"{ARGUMENTS}/widths", (-4, 4)),
    (f"{ARGUMENTS}/widths", (True, 4)),
    (f"{ARGUMENTS}/widths", 5),
    (f"{ARGUMENTS}/widths", "44"),
    (f"{ARGUMENTS}/widths", {"a": 4, "b": 4}),
    (f"{ARGUMENTS}/widths", (2**20, 2**20)),
    (f"{ARGUMENTS}/hidden", 2**62),
    (f"{ARGUMENTS}/hidden", [8]),
    (f"{ARGUMENTS}/dropout", float("nan")),
    (f"{ARGUMENTS}/dropout", 10**300),
    (f"{ARGUMENTS}/batch_norm", 1),
    (f"{ARGUMENTS}/batch_norm", False),
    (f"{ARGUMENTS}/unknown", 1),
    (f"{ARGUMENTS}/self", 1),
    (ARGUMENTS, {1: 2}),
    (ARGUMENTS, [1]),
    (ARGUMENTS, "x"),
    (ARGUMENTS, ...),
    (ARGUMENTS, {"image_size": 2**20, "widths": (2**20, 2**20), "hidden": 2**20, "num_classes": 2**20}),
    ("model/name", 1),
    ("model/name", ["CifarCNN"]),
    ("model/more", 1),
    ("model", "x"),
    ("model", None),
    ("preprocess/size", 10**6),
    ("preprocess/size", 2**1000),
    ("preprocess/size", 3000),
    ("preprocess/size", -8),
    ("preprocess/size", True),
    ("preprocess/size", 8.0),
    ("preprocess/mean", (float("nan"), 0.5, 0.5)),
    ("preprocess/mean", (2**1000, 0.5, 0.5)),
    ("preprocess/mean", (True, 0.5, 0.5)),
    ("preprocess/mean", ("0.5", 0.5, 0.5)),
    ("preprocess/mean", (0.5, 0.5)),
    ("preprocess/mean", 0.5),
    ("preprocess/mean", [0.5] * 10**6),
    ("preprocess/std", (float("inf"), 1.0, 1.0)),
    ("preprocess/std", (0.0, 1.0, 1.0)),
    ("preprocess/std", (-1.0, 1.0, 1.0)),
    ("preprocess", [8]),
    ("classes", 5),
    ("classes", "abc"),
    ("classes", [1, 2, 3]),
    ("classes", ["a", None, "c"]),
    ("classes", {"a": 0, "b": 1, "c": 2}),
    ("precision", "float8"),
    ("precision", 32),
    ("precision", ["float32"]),
    ("selected_by", "me"),
    ("selected_by/epoch", -1),
    ("selected_by/epoch", True),
    ("selected_by/monitor", None),
    ("selected_by/value", "0.5"),
    ("data", 5),
    ("data/num_images", "many"),
    ("data/more", 1),
    ("temperature", 0),
    ("temperature", -1.0),
    ("temperature", 1e-4),
    ("temperature", 1e4),
    ("temperature", 2**1000),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", "1"),
    ("temperature", True),
    ("temperature", None),
    ("temperature", [1.0]),
    ("more", 1),
    ("classes", ...),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda value: repr(value)[:30])
def test_a_hostile_description_is_refused(path: str, value: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "best.safetensors", changed(path, value))
    with pytest.raises(CheckpointCorruptError, match=r"^.*best\.safetensors (has invalid metadata|contradicts itself)"):
        Classifier.load(file, device="cpu")


def test_a_description_of_other_images_than_the_networks_is_refused(tmp_path: Path) -> None:
    for path, value in (("preprocess/size", 2000), ("classes", ["a"] * 4)):
        file = write(tmp_path / "best.safetensors", changed(path, value))
        with pytest.raises(CheckpointMismatchError, match=r"CifarCNN (cannot take|returns logits)"):
            Classifier.load(file, device="cpu")


def test_a_network_that_this_version_does_not_know_is_told_by_name(tmp_path: Path) -> None:
    file = write(tmp_path / "best.safetensors", changed("model/name", "CifarNext"))
    with pytest.raises(CheckpointMismatchError, match="holds a CifarNext, which is not one of the library's networks"):
        Classifier.load(file, device="cpu")


@pytest.mark.parametrize("depth", [60, 70, 500, 10_000])
def test_nesting_of_any_depth_is_a_typed_error(depth: int, tmp_path: Path) -> None:
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
Classifier.load(sys.argv[1], device="cpu")  # what torch maps at its first use
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
def test_what_a_hostile_description_asks_for_is_not_allocated(tmp_path: Path) -> None:
    sound = write(tmp_path / "sound.safetensors", SOUND)
    arguments = SOUND["model"]["arguments"]
    huge = [
        changed(ARGUMENTS, {**arguments, "num_classes": 2**20, "hidden": 1000}),  # 4 GB
        changed(ARGUMENTS, {**arguments, "widths": (2**14, 2**14)}),  # 10 GB
        changed("preprocess/size", 2300),  # 1.3 GB behind the first convolution
    ]
    files = [write(tmp_path / f"{number}.safetensors", described) for number, described in enumerate(huge)]
    command = [sys.executable, "-c", LIMITED, str(sound), *map(str, files), str(sound)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    told = done.stdout.splitlines()
    assert [line.split()[0] for line in told] == ["CheckpointCorruptError"] * 2 + ["CheckpointMismatchError"], done
    assert "allocate" not in done.stdout  # which is how torch tells of a failure to
