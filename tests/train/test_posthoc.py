"""Averages made from snapshots: against the same average tracked directly, and against least squares on a fine grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.train.ema import PowerEMA, exponent
from jaxdiff.train.posthoc import reconstruct, weights

STEPS, EVERY, KEPT = 2048, 64, (0.05, 0.10)


def tracked(path, sigma_rels):
    """Each average after every step, float32 [steps, ...], as training keeps it."""
    rules = [PowerEMA(sigma_rel) for sigma_rel in sigma_rels]

    def body(averages, row):
        n, params = row
        averages = [rule.update(a, params, n) for rule, a in zip(rules, averages, strict=True)]
        return averages, averages

    start = [jnp.asarray(path[0])] * len(rules)
    _, seen = jax.lax.scan(body, start, (jnp.arange(1, len(path) + 1), jnp.asarray(path)))
    return dict(zip(sigma_rels, map(np.asarray, seen), strict=True))


def snapshots(averages, last=STEPS):
    """(times, sigma_rels, arrays) of the two averages that are kept."""
    times = [step for step in range(EVERY, last + 1, EVERY) for _ in KEPT]
    sigma_rels = list(KEPT) * (len(times) // len(KEPT))
    return times, sigma_rels, [averages[s][t - 1] for t, s in zip(times, sigma_rels, strict=True)]


def walk(seed=0, width=256):
    return np.random.default_rng(seed).normal(size=(STEPS, width)).cumsum(axis=0).astype(np.float32)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize(("target", "worst"), [(0.04, 4e-3), (0.075, 1e-3), (0.15, 1e-3), (0.2, 2e-3), (0.25, 2e-2)])
def test_the_reconstruction_is_the_average_tracked_directly(target, worst):
    path = walk()
    averages = tracked(path, (*KEPT, target))
    times, sigma_rels, arrays = snapshots(averages)
    made = reconstruct(arrays, weights(times, sigma_rels, STEPS, target))
    wanted = averages[target][-1]
    # Relative to what choosing a profile changes: the distance to the nearest average that was kept.
    nearest = min(rms(averages[kept][-1] - wanted) for kept in KEPT)
    assert rms(made - wanted) < worst * nearest
    assert made.dtype == np.float32


def test_an_earlier_time_is_reconstructed_too():
    path, time = walk(), 1500
    averages = tracked(path, (*KEPT, 0.15))
    times, sigma_rels, arrays = snapshots(averages)
    made = reconstruct(iter(arrays), weights(times, sigma_rels, time, 0.15))
    wanted = averages[0.15][time - 1]
    # Coarser: the profile ends between two snapshots.
    assert rms(made - wanted) < 2e-2 * rms(averages[0.10][time - 1] - wanted)


def test_the_error_is_the_profiles_distance():
    """On independent parameters (white noise) the squared error is the sum of squared differences of the weights."""
    path = np.random.default_rng(0).normal(size=(STEPS, 4000)).astype(np.float32)
    averages = tracked(path, (*KEPT, 0.04))
    times, sigma_rels, arrays = snapshots(averages)
    found = weights(times, sigma_rels, STEPS, 0.04)

    def shares(time, sigma_rel):
        return np.diff(np.minimum(np.arange(STEPS + 1) / time, 1) ** (exponent(sigma_rel) + 1))

    profile = sum(c * shares(t, s) for c, t, s in zip(found, times, sigma_rels, strict=True))
    distance = np.linalg.norm(profile - shares(STEPS, 0.04))
    assert distance < 5e-3 * np.linalg.norm(shares(STEPS, 0.04))
    assert rms(reconstruct(arrays, found) - averages[0.04][-1]) == pytest.approx(distance, rel=0.05)


@pytest.mark.parametrize("target", [0.03, 0.08, 0.2])
def test_the_weights_are_least_squares_on_a_fine_grid(target):
    times, sigma_rels = [10, 10, 20, 20, 40], [0.05, 0.1, 0.05, 0.1, 0.1]
    t = (np.arange(200_000) + 0.5) * 40 / 200_000

    def profile(time, sigma_rel):
        g = exponent(sigma_rel)
        return np.where(t <= time, (g + 1) / time * np.minimum(t / time, 1) ** g, 0.0)

    basis = np.stack([profile(*pair) for pair in zip(times, sigma_rels, strict=True)], axis=1)
    # The last weight is 1 less the others.
    free, *_ = np.linalg.lstsq(basis[:, :-1] - basis[:, -1:], profile(40, target) - basis[:, -1], rcond=None)
    wanted = np.append(free, 1 - free.sum())
    np.testing.assert_allclose(weights(times, sigma_rels, 40, target), wanted, rtol=1e-4, atol=1e-4)


def test_a_snapshot_is_its_own_reconstruction_even_if_it_is_there_twice():
    found = weights([50, 100, 100], [0.1, 0.1, 0.1], 100, 0.1)
    np.testing.assert_allclose(found, [0, 0.5, 0.5], atol=1e-9)


def test_what_never_moved_comes_back_as_it_was():
    times, sigma_rels = [10, 10, 20, 20], [0.05, 0.1] * 2
    for target in (0.03, 0.25):
        assert weights(times, sigma_rels, 20, target).sum() == pytest.approx(1, abs=1e-12)


def test_trees_keep_their_types_and_add_up_in_float64():
    trees = [{"a": jnp.float32(a), "b": jnp.ones(2, jnp.bfloat16)} for a in (1e8, 3, 1e8)]
    made = reconstruct(trees, [1.0, 1.0, -1.0])
    assert made["a"] == 3
    assert made["b"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (([], [], 1, 0.1), "0 times and 0 sigma_rels"),
        (([1, 2], [0.1], 1, 0.1), "2 times and 1 sigma_rels"),
        (([0, 2], [0.1, 0.1], 1, 0.1), "times has 0"),
        (([1, 2], [0.1, 0.1], 3, 0.1), "target_time=3: allowed is 1 to 2"),
        (([1, 2], [0.1, 0.1], 2, 0.5), "sigma_rel=0.5"),
    ],
)
def test_what_cannot_work_is_one_line(args, words):
    with pytest.raises(UsageError, match=words):
        weights(*args)


def test_snapshots_are_counted():
    for number, words in ((0, "0 snapshots"), (1, "1 snapshots"), (3, "3 or more snapshots")):
        with pytest.raises(UsageError, match=f"{words} and 2 coefficients"):
            reconstruct([np.ones(1)] * number, [0.5, 0.5])
