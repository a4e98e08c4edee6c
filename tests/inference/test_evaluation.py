"""Every score of an evaluation, held to scikit-learn, torchmetrics, and definitions written out in numpy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scored import answers, by_json, scored
from sklearn import metrics as sklearn
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_calibration_error

from cifarnet import CifarCNN, Classifier, DatasetSplits, Evaluation, Preprocess, Trainer
from cifarnet.errors import InputError, SettingError
from cifarnet.inference import NUM_BINS, NUM_TOP_LOSSES, predict_logits, resolve_precision, true_class_ranks
from cifarnet.inference.accumulator import EvaluationAccumulator
from cifarnet.inference.evaluate import evaluate, evaluate_loss
from cifarnet.inference.iterable import IterableLoader
from cifarnet.inference.loader import Batch

MakeTrainer = Callable[..., Trainer]
Answers = tuple[Tensor, Tensor]
CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(given_=answers())
def test_classes_are_scored_as_scikit_learn_scores_them(given_: Answers) -> None:
    logits, labels = given_
    found = scored(logits, labels)
    every, predicted = list(range(logits.shape[1])), logits.argmax(1).numpy()
    assert np.array_equal(found.confusion_matrix, sklearn.confusion_matrix(labels, predicted, labels=every))
    expected = sklearn.precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "num_images"), expected, strict=True):
        np.testing.assert_allclose([getattr(one, name) for one in found.per_class], column, rtol=1e-12)
    assert found.accuracy == sklearn.accuracy_score(labels, predicted)
    assert (found.num_correct, found.num_images) == (int((predicted == labels.numpy()).sum()), len(labels))


@settings(max_examples=60, deadline=None)
@given(given_=answers(), temperature=st.sampled_from([0.5, 1.0, 3.0]))
def test_probabilities_are_scored_as_scikit_learn_scores_them(given_: Answers, temperature: float) -> None:
    logits, labels = given_
    found = scored(logits, labels, temperature=temperature)
    shares, every = (logits / temperature).softmax(1).numpy(), list(range(logits.shape[1]))
    truth = np.eye(len(every))[labels]
    brier = sklearn.brier_score_loss(labels, shares, labels=every, scale_by_half=False) if len(every) > 2 else None
    assert found.brier == pytest.approx(((shares - truth) ** 2).sum(1).mean(), abs=1e-12)
    assert brier is None or found.brier == pytest.approx(brier, abs=1e-12)
    losses = np.logaddexp.reduce(logits.numpy() / temperature, axis=1)
    losses -= (logits / temperature)[torch.arange(len(labels)), labels].numpy()
    assert found.log_loss == pytest.approx(losses.mean(), rel=1e-9, abs=1e-12)
    if shares.min() > 1e-15:  # below, scikit-learn clips
        assert found.log_loss == pytest.approx(sklearn.log_loss(labels, shares, labels=every), rel=1e-9)
    if len(every) > 5:  # where the five best are not all
        expected = sklearn.top_k_accuracy_score(labels, logits.numpy(), k=5, labels=every)
        assert found.top_k_accuracy == pytest.approx(expected, rel=1e-12)
    assert found.k == min(5, len(every))
    assert len(every) > 5 or found.top_k_accuracy == 1


@settings(max_examples=60, deadline=None)
@given(given_=answers())
def test_the_calibration_error_is_that_of_torchmetrics(given_: Answers) -> None:
    logits, labels = given_
    shares = logits.softmax(1)
    top = shares.amax(1) * NUM_BINS
    # Its bins are closed at the other end, and certainty has one of its own.
    assume(bool(((top - top.round()).abs() > 1e-4).logical_or(top > NUM_BINS - 1e-4).all()))
    expected = multiclass_calibration_error(
        shares.clamp(max=1 - 1e-6), labels, num_classes=logits.shape[1], n_bins=NUM_BINS, norm="l1"
    )
    assert scored(logits, labels).expected_calibration_error == pytest.approx(float(expected), abs=2e-6)


@settings(max_examples=60, deadline=None)
@given(given_=answers(), edge=st.booleans())
def test_bins_are_those_of_the_paper(given_: Answers, edge: bool) -> None:
    """Guo et al. (2017): bin m of M has the confidences in ((m - 1) / M, m / M]."""
    logits, labels = given_
    if edge:  # three equal logits, the others out of reach: a confidence of just 5/15; or of 1
        logits = torch.full_like(logits, -1e6)
        logits[:, :3] = 0
        logits[::3, 1:] = -1e6
    shares = logits.softmax(1)
    top, right = shares.amax(1).numpy(), (logits.argmax(1) == labels).numpy()
    found, error = scored(logits, labels), 0.0
    assert len(found.reliability_bins) == NUM_BINS == 15
    for m, one in enumerate(found.reliability_bins):
        inside = (top > m / 15) & (top <= (m + 1) / 15)
        assert (one.num_images, one.num_correct) == (inside.sum(), (inside & right).sum())
        if not inside.any():
            assert one.confidence is None
            assert one.accuracy is None
            continue
        assert one.confidence == pytest.approx(top[inside].mean(), abs=1e-12)
        assert one.accuracy == right[inside].mean()
        error += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    assert found.expected_calibration_error == pytest.approx(error, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(given_=answers())
def test_top_losses_are_the_predictions_with_the_highest_loss(given_: Answers) -> None:
    logits, labels = given_
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    order = np.lexsort((np.arange(len(labels)), -losses.numpy()))[:NUM_TOP_LOSSES]
    found = scored(logits, labels)
    assert [one.index for one in found.top_losses] == order.tolist()
    assert [one.id for one in found.top_losses] == (order + 1000).tolist()
    for one in found.top_losses:
        assert one.label == labels[one.index]
        assert one.predicted == logits[one.index].argmax()
        assert one.probability == pytest.approx(float(logits[one.index].softmax(0)[one.predicted]), rel=1e-9)
        assert one.loss == pytest.approx(float(losses[one.index]), rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(given_=answers(), batch_size=st.integers(1, 60))
def test_batches_do_not_matter(given_: Answers, batch_size: int) -> None:
    whole, parts = scored(*given_, batch_size=1000), scored(*given_, batch_size=batch_size)
    for one, other in zip(whole.to_dict().items(), parts.to_dict().items(), strict=True):
        assert one[0] == other[0]
        if isinstance(one[1], float):
            assert one[1] == pytest.approx(other[1], rel=1e-9, abs=1e-12)
    assert whole.confusion_matrix == parts.confusion_matrix
    assert [one.index for one in whole.top_losses] == [one.index for one in parts.top_losses]
    assert [one.num_images for one in whole.reliability_bins] == [one.num_images for one in parts.reliability_bins]


@settings(max_examples=40, deadline=None)
@given(given_=answers(), temperature=st.floats(0.01, 100))
def test_a_temperature_changes_probabilities_and_no_label(given_: Answers, temperature: float) -> None:
    plain, scaled = scored(*given_), scored(*given_, temperature=temperature)
    for name in ("loss", "confusion_matrix", "num_top_k", "accuracy", "per_class"):
        assert getattr(plain, name) == getattr(scaled, name)
    divided = scored(given_[0] / temperature, given_[1])
    assert scaled.log_loss == pytest.approx(divided.log_loss, rel=1e-9, abs=1e-12)
    assert scaled.expected_calibration_error == pytest.approx(divided.expected_calibration_error, abs=1e-9)
    assert scaled.temperature == temperature


@settings(max_examples=60, deadline=None)
@given(given_=answers(), extreme=st.sampled_from([None, math.nan, math.inf, -math.inf]), columns=st.integers(1, 3))
def test_every_evaluation_survives_json(given_: Answers, extreme: float | None, columns: int) -> None:
    logits, labels = given_
    if extreme is not None:
        logits[:: columns + 1, :columns] = extreme
    found = scored(logits, labels, loss_fn=lambda logits, labels: logits.mean())
    back = by_json(found)
    assert back.to_dict() == found.to_dict()
    assert extreme is not None or back == found
    assert str(back) == str(found)
    assert back.table() == found.table()


def test_of_equal_logits_the_first_is_the_highest() -> None:
    found = scored(torch.zeros(8, 8), torch.arange(8))
    assert found.num_correct == 1
    assert found.num_top_k == 5
    assert [one.index for one in found.top_losses] == list(range(8))
    assert true_class_ranks(torch.zeros(3, 8), torch.tensor([0, 3, 7])).tolist() == [0, 3, 7]


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_divided_is_0_and_shown_as_a_dash() -> None:
    logits = torch.eye(4)[torch.tensor([0, 0, 1, 1])].double()
    found = scored(logits, torch.tensor([0, 1, 1, 3]))  # no image is of class 2 or taken for 2 or 3
    assert [one.precision for one in found.per_class] == [0.5, 0.5, 0, 0]
    assert [one.recall for one in found.per_class] == [1, 0.5, 0, 0]
    assert [one.f1 for one in found.per_class] == [pytest.approx(2 / 3), 0.5, 0, 0]
    assert [(one.num_images, one.num_predicted) for one in found.per_class] == [(1, 2), (2, 2), (0, 0), (1, 0)]
    rows = {line.split("  ")[0]: line.split()[2:] for line in found.table().splitlines() if line.startswith("class ")}
    assert rows["class 2"] == ["0", "-", "-", "-", "-"]
    assert rows["class 3"] == ["1", "-", "0.0%", "0.0%", "class", "1", "(1)"]


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_data_sets_and_batches_of_anybody_are_scored_alike(num_classes: int) -> None:
    torch.manual_seed(0)
    model = CifarCNN(num_classes, image_size=8, widths=(4, 4), hidden=8).eval()
    images = torch.randint(256, (130, 3, 8, 8), dtype=torch.uint8)
    labels = torch.randint(num_classes, (130,))
    preprocess, names = Preprocess(8), [f"name {i}" for i in range(num_classes)]
    classifier = Classifier(model, preprocess, names, device="cpu", precision="float64")
    found = classifier.evaluate([(images[:70], labels[:70]), (images[70:], labels[70:])])
    with torch.no_grad():
        expected = scored(model(preprocess(images).double()), labels, classes=tuple(names))
    assert found.confusion_matrix == expected.confusion_matrix
    assert found.log_loss == pytest.approx(expected.log_loss, rel=1e-9)
    assert found.classes == tuple(names)
    assert [one.id for one in found.top_losses] == [one.index for one in found.top_losses]
    assert by_json(found) == found
    told = found.table(max_classes=20)
    assert f"name {num_classes - 1}" in told or num_classes == 100
    assert ("80 more classes, none of them with a lower F1" in told) == (num_classes == 100)
    assert ("top-5 accuracy" in told) == (num_classes > 2)


def test_identity_and_place_of_an_image_are_told_apart(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer(precision="float64")
    some = synthetic.test.subset(torch.arange(99, 39, -1))
    found = trainer.evaluate(some)
    assert found.classes == synthetic.test.classes
    assert len(found.top_losses) == NUM_TOP_LOSSES
    for one in found.top_losses:
        assert one.id == some.ids[one.index] == 99 - one.index
        assert one.label == some.labels[one.index]
    assert trainer.evaluate(DataLoader(some, batch_size=7)).classes == ()


def test_the_loss_is_the_users_and_probabilities_are_the_networks(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    smooth = make_trainer(loss_fn=nn.CrossEntropyLoss(label_smoothing=0.3), precision="float64")
    plain = make_trainer(precision="float64").evaluate(synthetic.test)
    found = smooth.evaluate(synthetic.test)
    assert plain.loss == pytest.approx(plain.log_loss, rel=1e-12)
    assert found.loss != plain.loss
    assert (found.log_loss, found.brier, found.top_losses) == (plain.log_loss, plain.brier, plain.top_losses)


@pytest.mark.parametrize("precision", ["bf16", "float32", "float64"])
@pytest.mark.parametrize("tta", [None, "flip", "flip+shift"])
def test_scores_are_those_of_the_logits_of_any_precision_and_tta(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, precision: str, tta: Any
) -> None:
    trainer, test = make_trainer(precision=precision), synthetic.test
    trainer.fit(synthetic.train, max_epochs=1, progress_bar=False)
    with torch.no_grad():
        logits = predict_logits(
            trainer.model.eval(),
            test.images,
            preprocess=trainer.transforms.preprocess,
            precision=trainer.precision,
            tta=tta,
        )
    found, expected = trainer.evaluate(test, tta=tta), scored(logits, test.labels, batch_size=500)
    assert found.confusion_matrix == expected.confusion_matrix
    assert (found.log_loss, found.brier, found.reliability_bins) == (
        expected.log_loss,
        expected.brier,
        expected.reliability_bins,
    )
    assert found.tta == tta
    assert by_json(found) == found


def test_the_evaluation_of_an_epoch_has_the_same_loss_and_count(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    trainer = make_trainer()
    (record,) = trainer.epochs(synthetic.train, synthetic.test, max_epochs=1)
    found = trainer.evaluate(synthetic.test)
    assert (record.val_loss, record.val_accuracy) == (found.loss, found.accuracy)


def test_a_batch_is_counted_without_a_look_at_the_device() -> None:
    """The meta device has no values: to wait for one would raise."""
    meta = torch.device("meta")
    scores = EvaluationAccumulator(10, meta, temperature=2.0)
    for _ in range(2):
        labels = torch.zeros(30, dtype=torch.int64, device=meta)
        scores.add(torch.zeros(30, 10, device=meta), Batch(labels, labels, labels))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        scores._counts.tolist()


def test_labels_of_no_class_that_came_on_a_device_are_told_at_the_end() -> None:
    class OnDevice(IterableLoader):
        """Whose labels nobody has looked at."""

        def in_order(self) -> Any:
            yield Batch(torch.zeros(3, 1, 2, 2), torch.tensor([0, -100, 3]), torch.arange(3))

    class Two(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :3]

    source, precision = OnDevice([], device=CPU), resolve_precision("float32", CPU)
    with pytest.raises(InputError, match=r"2 labels are not classes of the network\. Labels must be in \[0, 3\)"):
        evaluate(Two(), source, preprocess=Preprocess(2), loss_fn=lambda logits, _: logits.mean(), precision=precision)


def test_broken_weights_give_words_and_no_nan_in_json() -> None:
    found = scored(torch.full((6, 3), math.nan), torch.tensor([0, 1, 2, 0, 1, 2]))
    document = found.to_dict()
    for key in ("loss", "log_loss", "brier", "expected_calibration_error"):
        assert document[key] == "nan"
    assert math.isnan(by_json(found).log_loss)
    assert found.num_correct == 2  # as argmax has it
    assert "log loss" in found.table()


def sound() -> dict[str, Any]:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 0.0]])
    document = scored(logits, torch.tensor([0, 1, 0]), classes=("cat", "dog", "cow")).to_dict()
    return dict(json.loads(json.dumps(document)))


WRONG: list[tuple[str, Any, str]] = [
    ("loss", "0.5", "loss must be a number, got '0.5'"),
    ("loss", True, "loss must be a number, got True"),
    ("loss", 10**400, "loss must be a number, got 1000"),
    ("loss", None, "loss must be a number, got None"),
    ("confusion_matrix", [[1, 0], [0, 1, 0], [0, 0, 1]], "confusion_matrix of an evaluation contradicts"),
    ("confusion_matrix", [], "confusion_matrix of an evaluation contradicts"),
    (
        "confusion_matrix",
        [[-1, 0, 0], [0, 1, 0], [0, 0, 1]],
        r"confusion_matrix\[0\]\[0\] must be .* of at least 0, got -1",
    ),
    ("confusion_matrix", [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], r"confusion_matrix\[0\]\[0\] must be a whole number"),
    ("confusion_matrix", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "reliability_bins of an evaluation contradicts"),
    ("num_top_k", 4, "num_top_k of an evaluation contradicts"),
    ("num_top_k", 1, "num_top_k of an evaluation contradicts"),
    ("reliability_bins", [], "reliability_bins of an evaluation contradicts"),
    ("reliability_bins", [{"num_images": 3}] * 15, r"reliability_bins\[0\] has no 'accuracy'"),
    ("top_losses", [{}], r"top_losses\[0\] has no 'id'"),
    ("top_losses", 5, "top_losses must be a list, got 5"),
    ("classes", ["cat"], "classes of an evaluation contradicts"),
    ("classes", ["cat", "dog", 3], r"classes\[2\] must be a string, got 3"),
    ("temperature", 0, r"temperature must be in \[0.001, 1000\], got 0"),
    ("temperature", "nan", r"temperature must be in \[0.001, 1000\], got nan"),
    ("tta", 5, "tta must be a string, got 5"),
    ("accuracy", 0.7, "accuracy contradicts the counts"),
    ("accuracy_interval", [0.0, 1.0], "accuracy_interval contradicts the counts"),
    ("expected_calibration_error", 0.0, "expected_calibration_error contradicts the counts"),
    ("per_class", [], "per_class contradicts the counts"),
    ("k", 2, "k contradicts the counts"),
    ("more", 1, "The evaluation has an unknown 'more'"),
    ("log_loss", ..., "The evaluation has no 'log_loss'"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=[f"{key}-{value!r}"[:40] for key, value, _ in WRONG])
def test_a_document_that_no_evaluation_gave_is_refused(key: str, value: Any, message: str) -> None:
    document = sound()
    assert Evaluation.from_dict(document).to_dict() == document  # the control
    document[key] = value
    if value is ...:
        del document[key]
    with pytest.raises((InputError, SettingError), match=message):
        Evaluation.from_dict(document)
    with pytest.raises(InputError, match="The evaluation must be a dictionary, got 'x'"):
        Evaluation.from_dict("x")  # type: ignore[arg-type]


def test_a_document_of_an_earlier_version_is_read() -> None:
    document = {**sound(), "tta": "flip+shift"}
    earlier = {
        "accuracy_interval": "interval",
        "confusion_matrix": "confusion",
        "log_loss": "nll",
        "reliability_bins": "bins",
        "top_losses": "worst",
        "tta": "test_time_augmentation",
    }
    old = {earlier.get(key, key): value for key, value in document.items()}
    old["test_time_augmentation"] = "multi-crop"
    assert Evaluation.from_dict(old).to_dict() == document
    with pytest.raises(InputError, match="The evaluation has an unknown 'nll'"):
        Evaluation.from_dict({**document, "nll": 0.5})


def test_an_evaluation_prints_as_a_line_and_as_a_table() -> None:
    torch.manual_seed(0)
    labels = torch.arange(10_000) % 3
    logits = nn.functional.one_hot(labels, 3) * 2.0
    logits[:2237] = logits[:2237].roll(1, dims=1)
    found = scored(logits, labels, classes=("cat", "dog", "a name of more than twenty-four letters"), temperature=2)
    line = "accuracy 77.63% (95 % interval 76.80% to 78.44%), loss 0.6869, 10,000 images"
    assert str(found) == line
    assert found.table(num_top_losses=1).splitlines() == [
        line,
        "log loss           0.7751",
        "Brier score        0.4324",
        "calibration error  20.02%",
        "temperature        2.000",
        "",
        "class                    images  precision  recall     F1  most often taken for",
        "cat                       3,334      77.6%   77.6%  77.6%  dog (746)",
        "dog                       3,333      77.6%   77.6%  77.6%  a name of m…our letters (746)",
        "a name of m…our letters   3,333      77.6%   77.6%  77.6%  cat (745)",
        "",
        "top losses: image    id  class  taken for  probability  log loss",
        "                0  1000  cat    dog              57.6%      1.55",
    ]
    assert found.table(max_classes=0, num_top_losses=0).count("\n") == 4
    for settings_ in ({"max_classes": -1}, {"num_top_losses": -1}):
        with pytest.raises(SettingError, match=r"must be at least 0, got -1"):
            found.table(**settings_)


def test_of_many_classes_those_with_the_lowest_f1_are_shown() -> None:
    labels = torch.arange(30).repeat(4)
    logits = nn.functional.one_hot(labels, 31) * 5.0  # a 31st class has no image
    logits[[7, 12, 19]] = logits[[8, 13, 20]]
    told = scored(logits, labels).table(max_classes=6)
    shown = re.findall(r"^class (\d+) ", told, re.MULTILINE)
    assert shown == ["7", "8", "12", "13", "19", "20"]
    assert "25 more classes, none of them with a lower F1" in told


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_a_notebook_shows_tables_and_runs_no_code_of_a_name(num_classes: int) -> None:
    names = tuple(f"<script>alert({i})</script>" for i in range(num_classes))
    torch.manual_seed(0)
    page = scored(torch.randn(50, num_classes), torch.randint(num_classes, (50,)), classes=names)._repr_html_()
    assert "<script" not in page
    assert page.count("&lt;script") > num_classes
    assert page.count("<table>") == (3 if num_classes == 100 else 4)  # so wide a matrix nobody reads
    for tag in ("table", "thead", "tbody", "tr", "th", "td", "p"):
        assert len(re.findall(rf"<{tag}>", page)) == page.count(f"</{tag}>")


def test_score_and_evaluate_count_alike(synthetic: DatasetSplits) -> None:
    torch.manual_seed(0)
    model = CifarCNN(image_size=16, widths=(4, 4), hidden=8)
    given_: dict[str, Any] = {
        "preprocess": Preprocess(16),
        "loss_fn": nn.functional.cross_entropy,
        "precision": resolve_precision("float32", CPU),
    }
    source = IterableLoader(DataLoader(synthetic.test, batch_size=30), device=CPU)
    totals, found = evaluate_loss(model, source, **given_), evaluate(model, source, **given_)
    assert (totals.mean_loss, totals.num_correct, totals.num_images) == (found.loss, found.num_correct, 100)
