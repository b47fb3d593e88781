"""Transforms: values by hand, rates by counting."""

import numpy as np
import pytest

from jaxdiff.data import transforms
from jaxdiff.data.randomness import Draw, permutation
from jaxdiff.errors import UsageError


def images(count: int = 8, size: int = 4) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3)).astype(np.float32)


def test_unit_range_round_trip_of_every_level():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    scaled = transforms.ToUnitRange()(levels.astype(np.float32))
    assert scaled.dtype == np.float32
    assert scaled.min() == -1
    assert scaled.max() == 1
    np.testing.assert_allclose(scaled.ravel(), np.linspace(-1, 1, 256), atol=1e-6)
    assert (transforms.to_uint8(scaled) == levels).all()
    assert transforms.to_uint8(np.array([-9.0, 9.0])).tolist() == [0, 255]


@pytest.mark.parametrize(("axis", "mirrored"), [("horizontal", np.s_[:, :, ::-1]), ("vertical", np.s_[:, ::-1])])
def test_flip_mirrors_whole_images_at_its_rate(axis, mirrored):
    x = images(4000)
    y = transforms.RandomFlip(axis, rate=0.3)(x.copy(), Draw(0, 0, 4000, 0, 4000))
    flipped = (y == x[mirrored]).all((1, 2, 3))
    kept = (y == x).all((1, 2, 3))
    assert (flipped ^ kept).all()
    assert abs(flipped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)
    for rate in (0.0, 1.0):
        whole = transforms.RandomFlip(axis, rate=rate)(x.copy(), Draw(0, 0, 4000, 0, 4000))
        assert (whole == (x[mirrored] if rate else x)).all()


def test_dequantize_is_uniform_within_each_level():
    levels = np.arange(256, dtype=np.float32).reshape(256, 1, 1, 1)
    x = np.broadcast_to(levels, (256, 40, 40, 1))
    y = transforms.Dequantize()(x, Draw(0, 0, 256, 0, 256))
    assert y.dtype == np.float32
    assert y.min() >= 0
    assert y.max() < 255
    inner = y.astype(np.float64) * 256 / 255 - x
    assert inner.min() > -1e-4
    assert inner.max() < 1 + 1e-4
    error = 1 / np.sqrt(12 * inner.size)
    assert abs(inner.mean() - 0.5) < 4 * error
    assert abs(inner.var() - 1 / 12) < 1e-3


def test_dequantize_never_reaches_255():
    top = np.full((1, 1, 1, 1), 255, np.float32)
    largest = np.nextafter(np.float32(1), np.float32(0))
    y = transforms.Dequantize()(top, lambda *shape: np.full((1, *shape), largest))
    assert y.item() < 255


def test_make():
    assert transforms.make(("flip", "dequantize")) == (transforms.RandomFlip(), transforms.Dequantize())
    assert transforms.make(()) == ()
    with pytest.raises(UsageError, match=r"unknown transform 'flp': did you mean 'flip'.*dequantize"):
        transforms.make(("flp",))
    with pytest.raises(UsageError, match="give a sequence"):
        transforms.make("flip")
    with pytest.raises(UsageError, match="unknown flip axis 'horizntal': did you mean 'horizontal'"):
        transforms.RandomFlip("horizntal")
    with pytest.raises(UsageError, match=r"rate=1\.5"):
        transforms.RandomFlip(rate=1.5)


@pytest.mark.parametrize("shape", [(), (3,), (5, 7, 3), (8,)])
def test_slices_of_a_draw_are_the_draw(shape):
    whole = Draw(3, 11, 12, 0, 12)
    parts = [Draw(3, 11, 12, lo, lo + 3) for lo in range(0, 12, 3)]
    for _ in range(3):  # later calls continue the stream
        all_at_once = whole(*shape)
        assert all_at_once.dtype == np.float32
        assert (np.concatenate([part(*shape) for part in parts]) == all_at_once).all()


def test_draws_do_not_repeat():
    draw = Draw(0, 0, 1000, 0, 1000)
    streams = [draw(5), draw(5), Draw(0, 1, 1000, 0, 1000)(5), Draw(1, 0, 1000, 0, 1000)(5)]
    for i, a in enumerate(streams):
        assert abs(a.mean() - 0.5) < 0.02
        assert a.min() >= 0
        assert a.max() < 1
        for b in streams[:i]:
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.06


def test_permutations_are_uniform():
    firsts = np.array([permutation(5, 0, epoch) for epoch in range(3000)])
    assert (np.sort(firsts, axis=1) == np.arange(5)).all()
    for place in range(5):
        assert np.abs(np.bincount(firsts[:, place], minlength=5) / 3000 - 0.2).max() < 0.04
