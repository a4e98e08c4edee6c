from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarnet import DatasetSplits, bench, make_synthetic
from cifarnet.bench.script import ScriptRuns, run_script
from cifarnet.errors import CifarnetError, SettingError
from cifarnet.recipes import get_recipe

RECIPE = replace(get_recipe("reference"), batch_size=8)
LOAD = partial(make_synthetic, 40, 10)
SCRIPT = """
    import argparse, json, sys
    parser = argparse.ArgumentParser()
    for name in ("--data", "--device"):
        parser.add_argument(name)
    for name in ("--steps", "--workers", "--batch-size"):
        parser.add_argument(name, type=int)
    args = parser.parse_args()
    with open(args.data, "a") as log:
        print(json.dumps(vars(args)), file=log)
    print("a line before the last")
    print(json.dumps({"images_per_s": 10.0 + args.workers, "precision": "float32"}))
"""


def write_script(directory: Path, text: str = SCRIPT) -> str:
    path = directory / "script.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("script") / "log"


@pytest.fixture(scope="module")
def document(log: Path) -> dict[str, Any]:
    script = (write_script(log.parent), "--data", str(log))
    return bench.measure_training(
        RECIPE, LOAD, num_steps=2, rounds=3, backends=("eager",), script=script, workers=(0, 2), device="cpu"
    )


def test_every_contender_gets_as_many_parts_in_turns(document: dict[str, Any], log: Path) -> None:
    assert [contender["name"] for contender in document["contenders"]] == [
        "eager",
        "script, 0 workers",
        "script, 2 workers",
    ]
    assert {contender["images_per_s"]["n"] for contender in document["contenders"]} == {3}
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert [call["workers"] for call in calls] == [0, 2, 2, 0, 0, 2]  # every other round in reverse order
    assert {(call["steps"], call["batch_size"], call["device"]) for call in calls} == {(2, 8, "cpu")}


def test_ratios_are_to_the_fastest_of_the_scripts(document: dict[str, Any]) -> None:
    assert document["baseline"] == "script, 2 workers"
    for contender in document["contenders"]:
        rate = contender["images_per_s"]
        assert rate["median"] == statistics.median(rate["values"])
        assert contender["ratio"] == pytest.approx(rate["median"] / 12.0)


def test_a_backend_tells_times_memory_and_precision(document: dict[str, Any]) -> None:
    eager, script, _ = document["contenders"]
    assert eager["backend"] == "eager"
    assert eager["precision"] == document["precision"]
    assert eager["start_s"] > 0
    assert eager["preparation_s"] >= 0
    assert 0 < eager["data_path_share"] < 0.5
    assert script["data_path_share"] is None
    assert (script["backend"], script["precision"], script["workers"]) == (None, "float32", 0)
    if sys.platform == "linux":
        assert 77 < eager["peak_memory_mb"] < 600  # weights and two moments at the least


def test_no_backend_at_all_is_refused() -> None:
    with pytest.raises(SettingError, match="backends must name at least one"):
        bench.measure_training(RECIPE, LOAD, backends=(), device="cpu")


def test_the_table_has_a_line_a_contender(document: dict[str, Any]) -> None:
    table = bench.format_report(document)
    assert "ratio to script, 2 workers" in table
    assert "| script, 0 workers | float32 | 10 | 10 to 10 | 3 | 0.83 |" in table
    assert f" images: {document['contenders'][0]['data_path_share']:.1%} of a part (eager).\n" in table
    older = [{key: x[key] for key in x if key != "data_path_share"} for x in document["contenders"]]
    assert "data path" not in bench.format_report({**document, "contenders": older})
    fallen = {**document["contenders"][0], "name": "compiled"}
    assert "| compiled, which fell back to eager |" in bench.format_report({**document, "contenders": [fallen]})


def test_the_plain_script_of_the_examples_can_be_measured() -> None:
    script = (str(Path(__file__).parents[2] / "examples" / "plain_pytorch.py"), "--data", "synthetic")
    runs = ScriptRuns(script, 0, 1, 2, torch.device("cpu"), imported_mb=100.0)
    assert runs.images_per_s() > 0
    facts = runs.describe()
    assert facts["precision"] == "float32"
    if sys.platform == "linux":
        assert facts["peak_memory_mb"] > 77  # weights and two moments at the least


def end_at_once() -> DatasetSplits:
    os._exit(3)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_steps": 0}, SettingError, "num_steps must be at least 1"),
        ({"backends": ("eagre",)}, SettingError, 'backend "eagre" is unknown; did you mean "eager"?'),
        ({"num_steps": 6}, SettingError, "6 steps of 8 images need 48, there are 40"),
        ({"load": end_at_once}, CifarnetError, "the process that trains by eager ended with exit code 3"),
    ],
)
def test_what_cannot_be_measured_is_told(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"load": LOAD, "num_steps": 1, "rounds": 1, "backends": ("eager",), "device": "cpu", **settings}
    with pytest.raises(error, match=message):
        bench.measure_training(RECIPE, **arguments)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_at_all", r'exit code 1 and "" \(ModuleNotFoundError'),
        ("print('done')", r'exit code 0 and "done" \(it said nothing\); its last line shall be a JSON object'),
        ("print('{}')", 'with "images_per_s"'),
    ],
)
def test_a_script_that_fails_or_says_no_speed_is_told(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CifarnetError, match=message):
        run_script([write_script(tmp_path, text)], "images_per_s")
