"""The embedded set against scikit-learn's own arrays, and its preparation under faults."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxdiff import data
from jaxdiff.errors import UsageError


def test_every_image_and_label_is_scikit_learns(tfds_dir):
    source = data.load(data.make("digits", data_dir=str(tfds_dir)))
    assert len(source) == 1797
    assert source.shape == (8, 8, 1)
    assert source.num_classes == 10
    wanted = load_digits()
    pixels = np.floor(wanted.images * 255 / 16 + 0.5).astype(np.uint8).reshape(1797, 64)
    ours = sorted(
        (*image.ravel().tolist(), int(label)) for image, label in zip(source.images, source.labels, strict=True)
    )
    assert ours == sorted((*image.tolist(), int(label)) for image, label in zip(pixels, wanted.target, strict=True))
    assert source.images.max() == 255
    assert source.images.min() == 0


def test_slices_are_disjoint_and_complete(tfds_dir):
    def labels(split):
        source = data.make("digits", split=split, data_dir=str(tfds_dir))
        return [source[i]["label"] for i in range(len(source))]

    head, tail = labels("train[:90%]"), labels("train[90%:]")
    assert (len(head), len(tail)) == (1617, 180)
    assert head + tail == labels("train")
    assert set(tail) == set(range(10))


def test_size_and_channels_are_brought_to_what_is_asked(tfds_dir):
    source = data.make("digits", image_size=16, channels=3, data_dir=str(tfds_dir))
    image = source[0]["image"]
    assert source.shape == image.shape == (16, 16, 3)
    assert image.dtype == np.uint8
    assert (image[..., 0] == image[..., 2]).all()
    assert image.max() > 100


@pytest.mark.parametrize("split", ["tran", "train[5", "train[:0]", "train[5000:]", "", "test"])
def test_wrong_split_names_the_splits(tfds_dir, split):
    with pytest.raises(UsageError, match="train") as caught:
        data.make("digits", split=split, data_dir=str(tfds_dir))
    assert "\n" not in str(caught.value)


def _prepare(folder: str, barrier) -> None:
    random.seed(0)  # TFDS names its temporary folder by this state
    import jaxdiff.data.digits  # noqa: F401  (imported before the start, so that all start together)

    barrier.wait()
    if len(data.make("digits", data_dir=folder)) != 1797:
        os._exit(1)


def test_three_processes_prepare_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_prepare, args=(str(tmp_path), barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]
    assert [entry.name for entry in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_a_killed_preparation_is_made_good_and_swept_up(tmp_path):
    code = "import sys; from jaxdiff import data; data.make('digits', data_dir=sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 30
    while not (left := list(tmp_path.glob("incomplete.*"))) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left
    assert left[0].exists()
    assert not (tmp_path / "digits" / "1.0.0").exists()
    os.utime(left[0], (0, 0))
    assert len(data.make("digits", data_dir=str(tmp_path))) == 1797
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]


def test_preparing_is_silent(tmp_path):
    code = "import sys; from jaxdiff import data; data.make('digits', data_dir=sys.argv[1])[0]"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_data_dir_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"data_dir=.*cannot prepare"):
        data.make("digits", data_dir=str(tmp_path / "file"))
    broken = Path(tmp_path / "digits" / "1.0.0")
    broken.mkdir(parents=True)
    (broken / "something").write_text("")
    with pytest.raises(UsageError, match="data_dir="):
        data.make("digits", data_dir=str(tmp_path))
