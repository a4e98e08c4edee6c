"""Recipes of the library, and their measured results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from cifarnet._validation import check_choice
from cifarnet.recipes.recipe import Recipe

__all__ = ["RECIPES", "get_recipe", "measured_results"]

_ADAMW = {"algorithm": "adamw", "lr": 4e-3, "betas": (0.9, 0.99), "weight_decay": 0.0}
_FAST_MUON = {"momentum": 0.6, "ns_steps": 3, "adjust_lr_fn": "none", "normalize_weights": True}


def _fast_sgd(learning_rate: float, batch_size: int, weight_decay: float) -> dict[str, Any]:
    """Convert learning rate and weight decay of a loss that is the sum over a batch to those of its mean."""
    rate = learning_rate * batch_size
    return {"algorithm": "sgd", "lr": rate, "momentum": 0.85, "weight_decay": weight_decay / rate}


_ALL = (
    Recipe(
        name="basic",
        summary="a plain CNN of 1M parameters, the smallest of the published comparison; Adam, 10 epochs",
        model="BasicCNN",
        learning_rate=1e-3,
        batch_size=64,
        max_epochs=10,
        crop_padding=2,
        crop_mode="zero",
        flip="random",
    ),
    Recipe(
        name="reference",
        summary="the published run: CifarCNN, Adam, 10 epochs, all 50,000 training images",
        model="CifarCNN",
        learning_rate=1e-3,
        weight_decay=1e-4,
        batch_size=64,
        max_epochs=10,
        # Chosen on validation images: docs/results/reference.md.
        crop_padding=2,
        crop_mode="zero",
        flip="random",
        watch_test=True,
    ),
    Recipe(
        name="cifarcnn_tuned",
        summary="the network and the epochs of the published run, all else ours: Muon, AdamW, smoothed labels",
        model="CifarCNN",
        # Chosen on validation images: docs/results/comparison.md.
        optimizer="muon",
        learning_rate=0.05,
        weight_decay=0.05,
        settings={"momentum": 0.95, "ns_steps": 3},
        head=_ADAMW,
        others=_ADAMW,
        schedule="linear",
        warmup=0.1,
        batch_size=256,
        max_epochs=10,
        crop_padding=2,
        flip="alternating",
        label_smoothing=0.1,
        tta="flip",
    ),
    Recipe(
        name="resnet18",
        summary="ResNet-18 for small images, the largest of the published comparison; SGD, 40 epochs",
        model="ResNet18",
        optimizer="sgd",
        learning_rate=0.4,  # the usual 0.1 per 128 images, times 4
        weight_decay=5e-4,
        settings={"momentum": 0.9, "nesterov": True},
        schedule="one_cycle",
        warmup=0.2,
        batch_size=512,
        max_epochs=40,
        crop_padding=4,
        flip="alternating",
        cutout=8,
        label_smoothing=0.1,
    ),
    # Jordan, 2024, airbench94_muon (arXiv:2404.00498; https://kellerjordan.github.io/posts/muon/). Its loss is the sum
    # over 2,000 images, ours is the mean. Its whitening bias is trained for three epochs, ours to the end.
    Recipe(
        name="fast94",
        summary="the small network of the speed records: FastCNN, Muon, 8 epochs",
        model="FastCNN",
        optimizer="muon",
        learning_rate=0.24,
        settings=_FAST_MUON,
        head=_fast_sgd(0.67, 2000, weight_decay=0.004),
        others=_fast_sgd(0.053, 2000, weight_decay=0.004),
        schedule="linear",
        batch_size=2000,
        max_epochs=8,
        crop_padding=2,
        flip="alternating",
        label_smoothing=0.2,
        tta="flip+shift",
    ),
    # The wide network, augmentation and epochs of airbench96 (arXiv:2404.00498, table 2), trained like fast94 with half
    # the batch size, so with half the learning rates of SGD.
    Recipe(
        name="fast96",
        summary="its larger sister: FastCNN with nine wider convolutions, Muon, 40 epochs",
        model="FastCNN",
        model_arguments={"widths": (128, 384, 512), "convs_per_group": 3},
        optimizer="muon",
        learning_rate=0.24,
        settings=_FAST_MUON,
        head=_fast_sgd(0.67, 1000, weight_decay=0.002),
        others=_fast_sgd(0.053, 1000, weight_decay=0.002),
        schedule="linear",
        batch_size=1000,
        max_epochs=40,
        crop_padding=4,
        flip="alternating",
        cutout=12,
        label_smoothing=0.2,
        tta="flip+shift",
    ),
)

#: Every recipe of the library, by name.
RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})


def get_recipe(name: str) -> Recipe:
    """Return a recipe of the library.

    Args:
        name: Key of `RECIPES`.

    Returns:
        A copy of the recipe. `dataclasses.replace` returns a changed copy.

    Raises:
        SettingError: If the name is unknown.

    Example:
        >>> get_recipe("reference").max_epochs
        10
    """
    check_choice("recipe", name, tuple(RECIPES))
    return replace(RECIPES[name])  # copies its dictionaries


def measured_results(name: str) -> list[dict[str, Any]]:
    """Return the results of a recipe that were published with this version.

    ``docs/make_tables.py`` computes them from the reports in ``docs/results`` of the repository, one report per run.

    Args:
        name: Key of `RECIPES`.

    Returns:
        An entry per machine, as `cifarnet.report.summarize_seeds` returns it; empty if no result was published.

    Example:
        >>> measured_results("reference")[0]["n"] > 1
        True
    """
    results: list[dict[str, Any]] = json.loads(files("cifarnet.recipes").joinpath("measured.json").read_text("utf-8"))
    return [result for result in results if result["recipe"] == name]
