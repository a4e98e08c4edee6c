"""``bench``: measure, and say it as a table or as one JSON document."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import cifarnet
from cifarnet import bench
from cifarnet._checks import check_count
from cifarnet.cli.data import load_data
from cifarnet.recipes import get_recipe

__all__ = ["BENCHMARKS", "run_bench"]

#: What can be measured.
BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {"saving": bench.measure_saving}


def run_bench(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    """Measure one thing."""
    for name in ("steps", "rounds"):
        check_count(f"--{name}", getattr(args, name), "leave it out for the default")
    recipe = get_recipe(args.recipe)
    train = load_data(args.data).train
    document = BENCHMARKS[args.what](
        recipe, train, num_steps=args.steps, rounds=args.rounds, device=args.device, precision=args.precision
    )
    document["versions"] = {"cifarnet": cifarnet.__version__, **document["versions"]}
    data = {"name": train.name, "num_images": len(train), "fingerprint": train.fingerprint}
    document = {"format": 1, "command": command, "data": data, **document}
    return document, bench.format_saving(document)
