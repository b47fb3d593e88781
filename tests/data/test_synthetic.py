"""The made-up set against its formula and against the directions its stripes are seen to have."""

import math
import pickle

import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data.synthetic import Synthetic
from jaxdiff.errors import UsageError


def test_it_has_cifar10s_size_and_any_other_that_is_asked_for():
    source = data.make("synthetic")
    assert (len(source), source.shape, source.num_classes) == (50_000, (32, 32, 3), 10)
    small = data.make("synthetic", image_size=8, channels=1, split="train[-20%:]")
    assert (len(small), small.shape) == (10_000, (8, 8, 1))
    assert small[9_999]["image"].shape == (8, 8, 1)
    with pytest.raises(IndexError):
        small[10_000]


def test_slices_and_copies_are_the_same_images():
    whole, part = Synthetic(), pickle.loads(pickle.dumps(Synthetic("train[1000:1020]")))
    for i in range(20):
        assert (part[i]["image"] == whole[1000 + i]["image"]).all()
        assert part[i]["label"] == whole[1000 + i]["label"] == i % 10


@pytest.mark.parametrize("number", [0, 3, 17, 49_999])
def test_pixels_follow_the_formula(number):
    g = 1.2  # g^5 = g + 1 by Newton's method
    for _ in range(20):
        g -= (g**5 - g - 1) / (5 * g**4 - 1)
    record = Synthetic(image_size=8)[number]
    f, *phases = (number / g**k % 1 for k in range(1, 5))
    angle = record["label"] * math.pi / 10
    for row in range(8):
        for column in range(8):
            along = (2 + f) * (column / 8 * math.cos(angle) + row / 8 * math.sin(angle))
            for channel in range(3):
                level = 127.5 * (1 + math.sin(2 * math.pi * (along + phases[channel])))
                assert abs(int(record["image"][row, column, channel]) - level) < 0.5 + 1e-3


def test_labels_are_directions():
    source = Synthetic("train[500:540]", image_size=64, channels=1)
    for i in range(40):
        record = source[i]
        down, across = np.gradient(record["image"][..., 0].astype(float))
        seen = 0.5 * math.atan2(2 * (across * down).mean(), (across**2 - down**2).mean())  # the structure tensor's axis
        off = (seen - record["label"] * math.pi / 10 + math.pi / 2) % math.pi - math.pi / 2
        assert abs(off) < math.radians(5)


@pytest.mark.parametrize("split", ["train[:2%]", "train[40000:41000]"])
def test_slices_look_like_the_whole(split):
    source = data.load(Synthetic(split))
    x = source.images / 127.5 - 1
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - math.sqrt(0.5)) < 0.01
    assert (np.bincount(source.labels, minlength=10) == 100).all()
    assert len(np.unique(source.images.reshape(len(source), -1), axis=0)) == len(source)


def test_what_does_not_fit_is_refused():
    for kwargs, match in (
        ({"split": "test"}, "split='test': allowed: 'train'"),
        ({"channels": 2}, "channels=2"),
        ({"path": "x"}, "path='x'.*image_folder"),
    ):
        with pytest.raises(UsageError, match=match):
            data.make("synthetic", **kwargs)
    with pytest.raises(UsageError, match="unknown data set 'synthetik': did you mean 'synthetic'"):
        data.make("synthetik")
