from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cifarnet.errors import SettingError
from cifarnet.inference import top_k_accuracy, wilson_interval
from cifarnet.inference.metrics import RunningMetrics

CPU = torch.device("cpu")


@given(num_images=st.integers(1, 10_000), data=st.data())
def test_the_interval_solves_wilsons_equation(num_images: int, data: st.DataObject) -> None:
    num_correct, z = data.draw(st.integers(0, num_images)), 1.959964
    share = num_correct / num_images
    low, high = wilson_interval(num_correct, num_images)
    assert 0 <= low < high <= 1
    for end in (low, high):
        # Its ends are the p that are just z standard errors away from what was seen.
        assert math.isclose((share - end) ** 2, z * z * end * (1 - end) / num_images, rel_tol=1e-6, abs_tol=1e-12)
    with pytest.raises(SettingError, match=r"num_correct must be in \[0, num_images\]"):
        wilson_interval(num_images + 1, num_images)


def test_top_k_counts_the_true_class_among_k_guesses() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    labels = torch.tensor([0, 1, 1])
    assert [top_k_accuracy(logits, labels, k=k) for k in (1, 2, 3)] == [1 / 3, 2 / 3, 1.0]
    with pytest.raises(SettingError, match=r"k must be in \[1, 3\], got 4"):
        top_k_accuracy(logits, labels, k=4)


def test_running_metrics_equal_those_of_all_images_after_a_save() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 4), torch.randint(4, (10,))
    metrics, resumed = RunningMetrics(CPU), RunningMetrics(CPU)
    for i, part in enumerate((slice(0, 4), slice(4, 8))):
        metrics.add(nn.functional.cross_entropy(logits[part], labels[part]), logits[part], labels[part], i)
    resumed.load_state_dict(metrics.state_dict())
    for one in (metrics, resumed):
        one.add(nn.functional.cross_entropy(logits[8:], labels[8:]), logits[8:], labels[8:], 2)
    totals = metrics.read()
    assert totals == resumed.read()
    assert totals.num_images == 10
    assert totals.accuracy == int((logits.argmax(1) == labels).sum()) / 10
    assert totals.mean_loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    metrics.reset()
    assert (metrics.read().num_images, math.isnan(metrics.read().accuracy)) == (0, True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_running_metrics_keep_the_first_bad_step(bad: float) -> None:
    metrics, logits, labels = RunningMetrics(CPU), torch.zeros(1, 2), torch.tensor([0])
    for step, loss in enumerate([1.0, bad, 1.0, bad]):
        metrics.add(torch.tensor(loss), logits, labels, step)
    assert metrics.read().first_bad_step == 1
