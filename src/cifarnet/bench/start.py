"""How long a new process takes to its first step and to its saved model, and what for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from cifarnet._validation import check_count
from cifarnet.bench.timing import summarize, timed
from cifarnet.errors import CifarnetError
from cifarnet.inference import describe_machine, resolve_device, resolve_precision

__all__ = ["format_start", "measure_start"]

#: What a run is made of, in its order, and how tables call it. The first seven end with the first step.
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

#: ``cifarnet train``, its imports in their own order, with a line on stderr at the end of each stage.
_PROGRAM = """
import functools, sys

def mark(stage):
    print("mark", stage, file=sys.stderr, flush=True)

def marked(owner, name, stage):
    function = getattr(owner, name)
    @functools.wraps(function)
    def call(*args, **options):
        result = function(*args, **options)
        mark(stage)
        return result
    setattr(owner, name, call)

def after_step(*_):
    if told:
        return
    told.append(True)
    if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize()
    mark("first_step")

import cifarnet.cli
from cifarnet.cli.imports import uncollected
mark("command_line")
with uncollected():
    import torch
    mark("torch")
    import torchvision
    mark("torchvision")
    from cifarnet import Trainer
    from cifarnet.cli import commands
    mark("library")
from torch.optim.optimizer import register_optimizer_step_post_hook
told = []
register_optimizer_step_post_hook(after_step)
marked(commands, "load_data", "data")
marked(Trainer, "fit", "training")
marked(commands, "save_report", "report")
marked(commands, "save_figures", "figures")
sys.exit(cifarnet.cli.main(["train", *sys.argv[1:]]))
"""


def measure_start(
    options: Sequence[str], *, runs: int = 5, device: str = "auto", precision: str = "auto"
) -> dict[str, Any]:
    """Run ``cifarnet train`` in new processes, one after the other, each in a new directory.

    The compiler's cache and the system's cache of files are as they are: from the second run on they know all that is
    read.

    Args:
        options: Of ``cifarnet train``, all but ``--out``.
        runs: Processes.
        device: Of the options, for the record.
        precision: Of the options, for the record.

    Returns:
        Plain values, seconds as median and range. ``to_first_step_s``, ``to_model_s`` (to where the checkpoints
        are on the disk) and ``total_s`` count from the start of the process; ``outside_epochs_s`` is the last less the
        seconds of the epochs; ``stages`` are the parts of ``total_s``; ``help_s`` is all of ``cifarnet --help``.

    Raises:
        SettingError: If ``runs`` is not a count.
        CifarnetError: If a run fails.
    """
    check_count("runs", runs, "5 is the default")
    helps = [timed(_show_help) for _ in range(runs)]
    found = [_run(options) for _ in range(runs)]
    return {
        "kind": "start",
        "options": list(options),
        **{key: summarize([run[key] for run in found]) for key in found[0] if key != "stages"},
        "stages": {stage: summarize([run["stages"][stage] for run in found]) for stage in STAGES},
        "help_s": summarize(helps),
        **describe_machine(resolve_precision(precision, resolve_device(device))),
    }


def format_start(document: Mapping[str, Any]) -> str:
    """The measurement of `measure_start` as a table in Markdown.

    Args:
        document: What it gave.
    """
    rows = [
        *((name, document["stages"][stage]) for stage, name in STAGES.items()),
        ("**to the end of the first step**", document["to_first_step_s"]),
        ("**to the saved model**", document["to_model_s"]),
        ("**in all**", document["total_s"]),
        ("in all, without the epochs", document["outside_epochs_s"]),
        ("`cifarnet --help`", document["help_s"]),
    ]
    lines = ["| | median | range |", "| --- | --- | --- |"]
    lines += [f"| {name} | {x['median']:.2f} s | {x['min']:.2f} to {x['max']:.2f} s |" for name, x in rows]
    runs = document["total_s"]["n"]
    where = "a new process" if runs == 1 else f"{runs} new processes"
    lines += [
        "",
        f"`cifarnet train {' '.join(document['options'])}` in {where}; "
        f"the system had read the files before. {document['hardware']}, {document['precision']}, torch "
        f"{document['versions']['torch']}.",
    ]
    return "\n".join(lines)


def _show_help() -> None:
    subprocess.run([sys.executable, "-m", "cifarnet", "--help"], stdout=subprocess.DEVNULL, check=True)


def _run(options: Sequence[str]) -> dict[str, Any]:
    """Seconds of one process."""
    with TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        command = [sys.executable, "-c", _PROGRAM, *options, "--out", str(out)]
        times, last_line = {"start": perf_counter()}, ""
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
        with process:
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    last_line = line.strip()
                    if last_line.startswith("mark "):
                        times[last_line[5:]] = perf_counter()
                    elif last_line.startswith("Training on "):
                        times["build"] = perf_counter()
            except BaseException:
                process.kill()
                raise
        times["end"] = perf_counter()
        if process.returncode or list(times)[1:] != list(STAGES):
            raise CifarnetError(
                f"cifarnet train {' '.join(options)} ended with exit code {process.returncode}: {last_line}"
            )
        history = json.loads((out / "report.json").read_text())["history"]
    total_s = times["end"] - times["start"]
    return {
        "to_first_step_s": times["first_step"] - times["start"],
        "to_model_s": times["training"] - times["start"],
        "total_s": total_s,
        "outside_epochs_s": total_s - sum(epoch["train_s"] + epoch["eval_s"] for epoch in history),
        "stages": {stage: times[stage] - times[before] for before, stage in pairwise(times)},
    }
