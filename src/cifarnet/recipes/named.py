"""The library's own recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from cifarnet._validation import did_you_mean
from cifarnet.errors import SettingError
from cifarnet.recipes.recipe import Recipe

__all__ = ["RECIPES", "get_recipe"]

#: Every recipe of the library, by name.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
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
                head={"algorithm": "adamw", "lr": 4e-3, "betas": (0.9, 0.99), "weight_decay": 0.0},
                others={"algorithm": "adamw", "lr": 4e-3, "betas": (0.9, 0.99), "weight_decay": 0.0},
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
                # 0.1 a 128 images, as usual for this network, times 4.
                learning_rate=0.4,
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
            # Jordan, 2024, airbench94_muon (arXiv:2404.00498; https://kellerjordan.github.io/posts/muon/). Its loss is
            # the sum over 2,000 images, ours the mean: learning rates of SGD are 2,000 times as large, its weight decay
            # of 2e-6 * 2,000 is divided by them. Its whitening bias learns for three epochs, ours to the end.
            Recipe(
                name="fast94",
                summary="the small network of the speed records: FastCNN, Muon, 8 epochs",
                model="FastCNN",
                optimizer="muon",
                learning_rate=0.24,
                settings={"momentum": 0.6, "ns_steps": 3, "adjust_lr_fn": "none", "normalize_weights": True},
                head={"algorithm": "sgd", "lr": 0.67 * 2000, "momentum": 0.85, "weight_decay": 0.004 / (0.67 * 2000)},
                others={
                    "algorithm": "sgd",
                    "lr": 0.053 * 2000,
                    "momentum": 0.85,
                    "weight_decay": 0.004 / (0.053 * 2000),
                },
                schedule="linear",
                batch_size=2000,
                max_epochs=8,
                crop_padding=2,
                flip="alternating",
                label_smoothing=0.2,
                tta="flip+shift",
            ),
            # The wide network, augmentation and length of airbench96 (arXiv:2404.00498, table 2), trained as fast94 is:
            # half the batch, so half the learning rates of SGD.
            Recipe(
                name="fast96",
                summary="its larger sister: FastCNN with nine wider convolutions, Muon, 40 epochs",
                model="FastCNN",
                model_arguments={"widths": (128, 384, 512), "convs_per_group": 3},
                optimizer="muon",
                learning_rate=0.24,
                settings={"momentum": 0.6, "ns_steps": 3, "adjust_lr_fn": "none", "normalize_weights": True},
                head={"algorithm": "sgd", "lr": 0.67 * 1000, "momentum": 0.85, "weight_decay": 0.002 / (0.67 * 1000)},
                others={
                    "algorithm": "sgd",
                    "lr": 0.053 * 1000,
                    "momentum": 0.85,
                    "weight_decay": 0.002 / (0.053 * 1000),
                },
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
    }
)


def get_recipe(name: str) -> Recipe:
    """Find a recipe.

    Args:
        name: A key of `RECIPES`.

    Returns:
        The recipe; `dataclasses.replace` gives a changed copy.

    Raises:
        SettingError: If there is none of that name.

    Example:
        >>> get_recipe("reference").max_epochs
        10
    """
    if name not in RECIPES:
        raise SettingError(f'unknown recipe "{name}"; {did_you_mean(name, RECIPES)}')
    return replace(RECIPES[name])  # its dictionaries are copies
