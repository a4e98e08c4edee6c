#!/usr/bin/env python3
"""Inference speed of a network with random weights: images per second per batch size, and latency of one image.

    inference.py --data DIR
    inference.py --data synthetic --recipe fast94 --device cpu --rounds 3

`Classifier.evaluate` runs on all test images. `predict_logits` runs on batches that are on the device. The latency is
that of `Classifier.predict` for one array in the memory of the host.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.benchmark import Timer

from cifarnet import Classifier
from cifarnet.cli.data_source import load_data
from cifarnet.inference import predict_logits, resolve_device
from cifarnet.inference.loader import EVAL_BATCH_SIZE
from cifarnet.models import build_model
from cifarnet.recipes import get_recipe
from measurement import build_parser, count, make_report, max_rss_mb, peak_memory_mb, publish, summarize

WARM_UP_CALLS = 10


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--rounds", type=count, default=10, help="measurements of each batch size (default: 10)")
    parser.add_argument("--calls", type=count, default=200, help="predictions of one image (default: 200)")
    parser.add_argument("--batch-sizes", type=count, nargs="+", default=[1, 16, 64, 256, 1024])
    args = parser.parse_args()
    recipe, device = get_recipe(args.recipe), resolve_device(args.device)
    test, before = load_data(args.data).test, max_rss_mb()
    torch.manual_seed(0)
    model = build_model(recipe.model, {**recipe.model_arguments, "num_classes": len(test.classes)})
    preprocess = recipe.transforms.preprocess
    classifier = Classifier(model, preprocess, test.classes, device=device, precision=args.precision)
    seconds = times("classifier.evaluate(test)", args.rounds, 1, classifier=classifier, test=test)
    rates = [len(test) / one for one in seconds]
    results = {
        "recipe": recipe.name,
        "model": recipe.model,
        "batch_size": EVAL_BATCH_SIZE,
        "images_per_s": {**summarize(rates), "values": rates},
        "by_batch_size": [measure_batch(classifier, test.images, size, args.rounds) for size in args.batch_sizes],
        "latency_s": measure_latency(classifier, test.images, args.calls),
        "peak_memory_mb": peak_memory_mb(device, before),
    }
    report = make_report("inference", classifier.precision, results, data=test)
    publish(report, format_table(report), args.json)


def times(statement: str, rounds: int, warm_up: int, **names: Any) -> list[float]:
    """Return the seconds of each of some calls. `Timer` synchronizes with the device."""
    timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
    timer.timeit(warm_up)
    return [timer.timeit(1).mean for _ in range(rounds)]


def measure_batch(classifier: Classifier, images: torch.Tensor, batch_size: int, rounds: int) -> dict[str, Any]:
    """Measure batches of one size on the device; a round has at least 500 images."""
    index = torch.arange(batch_size) % len(images)
    batch, calls = images[index].to(classifier.device), -(-500 // batch_size)

    def predict() -> None:
        for _ in range(calls):
            predict_logits(
                classifier.model, batch, preprocess=classifier.preprocess, precision=classifier.precision, tta=None
            )

    with torch.inference_mode():
        seconds = times("predict()", rounds, 1, predict=predict)
    return {"batch_size": batch_size, "images_per_s": summarize([calls * batch_size / one for one in seconds])}


def measure_latency(classifier: Classifier, images: torch.Tensor, calls: int) -> dict[str, Any]:
    """Measure the prediction of one array of shape (H, W, C)."""
    array = images[0].permute(1, 2, 0).contiguous().numpy()
    seconds = times("classifier.predict(array)", calls, WARM_UP_CALLS, classifier=classifier, array=array)
    twentieths = statistics.quantiles(seconds, n=20, method="inclusive") if calls > 1 else seconds
    return {**summarize(seconds), "p5": twentieths[0], "p95": twentieths[-1]}


def format_table(report: Mapping[str, Any]) -> str:
    """Return the report as a table in Markdown."""
    latency, memory = report["latency_s"], report["peak_memory_mb"]
    rows = [(f"evaluation in batches of {report['batch_size']}", report["images_per_s"])]
    rows += [(f"batches of {one['batch_size']}", one["images_per_s"]) for one in report.get("by_batch_size", ())]
    lines = ["| | median | range | n |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {name}, images/s | {rate['median']:,.0f} | {rate['min']:,.0f} to {rate['max']:,.0f} | {rate['n']} |"
        for name, rate in rows
    ]
    lines += [
        f"| prediction of one image | {latency['median'] * 1e3:.2f} ms | 90 % within {latency['p5'] * 1e3:.2f} to "
        f"{latency['p95'] * 1e3:.2f} ms | {latency['n']} |",
        *([] if memory is None else [f"| peak memory | {memory:,.0f} MB | | |"]),
        "",
        f"{report['model']}, {report['hardware']}, {report['precision']}, torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
