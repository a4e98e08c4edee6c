"""``bench``: measure, and say it as a table or as one JSON document."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import cifarnet
from cifarnet import bench
from cifarnet._choices import BACKENDS
from cifarnet._validation import check_choice, check_count
from cifarnet.cli.data import load_data
from cifarnet.data import find_cifar10
from cifarnet.errors import SettingError
from cifarnet.inference import resolve_device, resolve_precision
from cifarnet.inference.data import describe_data
from cifarnet.recipes import Recipe, get_recipe

__all__ = ["bench_accuracy", "bench_inference", "bench_saving", "bench_start", "bench_training"]

Result = tuple[dict[str, Any], str]


def bench_training(args: argparse.Namespace, command: str) -> Result:
    """Backends and script in turns."""
    recipe = _checked(args, "steps", "rounds")
    for backend in args.backends or ():
        check_choice("backend", backend, BACKENDS)
    for count in args.workers:
        check_count("--workers", count, "0, 2 and 4 are the default", least=0)
    train = load_data(args.data).train
    document = bench.measure_training(
        recipe,
        partial(load_data, args.data, tell=False),
        num_steps=args.steps,
        rounds=args.rounds,
        backends=args.backends,
        script=_script(args),
        workers=args.workers,
        device=args.device,
        precision=args.precision,
    )
    return _told(document, command, data=describe_data(train))


def bench_inference(args: argparse.Namespace, command: str) -> Result:
    """Evaluation and prediction."""
    recipe = _checked(args, "rounds")
    check_count("--calls", args.calls, "200 is the default", least=2)
    test = load_data(args.data).test
    document = bench.measure_inference(
        recipe, test, rounds=args.rounds, num_calls=args.calls, device=args.device, precision=args.precision
    )
    return _told(document, command, data=describe_data(test))


def bench_accuracy(args: argparse.Namespace, command: str) -> Result:
    """Whole runs."""
    recipe = _checked(args, "runs")
    if args.epochs is not None:
        recipe = replace(recipe, max_epochs=args.epochs)
    if args.target is not None and not 0 < args.target < 1:
        raise SettingError(f"--target must be in (0, 1), got {args.target}; 0.94 is 94 %")
    data = load_data(args.data)
    document = bench.measure_accuracy(
        recipe,
        data,
        runs=args.runs,
        target=args.target,
        saves=args.saves,
        script=_script(args),
        cold=_train_options(args) if args.cold else None,
        device=args.device,
        precision=args.precision,
        cuda_graph=not args.no_cuda_graph,
    )
    return _told(document, command, data=describe_data(data.train), test_data=describe_data(data.test))


def bench_saving(args: argparse.Namespace, command: str) -> Result:
    """Checkpoints."""
    recipe = _checked(args, "steps", "rounds")
    train = load_data(args.data).train
    document = bench.measure_saving(
        recipe, train, num_steps=args.steps, rounds=args.rounds, device=args.device, precision=args.precision
    )
    return _told(document, command, data=describe_data(train))


def bench_start(args: argparse.Namespace, command: str) -> Result:
    """New processes."""
    _checked(args, "runs", "epochs")
    train = load_data(args.data).train
    document = bench.measure_start(
        _train_options(args),
        runs=args.runs,
        device=args.device,
        precision=args.precision,
    )
    return _told(document, command, data=describe_data(train))


def _checked(args: argparse.Namespace, *counts: str) -> Recipe:
    """The recipe, once all that can be checked before anything is read was checked."""
    for name in counts:
        check_count(f"--{name}", getattr(args, name), "leave it out for the default")
    script = getattr(args, "script", None)
    if script is not None and not script.is_file():
        raise SettingError(f"--script {script}: there is no such file; examples/plain_pytorch.py is one")
    resolve_precision(args.precision, resolve_device(args.device))
    return get_recipe(args.recipe)


def _script(args: argparse.Namespace) -> tuple[str, ...]:
    """The script, told where the data are."""
    if args.script is None:
        return ()
    return str(args.script), "--data", args.data or str(find_cifar10())


def _train_options(args: argparse.Namespace) -> list[str]:
    """Options of ``cifarnet train`` for the same run."""
    names = ("recipe", "data", "epochs", "device", "precision")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    return [*words, *(["--no-cuda-graph"] if args.no_cuda_graph else [])]


def _told(document: dict[str, Any], command: str, **data: Any) -> Result:
    document["versions"] = {"cifarnet": cifarnet.__version__, **document["versions"]}
    document = {"format": 1, "command": command, **data, **document}
    return document, bench.format_report(document)
