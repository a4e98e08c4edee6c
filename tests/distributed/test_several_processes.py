"""Two and three processes over gloo: what they must do as one process does, and what they must refuse together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import scenarios
import torch
from filelock import FileLock
from scenarios import Result
from torch import Tensor

from cifarnet import Checkpointer
from cifarnet.report import load_report

#: Results of each rank, by the name of the scenario.
Ranks = list[dict[str, Result]]

SCRIPT = Path(scenarios.__file__)
FLOAT32_TOLERANCE, FLOAT64_TOLERANCE = 1e-5, 1e-9
EQUAL_TO_ONE = [scenario.__name__ for scenario in scenarios.SCENARIOS if scenario.__name__.startswith("float")]


def start(*arguments: object, world_size: int) -> list[subprocess.Popen[str]]:
    """Start processes as torchrun does, without the seconds that its agent takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", SCRIPT, *map(str, arguments)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def perform(directory: Path, world_size: int) -> Ranks:
    directory.mkdir()
    processes = start("all", directory, world_size=world_size)
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size, "\n".join(errors)
    return [torch.load(directory / f"rank-{rank}.pt") for rank in range(world_size)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Ranks]:
    """Perform all scenarios with one, two and three processes, once for all workers of pytest-xdist."""
    temporary = tmp_path_factory.getbasetemp()
    root = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / "processes"
    root.mkdir(exist_ok=True)
    with FileLock(root / "lock"):
        if not (root / "results.pt").exists():  # two processes write the run that the others resume
            torch.save({size: perform(root / str(size), size) for size in (2, 1, 3)}, root / "results.pt")
        loaded: dict[int, Ranks] = torch.load(root / "results.pt")
    return loaded


@pytest.fixture(params=[2, 3])
def ranks(results: dict[int, Ranks], request: pytest.FixtureRequest) -> Ranks:
    """Return the results of two, and of three processes."""
    return results[request.param]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("name", EQUAL_TO_ONE)
def test_several_processes_reach_the_weights_of_one(results: dict[int, Ranks], ranks: Ranks, name: str) -> None:
    expected, tolerance = results[1][0][name], FLOAT32_TOLERANCE if name == "float32" else FLOAT64_TOLERANCE
    for rank in ranks:
        assert rank[name]["num_steps"] == expected["num_steps"] == 20
        assert distance(rank[name]["last"], expected["last"]) < tolerance
        assert distance(rank[name]["best"], expected["best"]) < tolerance
        assert rank[name]["losses"] == pytest.approx(expected["losses"], abs=10 * tolerance)
        assert rank[name]["accuracies"] == expected["accuracies"]


@pytest.mark.parametrize("name", [*EQUAL_TO_ONE, "other_weights_per_process", "uninterrupted", "resumed"])
def test_all_processes_hold_equal_bits(ranks: Ranks, name: str) -> None:
    first, *others = ranks
    assert all(distance(first[name]["last"], other[name]["last"]) == 0 for other in others)


def test_each_process_draws_its_own_dropout_mask(ranks: Ranks) -> None:
    masks = [rank["dropout"]["mask"] for rank in ranks]
    assert all(0.3 < mask.double().mean() < 0.7 for mask in masks)
    rows = min(map(len, masks))
    assert len({tuple(mask[:rows].flatten().tolist()) for mask in masks}) == len(ranks)


def test_early_stopping_ends_all_processes_at_one_epoch(ranks: Ranks) -> None:
    assert {rank["early_stopping"]["num_epochs"] for rank in ranks} == {3}


def test_one_process_ends_the_loop_of_all(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["ended_by_one"] == {"num_epochs": 2, "saved_epochs": 2}


@pytest.mark.parametrize(("name", "outcome"), [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", 128 + signal.SIGTERM)])
def test_a_signal_stops_all_processes_after_one_step(ranks: Ranks, name: str, outcome: object) -> None:
    """Ctrl-C reaches the last process only, and SIGTERM all of them."""
    for rank in ranks:
        stopped = rank["stopped"][name]
        assert (stopped["outcome"], stopped["saved_steps"]) == (outcome, scenarios.STOP_STEP)
        assert stopped["num_steps"] == 10
        away = distance(stopped["last"], rank["uninterrupted"]["last"])
        # DistributedDataParallel sums three gradients in another order in its first step.
        assert away == 0 if len(ranks) == 2 else away < FLOAT64_TOLERANCE
        assert bool(stopped["differences"]) == (len(ranks) == 3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_processes_resumes_a_run_of_two(results: dict[int, Ranks], world_size: int) -> None:
    """The run is stopped in the middle of an epoch, and its running metrics are those of both processes."""
    first, *others = [rank["resumed"] for rank in results[world_size]]
    for rank in (first, *others):
        assert rank["num_steps"] == 10
        assert rank["losses"] == pytest.approx(results[1][0]["float64"]["losses"][:2], abs=FLOAT64_TOLERANCE)
        assert distance(rank["last"], results[2][0]["resumed"]["last"]) < FLOAT64_TOLERANCE
    assert not any(other["messages"] for other in others), "rank 0 warns for all"
    if world_size == 2:
        assert first["messages"] == first["differences"] == []
    else:
        change = f"world_size 2 in the run, {world_size} now"
        assert change in first["messages"][0]
        assert first["differences"][0] == f"{change}, from step {scenarios.STOP_STEP}"


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("infinity in one", r"The loss is not finite since step 3 of epoch 1"),
        ("run exists", r"uninterrupted holds a run\. Continue it with resume=True"),
        ("seed", r"different settings \((seed is 0 in rank 0 and \d in rank \d|another process)"),
        ("batch_size", r"different settings \((batch_size is 27 in rank 0 and 18|another process)"),
        ("validation", r"different settings \((.*number of validation batches is 4 in rank 0 and 2|another process)"),
        ("too few images", r"1 of 54 images, fewer than the \d processes\. Use another batch_size or fewer processes"),
        ("order", r"The batches differ between the processes"),
        ("sampler", r"has a DistributedSampler.* Remove the sampler, and give batch_size of the whole batch"),
    ],
)
def test_every_process_refuses_with_a_clear_error(ranks: Ranks, name: str, pattern: str) -> None:
    for rank in ranks:
        assert re.search(pattern, rank["refused"].get(name, "no error")), rank["refused"].get(name)


def torchrun(*arguments: object, cwd: Path, max_restarts: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "--max-restarts", str(max_restarts)]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_a_lost_process_ends_the_others_with_an_explanation(tmp_path: Path) -> None:
    processes = start("raise", tmp_path / "run", world_size=3)
    *others, lost = [process.communicate()[1] for process in processes]
    assert processes[-1].returncode == 1
    # gloo may abort a process at its end, after the error was printed, if an exchange was under way.
    assert all(process.returncode in (1, -signal.SIGABRT) for process in processes[:-1])
    for error in others:
        assert "CifarnetError: Another process of this training has ended" in error
    assert "Last good checkpoint: " in others[0]
    assert "LookupError: a bug of the caller" in lost
    state: Any = Checkpointer(tmp_path / "run").read_last()
    assert 1 <= state["position"]["global_step"] <= 3


def test_torchrun_restarts_a_run_that_lost_a_process(results: dict[int, Ranks], tmp_path: Path) -> None:
    result = torchrun(SCRIPT, "kill", "run", cwd=tmp_path, max_restarts=1)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["restarts: 1", "restarts: 1"]
    state: Any = Checkpointer(tmp_path / "run").read_last()
    assert state["position"]["global_step"] == 10
    assert distance(dict(state["model"]), results[2][0]["uninterrupted"]["last"]) == 0


def test_torchrun_trains_by_the_command_line(tmp_path: Path) -> None:
    options = ["train", "--recipe", "basic", "--epochs", "1", "--data", "synthetic", "--out", "run"]
    result = torchrun("-m", "cifarnet", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("epoch 1:") == 1, "rank 0 alone prints"
    assert ", 2 processes\n" in result.stderr
    assert result.stdout.count("next: cifarnet predict") == 1
    assert load_report(tmp_path / "run/report.json")["world_size"] == 2
