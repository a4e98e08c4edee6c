"""Every command with its options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import cifarnet
from cifarnet._choices import EXPORT_FORMATS, RECIPE_NAMES, TTA_NAMES
from cifarnet._files import to_path
from cifarnet.cli import examples

__all__ = ["BENCHMARKS", "build_parser"]

#: What can be measured, and what each is, in a line.
BENCHMARKS = {
    "training": "how many images a second each backend trains, and a script of yours",
    "inference": "how many images a second a network judges, and how long one image takes",
    "accuracy": "how long whole runs take, and how accurate they are",
    "saving": "what it costs to save a run while it trains, and to read it",
    "start": "how long a new process takes to its first step and to its saved model, and what for",
}


def build_parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The program's parser, and that of each of its commands by name."""
    parser = argparse.ArgumentParser(
        prog="cifarnet",
        description="Train, judge and use CIFAR-10 classifiers.",
        epilog=examples.FIRST_STEPS,
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
        examples.RECIPES,
        "commands:show_recipes",
    )
    _add_command(
        subparsers, "info", "tell versions, hardware, and where CIFAR-10 is", examples.INFO, "commands:show_info"
    )
    return parser, subparsers.choices


def _add_demo(subparsers: Any) -> None:
    summary = "show the whole way, from training to prediction, in about a minute"
    demo = _add_command(subparsers, "demo", summary, examples.DEMO, "demo:run_demo")
    demo.set_defaults(interrupted="; cifarnet demo goes on where it was")
    _add_out(demo, "runs/demo")
    _add_device(demo)


def _add_train(subparsers: Any) -> None:
    train = _add_command(subparsers, "train", "train a recipe and report on it", examples.TRAIN, "commands:train")
    train.set_defaults(interrupted="; a run that was begun goes on with --resume")
    _add_recipe(train)
    _add_data(train)
    train.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    train.add_argument("--batch-size", type=int, metavar="N", help="instead of the recipe's")
    train.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="share of the training images to select by, the same ones for every seed",
    )
    _add_device(train)
    _add_precision(train)
    _add_cuda_graph(train)
    train.add_argument(
        "--deterministic", action="store_true", help="on CUDA: equal bits on every run, by slower kernels"
    )
    train.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    _add_out(train, "runs/RECIPE")
    train.add_argument(
        "--save-every", type=float, default=30.0, metavar="S", help="seconds between saves of last (default: 30)"
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in --out; start it if there is none")


def _add_evaluate(subparsers: Any) -> None:
    summary = "score a run's best weights on test images"
    evaluate = _add_command(subparsers, "evaluate", summary, examples.EVALUATE, "commands:evaluate")
    _add_run(evaluate)
    _add_data(evaluate)
    _add_tta(evaluate)
    _add_device(evaluate)


def _add_predict(subparsers: Any) -> None:
    predict = _add_command(subparsers, "predict", "tell what pictures show", examples.PREDICT, "commands:predict")
    _add_run(predict)
    predict.add_argument("images", type=to_path, nargs="+", metavar="IMAGE", help="a picture: PNG, JPEG, WebP, ...")
    predict.add_argument("--top", type=int, metavar="K", help="name at most K classes (default: 5; all with --json)")
    _add_tta(predict)
    _add_device(predict)


def _add_export(subparsers: Any) -> None:
    summary = "write a run's best weights as a file for use without cifarnet"
    parser = _add_command(subparsers, "export", summary, examples.EXPORT, "export:export")
    _add_run(parser)
    parser.add_argument("--format", default="onnx", metavar="F", help=f"{' or '.join(EXPORT_FORMATS)} (default: onnx)")
    parser.add_argument(
        "--out", type=to_path, metavar="FILE", help="default: model.onnx or model.pt2 beside the weights"
    )


def _add_report(subparsers: Any) -> None:
    summary = "write one page about a run: scores, figures, recipe, environment"
    parser = _add_command(subparsers, "report", summary, examples.REPORT, "report:report")
    _add_run(parser)
    _add_data(parser)
    parser.add_argument("--out", type=to_path, metavar="FILE", help="default: report.html beside the weights")
    _add_device(parser)


def _add_bench(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure this machine",
        description="Measure this machine.",
        epilog=examples.BENCH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benchmarks = parser.add_subparsers(required=True, metavar="WHAT")
    _add_bench_training(benchmarks)
    _add_bench_inference(benchmarks)
    _add_bench_accuracy(benchmarks)
    _add_bench_saving(benchmarks)
    _add_bench_start(benchmarks)


def _add_bench_training(benchmarks: Any) -> None:
    training = _add_benchmark(benchmarks, "training", examples.TRAINING, "bench:bench_training")
    _add_parts(training)
    training.add_argument(
        "--backends", nargs="+", metavar="B", help="which of them (default: eager, on CUDA also cuda-graph)"
    )
    _add_script(training)
    training.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2, 4], metavar="N", help="of the script (default: 0 2 4)"
    )


def _add_bench_inference(benchmarks: Any) -> None:
    inference = _add_benchmark(benchmarks, "inference", examples.INFERENCE, "bench:bench_inference")
    _add_rounds(inference, "evaluations of the test images")
    inference.add_argument(
        "--calls", type=int, default=200, metavar="N", help="predictions of one image (default: 200)"
    )


def _add_bench_accuracy(benchmarks: Any) -> None:
    accuracy = _add_benchmark(benchmarks, "accuracy", examples.ACCURACY, "bench:bench_accuracy")
    accuracy.add_argument("--runs", type=int, default=3, metavar="N", help="seeds 0 to N-1 (default: 3)")
    accuracy.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    accuracy.add_argument("--target", type=float, metavar="F", help="test that the mean reaches this share, as 0.94")
    accuracy.add_argument("--saves", action="store_true", help="train each seed again, saving after every epoch")
    accuracy.add_argument("--cold", action="store_true", help="one run in a process of its own, from start to end")
    _add_script(accuracy)
    _add_cuda_graph(accuracy)


def _add_bench_saving(benchmarks: Any) -> None:
    _add_parts(_add_benchmark(benchmarks, "saving", examples.SAVING, "bench:bench_saving"))


def _add_bench_start(benchmarks: Any) -> None:
    start = _add_benchmark(benchmarks, "start", examples.START, "bench:bench_start")
    start.add_argument("--runs", type=int, default=5, metavar="N", help="processes, one after the other (default: 5)")
    start.add_argument("--epochs", type=int, default=1, metavar="N", help="of each run (default: 1)")
    _add_cuda_graph(start)


def _add_benchmark(benchmarks: Any, name: str, epilog: str, function: str) -> argparse.ArgumentParser:
    """With the options that all of them have."""
    benchmark = _add_command(benchmarks, name, BENCHMARKS[name], epilog, function)
    _add_recipe(benchmark)
    _add_data(benchmark)
    _add_device(benchmark)
    _add_precision(benchmark)
    return benchmark


def _add_command(subparsers: Any, name: str, summary: str, epilog: str, function: str) -> argparse.ArgumentParser:
    """``function`` is ``"module:name"`` of this package, imported when it is called: the help needs no torch."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, all else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=function, interrupted="", parser=parser)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=to_path, metavar="RUN", help="a run's directory, or a best.safetensors")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="DIR",
        help='where CIFAR-10 is or shall be; a folder with train/CLASS/ and test/CLASS/; or "synthetic"',
    )


def _add_tta(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tta",
        metavar="T",
        help=f"test-time augmentation: {' or '.join(TTA_NAMES)} (default: none)",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, ... (default: auto)")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="reference", metavar="NAME", help=f"one of: {', '.join(RECIPE_NAMES)}")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision", default="auto", metavar="P", help="auto, bf16, float32 or float64 (default: auto)"
    )


def _add_cuda_graph(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-cuda-graph", action="store_true", help="run the steps one by one on CUDA")


def _add_parts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="training steps a part (default: 100)")
    _add_rounds(parser, "parts of each kind")


def _add_rounds(parser: argparse.ArgumentParser, of_what: str) -> None:
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help=f"{of_what} (default: 10)")


def _add_script(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--script", type=to_path, metavar="FILE", help="a script to compare with, such as examples/plain_pytorch.py"
    )


def _add_out(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--out", type=to_path, metavar="DIR", help=f"the run's directory (default: {default})")
