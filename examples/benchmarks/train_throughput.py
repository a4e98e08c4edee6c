#!/usr/bin/env python3
"""Training throughput of the library beside a script of yours, in images per second.

    train_throughput.py --data DIR --script examples/plain_pytorch.py
    train_throughput.py --data synthetic --steps 20 --rounds 3

The contenders are the eager step, on CUDA also the CUDA graph, and the script with several numbers of workers. They
train parts of `--steps` steps in turns, every second round in reverse order, each part in a new process after a
warm-up. Run nothing else on the machine.

The script takes the options --steps, --workers, --batch-size, --device and --data, and prints a JSON object with
"images_per_s" as its last line. "precision" and "peak_memory_mb" are optional.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cifarnet.cli.data_source import load_data
from cifarnet.data import find_cifar10
from cifarnet.inference import resolve_device, resolve_precision
from cifarnet.recipes import build_trainer, get_recipe
from measurement import build_parser, count, make_report, max_rss_mb, peak_memory_mb, publish, summarize, synchronize

WARM_UP_PARTS = 2  # a CUDA graph runs its shorter last window in the first part, and captures it in the second


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--steps", type=count, default=100, help="training steps per part (default: 100)")
    parser.add_argument("--rounds", type=count, default=10, help="parts per contender (default: 10)")
    parser.add_argument("--script", type=Path, help="script to compare with, such as examples/plain_pytorch.py")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2, 4], help="workers of the script (default: 0 2 4)"
    )
    parser.add_argument("--backend", choices=("eager", "cuda-graph"), help="train one part, and print it as JSON")
    args = parser.parse_args()
    if args.backend:
        print(json.dumps(train_part(args)))
        return
    device = resolve_device(args.device)
    train = load_data(args.data).train
    contenders = commands(args, device)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for round_ in range(args.rounds):
        for name in contenders if round_ % 2 == 0 else reversed(contenders):
            answers[name].append(run(contenders[name]))
    results = {"recipe": args.recipe, "batch_size": get_recipe(args.recipe).batch_size, "steps": args.steps}
    results |= {"script": args.script and args.script.name, **compare(answers)}
    report = make_report("training", resolve_precision(args.precision, device), results, data=train)
    publish(report, format_table(report), args.json)


def commands(args: argparse.Namespace, device: torch.device) -> dict[str, list[str]]:
    """Return the command of each contender by its name."""
    data = args.data or str(find_cifar10())
    shared = ["--data", data, "--steps", str(args.steps), "--device", str(device)]
    own = [sys.executable, __file__, "--recipe", args.recipe, "--precision", args.precision, *shared]
    backends = ("eager", "cuda-graph") if device.type == "cuda" else ("eager",)
    found = {backend: [*own, "--backend", backend] for backend in backends}
    if args.script is not None:
        batch_size = str(get_recipe(args.recipe).batch_size)
        script = [sys.executable, str(args.script), *shared, "--batch-size", batch_size]
        for workers in args.workers:
            name = f"script, {workers} worker{'' if workers == 1 else 's'}"
            found[name] = [*script, "--workers", str(workers)]
    return found


def run(command: list[str]) -> dict[str, Any]:
    """Run a contender, and return the JSON object of its last line."""
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        answer["images_per_s"] = float(answer["images_per_s"])
    except (ValueError, LookupError, TypeError):
        last = (done.stderr.strip() or "no error output").splitlines()[-1]
        sys.exit(f'{command[1]} must print a JSON object with "images_per_s". Exit code {done.returncode}: {last}')
    if "first_step_at" in answer:
        answer["start_s"] = answer["first_step_at"] - started
    return answer


def train_part(args: argparse.Namespace) -> dict[str, Any]:
    """Train the warm-up parts and one timed part in this process."""
    before, recipe = max_rss_mb(), get_recipe(args.recipe)
    train, num_images = load_data(args.data).train, args.steps * recipe.batch_size
    if len(train) < num_images:
        sys.exit(f"--steps {args.steps} needs {num_images:,} images, and there are {len(train):,}. Use fewer steps")
    trainer = build_trainer(recipe, train, device=args.device, precision=args.precision)
    trainer.cuda_graph = args.backend == "cuda-graph"
    first_step_at: list[float] = []

    def note(*_: object) -> None:
        if not first_step_at and not (trainer.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            synchronize(trainer.device)
            first_step_at.append(time.time())

    hook = trainer.optimizer.register_step_post_hook(note)
    part = train.subset(range(num_images))
    clock = [time.perf_counter()]
    for _ in trainer.epochs(part, max_epochs=WARM_UP_PARTS + 1, batch_size=recipe.batch_size):
        synchronize(trainer.device)
        clock.append(time.perf_counter())
        if len(clock) > WARM_UP_PARTS:
            hook.remove()
    seconds = clock[-1] - clock[-2]
    return {
        "images_per_s": num_images / seconds,
        "backend": "cuda-graph" if trainer.uses_cuda_graph else "eager",
        "precision": trainer.precision.name,
        "first_step_at": first_step_at[0],
        "preparation_s": max(0.0, clock[-2] - clock[0] - WARM_UP_PARTS * seconds),
        "peak_memory_mb": peak_memory_mb(trainer.device, before),
    }


def compare(answers: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Summarize the parts of each contender. The baseline is the fastest script, or else the first contender."""
    medians = {name: statistics.median(part["images_per_s"] for part in parts) for name, parts in answers.items()}
    baseline = max((name for name in medians if name.startswith("script")), key=medians.__getitem__, default=None)
    baseline = baseline or next(iter(medians))

    def reduce(parts: list[dict[str, Any]], key: str, function: Any = statistics.median) -> float | None:
        values = [part[key] for part in parts if part.get(key) is not None]
        return function(values) if values else None

    contenders = []
    for name, parts in answers.items():
        rates = [part["images_per_s"] for part in parts]
        contender: dict[str, Any] = {"name": name, "images_per_s": {**summarize(rates), "values": rates}}
        contender["ratio"] = medians[name] / medians[baseline]
        contender |= {key: parts[0].get(key) for key in ("backend", "precision")}
        contender |= {key: reduce(parts, key) for key in ("start_s", "preparation_s")}
        contenders.append({**contender, "peak_memory_mb": reduce(parts, "peak_memory_mb", max)})
    return {"baseline": baseline, "contenders": contenders}


def format_table(report: Mapping[str, Any]) -> str:
    """Return the report as a table in Markdown."""
    heads = ["", "precision", "images/s", "range", "n", f"ratio to {report['baseline']}"]
    lines = [f"{' | '.join(['|', *heads[1:], 'start', 'preparation', 'peak memory'])} |", "| --- " * 9 + "|"]
    for one in report["contenders"]:
        rate, memory = one["images_per_s"], one["peak_memory_mb"]
        is_own = one["backend"] in (None, one["name"])
        cells = [
            one["name"] if is_own else f"{one['name']}, which fell back to {one['backend']}",
            one["precision"] or "",
            f"{rate['median']:,.0f}",
            f"{rate['min']:,.0f} to {rate['max']:,.0f}",
            str(rate["n"]),
            f"{one['ratio']:.2f}",
            *("" if one[key] is None else f"{one[key]:.1f} s" for key in ("start_s", "preparation_s")),
            "" if memory is None else f"{memory:,.0f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    is_empty = ", the compiler with an empty cache" if report.get("compiler_cache") == "empty" else ""
    shares = [(one["data_path_share"], one["name"]) for one in report["contenders"] if one.get("data_path_share")]
    data_path = ", ".join(f"{share:.1%} of a part ({name})" for share, name in shares)
    lines += [
        "",
        f"Recipe {report['recipe']}, batches of {report['batch_size']} images, parts of {report['steps']} steps in "
        "turns, augmentation on the clock. Start: to the end of the first step, from the start of the process"
        f"{is_empty}. Memory: beyond what the imports hold.",
        *([f"The data path alone, from the index to normalised images: {data_path}."] if data_path else []),
        f"{report['hardware']}, torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
