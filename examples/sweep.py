"""Many small runs, side by side: seeds, ablations, search. A report each, one table of all.

    python examples/sweep.py --recipe basic --seeds 5
    python examples/sweep.py --set learning_rate=0.0005,0.001,0.002 --set crop_padding=0,2 --seeds 2
    python examples/sweep.py --set flip=none --set label_smoothing=0.1 --one-at-a-time --seeds 3
    python examples/sweep.py --set learning_rate=1e-4,3e-4,1e-3,3e-3 --set weight_decay=0,1e-4 --random 5

Every run is a process of its own: one for each GPU, or --processes of them on CPUs. Settings are fields of a recipe.
They are compared on images held out of the training set; of the test images, the table shows the score of the best
alone. Killed? Type the same again: runs that have a report are not repeated, those that were begun go on.
"""

import argparse
import ast
import itertools
import json
import os
import queue
import random
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

JOB, REPORT = "job.json", "report.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="basic", help="what the runs have in common")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE,...", help="values to try")
    parser.add_argument("--one-at-a-time", action="store_true", help="the recipe, and it with one setting changed each")
    parser.add_argument("--random", type=int, metavar="N", help="N of all combinations, drawn")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N-1 of each")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--data", help='where CIFAR-10 is, downloaded where it is not; or "synthetic"')
    parser.add_argument("--images", type=int, metavar="N", help="only the first N training images")
    parser.add_argument("--devices", nargs="+", help="such as cuda:0 cuda:1 (default: all GPUs, else cpu)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="runs at once on each device")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)  # a run of the sweep: what its process is told
    parser.add_argument("--device", default="auto", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job is not None:
        end_with_parent()
        train(args.job, args.device)
        return
    jobs = plan(args)
    failed = run_all(jobs, args)
    table = summarize([json.loads((run / REPORT).read_text()) for run in jobs if run not in failed])
    (args.out / "table.md").write_text(table + "\n")
    print(table)
    for run, reason in failed.items():
        print(f"{run} failed: {reason}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def plan(args: argparse.Namespace) -> list[Path]:
    """Write what each run shall do into its directory."""
    from cifarnet.recipes import Recipe, get_recipe

    recipe = get_recipe(args.recipe)
    if args.epochs is not None:
        recipe = replace(recipe, max_epochs=args.epochs)
    fields = [(key, [literal(v) for v in values.split(",")]) for key, _, values in (s.partition("=") for s in args.set)]
    changes: list[dict[str, Any]]
    if args.one_at_a_time:
        changes = [{}, *({key: value} for key, values in fields for value in values)]
    else:
        keys = [key for key, _ in fields]
        changes = [dict(zip(keys, c, strict=True)) for c in itertools.product(*(values for _, values in fields))]
    if args.random is not None:
        changes = random.Random(0).sample(changes, min(args.random, len(changes)))  # noqa: S311
    candidates = [
        (change, asdict(Recipe.from_dict({**asdict(recipe), **change}))) for change in changes
    ]  # a wrong value is told now
    runs = []
    for (change, settings), seed in itertools.product(candidates, range(args.seeds)):
        name = ",".join(f"{key}={value}" for key, value in change.items()) or "recipe"
        job = {"change": name, "recipe": settings, "seed": seed, "data": args.data, "images": args.images}
        run = args.out / name.replace("/", "_") / f"seed-{seed}"
        run.mkdir(parents=True, exist_ok=True)
        text = json.dumps(job, indent=1) + "\n"
        if (run / JOB).exists() and (run / JOB).read_text() != text:
            raise SystemExit(f"{run} is of other settings or data; choose another --out")
        (run / JOB).write_text(text)
        runs.append(run)
    return runs


def literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # such as flip=random


def run_all(jobs: list[Path], args: argparse.Namespace) -> dict[Path, str]:
    """Run what has no report yet, as many at once as there are places; what failed, and why."""
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    places = (args.devices or gpus or ["cpu"]) * args.processes
    threads = max(1, (os.cpu_count() or 1) // len(places))
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for run in jobs:
        if not (run / REPORT).exists():
            waiting.put(run)
    failed: dict[Path, str] = {}
    running: dict[str, subprocess.Popen[bytes]] = {}
    stopping = threading.Event()
    told: set[int] = set()
    outcome = 0

    def tell(process: subprocess.Popen[bytes]) -> None:
        """To save and end; told twice, it would end at once."""
        if process.pid not in told:
            told.add(process.pid)
            process.terminate()

    def work(place: str, device: str) -> None:
        while not stopping.is_set():
            try:
                run = waiting.get_nowait()
            except queue.Empty:
                return
            command = [sys.executable, __file__, "--job", str(run), "--device", device]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            with (run / "log.txt").open("ab") as log:  # its standard input ends when this process does
                process = subprocess.Popen(  # noqa: S603
                    # In a session of its own: Ctrl-C reaches the sweep alone, which tells each run once.
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
                running[place] = process
                if stopping.is_set():  # just now
                    tell(process)
                code = process.wait()
            print(f"{run}: {'done' if code == 0 else f'ended with code {code}'}", file=sys.stderr, flush=True)
            if code:
                lines = (run / "log.txt").read_text().splitlines() or [f"code {code}"]
                failed[run] = lines[-1]

    def stop(signum: int, _: object) -> None:
        nonlocal outcome
        outcome = 128 + signum
        if stopping.is_set():  # told again by who does not want to wait for saves
            told.clear()
        stopping.set()
        for process in list(running.values()):
            tell(process)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    workers = [threading.Thread(target=work, args=(f"{index}", place)) for index, place in enumerate(places)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if outcome:
        raise SystemExit(outcome)  # when all runs have ended
    return failed


def end_with_parent() -> None:
    """A run whose sweep was killed saves and ends, so that the next sweep can go on with it."""

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def train(run: Path, device: str) -> None:
    """One run, as a script of its own would have it."""
    import cifarnet
    from cifarnet import Checkpointer, load_cifar10, make_synthetic
    from cifarnet.errors import CheckpointError
    from cifarnet.recipes import Recipe, build_trainer
    from cifarnet.report import build_report, save_report

    job = json.loads((run / JOB).read_text())
    count = job["images"]
    data = make_synthetic(*([] if count is None else [count, 500])) if job["data"] == "synthetic" else None
    data = load_cifar10(job["data"]) if data is None else data
    images = data.train if count is None else data.train.subset(range(count))
    train, val = images.split(0.1, seed=0)
    recipe = Recipe.from_dict(job["recipe"])
    trainer = build_trainer(recipe, train, seed=job["seed"], device=device)
    settings: dict[str, Any] = {"max_epochs": recipe.max_epochs, "batch_size": recipe.batch_size}
    for _ in range(60):
        try:
            trainer.fit(train, val, checkpointer=Checkpointer(run), resume=True, progress_bar=False, **settings)
            break
        except CheckpointError as error:  # by a run whose sweep was killed just now
            print(error, file=sys.stderr)
            time.sleep(1)
    else:
        raise SystemExit(f"{run} is still in use by another process after a minute; see what it is")
    report = build_report(
        trainer,
        recipe,
        train=train,
        val=val,
        test=data.test,
        evaluation=trainer.evaluate(data.test),
        command=shlex.join(sys.argv),
        version=cifarnet.__version__,
    )
    save_report(report | {"change": job["change"]}, run / REPORT)


def summarize(reports: list[dict[str, Any]]) -> str:
    """Best first, by the held-out images."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        groups.setdefault(report["change"], []).append(report)

    def mean(group: list[dict[str, Any]], metric: str) -> float:
        return statistics.fmean(report["metrics"][metric] for report in group)

    def told(group: list[dict[str, Any]], metric: str) -> str:
        values = [100 * report["metrics"][metric] for report in group]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.2f}{spread} %"

    ordered = sorted(groups.items(), key=lambda item: -mean(item[1], "val_accuracy"))
    lines = ["| settings | n | validation accuracy | training |", "| --- | --- | --- | --- |"]
    for name, group in ordered:
        seconds = statistics.fmean(report["durations"]["train_s"] for report in group)
        lines.append(f"| {name} | {len(group)} | {told(group, 'val_accuracy')} | {seconds:.1f} s |")
    if ordered:
        name, group = ordered[0]
        lines += ["", f"Best on the held-out images: {name}. Its test accuracy: {told(group, 'test_accuracy')}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
