"""Train recipes with several seeds, and compare them in one table.

    python examples/compare_models.py --data DIR --recipes basic reference --seeds 3

After an interruption, run the same command again. Runs with a report are kept, and the unfinished run resumes.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cifarnet.recipes import RECIPES, get_recipe
from cifarnet.report import comparison_table, load_report, read_reports, summarize_seeds

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", help='where CIFAR-10 is, downloaded where it is not; or "synthetic"')
parser.add_argument("--recipes", nargs="+", default=["basic", "reference"], help=f"of {', '.join(RECIPES)}")
parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N-1")
parser.add_argument("--epochs", type=int, help="instead of each recipe's")
parser.add_argument("--out", type=Path, default=Path("runs/compare"))
args = parser.parse_args()

if args.seeds < 1:
    parser.error("--seeds must be at least 1")
recipes = [get_recipe(name) for name in args.recipes]  # fail on a typo now, not after an hour
if args.epochs is not None:
    recipes = [replace(recipe, max_epochs=args.epochs) for recipe in recipes]

summaries: list[dict[str, Any]] = []
by_hardware: dict[str, list[dict[str, Any]]] = {}
for recipe in recipes:
    folder = args.out / recipe.name
    for seed in range(args.seeds):
        run = folder / f"seed-{seed}"
        if not (run / "report.json").exists():
            options = ["--recipe", recipe.name, "--seed", str(seed), "--epochs", str(recipe.max_epochs)]
            options += ["--out", str(run), "--resume"] + (["--data", args.data] if args.data else [])
            subprocess.run([sys.executable, "-m", "cifarnet", "train", *options], check=True)  # noqa: S603
        report = load_report(run / "report.json")
        same_data = report["data"]["source"] == args.data
        if not same_data or report["recipe"] != json.loads(json.dumps(asdict(recipe))):
            sys.exit(f"{run} is of other settings or data; choose another --out")
    reports = [report for report in read_reports(folder) if report["seed"] < args.seeds]
    summaries.append(summarize_seeds(reports))
    by_hardware.setdefault(summaries[-1]["hardware"], []).append(summaries[-1])

table = comparison_table(by_hardware)
(args.out / "comparison.json").write_text(json.dumps(summaries, indent=1) + "\n")
(args.out / "comparison.md").write_text(table + "\n")
print(table)
