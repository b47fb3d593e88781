"""The embedded data set: scikit-learn's 1,797 handwritten digits as a TFDS set that needs no network and no TensorFlow.

The images are 8x8 with values 0..16, scaled to 0..255. One split, "train"; slices make others ("train[90%:]").

Preparing is safe to interrupt and to run several times at once. TFDS's own temporary folder takes its name from
Python's global random state, so two processes that seeded it alike would write into the same one. Here every process
prepares in a folder of its own and renames the finished version into place: the first to arrive wins, the others
find it there.
"""

import contextlib
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxdiff.errors import UsageError

_STAGING = "incomplete.digits-"
_ABANDONED_S = 3600.0  # a preparation takes about a second; one an hour old was killed


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8x8 pixels, gray, ten classes.

    Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's 1,797 handwritten digits, 8x8, gray, scaled to 0..255.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.round(digits.images * (255.0 / 16.0)).astype(np.uint8)
        for key, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
            # A PIL image is encoded by PIL; an array would be encoded by TensorFlow.
            yield key, {"image": Image.fromarray(image), "label": int(label)}


def prepare(data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """The builder of the digits, prepared in `data_dir` where it was not yet.

    Args:
        data_dir: root of the TFDS folder; None for TFDS's default.

    Returns:
        A builder that can be read.

    Raises:
        UsageError: where `data_dir` cannot be written or holds something else under that name.
    """
    with _quiet():
        builder = Digits(data_dir=data_dir, file_format="array_record")
        final = Path(builder.data_path)
        if _ready(final):
            return builder
        root = final.parent.parent
        try:
            root.mkdir(parents=True, exist_ok=True)
            _sweep(root)
            _prepare_aside(root, final)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"data_dir={str(root)!r}: cannot prepare the digits there ({reason})") from None
        return Digits(data_dir=str(root), file_format="array_record")


def _prepare_aside(root: Path, final: Path) -> None:
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root))
    try:
        builder = Digits(data_dir=str(staging), file_format="array_record")
        builder.download_and_prepare()
        final.parent.mkdir(exist_ok=True)
        try:
            os.rename(builder.data_path, final)  # atomic; refused where another process already put a full one
        except OSError:
            if not _ready(final):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _ready(folder: Path) -> bool:
    # TFDS writes this file last, and the folder only gets its name once it is complete.
    return (folder / "dataset_info.json").is_file()


def _sweep(root: Path) -> None:
    """Remove what killed preparations left behind."""
    for folder in root.glob(_STAGING + "*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS's banner, progress bars and advice off the terminal."""
    from tensorflow_datasets.core.utils import tqdm_utils

    logger = logging.getLogger("absl")
    level, bars = logger.level, getattr(tqdm_utils, "_active", True)
    logger.setLevel(logging.ERROR)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(bars)
        logger.setLevel(level)
