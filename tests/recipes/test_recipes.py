from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarnet import Checkpointer, Classifier, DatasetSplits, FastCNN, Trainer, make_synthetic
from cifarnet.errors import SettingError
from cifarnet.models.registry import describe_model
from cifarnet.models.whitening import whitening_filters
from cifarnet.optim import Muon
from cifarnet.recipes import RECIPES, Recipe, build_trainer, get_recipe
from cifarnet.recipes.builders import build_optimizer, fit_to_images

MINE: dict[str, Any] = {"name": "mine", "summary": "a try"}
SMALL_FAST = replace(get_recipe("fast94"), model_arguments={"widths": (4, 4, 4)}, batch_size=32)


def few_images() -> DatasetSplits:
    return make_synthetic(num_train=64, num_test=8)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    recipe = get_recipe(name)
    assert recipe.name == name
    assert Recipe.from_dict(json.loads(json.dumps(asdict(recipe)))) == recipe
    assert {recipe: 1}[replace(recipe)] == 1  # hashable
    recipe.settings["momentum"] = 0.1  # type: ignore[index]  # a copy
    assert get_recipe(name) == RECIPES[name] != recipe


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", ..., "The recipe has no 'name'"),
        ("momentum", 0.9, "The recipe has an unknown 'momentum'"),
        ("learning_rate", "fast", r"The recipe.learning_rate must be a number, got 'fast'"),
        ("learning_rate", -0.1, "learning_rate must be above 0, got -0.1"),
        ("weight_decay", -1e-4, "weight_decay must be at least 0, got -0.0001"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("label_smoothing", 1.0, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ("model", "CifarCnn", 'model "CifarCnn" is unknown; did you mean "CifarCNN"'),
        ("flip", "randm", "The recipe.flip must be one of 'random', 'alternating', 'none', got 'randm'"),
        ("settings", {"momentum": None}, "settings must hold plain values under names, got 'momentum': None"),
        ("warmup", 0.1, 'schedule="constant" has no warmup, got 0.1'),
    ],
)
def test_a_wrong_value_is_refused(field: str, value: object, message: str) -> None:
    values = {key: one for key, one in {**MINE, field: value}.items() if one is not ...}
    with pytest.raises(SettingError, match=message):
        Recipe.from_dict(values)


def test_a_recipe_of_an_earlier_version_is_read() -> None:
    earlier = {"lookahead_every": None, "brightness": 0.0, "sizes": (), "ema_decay": None, "tta": "multi-crop"}
    old = {**asdict(get_recipe("fast94")), **earlier}
    assert Recipe.from_dict(json.loads(json.dumps(old))) == Recipe.from_dict(old) == get_recipe("fast94")
    with pytest.raises(SettingError, match="uses brightness, which cifarnet no longer has"):
        Recipe.from_dict({**old, "brightness": 0.1})


def test_fast94_has_the_published_groups() -> None:
    """The published loss is the sum over 2,000 images, ours is the mean."""
    model = FastCNN()
    optimizer = build_optimizer(get_recipe("fast94"), model)
    assert isinstance(optimizer, Muon)
    filters, head, others = optimizer.param_groups
    convs = [parameter for name, parameter in model.named_parameters() if ".conv" in name]
    assert [id(p) for p in filters["params"]] == [id(p) for p in convs]
    assert (filters["lr"], filters["momentum"], filters["ns_steps"], filters["weight_decay"]) == (0.24, 0.6, 3, 0)
    assert [id(p) for p in head["params"]] == [id(model.head.weight)]
    for group, rate in ((head, 0.67), (others, 0.053)):
        assert (group["algorithm"], group["momentum"], group["nesterov"]) == ("sgd", 0.85, True)
        assert group["lr"] / 2000 == pytest.approx(rate)
        assert group["lr"] * group["weight_decay"] == pytest.approx(2e-6 * 2000)
    assert len(others["params"]) == 1 + 6  # bias of the whitening, and those of the norms


def test_a_recipe_determines_its_trainer() -> None:
    recipe = Recipe(
        **MINE,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=1e-3,
        settings={"momentum": 0.9},
        others={"weight_decay": 0.0},
        model_arguments={"widths": [4, 8], "hidden": 16},
        schedule="one_cycle",
        warmup=0.25,
        label_smoothing=0.1,
    )
    data = few_images().train
    trainer = build_trainer(recipe, data, seed=3, device="cpu")
    assert describe_model(trainer.model)["arguments"]["widths"] == (4, 8)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [1e-3, 1e-3, 0.0]
    assert all(group["momentum"] == 0.9 and group["fused"] for group in trainer.optimizer.param_groups)
    records = list(trainer.epochs(data, max_epochs=2, batch_size=32))
    # Four steps, one of them of the warm-up. A record has the rate of the last step of its epoch.
    assert [record.learning_rate for record in records] == pytest.approx([0.1, 0.1 / 3])
    run = trainer.state_dict()["settings"]
    assert run["seed"] == 3
    assert run["loss_fn"]["fields"]["label_smoothing"] == 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"momentum": 0.9}}, 'settings of the adam recipe mine: "momentum" is unknown'),
        ({"optimizer": "sgd", "head": {"learning_rate": 1}}, 'head of the sgd recipe mine: "learning_rate" is unknown'),
        ({"optimizer": "muon", "others": {"momentun": 1}}, 'a group with algorithm "muon" has no momentun; did you'),
        ({"settings": {"betas": (5, 9)}}, "recipe mine: adam cannot be built: Invalid beta"),
        ({"model_arguments": {"depth": 3}}, "CifarCNN cannot be built with .*depth"),
    ],
)
def test_unknown_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_trainer(Recipe(**MINE, **changes), few_images().train)


def test_whitening_uses_the_training_images() -> None:
    data = few_images().train
    trainer = build_trainer(SMALL_FAST, data, device="cpu", precision="float32")
    assert isinstance(trainer.model, FastCNN)
    expected = whitening_filters(trainer.transforms.preprocess(data.images)).float()
    torch.testing.assert_close(trainer.model.whitening.weight[:12], expected, rtol=1e-4, atol=1e-4)
    later = build_trainer(SMALL_FAST, data, device="cpu", precision="float32", fitted=False)
    assert isinstance(later.model, FastCNN)
    assert not torch.equal(later.model.whitening.weight, trainer.model.whitening.weight)
    fit_to_images(later, data)
    for one, other in zip(later.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with_ema = Trainer(later.model, later.optimizer, device="cpu", precision="float32", ema_decay=0.9)
    fit_to_images(with_ema, few_images().test)
    assert with_ema.ema is not None
    assert torch.equal(with_ema.ema.weights["whitening.weight"], with_ema.model.state_dict()["whitening.weight"])
    later.fit(data, max_epochs=1, batch_size=32, progress_bar=False)
    with pytest.raises(SettingError, match="The trainer has done 2 steps, which would be lost"):
        fit_to_images(later, data)


def test_metadata_is_saved_with_the_weights(tmp_path: Path) -> None:
    data = few_images()
    trainer = build_trainer(SMALL_FAST, data.train, device="cpu", precision="float32")
    checkpointer = Checkpointer(tmp_path, metadata={"recipe": asdict(SMALL_FAST), "tries": [1, 2], "lr": float("inf")})
    trainer.fit(data.train, max_epochs=1, batch_size=32, checkpointer=checkpointer, progress_bar=False)
    classifier = Classifier.load(tmp_path)
    assert Recipe.from_dict(classifier.metadata["recipe"]) == SMALL_FAST
    assert (classifier.metadata["tries"], classifier.metadata["lr"]) == ([1, 2], float("inf"))
    classifier.save(tmp_path / "copy")
    assert Classifier.load(tmp_path / "copy").metadata == classifier.metadata


def test_metadata_that_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    metadata: Any
    for metadata, message in (("mine", "must be a dictionary such as"), ({"weights": [torch.zeros(1)]}, "a tensor")):
        with pytest.raises(SettingError, match=f"metadata .*{message}"):
            Checkpointer(tmp_path, metadata=metadata)


@pytest.mark.real_data
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns_from_real_images(name: str, cifar10: DatasetSplits) -> None:
    recipe = get_recipe(name)
    if name in ("resnet18", "fast94", "fast96"):  # four times faster
        recipe = replace(recipe, sizes=(16,))
    few = cifar10.train.subset(torch.arange(2_000))
    trainer = build_trainer(recipe, few, device="cpu")
    records = trainer.epochs(few, max_epochs=recipe.max_epochs, batch_size=100)
    first, second = next(records), next(records)
    assert second.train_accuracy > 0.15  # chance is 0.1
    assert second.train_loss < first.train_loss
    # The running statistics of batch norm need more steps than these, so the accuracy is not compared.
    assert math.isfinite(trainer.evaluate(cifar10.test.subset(torch.arange(100))).loss)
