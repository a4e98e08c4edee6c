"""Recipes: plain data, and the trainers that are built from them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarnet import Checkpointer, Classifier, DatasetSplits, FastCNN, make_synthetic
from cifarnet.errors import SettingError, SettingTypeError
from cifarnet.models import describe_model, whitening_filters
from cifarnet.optim import Muon
from cifarnet.recipes import RECIPES, Recipe, build_optimizer, build_trainer, fit_to_images, get_recipe

MINE: dict[str, Any] = {"name": "mine", "summary": "a try"}


def test_recipes_are_plain_data_under_their_names() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe
        assert {recipe: 1}[replace(recipe)] == 1, "may be a key"


def test_the_reference_recipe_is_the_published_one() -> None:
    recipe = get_recipe("reference")
    assert (recipe.model, recipe.learning_rate, recipe.weight_decay) == ("CifarCNN", 1e-3, 1e-4)
    assert (recipe.batch_size, recipe.max_epochs, recipe.label_smoothing) == (64, 10, 0.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", -0.1, "learning_rate must be above 0, got -0.1"),
        ("learning_rate", float("inf"), "learning_rate must be above 0, got inf"),
        ("learning_rate", "fast", "learning_rate must be of type float, got 'fast'"),
        ("weight_decay", -1e-4, "weight_decay must not be negative, got -0.0001"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("batch_size", 6.4, "batch_size must be of type int, got 6.4"),
        ("max_epochs", True, "max_epochs must be of type int, got True"),
        ("label_smoothing", 1.0, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ("model", "CifarCnn", 'model "CifarCnn" is unknown; did you mean "CifarCNN"'),
        ("flip", "randm", 'flip "randm" is unknown; did you mean "random"'),
        ("crop_padding", -2, "crop_padding must be 0 or more pixels, got -2"),
        ("optimizer", "admm", 'optimizer "admm" is unknown; did you mean "adam"'),
        ("settings", [0.9], r"settings must be of type Mapping, got \[0.9\]"),
        ("settings", {"momentum": None}, "settings must hold plain values under names, got 'momentum': None"),
        ("head", {1: 0.5}, "head must hold plain values under names, got 1: 0.5"),
        ("schedule", "cosinus", 'schedule "cosinus" is unknown; did you mean "cosine"'),
        ("warmup", 0.1, 'warmup is 0.1, and schedule="constant" has none; "linear" does'),
        ("sizes", 24, "sizes must be of type tuple, got 24"),
        ("sizes", (24,) * 11, "sizes are 11, max_epochs is 10; give an epoch to each"),
        ("sizes", (40,), "40"),
        ("tta", "flips", 'tta "flips" is unknown; did you mean "flip"'),
        ("ema_decay", float("nan"), r"ema_decay must be in \(0, 1\), got nan"),
        ("max_grad_norm", -1.0, r"max_grad_norm must be in \(0, inf\), got -1.0"),
        ("crop_mode", "zeros", 'crop_mode "zeros" is unknown; did you mean "zero"'),
        ("ema_decay", "slow", "ema_decay must be of type float, got 'slow'"),
    ],
)
def test_a_recipe_out_of_range_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Recipe(**{**MINE, field: value})


def test_the_fast_recipe_has_the_published_groups() -> None:
    """In terms of a mean over 2,000 images: the published loss is their sum."""
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
    assert len(others["params"]) == 1 + 6, "the whitening's bias and those of the norms"


def test_a_recipe_says_all_of_its_trainer() -> None:
    recipe = Recipe(
        **MINE, optimizer="sgd", learning_rate=0.1, weight_decay=1e-3, settings={"momentum": 0.9},
        others={"weight_decay": 0.0}, model_arguments={"widths": [4, 8], "hidden": 16}, schedule="one_cycle",
        warmup=0.25, ema_decay=0.9, tta="flip",
        max_grad_norm=2.0, label_smoothing=0.1, batch_size=32,
    )  # fmt: skip
    data = make_synthetic(num_train=64, num_test=8)
    trainer = build_trainer(recipe, data.train, seed=3, device="cpu")
    assert describe_model(trainer.model)["arguments"]["widths"] == (4, 8)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [1e-3, 1e-3, 0.0]
    assert all(group["momentum"] == 0.9 and group["fused"] for group in trainer.optimizer.param_groups)
    assert trainer.ema is not None
    records = list(trainer.epochs(data.train, max_epochs=2, batch_size=32))
    # Four steps, one of them warm-up: a record has the rate of its epoch's last.
    assert [record.learning_rate for record in records] == pytest.approx([0.1, 0.1 / 3])
    run = trainer.state_dict()["settings"]
    assert (run["max_grad_norm"], run["ema_decay"], run["seed"]) == (2.0, 0.9, 3)
    assert run["loss_fn"]["fields"]["label_smoothing"] == 0.1


def test_a_recipe_of_an_earlier_report_is_read() -> None:
    earlier = {**asdict(get_recipe("reference")), "lookahead_every": None, "brightness": 0.0, "tta": "none"}
    assert Recipe.from_dict(json.loads(json.dumps(earlier))) == get_recipe("reference")
    with pytest.raises(SettingError, match="uses brightness, which cifarnet no longer has"):
        Recipe.from_dict({**earlier, "brightness": 0.1})
    assert Recipe.from_dict({**asdict(get_recipe("fast94")), "tta": "multi-crop"}) == get_recipe("fast94")


def test_sizes_get_equal_shares_of_the_epochs() -> None:
    recipe = Recipe(**MINE, sizes=(24, 28, 32), max_epochs=8)
    assert recipe.transforms.resize is not None
    assert recipe.transforms.resize.sizes == {0: 24, 2: 28, 5: 32}
    assert Recipe(**MINE).transforms.resize is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"momentum": 0.9}}, "settings of the adam recipe has momentum"),
        ({"optimizer": "sgd", "head": {"learning_rate": 1}}, "head of the sgd recipe has learning_rate; choose one of"),
        ({"optimizer": "muon", "others": {"momentun": 1}}, 'a group with algorithm "muon" has no momentun; did you'),
        ({"settings": {"lr": 0.5}}, "settings of recipe mine have lr; learning_rate is its field"),
        ({"settings": {"fused": False}}, "settings of recipe mine have fused"),
        ({"settings": {"betas": (5, 9)}}, "recipe mine: adam cannot be built: Invalid beta"),
        ({"model_arguments": {"depth": 3}}, "CifarCNN cannot be built with .*depth"),
    ],
)
def test_what_optimizer_or_network_do_not_know_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_trainer(Recipe(**MINE, **changes), make_synthetic(num_train=8, num_test=8).train)


def test_whitening_is_computed_from_the_training_images_before_the_first_step() -> None:
    data = make_synthetic(num_train=64, num_test=8).train
    recipe = replace(get_recipe("fast94"), model_arguments={"widths": (4, 4, 4)})
    trainer = build_trainer(recipe, data, device="cpu", precision="float32")
    assert isinstance(trainer.model, FastCNN)
    expected = whitening_filters(trainer.transforms.preprocess(data.images)).float()
    torch.testing.assert_close(trainer.model.whitening.weight[:12], expected, rtol=1e-4, atol=1e-4)
    later = build_trainer(recipe, data, device="cpu", precision="float32", fitted=False)
    assert isinstance(later.model, FastCNN)
    assert not torch.equal(later.model.whitening.weight, trainer.model.whitening.weight)
    fit_to_images(later, data)
    for one, other in zip(later.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_copies_of_the_weights_are_whitened_too_and_a_trained_network_is_not() -> None:
    data = make_synthetic(num_train=64, num_test=8).train
    recipe = replace(get_recipe("fast94"), model_arguments={"widths": (4, 4, 4)}, ema_decay=0.9)
    trainer = build_trainer(recipe, data, device="cpu", precision="float32")
    assert trainer.ema is not None
    assert torch.equal(trainer.ema.weights["whitening.weight"], trainer.model.state_dict()["whitening.weight"])
    trainer.fit(data, max_epochs=1, batch_size=16, progress_bar=False)
    whitened = build_trainer(recipe, data, device="cpu", precision="float32").model.state_dict()["whitening.weight"]
    torch.testing.assert_close(trainer.state_dict()["ema"]["weights"]["whitening.weight"], whitened)
    with pytest.raises(SettingError, match="the trainer has done 4 steps; what it has learnt would be lost"):
        fit_to_images(trainer, data)


def test_a_recipe_that_was_asked_for_is_a_copy() -> None:
    get_recipe("fast94").settings["momentum"] = 0.1  # type: ignore[index]
    assert get_recipe("fast94").settings["momentum"] == 0.6


def test_the_metadata_of_a_checkpointer_are_kept_with_the_weights(tmp_path: Path) -> None:
    data = make_synthetic(num_train=64, num_test=8)
    recipe = replace(get_recipe("fast94"), model_arguments={"widths": (4, 4, 4)}, batch_size=32)
    trainer = build_trainer(recipe, data.train, device="cpu", precision="float32")
    checkpointer = Checkpointer(tmp_path, metadata={"recipe": asdict(recipe), "tries": [1, 2], "lr": float("inf")})
    trainer.fit(data.train, max_epochs=1, batch_size=32, checkpointer=checkpointer, progress_bar=False)
    classifier = Classifier.load(tmp_path)
    assert Recipe.from_dict(classifier.metadata["recipe"]) == recipe
    assert (classifier.metadata["tries"], classifier.metadata["lr"]) == ([1, 2], float("inf"))
    classifier.save(tmp_path / "copy")
    assert Classifier.load(tmp_path / "copy").metadata == classifier.metadata


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("mine", "metadata must be a dictionary such as"),
        ({1: "mine"}, "metadata must be a dictionary such as"),
        ({"weights": [torch.zeros(1)]}, "metadata holds a tensor, weights/0. Use a list"),
        ({"when": object()}, "when"),
    ],
)
def test_metadata_that_cannot_be_saved_are_refused(tmp_path: Path, metadata: Any, message: str) -> None:
    with pytest.raises(SettingTypeError, match=message):
        Checkpointer(tmp_path, metadata=metadata)


@pytest.mark.real_data
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns_from_2000_images(name: str, cifar10: DatasetSplits) -> None:
    recipe = get_recipe(name)
    few = cifar10.train.subset(torch.arange(2_000))
    trainer = build_trainer(recipe, few, device="cpu")
    # The first two epochs of as many as it has, in more steps than 2,000 images would give it.
    records = trainer.epochs(few, max_epochs=recipe.max_epochs, batch_size=min(recipe.batch_size, 100))
    first, second = next(records), next(records)
    assert second.train_accuracy > 0.15  # chance is 0.1
    assert second.train_loss < first.train_loss
    # Running statistics of batch norm need more steps than these, so that accuracy says nothing yet.
    assert math.isfinite(trainer.evaluate(cifar10.test.subset(torch.arange(500))).loss)
