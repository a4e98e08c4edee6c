"""Train CifarCNN in several sizes, and compare parameters, FLOPs and accuracy.

    python examples/size_and_accuracy.py --data DIR

Each run trains on 45,000 images and is evaluated on 5,000 validation images. The test images are not used. After an
interruption, run the same command again.
"""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

from cifarnet import load_cifar10
from cifarnet.recipes import get_recipe
from train_variants import train_variants

#: Channels of the two convolutions and hidden units: halved, doubled, and with few hidden units.
SIZES = ("8-16-128", "16-32-256", "32-64-64", "32-64-512", "64-128-1024")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10, which is downloaded if missing")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N-1")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="CHANNELS-CHANNELS-HIDDEN")
    parser.add_argument("--out", type=Path, default=Path("runs/size"), help="a folder a size, a run a seed")
    args = parser.parse_args()
    for size in args.sizes:
        if not re.fullmatch(r"[1-9]\d*-[1-9]\d*-[1-9]\d*", size):
            parser.error(f"{size} is no size; 32-64-512 is that of the reference")

    start = replace(get_recipe("reference"), max_epochs=args.epochs)
    variants = {size: settings_of(size) for size in args.sizes}
    reports = train_variants(start, variants, load_cifar10(args.data), seeds=range(args.seeds), out=args.out)
    for size, runs in reports.items():
        accuracies = ", ".join(f"{run['history'][-1]['val_accuracy']:.2%}" for run in runs)
        print(f"{size}: {runs[0]['num_parameters']:,} parameters, {runs[0]['flops_per_image']:,} FLOPs, {accuracies}")
    draw(reports).savefig(args.out / "size.png")


def settings_of(size: str) -> dict[str, Any]:
    """Return the changes of a size such as ``8-16-128`` to the reference recipe."""
    first, second, hidden = map(int, size.split("-"))
    return {"model_arguments": {"widths": (first, second), "hidden": hidden}}


def draw(reports: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw the last validation accuracy over parameters and over FLOPs, one dot per run."""
    figure = Figure(figsize=(8, 3.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, key, title in (
        (panels[0], "num_parameters", "parameters"),
        (panels[1], "flops_per_image", "FLOPs an image"),
    ):
        for size, runs in reports.items():
            shares = [run["history"][-1]["val_accuracy"] for run in runs]
            panel.plot([run[key] for run in runs], shares, "o", color="#0072B2")
            panel.annotate(size, (runs[0][key], max(shares)), xytext=(0, 6), textcoords="offset points", ha="center")
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel(title)
        panel.margins(x=0.2, y=0.2)
        panel.grid(axis="y", linewidth=0.5, alpha=0.4)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation accuracy")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


if __name__ == "__main__":
    main()
