"""Every command with its options and examples."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cifarnet
from cifarnet._choices import BACKENDS, EXPORT_FORMATS, RECIPE_NAMES, VIEWS

__all__ = ["BENCHMARKS", "build_parser"]

#: What can be measured, and what each is, in a line.
BENCHMARKS = {
    "training": "how many images a second each backend trains, and a script of yours",
    "inference": "how many images a second a network judges, and how long one image takes",
    "accuracy": "how long whole runs take, and how accurate they are",
    "saving": "what it costs to save a run while it trains, and to read it",
    "start": "how long a new process takes to its first step and to its saved model, and what for",
}

_FIRST_STEPS = """\
first steps:
  cifarnet demo                                     the whole way in about a minute, without a download
  cifarnet train                                    the reference run on CIFAR-10
  cifarnet predict runs/reference cat.jpg           what a picture shows

cifarnet COMMAND --help shows more of each.
"""

_DEMO_EXAMPLES = """\
examples:
  cifarnet demo                                     leaves a run in runs/demo to look at
  cifarnet demo --out runs/mine --device cpu
"""

_TRAIN_EXAMPLES = """\
examples:
  cifarnet train                                    the reference run; CIFAR-10 is downloaded if need be
  cifarnet train --data DIR --val-fraction 0.1      hold 5,000 images out, keep the best epoch on them
  cifarnet train --data photos --out runs/photos    your own: photos/train/CLASS/*.jpg, photos/test/CLASS/*.jpg
  cifarnet train --data synthetic --epochs 3        a try without CIFAR-10
  cifarnet train --epochs 20 --out runs/a --resume  go on where these very options were stopped, or begin
  torchrun --nproc-per-node 2 -m cifarnet train     the same run in two processes, on two GPUs where there are

A run leaves report.json, history.csv, best.safetensors (to use), last.safetensors (to go on from) and figures.
"""

_EVALUATE_EXAMPLES = """\
examples:
  cifarnet evaluate runs/reference                  accuracy of the best weights on the run's own test images
  cifarnet evaluate runs/reference --data DIR --json
  cifarnet evaluate runs/reference --tta mirror     the mean of each image and its mirror image
"""

_PREDICT_EXAMPLES = """\
examples:
  cifarnet predict runs/reference cat.jpg           the square in the centre of any picture that Pillow reads
  cifarnet predict runs/reference *.png --top 3
  cifarnet predict runs/reference cat.jpg --json    every probability with all its digits
"""

_EXPORT_EXAMPLES = """\
examples:
  cifarnet export runs/reference                    model.onnx in the run's directory, for any ONNX runtime
  cifarnet export runs/reference --format torch     model.pt2, for torch.export.load
  cifarnet export runs/reference --out cats.onnx --json

The file takes uint8 images and gives probabilities; it is compared with the library before it is written.
"""

_REPORT_EXAMPLES = """\
examples:
  cifarnet report runs/reference                    report.html in the run's directory, to open in any browser
  cifarnet report runs/reference --out cats.html    to send to somebody: it needs no other file and no network
  cifarnet report runs/first --data DIR --json      of a run whose own test images are elsewhere now

The network is scored on the test images again; runs without a report.json have a page too, which says what it lacks.
"""

_BENCH_EXAMPLES = """\
examples:
  cifarnet bench training --script examples/plain_pytorch.py
                                                    every backend and the script, in turns
  cifarnet bench inference --device cpu             evaluation, and the prediction of one image
  cifarnet bench accuracy --runs 40 --target 0.94   time to accuracy of a recipe
  cifarnet bench saving --data DIR --json           what it costs to save a run while it trains
  cifarnet bench start --data DIR                   from a new process to the first step and to the saved model

cifarnet bench WHAT --help shows the options of each. Give it the machine alone: whatever else runs is measured too.
"""

_TRAINING_EXAMPLES = """\
examples:
  cifarnet bench training                           eager, compiled and, on a GPU, CUDA graphs
  cifarnet bench training --script examples/plain_pytorch.py --json
  cifarnet bench training --backends eager --steps 20 --rounds 3
"""

_INFERENCE_EXAMPLES = """\
examples:
  cifarnet bench inference                          the network of the reference recipe
  cifarnet bench inference --device cpu --precision float32 --json
"""

_ACCURACY_EXAMPLES = """\
examples:
  cifarnet bench accuracy                           three runs of the reference recipe
  cifarnet bench accuracy --runs 40 --target 0.94   does the mean reach 94 %? a one-sided t-test
  cifarnet bench accuracy --runs 1 --saves --cold   with saves, and from a new process to a saved model
  cifarnet bench accuracy --script examples/plain_pytorch.py
                                                    does the script learn as much with the same seeds?
"""

_SAVING_EXAMPLES = """\
examples:
  cifarnet bench saving
  cifarnet bench saving --data DIR --json
"""

_START_EXAMPLES = """\
examples:
  cifarnet bench start --data DIR                   five times from nothing to a model
  cifarnet bench start --recipe fast94 --epochs 8 --runs 3 --json
"""

_RECIPES_EXAMPLES = """\
examples:
  cifarnet recipes
  cifarnet recipes --json                           every value of every recipe
"""

_INFO_EXAMPLES = """\
examples:
  cifarnet info                                     is there a GPU, and where is CIFAR-10?
  cifarnet info --json                              to attach to a bug report
"""


def build_parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The program's parser, and that of each of its commands by name."""
    parser = argparse.ArgumentParser(
        prog="cifarnet",
        description="Train, judge and use CIFAR-10 classifiers.",
        epilog=_FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cifarnet {cifarnet.__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(subparsers)
    _add_train(subparsers)
    _add_evaluate(subparsers)
    _add_predict(subparsers)
    _add_export(subparsers)
    _add_report(subparsers)
    _add_bench(subparsers)
    _add_command(
        subparsers,
        "recipes",
        "list what can be trained, and what came of it",
        _RECIPES_EXAMPLES,
        "commands:show_recipes",
    )
    _add_command(
        subparsers, "info", "tell versions, hardware, and where CIFAR-10 is", _INFO_EXAMPLES, "commands:show_info"
    )
    return parser, subparsers.choices


def _add_demo(subparsers: Any) -> None:
    summary = "show the whole way, from training to prediction, in about a minute"
    demo = _add_command(subparsers, "demo", summary, _DEMO_EXAMPLES, "demo:run_demo")
    demo.set_defaults(interrupted="; cifarnet demo goes on where it was")
    _add_out(demo, "runs/demo")
    _add_device(demo)


def _add_train(subparsers: Any) -> None:
    train = _add_command(subparsers, "train", "train a recipe and report on it", _TRAIN_EXAMPLES, "commands:train")
    train.set_defaults(interrupted="; a run that was begun goes on with --resume")
    _add_recipe(train)
    _add_data(train)
    train.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    train.add_argument("--batch-size", type=int, metavar="N", help="instead of the recipe's")
    train.add_argument("--val-fraction", type=float, metavar="F", help="share of the training images to select by")
    _add_device(train)
    _add_precision(train)
    _add_backend(train)
    train.add_argument(
        "--local-batch-norm", action="store_true", help="under torchrun: of each process's images, and faster"
    )
    train.add_argument("--deterministic", action="store_true", help="on CUDA: equal bits on every run, and slower")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    _add_out(train, "runs/RECIPE")
    train.add_argument(
        "--save-every", type=float, default=30.0, metavar="S", help="seconds between saves of last (default: 30)"
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in --out; start it if there is none")


def _add_evaluate(subparsers: Any) -> None:
    summary = "score a run's best weights on test images"
    evaluate = _add_command(subparsers, "evaluate", summary, _EVALUATE_EXAMPLES, "commands:evaluate")
    _add_run(evaluate)
    _add_data(evaluate)
    _add_views(evaluate)
    _add_device(evaluate)


def _add_predict(subparsers: Any) -> None:
    predict = _add_command(subparsers, "predict", "tell what pictures show", _PREDICT_EXAMPLES, "commands:predict")
    _add_run(predict)
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="a picture: PNG, JPEG, WebP, ...")
    predict.add_argument("--top", type=int, metavar="K", help="name at most K classes (default: 5; all with --json)")
    _add_views(predict)
    _add_device(predict)


def _add_export(subparsers: Any) -> None:
    summary = "write a run's best weights as a file for use without cifarnet"
    parser = _add_command(subparsers, "export", summary, _EXPORT_EXAMPLES, "export:export")
    _add_run(parser)
    parser.add_argument("--format", default="onnx", metavar="F", help=f"{' or '.join(EXPORT_FORMATS)} (default: onnx)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: model.onnx or model.pt2 beside the weights")


def _add_report(subparsers: Any) -> None:
    summary = "write one page about a run: scores, figures, recipe, environment"
    parser = _add_command(subparsers, "report", summary, _REPORT_EXAMPLES, "report:report")
    _add_run(parser)
    _add_data(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html beside the weights")
    _add_device(parser)


def _add_bench(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure this machine",
        description="Measure this machine.",
        epilog=_BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benchmarks = parser.add_subparsers(required=True, metavar="WHAT")
    _add_bench_training(benchmarks)
    _add_bench_inference(benchmarks)
    _add_bench_accuracy(benchmarks)
    _add_bench_saving(benchmarks)
    _add_bench_start(benchmarks)


def _add_bench_training(benchmarks: Any) -> None:
    training = _add_benchmark(benchmarks, "training", _TRAINING_EXAMPLES, "bench:bench_training")
    _add_parts(training)
    training.add_argument(
        "--backends", nargs="+", metavar="B", help="which of them (default: eager, compiled, on CUDA also cuda-graph)"
    )
    _add_script(training)
    training.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2, 4], metavar="N", help="of the script (default: 0 2 4)"
    )


def _add_bench_inference(benchmarks: Any) -> None:
    inference = _add_benchmark(benchmarks, "inference", _INFERENCE_EXAMPLES, "bench:bench_inference")
    _add_rounds(inference, "evaluations of the test images")
    inference.add_argument(
        "--calls", type=int, default=200, metavar="N", help="predictions of one image (default: 200)"
    )


def _add_bench_accuracy(benchmarks: Any) -> None:
    accuracy = _add_benchmark(benchmarks, "accuracy", _ACCURACY_EXAMPLES, "bench:bench_accuracy")
    accuracy.add_argument("--runs", type=int, default=3, metavar="N", help="seeds 0 to N-1 (default: 3)")
    accuracy.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    accuracy.add_argument("--target", type=float, metavar="F", help="test that the mean reaches this share, as 0.94")
    accuracy.add_argument("--saves", action="store_true", help="train each seed again, saving after every epoch")
    accuracy.add_argument("--cold", action="store_true", help="one run in a process of its own, from start to end")
    _add_script(accuracy)
    _add_backend(accuracy)


def _add_bench_saving(benchmarks: Any) -> None:
    _add_parts(_add_benchmark(benchmarks, "saving", _SAVING_EXAMPLES, "bench:bench_saving"))


def _add_bench_start(benchmarks: Any) -> None:
    start = _add_benchmark(benchmarks, "start", _START_EXAMPLES, "bench:bench_start")
    start.add_argument("--runs", type=int, default=5, metavar="N", help="processes, one after the other (default: 5)")
    start.add_argument("--epochs", type=int, default=1, metavar="N", help="of each run (default: 1)")
    _add_backend(start)


def _add_benchmark(benchmarks: Any, name: str, examples: str, function: str) -> argparse.ArgumentParser:
    """With the options that all of them have."""
    benchmark = _add_command(benchmarks, name, BENCHMARKS[name], examples, function)
    _add_recipe(benchmark)
    _add_data(benchmark)
    _add_device(benchmark)
    _add_precision(benchmark)
    return benchmark


def _add_command(subparsers: Any, name: str, summary: str, examples: str, function: str) -> argparse.ArgumentParser:
    """``function`` is ``"module:name"`` of this package, imported when it is called: the help needs no torch."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, all else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=function, interrupted="", parser=parser)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="RUN", help="a run's directory, or a best.safetensors")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="DIR",
        help='where CIFAR-10 is or shall be; a folder with train/CLASS/ and test/CLASS/; or "synthetic"',
    )


def _add_views(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tta",
        metavar="V",
        help=f"test-time augmentation, the mean over views of an image: {' or '.join(VIEWS)} (default: none)",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, ... (default: auto)")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="reference", metavar="NAME", help=f"one of: {', '.join(RECIPE_NAMES)}")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision", default="auto", metavar="P", help="auto, bf16, float32 or float64 (default: auto)"
    )


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", default="auto", metavar="B", help=f"what computes the steps: {', '.join(BACKENDS)} (default: auto)"
    )


def _add_parts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="training steps a part (default: 100)")
    _add_rounds(parser, "parts of each kind")


def _add_rounds(parser: argparse.ArgumentParser, of_what: str) -> None:
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help=f"{of_what} (default: 10)")


def _add_script(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--script", type=Path, metavar="FILE", help="a script to compare with, such as examples/plain_pytorch.py"
    )


def _add_out(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"the run's directory (default: {default})")
