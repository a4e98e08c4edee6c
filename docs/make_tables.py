"""Write the tables of README and docs from the committed reports.

python docs/make_tables.py            # rewrites what stands between the markers
python docs/make_tables.py --check    # exits with 1 where a table differs from its reports
"""

import argparse
import json
import re
import sys
from pathlib import Path

from cifarnet.bench import format_report
from cifarnet.report import results_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/results/reference.md", "docs/explanation/resume.md")


def augmentation_table(path: Path) -> str:
    """Validation accuracy of every augmentation that was tried for the reference recipe."""
    report = json.loads(path.read_text())
    lines = ["| augmentation | training | validation |", "| --- | --- | --- |"]
    lines += [
        f"| {c['augmentation']} | {c['train_accuracy'][-1]:.2%} | {c['val_accuracy'][-1]:.2%} |"
        for c in report["candidates"]
    ]
    lines += [
        "",
        f"Accuracy after epoch {report['epochs']}, one seed ({report['seed']}), {report['train_images']:,} images to "
        f"learn from and {report['val_images']:,} to judge by. {report['data']}. {report['hardware']}, "
        f"{report['precision']}, torch {report['torch']}.",
    ]
    return "\n".join(lines)


def stress_table(path: Path) -> str:
    """What was tried to lose a run, and how often it was lost."""
    report = json.loads(path.read_text())
    lines = ["| tried | how often | went wrong |", "| --- | --- | --- |"]
    for name, counts in report["counts"].items():
        (unit, tried), *wrong = ((key, count) for key, count in counts.items() if key != "swept")
        lines.append(f"| {name} | {tried:,} {unit} | {', '.join(f'{count} {key}' for key, count in wrong)} |")
    lines += ["", f"`{report['command']}`, {report['system']}, Python {report['python']}, torch {report['torch']}."]
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Every generated table by the name in its markers."""
    results = ROOT / "docs" / "results" / "reference-cpu"
    return {
        "reference-cpu": results_table(results),
        "reference-augmentation": augmentation_table(results / "augmentation.json"),
        "saving": format_report(json.loads((ROOT / "docs" / "results" / "saving.json").read_text())),
        "stress": stress_table(ROOT / "docs" / "results" / "stress.json"),
    }


def filled(text: str) -> str:
    """A page with the tables of the reports between its markers."""
    for name, table in tables().items():
        pattern = rf"(<!-- table {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", text, flags=re.DOTALL)
    return text


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = [page for page in PAGES if filled((ROOT / page).read_text()) != (ROOT / page).read_text()]
    for page in stale:
        if not args.check:
            (ROOT / page).write_text(filled((ROOT / page).read_text()))
        print(f"{page}: {'differs from its reports' if args.check else 'written'}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
