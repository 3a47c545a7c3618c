import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from diffsim._errors import ConfigError
from diffsim._statistics import blocking, controlled_mean, effective_sample_size

SEEDS = 400


def recursive(coefficients, samples, seed):
    """Stationary series x_t = Σ a_i x_t-i + noise of variance 1, and the true error of its mean."""
    polynomial = np.array([1.0, *(-a for a in coefficients)])
    response = lfilter([1.0], polynomial, np.eye(1, 8192)[0])
    covariance = np.correlate(response, response, "full")[8191:]
    noise = np.random.default_rng(seed).standard_normal((samples + 3000, SEEDS))
    series = lfilter([1.0], polynomial, noise, axis=0)[3000:] / np.sqrt(covariance[0])
    rho = np.zeros(samples)
    rho[: len(covariance)] = (covariance / covariance[0])[:samples]
    return series, rho


def true_error(rho):
    n = len(rho)
    return np.sqrt((1 + 2 * np.sum((1 - np.arange(1, n) / n) * rho[1:])) / n)


# Coefficients, samples, bounds of the average ratio of the estimated error to the true one.
SERIES = {
    "white, 200": ((0.0,), 200, (0.98, 1.12)),
    "white, 5000": ((0.0,), 5000, (0.98, 1.12)),
    "0.5, 200": ((0.5,), 200, (0.98, 1.12)),
    "0.5, 5000": ((0.5,), 5000, (0.98, 1.12)),
    "0.9, 200 (11 independent)": ((0.9,), 200, (0.8, 1.05)),
    "0.9, 1000": ((0.9,), 1000, (0.98, 1.12)),
    "0.9, 5000": ((0.9,), 5000, (0.98, 1.12)),
    "0.99, 1000 (6 independent)": ((0.99,), 1000, (0.65, 1.0)),
    "0.99, 5000": ((0.99,), 5000, (0.9, 1.1)),
    "anticorrelated, 1000": ((-0.5,), 1000, (0.98, 1.2)),
    "period 6, 1000": ((0.7, -0.49), 1000, (0.98, 1.15)),
    "period 20, 5000": ((1.8068, -0.9025), 5000, (0.98, 1.15)),
}


@pytest.mark.parametrize("name", SERIES)
def test_the_error_is_the_true_one(name):
    coefficients, samples, (low, high) = SERIES[name]
    series, rho = recursive(coefficients, samples, seed=1)
    average = blocking(series)
    ratio = average.stderr / true_error(rho)
    assert low < ratio.mean() < high
    assert ratio.std() < 0.4
    if "independent" not in name:
        covered = np.abs(average.mean) < 2 * average.stderr
        assert 0.9 < covered.mean() <= 0.99


def test_a_weak_slow_part_shows():
    slow, rho = recursive((0.97,), 5000, seed=2)
    noise = np.random.default_rng(3).standard_normal(slow.shape)
    series = np.sqrt(0.02) * slow + np.sqrt(0.98) * noise
    rho = 0.02 * rho
    rho[0] = 1
    ratio = blocking(series).stderr / true_error(rho)
    assert 0.97 < ratio.mean() < 1.12
    naive = series.std(axis=0) / np.sqrt(5000) / true_error(rho)
    assert naive.mean() < 0.7


@pytest.mark.parametrize(("phi", "tolerance"), [(0.0, 0.2), (0.5, 0.2), (0.9, 0.2), (0.97, 0.25)])
def test_correlation_time(phi, tolerance):
    series, _ = recursive((phi,), 5000, seed=4)
    average = blocking(series)
    expected = (1 + phi) / (1 - phi)
    assert np.median(average.correlation_time) == pytest.approx(expected, rel=tolerance)
    np.testing.assert_allclose(
        average.effective_samples * average.correlation_time, 5000, rtol=1e-12
    )


def test_weighted_mean_has_the_error_that_its_scatter_shows():
    """Reweighting N(0, 1) to N(0.5, 1): the mean is 0.5, and correlation comes on top."""
    series, _ = recursive((0.8,), 2000, seed=5)
    average = blocking(series, weights=np.exp(0.5 * series))
    assert average.mean.mean() == pytest.approx(0.5, abs=0.02)
    scatter = average.mean.std()
    assert 0.9 < average.stderr.mean() / scatter < 1.12
    # Kish's size, divided by the correlation: var/stderr² counts both.
    kish = effective_sample_size(0.5 * series)
    assert np.all(average.effective_samples < kish)
    assert kish.mean() == pytest.approx(2000 * np.exp(-0.25), rel=0.05)


def test_equal_weights_change_nothing():
    series, _ = recursive((0.5,), 300, seed=6)
    plain = blocking(series)
    for weights in (np.full(300, 2.0), np.full(series.shape, 3.0)):
        for a, b in zip(plain, blocking(series, weights=weights), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


def test_a_sample_without_weight_does_not_count():
    series = np.random.default_rng(7).standard_normal(400)
    weights = np.ones(400)
    weights[200:] = 0
    average = blocking(series, weights=weights)
    assert average.mean == pytest.approx(series[:200].mean())
    assert average.stderr == pytest.approx(series[:200].std() / np.sqrt(200), rel=0.4)


def test_axes():
    series = np.random.default_rng(8).standard_normal((100, 2, 3))
    average = blocking(series)
    assert average.mean.shape == average.stderr.shape == (2, 3)
    turned = blocking(np.moveaxis(series, 0, -1), axis=-1)
    np.testing.assert_allclose(turned.stderr, average.stderr, rtol=1e-12)
    alone = blocking(series[:, 1, 2])
    assert alone.mean.shape == ()
    assert alone.stderr == pytest.approx(average.stderr[1, 2], rel=1e-12)


def test_a_constant_series_has_no_error():
    average = blocking(np.stack([np.full(100, 0.1), np.arange(100.0)], axis=1))
    assert average.mean[0] == 0.1
    assert average.stderr[0] == 0
    assert average.correlation_time[0] == 1
    assert average.effective_samples[0] == 100
    assert average.stderr[1] > 10
    weights = np.repeat([1.0, 0.0], 50)
    assert blocking(1 - weights, weights=weights).stderr == 0


def test_alternation_keeps_a_positive_error():
    average = blocking(np.tile([1.0, -1.0], 500))
    assert 0 < average.stderr < 1e-2
    assert np.isfinite(average.effective_samples)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_column(bad):
    series = np.random.default_rng(9).standard_normal((50, 2))
    series[7, 0] = bad
    average = blocking(series)
    assert all(np.isnan(value[0]) and np.isfinite(value[1]) for value in average)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_few_samples_have_an_infinite_error(samples):
    average = blocking(np.arange(samples, dtype=float))
    assert average.mean == pytest.approx((samples - 1) / 2)
    assert average.stderr == np.inf
    assert np.isnan(average.correlation_time)
    assert average.effective_samples == 0


def test_one_weight_that_counts_is_no_sample():
    series = np.random.default_rng(11).standard_normal((100, 2))
    weights = np.full((100, 2), 1e-9)
    weights[3, 0] = weights[:50, 1] = 1e300
    average = blocking(series, weights=weights)
    assert average.mean[0] == pytest.approx(series[3, 0])
    assert average.stderr[0] == np.inf
    assert average.effective_samples[0] == 0
    assert average.stderr[1] < 1


def test_weights_are_checked():
    series = np.ones((20, 2))
    with pytest.raises(ConfigError, match="weights"):
        blocking(series, weights=-np.ones(20))
    with pytest.raises(ConfigError, match="weights"):
        blocking(series, weights=np.ones(19))
    with pytest.raises(ConfigError, match="samples"):
        blocking(np.ones((0, 2)))
    assert np.all(np.isnan(blocking(series, weights=np.zeros(20)).mean))


def test_effective_sample_size():
    assert effective_sample_size(np.full(50, -1e4)) == pytest.approx(50)
    assert effective_sample_size(np.array([0.0, -1e3, -1e3])) == pytest.approx(1)
    w = np.random.default_rng(10).uniform(0, 1, (30, 4))
    kish = w.sum(axis=0) ** 2 / (w**2).sum(axis=0)
    np.testing.assert_allclose(effective_sample_size(np.log(w) + 700), kish, rtol=1e-12)
    np.testing.assert_allclose(effective_sample_size(np.log(w).T, axis=1), kish, rtol=1e-12)
    assert np.isnan(effective_sample_size(np.array([0.0, np.nan])))
    assert np.isnan(effective_sample_size(np.full(3, -np.inf)))


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(1e-200, 1e200),
    shift=st.floats(-1e3, 1e3),
    samples=st.integers(8, 300),
    seed=st.integers(0, 1000),
)
def test_the_error_scales_and_does_not_shift(scale, shift, samples, seed):
    series = np.random.default_rng(seed).standard_normal(samples)
    plain, moved = blocking(series), blocking(scale * (series + shift))
    assert moved.mean == pytest.approx(scale * (plain.mean + shift), rel=1e-9, abs=1e-9 * scale)
    assert moved.stderr == pytest.approx(scale * plain.stderr, rel=1e-6)
    assert moved.effective_samples == pytest.approx(plain.effective_samples, rel=1e-6)


def test_a_control_takes_its_share_of_the_scatter():
    rng = np.random.default_rng(21)
    control = 300 + 9 * rng.standard_normal((4000, 8))
    values = 2 + 0.05 * (control - 300) + 0.1 * rng.standard_normal((4000, 8))
    found = np.array([controlled_mean(y, c, 300.0) for y, c in zip(values, control, strict=True)])
    mean, error = found.T
    assert np.mean(mean) == pytest.approx(2.0, abs=4 * np.std(mean) / 4000**0.5)
    plain = np.mean(values, axis=1)
    assert np.std(mean) < 0.35 * np.std(plain)  # 0.05 · 9 = 0.45 beside 0.1
    assert np.mean(error**2) == pytest.approx(np.var(mean), rel=0.1)


def test_the_plain_mean_where_no_line_can_be_told():
    y = np.array([1.0, 3.0, 2.0, 4.0])
    plain = pytest.approx((2.5, np.std(y, ddof=1) / 2))
    assert controlled_mean(y, y, 0.0) == plain  # four values
    assert controlled_mean(np.tile(y, 2), np.ones(8), 0.0)[0] == 2.5  # one temperature
    assert controlled_mean(y[:1], y[:1], 0.0) == (1.0, np.inf)
