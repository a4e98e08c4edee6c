from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from cifarnet import CifarCNN, bench, make_synthetic
from cifarnet.errors import SettingError
from cifarnet.recipes import get_recipe

IMAGES = make_synthetic(1, 50).test


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return bench.measure_inference(
        get_recipe("reference"), IMAGES, rounds=3, num_calls=20, device="cpu", precision="float32"
    )


def test_throughput_and_latency_belong_together(document: dict[str, Any]) -> None:
    assert len(document["images_per_s"]["values"]) == document["images_per_s"]["n"] == 3
    latency = document["latency_s"]
    assert latency["n"] == 20
    assert 0 < latency["min"] <= latency["p5"] <= latency["median"] <= latency["p95"] <= latency["max"]
    assert (document["device"], document["precision"], document["model"]) == ("cpu", "float32", "CifarCNN")


def test_the_network_is_the_recipes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(name: str, arguments: dict[str, Any]) -> nn.Module:
        built.append((name, arguments))
        return CifarCNN()

    monkeypatch.setattr("cifarnet.bench.inference.build_model", build)
    recipe = replace(get_recipe("reference"), model="FastCNN", model_arguments={"widths": (128, 384, 512)})
    bench.measure_inference(recipe, make_synthetic(1, 20).test, rounds=1, num_calls=2, device="cpu")
    assert built == [("FastCNN", {"widths": (128, 384, 512), "num_classes": 10})]


def test_the_table_shows_both(document: dict[str, Any]) -> None:
    table = bench.format_report(document)
    assert f"| evaluation in batches of 500, images/s | {document['images_per_s']['median']:,.0f} | " in table
    assert f"| prediction of one image | {document['latency_s']['median'] * 1e3:.2f} ms | 90 % within " in table


@pytest.mark.parametrize(("key", "value"), [("rounds", 0), ("num_calls", 1)])
def test_too_few_are_refused(key: str, value: int) -> None:
    with pytest.raises(SettingError, match=f"{key} must be at least"):
        bench.measure_inference(get_recipe("reference"), IMAGES, **{key: value})  # type: ignore[arg-type]
