#!/usr/bin/env python3
"""Benchmarks for the GPU results: stages in order of importance, each with its time budget and its results.

    remote.py first --seconds 200        stages without CIFAR-10: facts, CUDA tests, smoke, resume, profiles
    remote.py second --seconds 470       the published numbers, on CIFAR-10
    remote.py first --only tests smoke   some stages alone
    remote.py first --dry                a small run on a CPU, to check every command line

A stage that fails or runs out of time does not affect the next ones. After each stage, --out holds stages.json (a
record per stage) and results.tar.gz (reports/, laid out as docs/results/MACHINE/ of the project, and logs/).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

KIT = Path(__file__).resolve().parent
BENCHMARKS = KIT.parent
#: Fingerprint of the training images in the reports.
FINGERPRINT = "8de7456ef7ffacfa284b9ead85280d94b29089a0f4e17a4c23e5827748b826d7"
PACKED = ("make_cifar10.py", "labels.npz", "test_batch.webp", *(f"data_batch_{i}.webp" for i in range(1, 6)))
CUDA_TESTS = ("tests/cuda/test_cuda.py", "tests/checkpoint/test_state_dict.py")
RECIPES = ("reference", "fast94", "resnet18", "fast96", "cifarcnn_tuned", "basic")

started = time.perf_counter()
children: set[subprocess.Popen[bytes]] = set()


@dataclass
class Context:
    """Settings and records that all stages share."""

    work: Path  # kept between both parts
    out: Path
    which: str
    seconds: float
    is_dry: bool
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reports(self) -> Path:
        return self.work / "results" / "reports"

    @property
    def logs(self) -> Path:
        return self.work / "results" / "logs"

    @property
    def left(self) -> float:
        return self.seconds - (time.perf_counter() - started)

    @property
    def data(self) -> str:
        return "dry-data" if self.is_dry else "data"

    def options(self, backend: str | None = None) -> list[str]:
        """Return the options of a command that are not the defaults."""
        if self.is_dry:
            return ["--device", "cpu"]
        return ["--no-cuda-graph"] if backend == "eager" else []

    def save(self) -> None:
        """Write all results so far, of both parts."""
        stages = json.dumps(self.records, indent=1)
        for path in (self.out / "stages.json", self.work / "results" / f"stages-{self.which}.json"):
            path.write_text(stages)
        part = self.work / "results.part"
        with tarfile.open(part, "w:gz", compresslevel=3) as archive:
            archive.add(self.work / "results", "results")
        shutil.copyfile(part, self.out / "results.part")
        (self.out / "results.part").replace(self.out / "results.tar.gz")


# Commands ----------------------------------------------------------------------------------------------------------


@dataclass
class Done:
    """Result of a command."""

    rc: int | None  # None after the time budget
    seconds: float
    stdout: str
    stderr: str

    @property
    def last_error(self) -> str:
        return ((self.stderr.strip() or self.stdout.strip()).splitlines() or ["no output"])[-1][:300]


def run(
    context: Context, name: str, command: Sequence[str], seconds: float, *, env: dict[str, str] | None = None
) -> Done:
    """Run a command in a new process group, kill it after its time budget, and write its output to logs/NAME."""
    log, clock = context.logs / name, time.perf_counter()
    log.parent.mkdir(parents=True, exist_ok=True)
    budget = max(1.0, min(seconds * (5 if context.is_dry else 1), context.left))  # a shared CPU may be slow
    with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
        child = subprocess.Popen(
            command,
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
        children.add(child)
        try:
            rc: int | None = child.wait(timeout=budget)
        except subprocess.TimeoutExpired:
            rc = None
        finally:
            kill(child)
    stdout, stderr = (Path(f"{log}.{end}").read_text(errors="replace") for end in ("out", "err"))
    return Done(rc, round(time.perf_counter() - clock, 2), stdout, stderr)


def kill(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    children.discard(child)


def python(*words: str | Path) -> list[str]:
    return [sys.executable, *map(str, words)]


def cifarnet(*words: str | Path) -> list[str]:
    return python("-m", "cifarnet", *words)


def facts_of(done: Done) -> dict[str, Any]:
    """Return exit code, seconds and error of a command for a record."""
    facts: dict[str, Any] = {"rc": done.rc, "seconds": done.seconds}
    if done.rc != 0:
        facts["error"] = "its time budget is used up" if done.rc is None else done.last_error
    return facts


def document(done: Done) -> dict[str, Any]:
    """Return the JSON that a command printed, or an empty dictionary."""
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def warned(done: Done) -> list[str]:
    return sorted({line[:300] for line in done.stderr.splitlines() if "warning" in line.lower()})[:5]


def bench(context: Context, report: str, seconds: float, script: str, *words: str) -> dict[str, Any]:
    """Run a benchmark script and keep its report."""
    path = context.reports / f"{report}.json"
    path.unlink(missing_ok=True)
    done = run(context, f"bench-{report}", python(BENCHMARKS / script, *words, "--json", path), seconds)
    found = json.loads(path.read_text()) if path.exists() else {}
    return {
        **facts_of(done),
        "report": f"{report}.json" if found else None,
        "warnings": warned(done),
        "document": found,
    }


def save_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


# The first part: stages without CIFAR-10 ----------------------------------------------------------------------------


def facts(context: Context) -> dict[str, Any]:
    """Record card, driver and versions, and measure copy bandwidth, matrix rate and the cost of a graph node."""
    query = "name,driver_version,memory.total,clocks.sm,clocks.mem,pstate,temperature.gpu,power.draw"
    card = (
        run(context, "nvidia-smi", ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], 10)
        if shutil.which("nvidia-smi")
        else None
    )
    report = context.reports / "machine.json"
    machine = run(context, "machine", python(KIT / "profile_steps.py", "machine", "--out", report, *dry(context)), 40)
    packages = run(context, "pip-list", python("-m", "pip", "list", "--format=freeze"), 20)
    found = json.loads(report.read_text()) if report.exists() else {}
    return {
        **facts_of(machine),
        "nvidia_smi": card and card.stdout.strip(),
        "packages": len(packages.stdout.splitlines()),
        **found,
    }


def dry(context: Context) -> list[str]:
    return ["--dry"] if context.is_dry else []


def checks(context: Context) -> dict[str, Any]:
    """Run tests, smoke and resume in parallel, because none of them is timed."""
    with ThreadPoolExecutor() as pool:
        found = {name: pool.submit(stage, context) for name, stage in CHECKS.items()}
        return {name: tried(future.result) for name, future in found.items()}


def tried(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return function()
    except Exception as error:  # a bug in this script must not stop the other stages
        return {"error": f"{type(error).__name__}: {error}"}


def tests(context: Context) -> dict[str, Any]:
    """Run the CUDA tests. Run those that fail again, each alone and with warnings allowed."""
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other plugins may warn, and a warning is an error here
    timeout = ["-p", "pytest_timeout", "--timeout", "90"] if find_spec("pytest_timeout") else []
    shared = ["-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", "--tb=short", *timeout]
    xml = context.logs / "tests.xml"
    xml.parent.mkdir(parents=True, exist_ok=True)
    files = [name for name in CUDA_TESTS if Path(name).exists()]
    done = run(
        context, "tests", python(*shared, "-rA", "--durations=15", f"--junitxml={xml}", *files), 110, env=plugins
    )
    outcomes = junit(xml)
    bad = [name for name, outcome in outcomes.items() if outcome not in ("passed", "skipped")]

    def again(index: int) -> tuple[str, str]:
        words = [*shared, "-W", "default", "-q", bad[index]]
        alone = run(context, f"tests-alone-{index}", python(*words), 60, env=plugins)
        return bad[index], "passes alone, warnings allowed" if alone.rc == 0 else "fails alone too"

    with ThreadPoolExecutor(4) as pool:
        alone = dict(pool.map(again, range(min(len(bad), 24))))
    counts = {outcome: sum(one == outcome for one in outcomes.values()) for outcome in sorted(set(outcomes.values()))}
    return {**facts_of(done), "counts": counts, "failures": {name: [outcomes[name], alone.get(name)] for name in bad}}


def junit(path: Path) -> dict[str, str]:
    """Return the outcome of each test by its node id."""
    if not path.exists():
        return {}
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        where = (case.get("classname") or "").replace(".", "/") + ".py"  # the tests are functions of modules
        messages = {child.tag: (child.get("message") or "").splitlines()[:1] for child in case}
        bad = next((f"{tag}: {' '.join(messages[tag])[:200]}" for tag in ("error", "failure") if tag in messages), None)
        found[f"{where}::{case.get('name')}"] = bad or ("skipped" if "skipped" in messages else "passed")
    return found


def smoke(context: Context) -> dict[str, Any]:
    """Train each recipe with the command line, long enough to capture and replay, and check its backend."""
    jobs = [
        *((recipe, "cuda-graph") for recipe in RECIPES),
        ("reference", "eager"),
    ]
    if context.is_dry:
        jobs = [("reference", "eager")]

    def one(job: tuple[str, str]) -> tuple[str, dict[str, Any]]:
        recipe, backend = job
        name = f"{recipe}-{backend}"
        out = context.work / "runs" / f"smoke-{name}"
        shutil.rmtree(out, ignore_errors=True)
        data = ["--data", context.data if context.is_dry else "synthetic"]
        words = ["train", "--recipe", recipe, *data, "--epochs", "2" if context.is_dry else "4", "--out", out, "--json"]
        done = run(context, f"smoke/{name}", cifarnet(*words, *context.options(backend)), 110)
        report = document(done)
        losses = [epoch["train_loss"] for epoch in report.get("history", [])]
        good = done.rc == 0 and report.get("backend") == backend and losses[-1] < losses[0]
        return name, {
            **facts_of(done),
            "good": good,
            "backend": report.get("backend"),
            "train_loss": losses,
            "warnings": warned(done),
        }

    with ThreadPoolExecutor(1 if context.is_dry else 3) as pool:
        return dict(pool.map(one, jobs))


def resume(context: Context) -> dict[str, Any]:
    """Train the reference network deterministically: two uninterrupted runs, and one that is stopped and resumed."""
    folder = context.work / "runs" / "resume"
    shutil.rmtree(folder, ignore_errors=True)
    data, epochs = (context.data, "3") if context.is_dry else ("synthetic", "5")
    shared = ["train", "--recipe", "reference", "--data", data, "--epochs", epochs, "--seed", "5", "--deterministic"]
    shared += context.options()

    def go(name: str, *words: str | Path) -> Done:
        return run(context, f"resume/{name}", python(*words), 100)

    with ThreadPoolExecutor(1 if context.is_dry else 3) as pool:
        one = pool.submit(go, "one", "-m", "cifarnet", *shared, "--out", folder / "one")
        other = pool.submit(go, "other", "-m", "cifarnet", *shared, "--out", folder / "other")
        stopped = pool.submit(
            go, "stopped", KIT / "stop_after.py", "5" if context.is_dry else "15", *shared, "--out", folder / "stopped"
        )
        first, second, third = one.result(), other.result(), stopped.result()
    resumed = go("resumed", "-m", "cifarnet", *shared, "--out", folder / "stopped", "--resume")
    where = next((line for line in third.stderr.splitlines() if line.startswith("Stopped at")), None)
    found = {
        "uninterrupted": facts_of(first),
        "uninterrupted_again": facts_of(second),
        "stopped": {**facts_of(third), "where": where and where.partition(";")[0]},
        "resumed": facts_of(resumed),
        "was_stopped": third.rc == 143 and where is not None,
        "uninterrupted_runs_are_equal": equal(folder / "one", folder / "other"),
        "resumed_run_is_equal": equal(folder / "one", folder / "stopped"),
    }
    if third.rc == 143:  # 128 + SIGTERM, the expected end
        stopped_facts: Any = found["stopped"]
        stopped_facts.pop("error", None)
    save_json(context.logs / "resume.json", found)
    return found


def equal(one: Path, other: Path) -> bool | str:
    """Return whether both runs ended with the same bytes of weights."""
    from safetensors.numpy import load_file

    try:
        a, b = (load_file(folder / "best.safetensors") for folder in (one, other))
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)


def profile(recipe: str) -> Callable[[Context], dict[str, Any]]:
    """Build a stage that profiles the training step of a recipe: kernels, gaps, parts of an epoch, what-ifs."""

    def stage(context: Context) -> dict[str, Any]:
        report = context.reports / f"profile-{recipe}.json"
        command = python(KIT / "profile_steps.py", "steps", recipe, "--seconds", "35", "--out", report, *dry(context))
        done = run(context, f"profile-{recipe}", command, 60)
        found = json.loads(report.read_text()) if report.exists() else {}
        kernels = found.get("kernels", {})
        epochs = found.get("epochs", {})
        return {
            **facts_of(done),
            "backend": found.get("backend"),
            "step_us": epochs.get("step_us"),
            "kernels_a_step": kernels.get("kernels_a_step"),
            "idle_share": kernels.get("idle_share_without_profiler"),
            "what_if_step_us": found.get("what_if_step_us"),
            "warnings": found.get("warnings"),
        }

    return stage


# The second part: CIFAR-10 ------------------------------------------------------------------------------------------


def unpack(context: Context) -> dict[str, Any]:
    """Unpack CIFAR-10 from a packed copy, unless data/ holds it, and compare its fingerprint."""
    packed = context.work / "packed"
    missing = [name for name in PACKED if not (packed / name).exists()]
    facts: dict[str, Any] = {}
    if missing != list(PACKED) or not Path("data").exists():
        if missing and context.is_dry:
            return {"skipped": "a dry run needs no CIFAR-10"}
        if missing:
            return {"error": f"Files of CIFAR-10 are missing: {', '.join(missing)}. Copy all of them", "fatal": True}
        done = run(context, "unpack", python(packed / "make_cifar10.py", "data"), 60)
        facts = {**facts_of(done), "fatal": done.rc != 0}
    code = "from cifarnet import load_cifar10; print(load_cifar10('data', download=False).train.fingerprint)"
    read = run(context, "fingerprint", python("-c", code), 40)
    return {**facts, "fingerprint_is_right": read.stdout.strip().splitlines()[-1:] == [FINGERPRINT]}


def accuracy(
    recipe: str, runs: int, *words: str, seconds: float, name: str | None = None
) -> Callable[[Context], dict[str, Any]]:
    """Build a stage that runs time_to_accuracy.py."""
    report = name or f"accuracy-{recipe}"

    def stage(context: Context) -> dict[str, Any]:
        count, few = (1, ["--epochs", "1"]) if context.is_dry else (runs, [])
        found = bench(
            context,
            report,
            seconds,
            "time_to_accuracy.py",
            "--recipe",
            recipe,
            "--data",
            context.data,
            "--runs",
            str(count),
            *few,
            *words,
            *context.options(),
        )
        whole = found.pop("document")
        for key in (
            "backend",
            "accuracy",
            "accuracy_tta",
            "train_s",
            "train_without_preparation_s",
            "preparation_s",
            "eval_s",
            "warm_up_s",
            "p_value",
        ):
            if whole.get(key) is not None:
                found[key] = whole[key]
        return found

    return stage


def train(recipe: str, seeds: int, *, seconds: float) -> Callable[[Context], dict[str, Any]]:
    """Build a stage that runs cifarnet train in a new process per seed, and keeps the reports."""

    def stage(context: Context) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for seed in range(1 if context.is_dry else seeds):
            out = f"runs/{recipe}/seed-{seed}"
            shutil.rmtree(out, ignore_errors=True)
            few = ["--epochs", "1"] if context.is_dry else []
            words = ["train", "--recipe", recipe, "--seed", str(seed), *few, "--out", out, "--data", context.data]
            done = run(context, f"train-{recipe}-{seed}", cifarnet(*words, *context.options()), seconds)
            report = Path(out) / "report.json"
            found[f"seed-{seed}"] = {**facts_of(done), "warnings": warned(done)}
            if report.exists():
                target = context.reports / recipe / f"seed-{seed}.json"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(report, target)
                content = json.loads(report.read_text())
                found[f"seed-{seed}"] |= {
                    key: content.get(key) for key in ("backend", "metrics", "durations", "peak_memory_mb")
                }
        return found

    return stage


def training(context: Context) -> dict[str, Any]:
    """Run train_throughput.py beside examples/plain_pytorch.py."""
    if context.is_dry:  # the script reads CIFAR-10 itself
        size = ["--steps", "2", "--rounds", "1", "--workers", "0"]
        data = "data" if Path("data").exists() else "synthetic"
    else:
        size, data = ["--steps", "300", "--rounds", "3", "--workers", "8"], context.data
    script = ["--script", "examples/plain_pytorch.py"]
    found = bench(context, "training", 120, "train_throughput.py", "--data", data, *script, *size, *context.options())
    whole = found.pop("document")
    found["images_per_s"] = {
        one["name"]: [one["images_per_s"]["median"], one.get("backend")] for one in whole.get("contenders", [])
    }
    return found


def start(context: Context) -> dict[str, Any]:
    """Run cold_start.py, which trains whole reference runs in new processes."""
    size = ["--runs", "1", "--epochs", "1"] if context.is_dry else ["--runs", "2", "--epochs", "10"]
    found = bench(context, "start", 60, "cold_start.py", "--data", context.data, *size, *context.options())
    whole = found.pop("document")
    found |= {key: whole.get(key) for key in ("to_first_step_s", "to_model_s", "total_s", "stages")}
    return found


def inference(context: Context) -> dict[str, Any]:
    """Run inference.py and saving.py."""
    few = context.is_dry
    found = {}
    words = [
        "inference.py",
        "--data",
        context.data,
        *(["--rounds", "1", "--calls", "2", "--batch-sizes", "1"] if few else []),
    ]
    found["inference"] = bench(context, "inference", 30, *words, *context.options())
    words = ["saving.py", "--data", context.data, *(["--steps", "1", "--rounds", "1"] if few else [])]
    found["saving"] = bench(context, "saving", 40, *words, *context.options())
    for one in found.values():
        one.pop("document")
    return found


def extra(context: Context) -> dict[str, Any]:
    """Run extra/run.sh if there is one. Its files in $EXTRA_OUT are kept."""
    script = context.work / "extra" / "run.sh"
    if not script.exists():
        return {"skipped": "there is no extra/run.sh"}
    target = context.work / "results" / "extra"
    target.mkdir(parents=True, exist_ok=True)
    environment = {
        "EXTRA_OUT": str(target),
        "EXTRA_DATA": str(Path("data").resolve()),
        "EXTRA_DRY": str(int(context.is_dry)),
    }
    done = run(context, "extra", ["bash", str(script)], 90, env=environment)
    return {**facts_of(done), "tail": done.stdout.strip().splitlines()[-10:]}


#: Stages that run in parallel.
CHECKS = {"tests": tests, "smoke": smoke, "resume": resume}

#: Name, least seconds and function. A stage is skipped if fewer seconds are left.
Stage = tuple[str, float, Callable[[Context], dict[str, Any]]]
FIRST: list[Stage] = [
    ("facts", 20, facts),
    ("checks", 40, checks),
    ("profile-reference", 25, profile("reference")),
    ("profile-fast94", 25, profile("fast94")),
]
SECOND: list[Stage] = [
    ("unpack", 10, unpack),
    ("accuracy-reference", 20, accuracy("reference", 3, seconds=60)),
    ("accuracy-fast94-10", 20, accuracy("fast94", 10, "--target", "0.94", seconds=60, name="accuracy-fast94")),
    ("train-reference", 20, train("reference", 3, seconds=40)),
    ("training", 40, training),
    ("accuracy-fast94-40", 60, accuracy("fast94", 40, "--target", "0.94", seconds=120, name="accuracy-fast94-40")),
    ("extra", 20, extra),
    ("train-resnet18", 60, train("resnet18", 1, seconds=120)),
    ("train-fast94", 20, train("fast94", 3, seconds=40)),
    ("start", 20, start),
    ("train-fast96", 30, train("fast96", 1, seconds=90)),
    (
        "accuracy-reference-eager",
        40,
        accuracy("reference", 1, "--no-cuda-graph", seconds=70, name="accuracy-reference-eager"),
    ),
    ("inference", 20, inference),
    ("train-basic", 10, train("basic", 3, seconds=30)),
    ("train-cifarcnn_tuned", 10, train("cifarcnn_tuned", 3, seconds=30)),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("first", "second"))
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="names of stages, also tests, smoke and resume")
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    context = Context(args.work.resolve(), args.out.resolve(), args.which, args.seconds, args.dry)
    context.reports.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: stop(context))
    if args.dry:
        make_dry_data(Path(context.data))
    stages = FIRST if args.which == "first" else SECOND
    if args.only:
        alone: list[Stage] = [(name, 10, stage) for name, stage in CHECKS.items()]
        stages = [stage for stage in [*stages, *alone] if stage[0] in args.only or stage[0] == "unpack"]
    for name, least, stage in stages:
        if context.left < least:
            record: dict[str, Any] = {"stage": name, "skipped": f"{context.left:.0f} s are left of {least}"}
        else:
            clock = time.perf_counter()
            record = {"stage": name, **tried(partial(stage, context))}
            record["stage_s"] = round(time.perf_counter() - clock, 1)
        record["at_s"] = round(time.perf_counter() - started, 1)
        context.records.append(record)
        context.save()
        print(json.dumps(shortened(record)), flush=True)
        if record.get("fatal"):
            print("CIFAR-10 is missing. Run the first part again, then this one", flush=True)
            return 3
    if args.which == "first":
        print(verdict(context), flush=True)
    context.save()
    return 0


def verdict(context: Context) -> str:
    """Return GO or FIX FIRST for the second part, and a line per fault."""
    checks: dict[str, Any] = {}
    for record in context.records:
        checks |= (
            record if record["stage"] == "checks" else {record["stage"]: record} if record["stage"] in CHECKS else {}
        )
    if not checks:
        return "VERDICT: no checks were made"
    failures = checks.get("tests", {}).get("failures", {})
    faults = [f"test {name}: {outcome}; {alone}" for name, (outcome, alone) in failures.items()]
    for name, result in checks.get("smoke", {}).items():
        if isinstance(result, dict) and not result.get("good"):
            faults.append(f"smoke {name}: {result.get('error') or result.get('backend')} {result.get('warnings')}")
    for key in ("was_stopped", "uninterrupted_runs_are_equal", "resumed_run_is_equal") if "resume" in checks else ():
        if checks.get("resume", {}).get(key) is not True:
            faults.append(f"resume: {key} = {checks.get('resume', {}).get(key)}")
    runs = checks.get("smoke", {})
    usable = [name for name in ("reference-cuda-graph", "fast94-cuda-graph") if runs.get(name, {}).get("good")]
    go = context.is_dry or len(usable) == 2
    lines = [f"  {fault}"[:400] for fault in faults]
    advice = (
        "GO: run the second part" if go else "FIX FIRST: repair what is listed below, then run the first part again"
    )
    return "\n".join([f"VERDICT: {advice} ({len(faults)} faults)", *lines])


def shortened(value: Any, depth: int = 0) -> Any:
    """Shorten a record for standard output."""
    if isinstance(value, dict):
        return {
            key: shortened(one, depth + 1)
            for key, one in value.items()
            if key not in ("stages", "train_loss") and depth < 4
        }
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, str):
        return value[:200]
    return [shortened(one, depth + 1) for one in value[:6]] if isinstance(value, list) else value


def stop(context: Context) -> None:
    for child in list(children):
        kill(child)
    context.save()
    os._exit(124)


def make_dry_data(folder: Path) -> None:
    """Create a folder of 200 pictures for a dry run."""
    if folder.exists():
        return
    from PIL import Image

    from cifarnet import make_synthetic

    data = make_synthetic(num_train=160, num_test=40)
    for part, images in (("train", data.train), ("test", data.test)):
        for index, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
            path = folder / part / re.sub(r"\W+", "-", images.classes[label]) / f"{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


if __name__ == "__main__":
    sys.exit(main())
