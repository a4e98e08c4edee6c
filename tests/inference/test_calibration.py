"""Temperature scaling, compared with a search by golden section in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from scored import answers, scored
from torch import Tensor

from cifarnet.errors import DataError, NonFiniteError
from cifarnet.inference import fit_temperature

Answers = tuple[Tensor, Tensor]


def mean_loss(logits: Tensor, labels: Tensor, temperature: float) -> float:
    scaled = logits.double().numpy() / temperature
    return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(labels)), labels.numpy()]).mean())


def search(logits: Tensor, labels: Tensor) -> float:
    """Search the logarithm of the temperature, where the loss has one minimum unless all predictions are correct."""
    assume(bool((logits.argmax(1) != labels).any()))
    ratio, low, high = (math.sqrt(5) - 1) / 2, math.log(1e-3), math.log(1e3)
    while high - low > 1e-9:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if mean_loss(logits, labels, math.exp(left)) < mean_loss(logits, labels, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


@settings(max_examples=60, deadline=None)
@given(given_=answers(least=5))
def test_the_temperature_equals_that_of_a_search(given_: Answers) -> None:
    expected = search(*given_)
    assume(2e-3 < expected < 5e2)
    found = fit_temperature(*given_)
    # Near the minimum, losses differ only by rounding, and the slope is more exact than the search.
    assert mean_loss(*given_, found) <= mean_loss(*given_, expected) + 1e-13
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_temperature_of_drawn_labels_is_recovered(num_classes: int, truth: float) -> None:
    generator = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(20_000, num_classes, generator=generator) * 3
    labels = torch.multinomial((logits / truth).softmax(1), 1, generator=generator)[:, 0]
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(truth, rel=0.05)
    plain, scaled = scored(logits, labels, batch_size=1000), scored(logits, labels, batch_size=1000, temperature=found)
    assert scaled.expected_calibration_error < 0.02
    assert truth == 1 or (scaled.log_loss < plain.log_loss - 0.005 and scaled.brier < plain.brier)


RIGHT = torch.eye(3)[torch.tensor([0, 1, 2, 0])]


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (RIGHT, [0, 1, 2, 0], DataError, r"these 4 images, because all or nearly all .*correctly\. Pass more"),
        (RIGHT, [1, 2, 0, 1], DataError, r"these 4 images, because .* level of guessing\. Train the network first"),
        (torch.ones(4, 3), [0, 1, 2, 0], DataError, "because the logits of each image are equal"),
        (RIGHT * math.nan, [0, 1, 2, 1], NonFiniteError, "NaN or infinity, so no temperature fits them"),
        (RIGHT, [0, 1, 2, 3], DataError, r"labels must be in \[0, 3\), got 0 to 3"),
        (RIGHT[:0], [], DataError, "There are no images to fit a temperature on"),
    ],
)
def test_logits_without_a_best_temperature_are_refused(
    logits: Tensor, labels: list[int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_temperature(logits, torch.tensor(labels, dtype=torch.int64))
