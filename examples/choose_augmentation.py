"""How the reference recipe got its augmentation: each candidate trained on 45,000 images, judged on 5,000.

    python examples/choose_augmentation.py --data DIR --out docs/results/cpu/reference/augmentation.json

The test images are not looked at. The published project says that it augmented, not how; so the candidates
are the usual ones. About six minutes for each on two CPU cores.
"""

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cifarnet import load_cifar10
from cifarnet.engine import describe_device
from cifarnet.recipes import build_trainer, get_recipe

CANDIDATES: dict[str, dict[str, Any]] = {
    "flip": {"crop_padding": 0, "crop_mode": "reflect"},
    "flip, crop 1 (reflect)": {"crop_padding": 1, "crop_mode": "reflect"},
    "flip, crop 2 (reflect)": {"crop_padding": 2, "crop_mode": "reflect"},
    "flip, crop 2 (zero)": {"crop_padding": 2, "crop_mode": "zero"},
    "flip, crop 4 (zero)": {"crop_padding": 4, "crop_mode": "zero"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="where CIFAR-10 is; downloaded where it is not")
    parser.add_argument("--out", type=Path, required=True, help="the report, JSON")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    train, val = load_cifar10(args.data).train.split(0.1, seed=args.seed)
    report: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "data": train.name,
        "train_images": len(train),
        "val_images": len(val),
        "epochs": args.epochs,
        "seed": args.seed,
        "torch": str(torch.__version__),
        "candidates": [],
    }
    for name, changes in CANDIDATES.items():
        recipe = replace(get_recipe("reference"), **changes)
        trainer = build_trainer(recipe, train, seed=args.seed)
        print(f"{name}:")
        history = trainer.fit(train, val, max_epochs=args.epochs, batch_size=recipe.batch_size)
        report["hardware"] = describe_device(trainer.device)
        report["precision"] = trainer.precision.name
        report["candidates"].append(
            {
                "augmentation": name,
                "settings": changes,
                "val_accuracy_after_last_epoch": history[-1].val_accuracy,
                "val_accuracy": history.column("val_accuracy"),
                "train_accuracy": history.column("train_accuracy"),
            }
        )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    for candidate in sorted(report["candidates"], key=lambda c: -c["val_accuracy_after_last_epoch"]):
        print(f"{candidate['val_accuracy_after_last_epoch']:.2%}  {candidate['augmentation']}")


if __name__ == "__main__":
    main()
