"""Metrics of logits, compared with scikit-learn and with definitions in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import FLOAT64, answers, scored
from sklearn import metrics as sklearn
from torch import Tensor, nn

from cifarnet import CifarCNN, DatasetSplits, Preprocess, Trainer
from cifarnet.errors import DataError, DeviceMemoryError
from cifarnet.inference import predict_logits
from cifarnet.inference.evaluate import evaluate
from cifarnet.inference.evaluation import NUM_BINS, NUM_TOP_LOSSES
from cifarnet.inference.loader import Batch, IterableLoader

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
@given(given_=answers(), edge=st.booleans())
def test_bins_are_those_of_the_paper(given_: Answers, edge: bool) -> None:
    """In Guo et al. (2017), bin m of M has the confidences in ((m - 1) / M, m / M]."""
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
    with pytest.raises(RuntimeError):
        evaluate(model.train(), IterableLoader([(torch.rand(2, 3, 8, 8), test.labels[:2])], device=CPU), **ARGUMENTS)
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


def test_the_loss_is_that_of_the_training(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    smooth = make_trainer(loss_fn=nn.CrossEntropyLoss(label_smoothing=0.3), precision="float64")
    plain = make_trainer(precision="float64").evaluate(synthetic.test)
    found = smooth.evaluate(synthetic.test)
    assert plain.loss == pytest.approx(plain.log_loss, rel=1e-12)
    assert found.loss != plain.loss
    some = synthetic.test.subset(torch.arange(99, 39, -1))
    for one in smooth.evaluate(some).top_losses:
        assert (one.id, one.label) == (99 - one.index, int(some.labels[one.index]))
    assert (found.log_loss, found.brier, found.top_losses) == (plain.log_loss, plain.brier, plain.top_losses)


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
