"""Two and three processes over gloo: what they must do as one process does, and what they must refuse together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import scenarios
import torch
from scenarios import Result
from torch import Tensor

from cifarnet import Checkpointer
from cifarnet.report import load_report

fcntl = pytest.importorskip("fcntl")

#: Results by number of processes, rank and scenario.
Results = dict[int, list[dict[str, Result]]]

#: Seconds after which processes that wait for each other are killed. They write their stacks before.
LIMIT_S = 1.2 * scenarios.LIMIT_S
SCRIPT = Path(scenarios.__file__)
FLOAT32_TOLERANCE, FLOAT64_TOLERANCE = 1e-5, 1e-9
EQUAL_TO_ONE = [scenario.__name__ for scenario in scenarios.SCENARIOS if scenario.__name__.startswith("float")]
several = pytest.mark.parametrize("world_size", [2, 3])

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)


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
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for processes and return the stderr of each."""

    def kill() -> None:
        for process in processes:
            process.kill()

    killer = threading.Timer(LIMIT_S, kill)
    killer.start()
    try:
        return [process.communicate()[1] for process in processes]
    finally:
        killer.cancel()


def perform_in_processes(directory: Path, world_size: int) -> list[dict[str, Result]]:
    directory.mkdir()
    processes = start("all", directory, world_size=world_size)
    errors = finish(processes)
    assert [process.returncode for process in processes] == [0] * world_size, "\n".join(errors)
    return [torch.load(directory / f"rank-{rank}.pt") for rank in range(world_size)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Perform all scenarios with one, two and three processes, once for all workers of pytest-xdist."""
    temporary = tmp_path_factory.getbasetemp()
    root = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / "processes"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "results.pt").exists():
            (root / "one").mkdir()
            *first, resumed, refused = scenarios.SCENARIOS  # two processes write the run that `resumed` needs
            one = scenarios.perform(root / "one", *first)
            found = {1: [one], 2: perform_in_processes(root / "two", 2), 3: perform_in_processes(root / "three", 3)}
            one |= scenarios.perform(root / "one", resumed, refused)
            torch.save(found, root / "results.pt")
        loaded: Results = torch.load(root / "results.pt")
    return loaded


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# Equality ------------------------------------------------------------------------------------------------------------


@several
@pytest.mark.parametrize("name", EQUAL_TO_ONE)
def test_several_processes_reach_the_weights_of_one(results: Results, name: str, world_size: int) -> None:
    [one], tolerance = results[1], FLOAT32_TOLERANCE if name.startswith("float32") else FLOAT64_TOLERANCE
    expected = one[name]
    assert expected["num_steps"] == 20
    for rank in results[world_size]:
        assert rank[name]["num_steps"] == 20
        assert distance(rank[name]["last"], expected["last"]) < tolerance
        assert distance(rank[name]["best"], expected["best"]) < tolerance
        assert rank[name]["losses"] == pytest.approx(expected["losses"], abs=10 * tolerance)
        assert rank[name]["accuracies"] == expected["accuracies"]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("float64", "float64_with_cutmix_and_ema"),
        ("float64", "float64_unfrozen"),
    ],
)
def test_scenarios_differ_from_each_other(results: Results, name: str, other: str) -> None:
    """The equality above would prove nothing if MixUp, the average or the frozen layer had no effect."""
    assert distance(results[1][0][name]["last"], results[1][0][other]["last"]) > 1e-4


@several
def test_all_processes_hold_equal_bits(results: Results, world_size: int) -> None:
    first, *others = results[world_size]
    names = [*EQUAL_TO_ONE, "batch_norm", "other_weights_per_process", "uninterrupted", "resumed"]
    for name in names:
        for other in others:
            assert distance(first[name]["last"], other[name]["last"]) == 0, name


@several
def test_batch_norm_sees_the_images_of_one_process_on_a_cpu(results: Results, world_size: int) -> None:
    """torch synchronizes batch norm on CUDA only, as the documentation says."""
    assert distance(results[world_size][0]["batch_norm"]["last"], results[1][0]["batch_norm"]["last"]) > 1e-4


@several
def test_each_process_draws_its_own_dropout_mask(results: Results, world_size: int) -> None:
    masks = [rank["dropout"]["is_dropped"] for rank in results[world_size]]
    for mask in masks:
        assert 0.3 < mask.double().mean() < 0.7
    num_rows = min(len(mask) for mask in masks)
    for index, mask in enumerate(masks):
        assert not any(torch.equal(mask[:num_rows], other[:num_rows]) for other in masks[index + 1 :])


@several
def test_early_stopping_ends_all_processes_at_one_epoch(results: Results, world_size: int) -> None:
    assert results[1][0]["early_stopping"]["num_epochs"] == 3
    assert [rank["early_stopping"]["num_epochs"] for rank in results[world_size]] == [3] * world_size


@several
def test_one_process_ends_the_loop_of_all(results: Results, world_size: int) -> None:
    for rank in (*results[1], *results[world_size]):
        for how in ("break", "exception"):
            assert rank["ended_by_one"][how] == {"num_epochs": 2, "saved_epochs": 2}


# Stop and resume -----------------------------------------------------------------------------------------------------


@several
@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("Ctrl-C to the last process", "KeyboardInterrupt"),
        ("SIGTERM to all processes", 128 + signal.SIGTERM),
    ],
)
def test_a_signal_stops_and_saves_all_processes_after_one_step(
    results: Results, name: str, outcome: object, world_size: int
) -> None:
    for rank in results[world_size]:
        stopped = rank["stopped"][name]
        assert (stopped["outcome"], stopped["num_steps"], stopped["is_saved"]) == (outcome, scenarios.STOP_STEP, True)
        away = distance(stopped["last"], rank["uninterrupted"]["last"])
        # DistributedDataParallel sums three gradients in another order in its first step.
        assert away == 0 if world_size == 2 else away < FLOAT64_TOLERANCE
        assert bool(stopped["differences"]) == (world_size == 3)


def test_a_signal_from_outside_ends_both_processes(tmp_path: Path) -> None:
    processes = start("wait", tmp_path / "run", world_size=2)
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
    processes[1].send_signal(signal.SIGTERM)
    first, second = finish(processes)
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2
    assert re.search(r"Stopped at epoch \d+ step \d+; saved .*last\.safetensors", first)
    assert "Stopped" not in second
    state = Checkpointer(tmp_path / "run").read_last()
    assert state is not None
    assert state["position"]["global_step"] >= scenarios.STOP_STEP


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_checkpoint_of_two_processes_resumes_with_any_number(results: Results, world_size: int) -> None:
    """The run is stopped in the middle of an epoch, and its running metrics are those of both processes."""
    expected = results[1][0]["float64"]
    for rank in results[world_size]:
        resumed = rank["resumed"]
        assert resumed["num_steps"] == 10
        assert resumed["losses"] == pytest.approx(expected["losses"][:2], abs=FLOAT64_TOLERANCE)
        assert distance(resumed["last"], results[2][0]["resumed"]["last"]) < FLOAT64_TOLERANCE
    first, *others = (rank["resumed"] for rank in results[world_size])
    assert not any(other["messages"] for other in others), "rank 0 warns for all"
    if world_size == 2:
        assert first["messages"] == first["differences"] == []
    else:
        assert f"world_size 2 in the run, {world_size} now" in first["messages"][0]
        assert first["differences"][0] == f"world_size 2 in the run, {world_size} now, from step {scenarios.STOP_STEP}"


# Refusals ------------------------------------------------------------------------------------------------------------

#: What each process must say about a run that several of them cannot train. ``{n}`` is the number of processes.
REFUSALS = {
    "NaN in all": r"The loss is not finite since step 3 of epoch 1",
    "infinity in one": r"The loss is not finite since step 3 of epoch 1",
    "run exists": r"uninterrupted holds a run\. Continue it with resume=True",
    "max_epochs": r"different settings \((max_epochs is 1 in rank 0 and \d|another process)",
    "checkpointer": r"different settings \((checkpointer is True in rank 0 and False|another process)",
    "seed": r"different settings \((seed is 0 in rank 0 and \d|another process)",
    "batch_size": r"different settings \((batch_size is 58 in rank 0 and 29|another process)",
    "test": r"different settings \((number of test batches is 4 in rank 0 and 2|another process)",
    "too few images": r"has 1 of 54 images, fewer than the {n} processes\. Use another batch_size or fewer processes",
    "order": r"The batches differ between the processes",
    "unknown length": r"The batches differ between the processes",
    "sampler": r"has a DistributedSampler.* Remove the sampler, and give batch_size of the whole batch",
}
#: What one process must refuse too.
REFUSED_BY_ONE = {"NaN in all", "infinity in one", "run exists"}


@several
@pytest.mark.parametrize("name", REFUSALS)
def test_every_process_refuses_with_a_clear_error(results: Results, name: str, world_size: int) -> None:
    pattern = REFUSALS[name].replace("{n}", str(world_size))
    for rank in results[world_size]:
        assert re.search(pattern, rank["refused"].get(name, "no error")), rank["refused"].get(name)


@several
def test_a_refusal_names_both_values(results: Results, world_size: int) -> None:
    for number, rank in enumerate(results[world_size]):
        assert (f"seed is 0 in rank 0 and {number} in rank {number}" in rank["refused"]["seed"]) == (number > 0)


def test_one_process_trains_what_several_refuse(results: Results) -> None:
    assert results[1][0]["refused"].keys() == REFUSED_BY_ONE


# Lost processes and torchrun -----------------------------------------------------------------------------------------


def torchrun(*arguments: object, cwd: Path, max_restarts: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "--max-restarts", str(max_restarts)]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def read_step(run: Path) -> int:
    state: Any = Checkpointer(run).read_last()
    return int(state["position"]["global_step"])


def test_a_lost_process_ends_the_others_with_an_explanation(tmp_path: Path) -> None:
    processes = start("lose", tmp_path / "run", "raise", 4, world_size=3)
    *others, lost = finish(processes)
    assert processes[-1].returncode == 1
    # gloo may abort a process at its end, after the error was printed, if an exchange was under way.
    assert all(process.returncode in (1, -signal.SIGABRT) for process in processes[:-1])
    for error in others:
        assert "CifarnetError: Another process of this training has ended" in error
    assert "Last good checkpoint: " in others[0]
    assert "LookupError: a bug of the caller" in lost
    assert 1 <= read_step(tmp_path / "run") <= 3


def test_torchrun_restarts_a_run_that_lost_a_process(results: Results, tmp_path: Path) -> None:
    result = torchrun(SCRIPT, "lose", "run", "kill", 4, cwd=tmp_path, max_restarts=1)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["restarts: 1", "restarts: 1"]
    assert read_step(tmp_path / "run") == 10
    state = Checkpointer(tmp_path / "run").read_last()
    assert state is not None
    assert distance(dict(state["model"]), results[2][0]["uninterrupted"]["last"]) == 0


def test_torchrun_trains_by_the_command_line(tmp_path: Path) -> None:
    options = ["train", "--recipe", "basic", "--epochs", "1", "--data", "synthetic", "--out", "run"]
    result = torchrun("-m", "cifarnet", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("epoch 1:") == 1, "rank 0 alone prints"
    assert ", 2 processes\n" in result.stderr
    assert result.stdout.count("next: cifarnet predict") == 1
    assert load_report(tmp_path / "run/report.json")["world_size"] == 2
