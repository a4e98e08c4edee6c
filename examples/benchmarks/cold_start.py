#!/usr/bin/env python3
"""Time of `cifarnet train` in new processes, stage by stage: imports, first step, saved model.

    cold_start.py --data DIR
    cold_start.py --data DIR --recipe fast94 --epochs 8 --runs 3

The files are in the cache of the system from the second process on.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

#: Stages of `cifarnet train` in their order. The first seven end with the first step.
STAGES = {
    "command_line": "Python and the command line",
    "torch": "import of torch",
    "torchvision": "import of torchvision",
    "library": "import of all else",
    "data": "reading the data",
    "build": "network, optimizer, checks, data to the device",
    "first_step": "first step",
    "training": "all other steps, evaluations, saves",
    "report": "last evaluation, report",
    "figures": "figures, import of matplotlib",
    "end": "end of the process",
}


def main() -> None:
    from cifarnet.cli.data_source import load_data
    from cifarnet.inference import resolve_device, resolve_precision
    from measurement import build_parser, count, make_report, publish, summarize

    parser = build_parser(__doc__)
    parser.add_argument("--runs", type=count, default=5, help="new processes, one after the other (default: 5)")
    parser.add_argument("--epochs", type=count, default=1, help="epochs of each run (default: 1)")
    args = parser.parse_args()
    train = load_data(args.data).train
    options = ["--recipe", args.recipe, "--epochs", str(args.epochs), "--device", args.device]
    options += ["--precision", args.precision, *(["--data", args.data] if args.data else [])]
    helps, runs = [], []
    for _ in range(args.runs):
        clock = perf_counter()
        subprocess.run([sys.executable, "-m", "cifarnet", "--help"], stdout=subprocess.DEVNULL, check=True)
        helps.append(perf_counter() - clock)
        runs.append(train_in_new_process(options))
    results = {"options": options, "help_s": summarize(helps)}
    results |= {key: summarize([run[key] for run in runs]) for key in runs[0] if key != "stages"}
    results["stages"] = {stage: summarize([run["stages"][stage] for run in runs]) for stage in STAGES}
    precision = resolve_precision(args.precision, resolve_device(args.device))
    report = make_report("start", precision, results, data=train)
    publish(report, format_table(report), args.json)


def train_in_new_process(options: list[str]) -> dict[str, Any]:
    """Return the seconds of one run of `cifarnet train` in a new directory."""
    with TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        marks, line = {"start": perf_counter()}, ""
        command = [sys.executable, __file__, "marked-train", *options, "--out", str(out)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr or ():
                words = line.split()
                if words[:1] == ["mark"]:
                    marks[words[1]] = perf_counter()
                elif words[:2] == ["Training", "on"]:
                    marks["build"] = perf_counter()
        marks["end"] = perf_counter()
        if process.returncode or list(marks)[1:] != list(STAGES):
            sys.exit(f"cifarnet train {' '.join(options)} failed with exit code {process.returncode}: {line.strip()}")
        history = json.loads((out / "report.json").read_text())["history"]
    total_s = marks["end"] - marks["start"]
    return {
        "to_first_step_s": marks["first_step"] - marks["start"],
        "to_model_s": marks["training"] - marks["start"],
        "total_s": total_s,
        "outside_epochs_s": total_s - sum(epoch["train_s"] + epoch["eval_s"] for epoch in history),
        "stages": {stage: marks[stage] - marks[before] for before, stage in pairwise(marks)},
    }


def marked_train(options: list[str]) -> int:
    """Run `cifarnet train`, and print a line to stderr at the end of each stage."""

    def mark(stage: str) -> None:
        print("mark", stage, file=sys.stderr, flush=True)

    def mark_end(owner: object, name: str, stage: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            mark(stage)
            return result

        setattr(owner, name, call)

    import cifarnet.cli

    mark("command_line")
    import torch

    mark("torch")
    import torchvision  # noqa: F401

    mark("torchvision")
    from cifarnet import Trainer
    from cifarnet.cli import commands

    mark("library")
    from torch.optim.optimizer import register_optimizer_step_post_hook

    is_first = True

    def after_step(*_: object) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            if is_used and not torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize()
            mark("first_step")

    register_optimizer_step_post_hook(after_step)
    mark_end(commands, "load_data", "data")
    mark_end(Trainer, "fit", "training")
    mark_end(commands, "save_report", "report")
    mark_end(commands, "save_figures", "figures")
    return cifarnet.cli.main(["train", *options])


def format_table(report: Mapping[str, Any]) -> str:
    """Return the report as a table in Markdown."""
    rows = [
        *((name, report["stages"][stage]) for stage, name in STAGES.items()),
        ("**to the end of the first step**", report["to_first_step_s"]),
        ("**to the saved model**", report["to_model_s"]),
        ("**in all**", report["total_s"]),
        ("in all, without the epochs", report["outside_epochs_s"]),
        ("`cifarnet --help`", report["help_s"]),
    ]
    lines = ["| | median | range |", "| --- | --- | --- |"]
    lines += [f"| {name} | {x['median']:.2f} s | {x['min']:.2f} to {x['max']:.2f} s |" for name, x in rows]
    runs = report["total_s"]["n"]
    where = "a new process" if runs == 1 else f"{runs} new processes"
    lines += [
        "",
        f"`cifarnet train {' '.join(report['options'])}` in {where}; the system had read the files before. "
        f"{report['hardware']}, {report['precision']}, torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["marked-train"]:
        sys.exit(marked_train(sys.argv[2:]))
    main()
