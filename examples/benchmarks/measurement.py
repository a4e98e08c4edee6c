"""Options, statistics and reports that all benchmarks share."""

from __future__ import annotations

import argparse
import json
import math
import resource
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats

import cifarnet
from cifarnet import ImageDataset
from cifarnet.inference import Precision, wilson_interval
from cifarnet.inference.device import describe_machine


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Build a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="reference", help="a name that `cifarnet recipes` lists")
    parser.add_argument("--data", help='directory of CIFAR-10, an image folder, or "synthetic"')
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file")
    return parser


def count(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Return median, range and number of measurements, in their own unit."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def summarize_accuracies(accuracies: Sequence[float], num_images: int) -> dict[str, Any]:
    """Return the mean accuracy with a 95 % interval.

    The interval is Student's over the runs. One run, or runs without a spread, have the interval of Wilson over the
    test images.
    """
    mean, sd = statistics.fmean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else None
    interval, name = wilson_interval(round(mean * num_images), num_images), "images, Wilson"
    if sd:
        low, high = stats.t.interval(0.95, len(accuracies) - 1, loc=mean, scale=sd / math.sqrt(len(accuracies)))
        interval, name = (float(low), float(high)), "runs, Student"
    return {"mean": mean, "sd": sd, "interval": list(interval), "interval_of": name, "n": len(accuracies)}


def p_value(accuracies: Sequence[float], target: float) -> float | None:
    """Return the p-value of the one-sided t test for a mean above the target; ``None`` without a spread."""
    if len(set(accuracies)) < 2:
        return None
    return float(stats.ttest_1samp(accuracies, target, alternative="greater").pvalue)


def max_rss_mb() -> float:
    """Return the largest resident memory that this process has had, in megabytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def peak_memory_mb(device: torch.device, before: float) -> float:
    """Return the peak memory in megabytes: allocated on the GPU, or resident beyond ``before`` on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else max_rss_mb() - before


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_report(kind: str, precision: Precision, results: dict[str, Any], **data: ImageDataset) -> dict[str, Any]:
    """Put command, data, results and machine together."""
    machine = describe_machine(precision)
    return {
        "format": 1,
        "command": shlex.join(["python", f"examples/benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        **{
            key: {"name": images.name, "num_images": len(images), "fingerprint": images.fingerprint}
            for key, images in data.items()
        },
        "kind": kind,
        **results,
        **machine,
        "versions": {"cifarnet": cifarnet.__version__, **machine["versions"]},
    }


def publish(report: dict[str, Any], table: str, path: Path | None) -> None:
    """Print the table, and write the report if there is a path."""
    print(table)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
