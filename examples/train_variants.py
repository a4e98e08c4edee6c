"""Train variants of a recipe on 45,000 images, and evaluate them on 5,000 validation images.

The test images are not used. Finished runs are kept, and an unfinished run resumes.
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cifarnet import Checkpointer, DatasetSplits, ImageDataset, __version__
from cifarnet.errors import DataError
from cifarnet.recipes import Recipe, build_trainer
from cifarnet.report import build_report, load_report, save_report

#: Validation share of the training images: 5,000 of CIFAR-10, the same ones in every run.
VAL_FRACTION, SPLIT_SEED = 0.1, 0


def train_variants(
    start: Recipe, variants: Mapping[str, Mapping[str, Any]], data: DatasetSplits, *, seeds: Sequence[int], out: Path
) -> dict[str, list[dict[str, Any]]]:
    """Train each variant with each seed in ``out/VARIANT/seed-N``, all variants with the first seed first.

    Args:
        start: Recipe that the variants change.
        variants: Changed fields by the name of the variant.
        data: Data set. Only its training images are used.
        seeds: Seeds of initial weights, order, augmentation and dropout.
        out: Directory of the runs. Reports are ``VARIANT/seed-N/report.json`` or ``VARIANT/seed-N.json``.

    Returns:
        The reports of each variant, by seed.
    """
    train, val = data.train.split(VAL_FRACTION, seed=SPLIT_SEED)
    summary = f"{start.name}, evaluated on validation images"
    common: dict[str, Any] = {"summary": summary, "watch_test": False}
    recipes = {name: replace(start, name=name, **common, **changes) for name, changes in variants.items()}
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for seed in seeds:
        for name, recipe in recipes.items():
            run = out / re.sub(r"\W+", "-", name).strip("-") / f"seed-{seed}"
            finished = next((path for path in (run.with_suffix(".json"), run / "report.json") if path.exists()), None)
            report = _train(recipe, train, val, seed, run) if finished is None else load_report(finished)
            same_data = report["data"]["train"]["fingerprint"] == train.fingerprint
            if not same_data or Recipe.from_dict(report["recipe"]) != recipe:
                raise DataError(f"{finished} is of other settings or data; choose another folder")
            reports[name].append(report)
    return reports


def _train(recipe: Recipe, train: ImageDataset, val: ImageDataset, seed: int, run: Path) -> dict[str, Any]:
    """Train one run, and return its report."""
    trainer = build_trainer(recipe, train, seed=seed)
    print(f"{recipe.name}, seed {seed}:", flush=True)
    trainer.fit(
        train,
        val,
        max_epochs=recipe.max_epochs,
        batch_size=recipe.batch_size,
        checkpointer=Checkpointer(run),
        resume=True,
    )
    command = shlex.join(["python", *sys.argv])
    report = build_report(trainer, recipe, train=train, val=val, command=command, version=__version__)
    save_report(report, run / "report.json")
    return report
