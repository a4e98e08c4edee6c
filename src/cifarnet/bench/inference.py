"""How fast a trained network is used: many images at once, and one by one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from cifarnet._validation import check_count
from cifarnet.bench.memory import PeakMemory
from cifarnet.bench.timing import summarize, timed
from cifarnet.classifier import Classifier
from cifarnet.data import ImageDataset
from cifarnet.inference import describe_machine, resolve_device
from cifarnet.inference.data import open_evaluation_loader
from cifarnet.inference.evaluate import evaluate
from cifarnet.inference.loader import EVAL_BATCH_SIZE
from cifarnet.models import build_model
from cifarnet.randomness import isolated, seed_torch
from cifarnet.recipes import Recipe

__all__ = ["format_inference", "measure_inference"]

_WARM_UP_CALLS = 10


def measure_inference(
    recipe: Recipe,
    images: ImageDataset,
    *,
    rounds: int = 10,
    num_calls: int = 200,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Evaluate all images in batches, and predict one of them many times; the network is freshly initialised.

    ``images_per_s`` is of what `Classifier.evaluate` does, preprocessing, loss and counting included, with the images
    on the device already. ``latency_s`` is that of `Classifier.predict` for one array in the host's memory, to the
    answer in words: median and the 5th and 95th percentile.

    Args:
        recipe: Names the network and its preprocessing.
        images: What is evaluated.
        rounds: Evaluations of all images, after one that is not counted.
        num_calls: Predictions, after ten that are not counted; at least 2.
        device: See `Classifier`.
        precision: See `Classifier`.

    Returns:
        Plain values; times in seconds, memory in megabytes beyond what there was before, see `PeakMemory`.

    Raises:
        SettingError: If a value is outside its range.
    """
    check_count("rounds", rounds, "10 is the default")
    check_count("num_calls", num_calls, "200 is the default", least=2)
    memory = PeakMemory(resolve_device(device))
    with isolated(torch.device("cpu")):
        seed_torch(0, torch.device("cpu"))
        model = build_model(recipe.model, {**recipe.model_arguments, "num_classes": len(images.classes)})
    classifier = Classifier(model, recipe.transforms.preprocess, images.classes, device=device, precision=precision)
    batches = open_evaluation_loader(images, classifier.device)
    evaluation = partial(
        evaluate,
        classifier.model,
        batches,
        preprocess=classifier.preprocess,
        loss_fn=nn.functional.cross_entropy,
        precision=classifier.precision,
    )  # it reads counts and loss at its end, and so waits for the device
    evaluation()
    rates = [len(images) / timed(evaluation) for _ in range(rounds)]
    prediction = partial(classifier.predict, images.images[0].permute(1, 2, 0).contiguous().numpy())
    for _ in range(_WARM_UP_CALLS):
        prediction()
    latencies = [timed(prediction) for _ in range(num_calls)]
    twentieths = statistics.quantiles(latencies, n=20, method="inclusive")
    return {
        "kind": "inference",
        "recipe": recipe.name,
        "model": recipe.model,
        "batch_size": EVAL_BATCH_SIZE,
        "images_per_s": {**summarize(rates), "values": rates},
        "latency_s": {**summarize(latencies), "p5": twentieths[0], "p95": twentieths[-1]},
        "peak_memory_mb": memory.read(),
        **describe_machine(classifier.precision),
    }


def format_inference(document: Mapping[str, Any]) -> str:
    """The measurement of `measure_inference` as a table in Markdown.

    Args:
        document: What it gave.
    """
    rate, latency, memory = (document[key] for key in ("images_per_s", "latency_s", "peak_memory_mb"))
    lines = [
        "| | median | range | n |",
        "| --- | --- | --- | --- |",
        f"| evaluation in batches of {document['batch_size']}, images/s | {rate['median']:,.0f} | "
        f"{rate['min']:,.0f} to {rate['max']:,.0f} | {rate['n']} |",
        f"| prediction of one image | {latency['median'] * 1e3:.2f} ms | 90 % within {latency['p5'] * 1e3:.2f} to "
        f"{latency['p95'] * 1e3:.2f} ms | {latency['n']} |",
    ]
    if memory is not None:
        lines.append(f"| peak memory | {memory:,.0f} MB | | |")
    lines += [
        "",
        f"{document['model']}, {document['hardware']}, {document['precision']}, torch {document['versions']['torch']}.",
    ]
    return "\n".join(lines)
