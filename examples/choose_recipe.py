"""Compare candidate settings of a recipe: train on 45,000 images, evaluate on 5,000 validation images.

    python examples/choose_recipe.py augmentation --data DIR --out docs/results/cpu/reference/augmentation.json
    python examples/choose_recipe.py cifarcnn_tuned --data DIR --out docs/results/cpu/cifarcnn_tuned/candidates.json

The test images are not used. After an interruption, run the same command again; finished candidates are kept. A
candidate takes about six minutes on two CPU cores.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cifarnet import load_cifar10
from cifarnet.recipes import Recipe, get_recipe
from train_variants import train_variants

#: Start of the search for `cifarcnn_tuned`: settings of an earlier trial with twice its batch size.
START = Recipe(
    name="start",
    summary="Muon on filters and the big layer, AdamW on the rest",
    optimizer="muon",
    learning_rate=0.05,
    weight_decay=0.05,
    settings={"momentum": 0.95, "ns_steps": 3},
    head={"algorithm": "adamw", "lr": 4e-3, "betas": (0.9, 0.99), "weight_decay": 0.0},
    others={"algorithm": "adamw", "lr": 4e-3, "betas": (0.9, 0.99), "weight_decay": 0.0},
    schedule="linear",
    warmup=0.1,
    batch_size=256,
    crop_padding=4,
    label_smoothing=0.1,
)

#: Start of each search, and the changes of its candidates.
SEARCHES: dict[str, tuple[Recipe, dict[str, dict[str, Any]]]] = {
    # The published project does not describe its augmentation, so these are the usual candidates.
    "augmentation": (
        get_recipe("reference"),
        {
            "flip": {"crop_padding": 0, "crop_mode": "reflect"},
            "flip, crop 1 (reflect)": {"crop_padding": 1, "crop_mode": "reflect"},
            "flip, crop 2 (reflect)": {"crop_padding": 2, "crop_mode": "reflect"},
            "flip, crop 2 (zero)": {"crop_padding": 2, "crop_mode": "zero"},
            "flip, crop 4 (zero)": {"crop_padding": 4, "crop_mode": "zero"},
        },
    ),
    "cifarcnn_tuned": (
        START,
        {
            "start": {},
            "alternating flip, crop 2": {"flip": "alternating", "crop_padding": 2},
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", choices=SEARCHES, help="what is searched for")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10, which is downloaded if missing")
    parser.add_argument("--out", type=Path, required=True, help="the report, JSON")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these candidates alone; all if not given")
    parser.add_argument("--runs", type=Path, help="a folder a candidate; runs/SEARCH if not given")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    start, candidates = SEARCHES[args.search]
    report = json.loads(args.out.read_text()) if args.out.exists() else {"candidates": []}
    done = [candidate["name"] for candidate in report["candidates"]]
    missing = [name for name in candidates if name in (args.only or candidates) and name not in done]
    runs = train_variants(
        replace(start, max_epochs=args.epochs),
        {name: candidates[name] for name in missing},
        load_cifar10(args.data),
        seeds=[args.seed],
        out=args.runs or Path("runs") / args.search,
    )
    for name, (run,) in runs.items():
        history = run["history"]
        report["candidates"].append(
            {
                "name": name,
                "settings": candidates[name],
                "hardware": run["hardware"],
                "val_accuracy_after_last_epoch": history[-1]["val_accuracy"],
                "val_accuracy": [epoch["val_accuracy"] for epoch in history],
                "train_accuracy": [epoch["train_accuracy"] for epoch in history],
            }
        )
        report = {**conditions(run, start), **report}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for candidate in sorted(report["candidates"], key=lambda c: -c["val_accuracy_after_last_epoch"]):
        print(f"{candidate['val_accuracy_after_last_epoch']:.2%}  {candidate['name']}")


def conditions(run: dict[str, Any], start: Recipe) -> dict[str, Any]:
    """Describe what all candidates have in common."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "start": asdict(start),
        "data": run["data"]["name"],
        "train_images": run["data"]["train"]["num_images"],
        "val_images": run["data"]["val"]["num_images"],
        "epochs": run["recipe"]["max_epochs"],
        "seed": run["seed"],
        "torch": run["versions"]["torch"],
        "precision": run["precision"],
    }


if __name__ == "__main__":
    main()
