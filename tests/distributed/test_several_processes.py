"""Two and three processes that train together do what one does; each equality has its counter-example beside it."""

from __future__ import annotations

import copy
import fcntl
import importlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import scenarios
import torch
from PIL import Image
from scenarios import BATCH_SIZE, EPOCHS, SIZE, make_data, make_model, make_trainer
from torch import Tensor, nn

from cifarnet import Checkpointer, make_synthetic
from cifarnet.engine import Batches
from cifarnet.randomness import scope
from cifarnet.report import load_report
from cifarnet.transforms import build_transforms

HERE = Path(__file__).parent
TOLERANCE = 1e-9
EQUAL_TO_ONE = ["synchronised", "short_tail", "no_norm", "mixed", "weighted_loss", "recomputed", "loader"]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)


def start(script: Path, *arguments: object, world_size: int) -> list[subprocess.Popen[str]]:
    """Processes as torchrun would start them, without the seconds that its agent takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", script, *map(str, arguments)],
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def run_scenarios(directory: Path, world_size: int) -> list[dict[str, Any]]:
    directory.mkdir()
    processes = start(HERE / "scenarios.py", directory, world_size=world_size)
    try:
        for process in processes:
            _, told = process.communicate(timeout=240)
            assert process.returncode == 0, told
    finally:
        for process in processes:
            process.kill()
    return [torch.load(directory / f"rank-{rank}.pt") for rank in range(world_size)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By number of processes, what each of them found; one began the run that the others go on with."""
    temporary = tmp_path_factory.getbasetemp()
    root = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / "processes"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # once for all workers of pytest-xdist
        if not (root / "found.pt").exists():
            (root / "one").mkdir()
            one = scenarios.run(root / "one")
            found = {1: [one], 2: run_scenarios(root / "two", 2), 3: run_scenarios(root / "three", 3)}
            one["moved back"] = scenarios.run(root / "one", scenarios.moved)["moved"]
            torch.save(found, root / "found.pt")
        loaded: dict[int, list[dict[str, Any]]] = torch.load(root / "found.pt")
    return loaded


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", EQUAL_TO_ONE)
def test_weights_after_twenty_steps_are_those_of_one_process(
    results: dict[int, list[dict[str, Any]]], name: str, world_size: int
) -> None:
    [expected], found = (results[count] for count in (1, world_size))
    assert expected[name]["steps"] == 20
    for rank in found:
        assert distance(rank[name]["weights"], expected[name]["weights"]) < TOLERANCE
        assert distance(rank[name]["best"], expected[name]["best"]) < TOLERANCE
        for losses in ("losses", "val_losses"):
            assert rank[name][losses] == pytest.approx(expected[name][losses], abs=TOLERANCE)
        for accuracies in ("accuracies", "val_accuracies"):
            assert rank[name][accuracies] == expected[name][accuracies]


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_processes_have_equal_weights_to_the_last_bit(
    results: dict[int, list[dict[str, Any]]], world_size: int
) -> None:
    first, *others = results[world_size]
    for name in (*EQUAL_TO_ONE, "local", "unseeded", "unbroken", "moved"):
        for other in others:
            assert distance(first[name]["weights"], other[name]["weights"]) == 0, name
    for rank in results[world_size]:
        assert rank["unseeded"]["judged"] == results[1][0]["unseeded"]["judged"], "the first one's network"


def textbook(model: nn.Module, world_size: int, *, means_of_means: bool = False) -> dict[str, Tensor]:
    """Each part through the network by itself, as so many processes with a batch norm of their own do it."""
    data, transforms = make_data().train, build_transforms(crop_padding=2, cutout=4, brightness=0.1, size=SIZE)
    model = model.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    batches = Batches(data.images, data.labels, data.ids, batch_size=BATCH_SIZE, device=torch.device("cpu"), seed=0)
    for epoch in range(EPOCHS):
        for batch in batches.epoch(epoch):
            with scope(0, epoch, batch.ids):
                images = transforms.train(batch.images).double()
            num_images = len(images)
            cuts = [num_images * rank // world_size for rank in range(world_size + 1)]
            before, after = copy.deepcopy(dict(model.named_buffers())), dict[str, Tensor]()
            optimizer.zero_grad()
            for begin, end in itertools.pairwise(cuts):
                for name, buffer in model.named_buffers():
                    buffer.copy_(before[name])
                share = 1 / world_size if means_of_means else (end - begin) / num_images
                loss = nn.functional.cross_entropy(model(images[begin:end]), batch.labels[begin:end])
                (share * loss).backward()  # type: ignore[no-untyped-call]
                for name, buffer in model.named_buffers():
                    after[name] = after.get(name, 0) + share * buffer
            for name, buffer in model.named_buffers():
                buffer.copy_(after[name].round() if buffer.dtype == torch.int64 else after[name])
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("world_size", [2, 3])
def test_local_batch_norm_is_that_of_each_part_and_no_other(
    results: dict[int, list[dict[str, Any]]], world_size: int
) -> None:
    found = results[world_size][0]
    assert distance(found["local"]["weights"], textbook(make_model(), world_size)) < TOLERANCE
    assert distance(found["local"]["weights"], found["synchronised"]["weights"]) > 1e-4
    assert distance(results[1][0]["local"]["weights"], results[1][0]["synchronised"]["weights"]) == 0


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_mean_of_means_would_have_been_another_training(
    results: dict[int, list[dict[str, Any]]], world_size: int
) -> None:
    expected = results[1][0]["no_norm"]["weights"]
    assert distance(textbook(make_model(norms=False), world_size), expected) < TOLERANCE
    assert distance(textbook(make_model(norms=False), world_size, means_of_means=True), expected) > 1e-6


@pytest.mark.parametrize("world_size", [2, 3])
def test_an_evaluation_is_the_same_to_the_last_bit(results: dict[int, list[dict[str, Any]]], world_size: int) -> None:
    expected = results[1][0]["evaluated"]
    for rank in results[world_size]:
        assert rank["evaluated"] == expected
    one, other = expected["documents"]
    assert one["confusion"] != other["confusion"]


@pytest.mark.parametrize("world_size", [2, 3])
def test_dropout_masks_differ_from_process_to_process(
    results: dict[int, list[dict[str, Any]]], world_size: int
) -> None:
    seen = [rank["masks"]["mask"] for rank in results[world_size]]
    for mask in seen:
        assert 0.3 < mask.double().mean() < 0.7
    assert not any(torch.equal(one[:17], other[:17]) for i, one in enumerate(seen) for other in seen[i + 1 :])


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("who", ["last", "all"])
def test_all_stop_at_one_step_whoever_is_told_and_go_on_to_the_same_bytes(
    results: dict[int, list[dict[str, Any]]], world_size: int, who: str
) -> None:
    for rank in results[world_size]:
        assert rank["stopped"][who] == (128 + signal.SIGTERM, 3, True)
        assert distance(rank["stopped"][f"{who} resumed"], rank["unbroken"]["weights"]) == 0
    assert distance(rank["unbroken"]["weights"], results[1][0]["unbroken"]["weights"]) > 0, "other dropout"


@pytest.mark.parametrize("world_size", [2, 3])
def test_what_is_wrong_is_told_by_every_process(results: dict[int, list[dict[str, Any]]], world_size: int) -> None:
    for number, rank in enumerate(results[world_size]):
        failed = rank["failed"]
        assert re.search(r"the loss was not finite first at step 3 of epoch 1", failed["NaN"])
        assert re.search(r"unbroken holds a run already; continue it with resume=True", failed["exists"])
        assert re.search("max_epochs or batch_size differ from process to process", failed["epochs"])
        assert re.search("checkpointer, patience, monitor or resume differ from process to process", failed["alone"])
        assert re.search("given different settings", failed["seed"])
        assert (f"seed 0 in rank 0, {number} now" in failed["seed"]) == (number > 0)
        assert re.search(r"the batches differ from process to process", failed["order"])
        assert re.search(r"the batches differ from process to process", failed["length"])
        assert re.search(r"leave it out, and give batch_size of the whole batch", failed["sampler"])
    assert results[1][0]["failed"].keys() == {"NaN", "exists"}


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_step_exchanges_the_bytes_that_the_docs_compute(
    results: dict[int, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    monkeypatch.syspath_prepend(HERE.parents[1] / "docs")
    exchanged_bytes = importlib.import_module("make_tables").exchanged_bytes
    expected = exchanged_bytes(make_model(), batch_size=BATCH_SIZE, world_size=world_size)
    assert [rank["exchanged"]["bytes"] for rank in results[world_size]] == [sum(expected.values())] * world_size
    assert results[1][0]["exchanged"]["bytes"] == 0


@pytest.mark.parametrize("world_size", [2, 3])
def test_early_stopping_stops_all(results: dict[int, list[dict[str, Any]]], world_size: int) -> None:
    expected = results[1][0]["patient"]
    assert [rank["patient"] for rank in results[world_size]] == [expected] * world_size
    assert expected["epochs"] < 9


def test_a_checkpoint_moves_between_numbers_of_processes(results: dict[int, list[dict[str, Any]]]) -> None:
    two, three, back = results[2][0]["moved"], results[3][0]["moved"], results[1][0]["moved back"]
    assert [rank["moved"]["told"] for rank in (results[2][1], results[3][2])] == [[], []], "one tells it"
    assert "world_size 1 in the run, 2 now" in two["told"][0]
    assert "world_size 2 in the run, 3 now" in three["told"][0]
    assert "world_size 3 in the run, 1 now" in back["told"][0]
    assert [two["epochs"], three["epochs"], back["epochs"]] == [2, 3, 4]
    assert [change.partition(",")[0] for change in back["changes"]] == [
        "world_size 1 in the run",
        "world_size 2 in the run",
        "world_size 3 in the run",
    ]
    trainer, data = make_trainer(make_model()), make_data()
    trainer.fit(data.train, data.test, max_epochs=4, batch_size=BATCH_SIZE, progress=False)
    assert distance(scenarios.weights_of(trainer), back["weights"]) < TOLERANCE
    assert distance(two["weights"], back["weights"]) > 1e-4


KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(HERE)!r})
import torch
from pathlib import Path
import scenarios

torch.set_num_threads(1)
directory, kill_at = Path(sys.argv[1]), int(sys.argv[2])
first_time = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

def die(loss):
    if trainer.rank == 1 and first_time:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss

trainer = scenarios.dropping(die, at=kill_at)
data = scenarios.make_data()
checkpointer = scenarios.Checkpointer(directory, every_s=0)
trainer.fit(data.train, data.test, max_epochs=2, batch_size=scenarios.BATCH_SIZE, checkpointer=checkpointer,
            resume=True, progress=False)
print(os.environ.get("TORCHELASTIC_RESTART_COUNT"))
"""


def torchrun(*arguments: object, cwd: Path, max_restarts: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "--max-restarts", str(max_restarts)]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_a_killed_process_ends_the_job_with_a_good_checkpoint_and_torchrun_finishes_it(
    results: dict[int, list[dict[str, Any]]], tmp_path: Path
) -> None:
    script, run = tmp_path / "killed.py", tmp_path / "run"
    script.write_text(KILLED)
    left, killed = start(script, run, 4, world_size=2)
    told = left.communicate(timeout=120)[1]
    assert killed.wait() == -signal.SIGKILL
    killed.communicate()
    assert left.returncode == 1
    assert "RankLostError: another process of this training has ended" in told
    assert "Last good checkpoint: " in told
    state = Checkpointer(run).read_last()
    assert state is not None
    assert 1 <= state["position"]["global_step"] <= 3
    finished = torchrun(script, run, 3, cwd=tmp_path, max_restarts=1)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["1", "1"], "both were started again, once"
    state = Checkpointer(run).read_last()
    assert state is not None
    assert state["position"]["global_step"] == 10
    assert distance(state["model"], results[2][0]["unbroken"]["weights"]) == 0


def make_photos(root: Path) -> None:
    data = make_synthetic(num_train=60, num_test=20)
    for name, part in (("train", data.train), ("test", data.test)):
        for number, (pixels, label) in enumerate(zip(part.images, part.labels.tolist(), strict=True)):
            folder = root / name / data.train.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")


def test_the_command_line_trains_under_torchrun_and_one_process_speaks(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos")
    options: Sequence[object] = ("-m", "cifarnet", "train", "--recipe", "basic", "--epochs", "1", "--data", "photos")
    result = torchrun(*options, "--out", "run", "--val-fraction", "0.2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("epoch 1:") == 1
    assert ", 2 processes\n" in result.stderr
    assert result.stdout.count("next: cifarnet predict") == 1
    report = load_report(tmp_path / "run/report.json")
    assert report["world_size"] == 2
    assert report["metrics"]["test_num_images"] == 20
    assert (tmp_path / "run/training_curves.png").exists()
    again = torchrun(*options, "--out", "run", cwd=tmp_path)
    assert again.returncode != 0
    assert "cifarnet: error: run holds a run already" in again.stderr
