"""Train the reference recipe without batch norm, dropout or augmentation, and compare the accuracy.

    python examples/ablation.py --data DIR --seeds 2

Each run trains on 45,000 images and is evaluated on 5,000 validation images. The test images are not used. After an
interruption, run the same command again. A run takes about six minutes on two CPU cores, and a seed has five runs.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cifarnet import History, load_cifar10
from cifarnet.recipes import get_recipe
from cifarnet.visualize import plot_runs
from train_variants import train_variants

#: Changes of each variant to the reference recipe.
VARIANTS: dict[str, dict[str, Any]] = {
    "all three": {},
    "no batch norm": {"model_arguments": {"batch_norm": False}},
    "no dropout": {"model_arguments": {"dropout": 0.0}},
    "no augmentation": {"crop_padding": 0, "flip": "none"},
    "none of the three": {
        "model_arguments": {"batch_norm": False, "dropout": 0.0},
        "crop_padding": 0,
        "flip": "none",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10, which is downloaded if missing")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N-1")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="all if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="a folder a variant, a run a seed")
    args = parser.parse_args()

    start = replace(get_recipe("reference"), max_epochs=args.epochs)
    variants = {name: VARIANTS[name] for name in args.variants}
    reports = train_variants(start, variants, load_cifar10(args.data), seeds=range(args.seeds), out=args.out)
    for name, runs in reports.items():
        print(name, *(f"{run['history'][-1]['val_accuracy']:.2%}" for run in runs))
    for seed in range(args.seeds):
        histories = {name: History.from_list(runs[seed]["history"]) for name, runs in reports.items()}
        draw(histories, f"seed {seed}").savefig(args.out / f"ablation-{seed}.png")


def draw(histories: dict[str, History], title: str) -> Figure:
    """Draw the accuracy of all variants per epoch: training above, validation below."""
    figure = Figure(figsize=(8, 6.6), dpi=100, layout="constrained")
    for panel, metric in zip(figure.subplots(2, 1), ("train_accuracy", "val_accuracy"), strict=True):
        plot_runs(histories, metric=metric, ax=panel)
    figure.suptitle(title, fontsize=10)
    return figure


if __name__ == "__main__":
    main()
