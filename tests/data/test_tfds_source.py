"""Stock TFDS sets: a mocked cifar10, and what is said about sets that are not there."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxdiff import data
from jaxdiff.errors import UsageError


def test_cifar10():
    with tfds.testing.mock_data(num_examples=5):
        source = data.make("cifar10")
        assert len(source) == 5
        assert source.shape == (32, 32, 3)
        assert source.num_classes == 10
        record = source[3]
        assert record["image"].shape == (32, 32, 3)
        assert record["image"].dtype == np.uint8
        assert 0 <= record["label"] < 10
        assert isinstance(record["label"], int)
        gray = data.make("cifar10", image_size=16, channels=1)
        assert gray.shape == gray[0]["image"].shape == (16, 16, 1)
        assert data.Batches(data.load(source), batch_size=4, seed=0)[0]["x0"].shape == (4, 32, 32, 3)


def test_images_of_several_sizes_ask_for_image_size():
    with tfds.testing.mock_data(num_examples=2), pytest.raises(UsageError, match="set image_size"):
        data.make("caltech101")


def test_a_set_that_is_not_prepared_says_how(tmp_path):
    with pytest.raises(UsageError) as caught:
        data.make("cifar10", data_dir=str(tmp_path))
    message = str(caught.value)
    assert "pip install 'jaxdiff[tf]'" in message
    assert "\n" not in message
    call = f'tfds.builder("cifar10", file_format="array_record", data_dir={str(tmp_path)!r}).download_and_prepare()'
    assert call in message
    assert list(tmp_path.iterdir()) == []  # nothing was started


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifr10", "'cifar10'"),
        ("dgits", "'digits'"),
        ("image_foldr", "'image_folder'"),
        ("huggingface:mnist", "allowed"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, hint):
    with pytest.raises(UsageError, match=f"unknown data set '{name}'.*{hint}") as caught:
        data.make(name)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../etc", "", "a b", "cifar10:9.9.9", "cifar10/none"])
def test_odd_names_are_one_line(name):
    with pytest.raises(UsageError) as caught:
        data.make(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"channels": 2}, "channels=2.*1 .*3"),
        ({"path": "x"}, "path='x'.*image_folder"),
        ({"skip_corrupt": True}, "skip_corrupt=True.*image_folder"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs, match):
    with pytest.raises(UsageError, match=match):
        data.make("digits", **kwargs)


def test_importing_brings_in_no_framework():
    heavy = ["tensorflow", "torch", "tensorflow_datasets", "grain", "sklearn", "PIL"]
    code = f"import sys, jaxdiff.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
