"""Metrics of logits, compared with scikit-learn, torchmetrics, and definitions written in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scored import FLOAT64, answers, scored
from sklearn import metrics as sklearn
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from cifarnet import CifarCNN, Classifier, DatasetSplits, Preprocess, Trainer
from cifarnet.errors import DataError, DeviceMemoryError
from cifarnet.inference import predict_logits
from cifarnet.inference.evaluate import check_model_fits, evaluate
from cifarnet.inference.evaluation import NUM_BINS, NUM_TOP_LOSSES
from cifarnet.inference.loader import Batch, IterableLoader
from cifarnet.inference.metrics import true_class_ranks
from cifarnet.inference.summarize import _summarize_batch

MakeTrainer = Callable[..., Trainer]
Answers = tuple[Tensor, Tensor]
CPU = torch.device("cpu")
ARGUMENTS: dict[str, Any] = {
    "preprocess": Preprocess(16),
    "loss_fn": nn.functional.cross_entropy,
    "precision": FLOAT64,
}


@settings(max_examples=60, deadline=None)
@given(given_=answers())
def test_class_scores_equal_those_of_scikit_learn(given_: Answers) -> None:
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
def test_scores_of_probabilities_equal_those_of_scikit_learn(given_: Answers, temperature: float) -> None:
    logits, labels = given_
    found = scored(logits, labels, temperature=temperature)
    shares, every = (logits / temperature).softmax(1).numpy(), list(range(logits.shape[1]))
    truth = np.eye(len(every))[labels]
    assert found.brier == pytest.approx(((shares - truth) ** 2).sum(1).mean(), abs=1e-12)
    if len(every) > 2:
        brier = sklearn.brier_score_loss(labels, shares, labels=every, scale_by_half=False)
        assert found.brier == pytest.approx(brier, abs=1e-12)
    losses = np.logaddexp.reduce(logits.numpy() / temperature, axis=1)
    losses -= (logits / temperature)[torch.arange(len(labels)), labels].numpy()
    assert found.log_loss == pytest.approx(losses.mean(), rel=1e-9, abs=1e-12)
    if len(every) > 5:
        expected = sklearn.top_k_accuracy_score(labels, logits.numpy(), k=5, labels=every)
        assert found.top_k_accuracy == pytest.approx(expected, rel=1e-12)
    assert found.k == min(5, len(every))
    assert len(every) > 5 or found.top_k_accuracy == 1


@settings(max_examples=60, deadline=None)
@given(given_=answers())
def test_the_calibration_error_equals_that_of_torchmetrics(given_: Answers) -> None:
    logits, labels = given_
    shares = logits.softmax(1)
    top = shares.amax(1) * NUM_BINS
    # The bins of torchmetrics are closed at the other end, and a confidence of 1 has a bin of its own.
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
    if edge:  # three equal logits and all others far below: a confidence of exactly 5/15, or of 1
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
def test_top_losses_have_the_highest_loss(given_: Answers) -> None:
    logits, labels = given_
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    order = np.lexsort((np.arange(len(labels)), -losses.numpy()))[:NUM_TOP_LOSSES]
    found = scored(logits, labels)
    assert [(one.index, one.id) for one in found.top_losses] == [(i, i + 1000) for i in order.tolist()]
    for one in found.top_losses:
        assert (one.label, one.predicted) == (int(labels[one.index]), int(logits[one.index].argmax()))
        assert one.probability == pytest.approx(float(logits[one.index].softmax(0)[one.predicted]), rel=1e-9)
        assert one.loss == pytest.approx(float(losses[one.index]), rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(given_=answers(), batch_size=st.integers(1, 60))
def test_metrics_do_not_depend_on_the_batches(given_: Answers, batch_size: int) -> None:
    whole, parts = scored(*given_, batch_size=1000), scored(*given_, batch_size=batch_size)
    for (key, one), other in zip(whole.to_dict().items(), parts.to_dict().values(), strict=True):
        if isinstance(one, float):
            assert one == pytest.approx(other, rel=1e-9, abs=1e-12), key
    assert whole.confusion_matrix == parts.confusion_matrix
    assert [one.index for one in whole.top_losses] == [one.index for one in parts.top_losses]
    assert [one.num_images for one in whole.reliability_bins] == [one.num_images for one in parts.reliability_bins]


@settings(max_examples=40, deadline=None)
@given(given_=answers(), temperature=st.floats(0.01, 100))
def test_a_temperature_changes_only_probabilities(given_: Answers, temperature: float) -> None:
    plain, scaled = scored(*given_), scored(*given_, temperature=temperature)
    for name in ("loss", "confusion_matrix", "num_top_k", "accuracy", "per_class"):
        assert getattr(plain, name) == getattr(scaled, name)
    divided = scored(given_[0] / temperature, given_[1])
    assert scaled.log_loss == pytest.approx(divided.log_loss, rel=1e-9, abs=1e-12)
    assert scaled.expected_calibration_error == pytest.approx(divided.expected_calibration_error, abs=1e-9)


def test_the_first_of_equal_logits_is_the_highest() -> None:
    found = scored(torch.zeros(8, 8), torch.arange(8))
    assert (found.num_correct, found.num_top_k) == (1, 5)
    assert [one.index for one in found.top_losses] == list(range(8))
    assert true_class_ranks(torch.zeros(3, 8), torch.tensor([0, 3, 7])).tolist() == [0, 3, 7]


def test_evaluation_does_not_change_the_model(synthetic: DatasetSplits) -> None:
    torch.manual_seed(0)
    model = CifarCNN(image_size=16, widths=(4, 8), hidden=16).double().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    test = synthetic.test
    found = evaluate(model, IterableLoader([(test.images, test.labels)], device=CPU), **ARGUMENTS)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        logits = model.eval()(Preprocess(16)(test.images).double())
    assert (found.num_correct, found.num_images) == (int((logits.argmax(1) == test.labels).sum()), 100)
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, test.labels)), rel=1e-9)


def test_a_failed_evaluation_restores_the_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 2)).train()
    source = IterableLoader([(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))], device=CPU)
    with pytest.raises(RuntimeError):
        evaluate(model, source, **ARGUMENTS)
    assert model.training


@pytest.mark.parametrize("precision", ["bf16", "float32", "float64"])
@pytest.mark.parametrize("tta", [None, "flip", "flip+shift"])
def test_an_evaluation_counts_the_predicted_logits(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, precision: str, tta: Any
) -> None:
    trainer, test = make_trainer(precision=precision), synthetic.test
    (record,) = trainer.epochs(synthetic.train, test, max_epochs=1)
    with torch.no_grad():
        logits = predict_logits(
            trainer.model.eval(),
            test.images,
            preprocess=trainer.transforms.preprocess,
            precision=trainer.precision,
            tta=tta,
        )
    found, expected = trainer.evaluate(test, tta=tta), scored(logits, test.labels, batch_size=500)
    for name in ("confusion_matrix", "log_loss", "brier", "reliability_bins"):
        assert getattr(found, name) == getattr(expected, name)
    assert (found.tta, found.classes) == (tta, test.classes)
    assert tta is not None or (record.val_loss, record.val_accuracy) == (found.loss, found.accuracy)


def test_batches_are_evaluated_like_a_data_set(synthetic: DatasetSplits) -> None:
    torch.manual_seed(0)
    model, test = CifarCNN(image_size=16, widths=(4, 4), hidden=8), synthetic.test
    classifier = Classifier(model, Preprocess(16), test.classes, device="cpu", precision="float64")
    found = classifier.evaluate([(test.images[i : i + 30], test.labels[i : i + 30]) for i in range(0, 100, 30)])
    expected = classifier.evaluate(test)
    assert (found.confusion_matrix, found.classes) == (expected.confusion_matrix, test.classes)
    assert found.log_loss == pytest.approx(expected.log_loss, rel=1e-9)
    assert [one.id for one in found.top_losses] == [one.index for one in found.top_losses]


def test_top_losses_have_image_ids(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    some = synthetic.test.subset(torch.arange(99, 39, -1))
    found = make_trainer(precision="float64").evaluate(some)
    assert len(found.top_losses) == NUM_TOP_LOSSES
    for one in found.top_losses:
        assert one.id == some.ids[one.index] == 99 - one.index
        assert one.label == some.labels[one.index]


def test_the_loss_is_that_of_the_training(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    smooth = make_trainer(loss_fn=nn.CrossEntropyLoss(label_smoothing=0.3), precision="float64")
    plain = make_trainer(precision="float64").evaluate(synthetic.test)
    found = smooth.evaluate(synthetic.test)
    assert plain.loss == pytest.approx(plain.log_loss, rel=1e-12)
    assert found.loss != plain.loss
    assert (found.log_loss, found.brier, found.top_losses) == (plain.log_loss, plain.brier, plain.top_losses)


def test_summarizing_a_batch_does_not_synchronize() -> None:
    """The meta device has no values, so that reading one raises."""
    meta = torch.device("meta")
    labels = torch.zeros(30, dtype=torch.int64, device=meta)
    sums, _ = _summarize_batch(torch.zeros(30, 10, device=meta), labels, 2.0)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        sums[0].tolist()


def test_unchecked_labels_of_a_device_are_refused_at_the_end() -> None:
    class DeviceLoader:
        def in_order(self) -> Iterator[Batch]:
            yield Batch(torch.zeros(3, 3, 1, 1), torch.tensor([0, -100, 3]), torch.arange(3))

    arguments = {**ARGUMENTS, "loss_fn": lambda logits, _: logits.mean()}
    with pytest.raises(DataError, match=r"2 labels are not classes of the network\. Labels must be in \[0, 3\)"):
        evaluate(nn.Flatten(), DeviceLoader(), **arguments)


@pytest.mark.parametrize("part", ["model", "loss"])
def test_out_of_memory_names_the_part_that_does_not_fit(part: str) -> None:
    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if part == "model":
                raise torch.OutOfMemoryError("no")
            return images.flatten(1)[:, :3]

    def loss_fn(logits: Tensor, labels: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no")

    batches = [(torch.zeros(8, 3, 2, 2), torch.zeros(8, dtype=torch.int64))] * 3
    expected = {
        "model": r"A batch of 8 images does not fit .* Evaluate DataLoader\(images, batch_size=4\)",
        "loss": "The loss of 24 images does not fit into the memory of cpu. Evaluate fewer images",
    }
    with pytest.raises(DeviceMemoryError, match=expected[part]):
        evaluate(Network(), IterableLoader(batches, device=CPU), **{**ARGUMENTS, "loss_fn": loss_fn})


def test_an_unknown_preprocessing_is_an_input_error() -> None:
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"^The model was trained on floating batches, and their preprocessing"):
        check_model_fits(nn.Flatten(), image, None, "images", preprocess=None, precision=FLOAT64)
