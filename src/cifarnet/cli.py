"""The command line: arguments in, text or one JSON document out, an exit code.

0 is success, 2 wrong use, 1 any other failure, told in one line; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torchvision

import cifarnet
from cifarnet.checkpoint import Checkpointer
from cifarnet.classifier import Classifier
from cifarnet.datasets import DatasetSplits, find_cifar10, load_cifar10, load_image_folder, make_synthetic
from cifarnet.engine import describe_device, resolve_device, resolve_precision
from cifarnet.errors import CifarnetError, DatasetNotFoundError, SettingError
from cifarnet.recipes import RECIPES, build_trainer, get_recipe
from cifarnet.report import build_report, save_report

__all__ = ["main"]

_TRAIN_EXAMPLES = """\
examples:
  cifarnet train                                    the reference run; CIFAR-10 is downloaded if need be
  cifarnet train --data DIR --val-fraction 0.1      hold 5,000 images out, keep the best epoch on them
  cifarnet train --data synthetic --epochs 3        a try without CIFAR-10
  cifarnet train --out runs/a --resume              go on where runs/a was stopped
"""

_EVALUATE_EXAMPLES = """\
examples:
  cifarnet evaluate runs/reference                  accuracy of the best weights on CIFAR-10's test images
  cifarnet evaluate runs/reference --data DIR --json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; ``None`` takes the process's own.

    Returns:
        The exit code: 0, 1 or 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _build_parser().parse_args(arguments)
    command = ["cifarnet", *arguments]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # one line on stderr, without the source
            document, text = args.run(args, shlex.join(command))
    except SettingError as error:
        return _fail(error, 2, debug=args.debug)
    except (CifarnetError, OSError) as error:
        return _fail(error, 1, debug=args.debug)
    except KeyboardInterrupt:
        print("cifarnet: interrupted; a run that was begun goes on with --resume", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells count
    print(json.dumps(document, indent=1) if args.json else text)
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cifarnet", description="Train, judge and use CIFAR-10 classifiers.")
    parser.add_argument("--version", action="version", version=f"cifarnet {cifarnet.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = _add_command(commands, "train", "train a recipe and report on it", _TRAIN_EXAMPLES)
    train.add_argument("--recipe", default="reference", metavar="NAME", help=f"one of: {', '.join(RECIPES)}")
    train.add_argument(
        "--data",
        metavar="DIR",
        help='where CIFAR-10 is or shall be; a folder with train/CLASS/ and test/CLASS/; or "synthetic"',
    )
    train.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    train.add_argument("--batch-size", type=int, metavar="N", help="instead of the recipe's")
    train.add_argument("--val-fraction", type=float, metavar="F", help="share of the training images to select by")
    train.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    train.add_argument(
        "--precision", default="auto", metavar="P", help="auto, bf16, float32 or float64 (default: auto)"
    )
    train.add_argument("--deterministic", action="store_true", help="on CUDA: equal bits on every run, and slower")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    train.add_argument("--out", type=Path, metavar="DIR", help="the run's directory (default: runs/RECIPE)")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out; start it if there is none")
    train.set_defaults(run=_train)

    evaluate = _add_command(commands, "evaluate", "score a run's best weights on test images", _EVALUATE_EXAMPLES)
    evaluate.add_argument("path", type=Path, metavar="RUN", help="a run's directory, or a best.safetensors")
    evaluate.add_argument("--data", metavar="DIR", help="as for train")
    evaluate.add_argument("--device", default="auto", metavar="D", help="as for train")
    evaluate.set_defaults(run=_evaluate)

    info = _add_command(commands, "info", "tell versions, hardware, and where CIFAR-10 is", "")
    info.set_defaults(run=_info)
    return parser


def _add_command(commands: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, all else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _train(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    recipe = get_recipe(args.recipe)
    changes = {"max_epochs": args.epochs, "batch_size": args.batch_size}
    recipe = replace(recipe, **{key: value for key, value in changes.items() if value is not None})
    resolve_precision(args.precision, resolve_device(args.device))  # before anything is read
    out = args.out or Path("runs") / recipe.name

    data = _load_data(args.data)
    train, val = data.train, None
    if args.val_fraction is not None:
        train, val = train.split(args.val_fraction, seed=args.seed)
    trainer = build_trainer(
        recipe,
        train,
        seed=args.seed,
        device=args.device,
        precision=args.precision,
        deterministic=args.deterministic,
    )
    trainer.fit(
        train,
        val,
        test=data.test if recipe.watch_test else None,
        max_epochs=recipe.max_epochs,
        batch_size=recipe.batch_size,
        checkpointer=Checkpointer(out),
        resume=args.resume,
    )
    evaluation = trainer.evaluate(data.test)
    report = build_report(
        trainer,
        recipe,
        train=train,
        val=val,
        test=data.test,
        evaluation=evaluation,
        command=command,
        version=cifarnet.__version__,
    )
    save_report(report, out / "report.json")
    trainer.history.save_csv(out / "history.csv")
    return report, (
        f"{recipe.name}, seed {args.seed}: test {evaluation}\n"
        f"weights of epoch {report['selected_by']['epoch']}, selected by {report['selected_by']['monitor']}\n"
        f"{out}: report.json, history.csv, best.safetensors, last.safetensors"
    )


def _evaluate(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    classifier = Classifier.load(args.path, device=args.device)
    test = _load_data(args.data).test
    evaluation = classifier.evaluate(test)
    document: dict[str, Any] = {
        "command": command,
        "path": str(args.path),
        "data": test.name,
        "selected_by": classifier.selected_by,
        "precision": classifier.precision.name,
        "accuracy": evaluation.accuracy,
        "interval": list(evaluation.interval),
        **asdict(evaluation),
    }
    return document, f"{test.name}: test {evaluation}"


def _info(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    device = resolve_device()
    found = find_cifar10()
    document: dict[str, Any] = {
        "cifarnet": cifarnet.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "device": device.type,
        "hardware": describe_device(device),
        "precision": resolve_precision("auto", device).name,
        "cifar10": None if found is None else str(found),
        "CIFARNET_DATA": os.environ.get("CIFARNET_DATA"),
        "recipes": {recipe.name: recipe.summary for recipe in RECIPES.values()},
    }
    lines = [f"{key:<14} {value}" for key, value in document.items() if not isinstance(value, dict)]
    lines += ["recipes", *(f"  {name:<12} {summary}" for name, summary in document["recipes"].items())]
    return document, "\n".join(lines)


def _load_data(source: str | None) -> DatasetSplits:
    """What ``--data`` names. A folder that holds something else is not taken for a place to download to."""
    if source == "synthetic":
        return make_synthetic()
    if source is not None and not Path(source).exists() and get_close_matches(source, ["synthetic"]):
        raise SettingError(f'--data {source}: there is no such folder; did you mean "synthetic"?')
    if source is not None and (Path(source) / "train").is_dir():
        return load_image_folder(source)
    found = find_cifar10(source)
    elsewhere = source is not None and (found is None or not found.resolve().is_relative_to(Path(source).resolve()))
    if source is not None and elsewhere and Path(source).is_dir() and any(Path(source).iterdir()):
        raise DatasetNotFoundError(
            f"--data {source}: the folder holds neither CIFAR-10 nor train/CLASS/ and test/CLASS/; name the folder "
            'that does, a new one to download CIFAR-10 to, or "synthetic"'
        )
    if found is not None:
        print(f"CIFAR-10 from {found}", file=sys.stderr)
    return load_cifar10(source)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _fail(error: Exception, code: int, *, debug: bool) -> int:
    if debug:
        raise error
    print(f"cifarnet: error: {error}", file=sys.stderr)
    return code
