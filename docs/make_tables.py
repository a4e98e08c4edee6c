"""Write the tables of README and docs from the committed reports.

python docs/make_tables.py            # rewrite the tables between the markers
python docs/make_tables.py --check    # exit with 1 if a table differs from its reports
"""

import argparse
import ast
import importlib
import json
import re
import statistics
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import cifarnet
from cifarnet import recipes
from cifarnet.inference import wilson_interval
from cifarnet.models import build_model, count_flops
from cifarnet.recipes import RECIPES, get_recipe
from cifarnet.report import comparison_table, read_reports, summarize_seeds
from cifarnet.report.tables import format_result

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "examples" / "benchmarks"
RESULTS = ROOT / "docs" / "results"
#: Results for ``cifarnet recipes``, in the package that is imported.
MEASURED = Path(recipes.__file__).with_name("measured.json")
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/results/comparison.md",
    "docs/results/reference.md",
    "docs/tutorials/reproduction.md",
    "docs/gallery/train_cifar10.md",
    "docs/explanation/architecture.md",
    "docs/explanation/numbers.md",
    "docs/explanation/resume.md",
    "docs/explanation/speed.md",
    "docs/understanding/ablation.md",
    "docs/understanding/features.md",
    "docs/understanding/size.md",
)

#: Columns of the comparison by the folder of their reports.
MACHINES = {"cpu": "CPU", "h200": "NVIDIA H200"}

#: The rows of examples/ablation.py.
ABLATION = ("all three", "no batch norm", "no dropout", "no augmentation", "none of the three")


def reference_table(folder: Path) -> str:
    """Format the reference recipe beside its published result."""
    own = summarize_seeds(read_reports(folder))

    def spread(key: str, scale: float, digits: int) -> str:
        return f"{scale * own[key]['mean']:.{digits}f} ± {scale * own[key]['sd']:.{digits}f}"

    rows = [
        ("test accuracy", "77.63 %", f"{spread('test_accuracy', 100, 2)} %"),
        ("training accuracy", "77.14 %", f"{spread('train_accuracy', 100, 2)} %"),
        ("training time", "~20 min", f"{spread('total_s', 1 / 60, 1)} min"),
        ("peak memory", "", f"{own['peak_memory_mb'] / 1e3:.2f} GB"),
        ("parameters", "~6.4M", f"{own['num_parameters']:,}"),
        ("size of the weights", "~25 MB", f"{own['num_parameters'] * 4 / 1e6:.1f} MB"),
    ]
    lines = ["| | published | cifarnet |", "| --- | --- | --- |"]
    lines += [f"| {name} | {published} | {value} |" for name, published, value in rows]
    lines += [
        "",
        f"Mean ± standard deviation over {own['n']} runs (seeds {', '.join(map(str, own['seeds']))}), {own['epochs']} "
        f"epochs, after the last one; time with an evaluation of the test images after each epoch, memory of the whole "
        f"process, torch included. {own['data']}. {own['hardware']}, {own['precision']}, torch {own['torch']}.",
    ]
    return "\n".join(lines)


def headline(folder: Path) -> str:
    """Format the result of the reference recipe in one sentence."""
    own = summarize_seeds(read_reports(folder))
    accuracy = f"{100 * own['test_accuracy']['mean']:.2f} ± {100 * own['test_accuracy']['sd']:.2f} %"
    return (
        f"*`cifarnet train --recipe {own['recipe']}` reaches {accuracy} test accuracy over {own['n']} seeds. The "
        "published run reached 77.63 %. [All results](results/comparison.md)*"
    )


def effects_table() -> str:
    """Format the effects of sampling, seeds, selection and test-time augmentation on an accuracy."""
    runs = read_reports(RESULTS / "cpu" / "reference")
    accuracies = [float(run["metrics"]["test_accuracy"]) for run in runs]
    mean, last = statistics.fmean(accuracies), [run["history"] for run in runs]
    best_epoch = [max(float(epoch["test_accuracy"]) for epoch in history) for history in last]
    rows = []
    for num_images in (10_000, 1_000):
        low, high = wilson_interval(round(mean * num_images), num_images)
        effect = f"± {50 * (high - low):.1f} points, 95 % interval"
        rows.append((f"sample of {num_images:,} test images", f"`reference`, {mean:.1%}", effect))
    spread = f"± {100 * statistics.stdev(accuracies):.1f} points, standard deviation"
    rows.append(("seed", f"`reference`, {len(runs)} seeds", spread))
    gain = 100 * (max(accuracies) - mean)
    rows.append(("best seed in place of the mean", f"`reference`, {len(runs)} seeds", f"{gain:+.1f} points"))
    gain = 100 * (statistics.fmean(best_epoch) - mean)
    rows.append(("best epoch by the test set", f"`reference`, {len(runs)} seeds", f"{gain:+.1f} points"))
    for name in ("cifarcnn_tuned", "fast94"):
        own = summarize_seeds(read_reports(RESULTS / "cpu" / name))
        gain = 100 * (own["test_accuracy_tta"]["mean"] - own["test_accuracy"]["mean"])
        rows.append((f"test-time augmentation, {own['tta']}", f"`{name}`, n = {own['n']}", f"{gain:+.1f} points"))
    lines = ["| choice | measured on | effect |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def candidates_table(path: Path, what: str) -> str:
    """Format the validation accuracy of all candidates for a recipe."""
    report = json.loads(path.read_text())
    hardware = dict.fromkeys(c.get("hardware", report.get("hardware")) for c in report["candidates"])
    lines = [f"| {what} | training | validation |", "| --- | --- | --- |"]
    lines += [
        f"| {c['name']} | {c['train_accuracy'][-1]:.2%} | {c['val_accuracy'][-1]:.2%} |" for c in report["candidates"]
    ]
    lines += [
        "",
        f"Accuracy after epoch {report['epochs']}, one seed ({report['seed']}), {report['train_images']:,} training "
        f"and {report['val_images']:,} validation images. {report['data']}. {' or '.join(hardware)}, "
        f"{report['precision']}, torch {report['torch']}.",
    ]
    return "\n".join(lines)


def ablation_table(folder: Path) -> str:
    """Format the accuracy of each variant of the ablation, one value per seed."""
    variants = {name: read_reports(folder / name.replace(" ", "-")) for name in ABLATION}
    lines = ["| | training accuracy | validation accuracy | its best (epoch) | validation loss |", "| --- " * 5 + "|"]
    for name, reports in variants.items():
        last = [report["history"][-1] for report in reports]
        best = [max(report["history"], key=lambda epoch: float(epoch["val_accuracy"])) for report in reports]
        cells = (
            [f"{epoch['train_accuracy']:.2%}" for epoch in last],
            [f"{epoch['val_accuracy']:.2%}" for epoch in last],
            [f"{epoch['val_accuracy']:.2%} ({epoch['epoch']})" for epoch in best],
            [f"{epoch['val_loss']:.3f}" for epoch in last],
        )
        lines.append(f"| {name} | {' | '.join(map(' / '.join, cells))} |")
    return "\n".join([*lines, "", conditions([report for runs in variants.values() for report in runs])])


def size_table(folder: Path) -> str:
    """Format the accuracy of CifarCNN in several sizes, one value per seed."""
    sizes = sorted((read_reports(path) for path in folder.iterdir()), key=lambda runs: int(runs[0]["flops_per_image"]))
    lines = ["| channels, hidden units | parameters | FLOPs | training | validation |", "| --- " * 5 + "|"]
    for reports in sizes:
        name, last = reports[0]["recipe"]["name"], [report["history"][-1] for report in reports]
        counts = f"{reports[0]['num_parameters']:,} | {reports[0]['flops_per_image'] / 1e6:.1f}M"
        shares = [" / ".join(f"{epoch[key]:.2%}" for epoch in last) for key in ("train_accuracy", "val_accuracy")]
        lines.append(f"| {name} | {counts} | {' | '.join(shares)} |")
    return "\n".join([*lines, "", conditions([report for runs in sizes for report in runs])])


def features_table(path: Path) -> str:
    """Format the predictions of a few images."""
    report = json.loads(path.read_text())
    lines = ["| class | prediction | second |", "| --- | --- | --- |"]
    for image in report["images"]:
        guesses = [f"{label} {probability:.0%}" for label, probability in image["taken_for"]]
        lines.append(f"| {image['class']} | {' | '.join(guesses)} |")
    cosine = report["conv1_cosine"]
    lines += [
        "",
        f"Cosine between a filter of `conv1` before and after training: median {cosine['median']:.2f}, minimum "
        f"{cosine['least']:.2f}. Weights of epoch {report['selected_by']['epoch']}, the best by "
        f"{report['selected_by']['monitor']}; test images of {report['data']}; torch {report['torch']}.",
    ]
    return "\n".join(lines)


def conditions(reports: Sequence[dict[str, Any]]) -> str:
    """Describe what the runs of a table have in common."""
    (common,) = {  # more than one would mean that the runs cannot be compared
        f"After epoch {report['recipe']['max_epochs']}; {report['data']['train']['num_images']:,} training and "
        f"{report['data']['val']['num_images']:,} validation images. {report['data']['name']}. {report['hardware']}, "
        f"{report['precision']}, torch {report['versions']['torch']}."
        for report in reports
    }
    seeds = sorted({int(report["seed"]) for report in reports})
    one = len(seeds) == 1
    values = f"One run each, seed {seeds[0]}" if one else f"One value per seed ({', '.join(map(str, seeds))})"
    return f"{common} {values}."


def recipes_by_size_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format cost and accuracy of every measured recipe."""
    lines = ["| recipe | parameters | FLOPs | epochs | test accuracy, runs, time | measured on |", "| --- " * 6 + "|"]
    for row in sorted(rows, key=lambda row: int(row["num_parameters"])):
        recipe = get_recipe(row["recipe"])
        with torch.device("meta"):
            flops = count_flops(build_model(recipe.model, recipe.model_arguments))
        lines.append(
            f"| `{row['recipe']}` | {row['num_parameters']:,} | {flops / 1e6:,.0f}M | {row['epochs']} | "
            f"{format_result(row)} | {row['hardware']} |"
        )
    return "\n".join(lines)


def script_table(folder: Path, own: dict[str, Any]) -> str:
    """Format the accuracy of the plain script beside that of the reference recipe."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*.json"))]
    accuracies = [report["history"][-1]["test_accuracy"] for report in reports]
    script = {"mean": statistics.fmean(accuracies), "sd": statistics.stdev(accuracies)}
    rows = [
        ("examples/plain_pytorch.py", script, len(reports), "float32"),
        ("cifarnet", own["test_accuracy"], own["n"], own["precision"]),
    ]
    lines = ["| | test accuracy | runs | number format |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {100 * a['mean']:.2f} ± {100 * a['sd']:.2f} % | {n} | {p} |" for name, a, n, p in rows]
    difference = 100 * (own["test_accuracy"]["mean"] - script["mean"])
    lines += [
        "",
        f"After {reports[0]['epochs']} epochs; a difference of {difference:+.2f} points. `OMP_NUM_THREADS=1 python "
        f"examples/plain_pytorch.py --data DIR --workers 0 --seed N`, torch {reports[0]['torch']}.",
    ]
    return "\n".join(lines)


def precision_table(folder: Path) -> str:
    """Format the accuracy of the same runs in two number formats."""
    reports = [json.loads((folder / f"{name}.json").read_text()) for name in ("float32", "bf16")]
    lines = ["| number format | test accuracy | runs |", "| --- | --- | --- |"]
    for report in reports:
        accuracy = report["accuracy"]
        spread = f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['sd']:.2f} %"
        lines.append(f"| {report['precision']} | {spread} | {accuracy['n']} |")
    exact, rounded = reports
    difference = 100 * (rounded["accuracy"]["mean"] - exact["accuracy"]["mean"])
    lines += [
        "",
        f"Recipe {exact['recipe']}, {exact['epochs']} epochs, same seeds; a difference of {difference:+.2f} points. "
        f"`{exact['command'].removesuffix(' --json')}`. {exact['data']['name']}. {exact['hardware']}, "
        f"torch {exact['versions']['torch']}.",
    ]
    return "\n".join(lines)


def stress_table(path: Path) -> str:
    """Format the counts of the stress tests."""
    report = json.loads(path.read_text())
    lines = ["| test | repetitions | failures |", "| --- | --- | --- |"]
    for name, counts in report["counts"].items():
        (unit, tried), *wrong = ((key, count) for key, count in counts.items() if key != "swept")
        lines.append(f"| {name} | {tried:,} {unit} | {', '.join(f'{count} {key}' for key, count in wrong)} |")
    lines += ["", f"`{report['command']}`, {report['system']}, Python {report['python']}, torch {report['torch']}."]
    return "\n".join(lines)


def speed_table(paths: Sequence[Path]) -> str:
    """Format images per second beside the plain script, one row per machine."""
    lines = ["| training, batches of 64 | `cifarnet train` | `examples/plain_pytorch.py` | ratio |", "| --- " * 4 + "|"]
    for report in (json.loads(path.read_text()) for path in paths):
        contenders = {one["name"]: one for one in report["contenders"]}
        own, script = contenders["eager"], contenders[report["baseline"]]
        rates = [f"{one['images_per_s']['median']:,.0f} images/s, {one['precision']}" for one in (own, script)]
        lines.append(f"| {report['hardware']} | {' | '.join(rates)} | {own['ratio']:.2f} |")
    return "\n".join(lines)


def benchmark_table(script: str, path: Path) -> str:
    """Return the table that a benchmark prints of its report."""
    sys.path.insert(0, str(BENCHMARKS))  # scripts import their neighbour
    try:
        table: str = importlib.import_module(script).format_table(json.loads(path.read_text()))
    finally:
        sys.path.remove(str(BENCHMARKS))
    return table


def layers_table() -> str:
    """Format the layers of the package, lowest first, from the contract that import-linter checks."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    package = Path(cifarnet.__file__).parent
    lines = ["| layer | module | content |", "| --- | --- | --- |"]
    for number, layer in enumerate(reversed(layers)):
        for name in re.split(r" [:|] ", layer.replace("cifarnet.", "")):
            path = package / name
            source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            summary = (ast.get_docstring(ast.parse(source.read_text())) or "").split("\n\n")[0].replace("\n", " ")
            lines.append(f"| {number} | `{name}` | {summary} |")
    return "\n".join(lines)


def results(machine: str) -> list[dict[str, Any]]:
    """Return mean and spread of every recipe that was run on a machine."""
    folders = [RESULTS / machine / name for name in RECIPES]
    return [summarize_seeds(read_reports(folder)) for folder in folders if any(folder.glob("seed-*.json"))]


def tables() -> dict[str, str]:
    """Return every generated table by the name in its markers."""
    return {
        "comparison": comparison_table({heading: results(machine) for machine, heading in MACHINES.items()}),
        "effects": effects_table(),
        "headline": headline(RESULTS / "cpu" / "reference"),
        "reference": reference_table(RESULTS / "cpu" / "reference"),
        "reference-epyc": reference_table(RESULTS / "cpu_epyc" / "reference"),
        "reference-augmentation": candidates_table(RESULTS / "cpu" / "reference" / "augmentation.json", "augmentation"),
        "tuned-candidates": candidates_table(RESULTS / "cpu" / "cifarcnn_tuned" / "candidates.json", "settings"),
        "plain": script_table(
            RESULTS / "cpu_epyc" / "plain_pytorch", summarize_seeds(read_reports(RESULTS / "cpu_epyc" / "reference"))
        ),
        "precision": precision_table(RESULTS / "cpu" / "precision"),
        "training": benchmark_table("train_throughput", RESULTS / "cpu" / "training.json"),
        "training-amx": benchmark_table("train_throughput", RESULTS / "cpu" / "training_amx.json"),
        "speed": speed_table([RESULTS / "cpu" / name for name in ("training.json", "training_amx.json")]),
        "inference": benchmark_table("inference", RESULTS / "cpu" / "inference.json"),
        "saving": benchmark_table("saving", RESULTS / "saving.json"),
        "ablation": ablation_table(RESULTS / "ablation"),
        "features": features_table(RESULTS / "features.json"),
        "size": size_table(RESULTS / "size"),
        "recipes-by-size": recipes_by_size_table([row for machine in MACHINES for row in results(machine)]),
        "start": benchmark_table("cold_start", RESULTS / "cpu" / "start.json"),
        "layers": layers_table(),
        "stress": stress_table(RESULTS / "stress.json"),
    }


def generated() -> dict[Path, str]:
    """Return every generated file: pages with tables between markers, and the results for the wheel."""
    by_name = tables()
    files = {}
    for page in (ROOT / name for name in PAGES):
        text = page.read_text()
        for name, table in by_name.items():
            pattern = rf"(<!-- table {name} -->\n).*?(<!-- end -->)"
            text = re.sub(
                pattern, lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", text, flags=re.DOTALL
            )
        files[page] = text
    return {**files, MEASURED: json.dumps([row for machine in MACHINES for row in results(machine)], indent=1) + "\n"}


def main() -> int:
    """Write or check all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if not args.check:
            path.write_text(text)
        print(f"{path}: {'differs from its reports' if args.check else 'written'}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
