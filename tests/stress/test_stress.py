"""Large versions of tests in tests/promises: kills while saving, stops at every step, mutated files, killed trainings.

``CIFARNET_STRESS=1`` runs all and writes the report that the docs show. A small part runs by default.
"""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from checkpoint_files import mutate
from cifarnet import DatasetSplits, Trainer
from cifarnet.checkpoint import read_checkpoint
from cifarnet.errors import CheckpointError
from cifarnet.optim import one_cycle
from runs import equal, fit, interrupt_at, metrics_of, read_state

LARGE = os.environ.get("CIFARNET_STRESS") == "1"
TESTS = Path(__file__).resolve().parents[1]
REPORT = TESTS.parent / "docs" / "results" / "stress.json"

MakeTrainer = Callable[..., Trainer]
Report = dict[str, dict[str, int]]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    """Counts of attempts and failures."""
    counts: Report = {}
    yield counts
    if LARGE and len(counts) == 4:
        about = {"command": "CIFARNET_STRESS=1 pytest tests/stress", "torch": str(torch.__version__)}
        about |= {"python": platform.python_version(), "system": platform.system()}
        REPORT.write_text(json.dumps({**about, "counts": counts}, indent=1) + "\n")


def count_unequal_files(one: Path, other: Path) -> int:
    files = [[read_checkpoint(d / f"{name}.safetensors").tensors for d in (one, other)] for name in ("best", "last")]
    return sum(not equal(*tensors) for tensors in files)


# The process forks children that save in a loop, kills each at a random moment, and reads the files.
KILL_LOOP = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
import torch
from checkpoint_files import lock_once, numbered
from cifarnet import Checkpointer
from cifarnet.errors import CheckpointError
torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
root, draw, newest = Path(sys.argv[1]), random.Random(0), 0
counts = {"kills": int(sys.argv[2]), "lost": 0, "unequal": 0, "untyped": 0, "swept": 0}

def save_in_a_loop(number, pipe):
    checkpointer = Checkpointer(root)
    while True:
        number += 1
        checkpointer.save_state(numbered(number, 300_000))
        checkpointer.save_best({"w": torch.full((9_000,), float(number))}, {"number": number})
        os.write(pipe, number.to_bytes(8, "little"))

for _ in range(counts["kills"]):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            save_in_a_loop(newest, writer)
        finally:
            os._exit(1)
    os.close(writer)
    os.read(reader, 8)  # the first save
    time.sleep(draw.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    confirmed = int.from_bytes(os.read(reader, 2**16)[-8:], "little") or newest + 1
    os.close(reader)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lock_once(root)
            last, (weights, best) = Checkpointer(root).read_last(), Checkpointer(root).read_best()
        newest = last["number"]
        counts["swept"] += sum("unfinished" in str(warning.message) for warning in caught)
        counts["lost"] += newest < confirmed or best["number"] < confirmed
        counts["unequal"] += not bool((last["weights"] == newest).all() and (weights["w"] == best["number"]).all())
    except CheckpointError:
        counts["lost"] += 1
    except Exception:
        counts["untyped"] += 1
print(json.dumps(counts))
"""


def test_process_killed_while_saving_loses_nothing(tmp_path: Path, report: Report) -> None:
    command = [sys.executable, "-c", KILL_LOOP, str(tmp_path), "500" if LARGE else "25"]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = report["killed while saving"] = json.loads(done.stdout)
    assert {*os.listdir(tmp_path)} == {"best.safetensors", "last.previous.safetensors", "last.safetensors"}
    assert counts["swept"] > 0, "no kill hit a save"
    assert (counts["lost"], counts["unequal"], counts["untyped"]) == (0, 0, 0)


SETTINGS: dict[str, dict[str, Any]] = {
    "augmentation": {"dropout": 0.0},
    "dropout": {},
    "mixup": {"dropout": 0.0, "batch_transform": v2.MixUp(num_classes=10)},
    "weight average": {"dropout": 0.0, "ema_decay": 0.95},
    "all of them": {"batch_transform": v2.CutMix(num_classes=10), "ema_decay": 0.95, "lr_schedule": one_cycle()},
    "bf16": {"precision": "bf16", "lr_schedule": one_cycle(), "max_grad_norm": 1.0},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_run_stopped_at_any_step_ends_in_the_same_bytes(
    name: str, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, report: Report
) -> None:
    train, val = synthetic.train.split(0.2, seed=0)  # 240 images: 15 steps per epoch

    def run(directory: str, stop_at: int = -1, **settings: Any) -> Trainer:
        trainer = make_trainer(**{"precision": "float32", **SETTINGS[name], **settings})
        interrupt_at(trainer, stop_at)
        return fit(trainer, train, val, tmp_path / directory, max_epochs=4 if LARGE else 1, batch_size=16)

    whole = run("whole")
    total = report.setdefault("stopped at every step", {"runs": 0, "unequal": 0})
    for step in range(1, whole.global_step, 1 if LARGE else 6):
        with pytest.raises(KeyboardInterrupt):
            run(str(step), stop_at=step)
        assert read_state(tmp_path / str(step))["position"]["global_step"] == step
        resumed = run(str(step), stop_at=step)  # no interrupt, because no step is done twice
        is_equal = metrics_of(resumed) == metrics_of(whole)
        total["unequal"] += not is_equal or count_unequal_files(tmp_path / "whole", tmp_path / str(step)) > 0
        total["runs"] += 1
    assert metrics_of(run("other", seed=1)) != metrics_of(whole), "the control"
    assert total["unequal"] == 0


def test_mutated_file_of_a_run_is_refused(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, report: Report
) -> None:
    fit(make_trainer(), synthetic.train, directory=tmp_path)
    draw, path = random.Random(0), tmp_path / "mutated.safetensors"
    counts = report["mutated files"] = {"files": 0, "accepted": 0, "untyped": 0}
    for name in ("best", "last"):
        content = (tmp_path / f"{name}.safetensors").read_bytes()
        for _ in range(10_000 if LARGE else 100):
            mutated = mutate(content, draw)
            path.write_bytes(mutated)
            counts["files"] += mutated != content
            try:
                read_checkpoint(path)
                counts["accepted"] += mutated != content
            except CheckpointError:
                pass
            except Exception:  # what this counts
                counts["untyped"] += 1
    assert (counts["accepted"], counts["untyped"]) == (0, 0)


TRAINING = """
import sys
from cifarnet import cli, make_synthetic
from cifarnet.cli import data_source as data
data.make_synthetic = lambda size: make_synthetic(num_train=320, num_test=60, seed=0)
options = ["--data", "synthetic", "--epochs", "8", "--val-fraction", "0.2", "--save-every", "0", "--out", sys.argv[1]]
sys.exit(cli.main(["train", *options, "--resume"]))
"""


@pytest.mark.skipif(not LARGE, reason="needs CIFARNET_STRESS=1; tests/promises kills one training")
def test_training_killed_at_any_moment_ends_in_the_same_bytes(tmp_path: Path, report: Report) -> None:
    draw = random.Random(1)

    def train(directory: str, *, kill: bool = False) -> int:
        command = [sys.executable, "-W", "ignore", "-c", TRAINING, str(tmp_path / directory)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            assert process.stderr is not None
            process.stderr.readline()  # the training has begun
            if kill:
                time.sleep(draw.random() * 0.3)
                process.kill()
            process.communicate()
        return process.returncode

    assert train("whole") == 0
    assert [train("killed", kill=True) for _ in range(10)] == [-signal.SIGKILL] * 10, "the training is too short"
    assert train("killed") == 0
    unequal = count_unequal_files(tmp_path / "whole", tmp_path / "killed")
    report["trainings killed at random moments"] = {"kills": 10, "unequal files": unequal}
    assert unequal == 0
