from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifarnet.bench.student import mean_interval, p_mean_at_most, t_cdf
from cifarnet.errors import SettingError

DEGREES = st.integers(1, 60)
QUANTILES = st.floats(-40, 40)


# Of the table in every textbook: one-sided 95 %, 97.5 % and 99.5 %.
@pytest.mark.parametrize(
    ("degrees", "quantiles"),
    [
        (1, (6.3138, 12.7062, 63.6567)),
        (2, (2.9200, 4.3027, 9.9248)),
        (3, (2.3534, 3.1824, 5.8409)),
        (10, (1.8125, 2.2281, 3.1693)),
        (39, (1.6849, 2.0227, 2.7079)),
        (120, (1.6577, 1.9799, 2.6174)),
    ],
)
def test_the_distribution_is_that_of_the_tables(degrees: int, quantiles: tuple[float, ...]) -> None:
    assert [t_cdf(t, degrees) for t in quantiles] == pytest.approx([0.95, 0.975, 0.995], abs=1e-5)


@given(QUANTILES, DEGREES)
def test_the_density_integrates_to_the_distribution(t: float, degrees: int) -> None:
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)

    def density(x: float) -> float:
        return math.exp(log_scale - (degrees + 1) / 2 * math.log1p(x * x / degrees))

    steps = 2000
    width = t / steps
    inner = sum(density(i * width) * (4 if i % 2 else 2) for i in range(1, steps))
    simpson = width / 3 * (density(0) + inner + density(t))
    assert t_cdf(t, degrees) == pytest.approx(0.5 + simpson, abs=1e-6)


@given(QUANTILES, DEGREES)
def test_the_distribution_is_symmetric_and_within_bounds(t: float, degrees: int) -> None:
    assert 0 <= t_cdf(t, degrees) <= 1
    assert t_cdf(t, degrees) + t_cdf(-t, degrees) == pytest.approx(1)


def test_many_degrees_are_the_normal_distribution() -> None:
    assert t_cdf(1.3, 100_000) == pytest.approx(statistics.NormalDist().cdf(1.3), abs=1e-5)


def test_no_degrees_of_freedom_are_refused() -> None:
    with pytest.raises(SettingError, match="degrees must be at least 1, got 0"):
        t_cdf(1.0, 0)


# Student's own data: hours of sleep gained by ten patients, of 1908; the interval and p-value are in every course.
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]


def test_students_own_example() -> None:
    assert mean_interval(SLEEP) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    p_value = p_mean_at_most(SLEEP, 0.0)
    assert p_value is not None
    assert 2 * p_value == pytest.approx(0.002833, abs=1e-6)


def test_the_interval_ends_where_the_test_says_2_5_percent() -> None:
    interval = mean_interval(SLEEP)
    assert interval is not None
    assert [p_mean_at_most(SLEEP, end) for end in interval] == pytest.approx([0.025, 0.975])


def test_equal_runs_and_a_single_one_say_nothing_of_others() -> None:
    for runs in ([0.9], [0.9, 0.9, 0.9]):
        assert mean_interval(runs) is None
        assert p_mean_at_most(runs, 0.5) is None
