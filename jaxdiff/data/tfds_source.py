"""Prepared TFDS data sets, read without TensorFlow.

`tfds.data_source` reads the array_record format with random access in pure Python. Preparing a stock set is another
matter (most need TensorFlow and all need a network), so it is never done here: the error says how.
"""

import difflib
import logging
import re
from typing import Any

import numpy as np
from PIL import Image

from jaxdiff.data.images import fit
from jaxdiff.errors import UsageError, unknown

NAMES = ("digits", "synthetic", "image_folder")  # the sets that are not TFDS's own

# name, name/config, name:1.2.3. Anything else is not looked up: TFDS would go to the network for "huggingface:name".
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(/[A-Za-z0-9_.+-]+)?(:\d+\.\d+\.\d+)?")


def find(name: str, data_dir: str | None = None) -> Any:
    """The builder of a data set, by name.

    Args:
        name: a TFDS name, with config and version where wanted.
        data_dir: root of the TFDS folder; None for TFDS's default.

    Returns:
        A `tfds.core.DatasetBuilder`.

    Raises:
        UsageError: for a name that TFDS does not know.
    """
    import tensorflow_datasets as tfds

    if not _NAME.fullmatch(name):
        raise _unknown_set(name)
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise _unknown_set(name) from None
    except ImportError as error:
        raise UsageError(f"data set {name!r} needs {error.name or error}: pip install 'jaxdiff[tf]'") from None
    except (ValueError, AssertionError) as error:  # an unknown config or version
        raise UsageError(f"data set {name!r}: {_first_sentence(error)}") from None


def read(builder: Any, split: str, *, name: str, data_dir: str | None = None) -> Any:
    """One split of a prepared data set.

    Args:
        builder: what `find` gave.
        split: a TFDS split, slices included.
        name: what the user called the set.
        data_dir: what the user gave as `data_dir`.

    Returns:
        A random-access sequence of records, not empty.

    Raises:
        UsageError: where the set is not prepared or has no such split.
    """
    splits = list(builder.info.splits)
    base = re.split(r"[\[+]", split, maxsplit=1)[0].strip()
    if splits and base not in {*splits, "all"}:
        raise unknown(f"split of {name}", base, splits)
    try:
        data = builder.as_data_source(split=split)
    except Exception as error:
        # TFDS raises whatever came first, a missing format or a missing split: look for the cause.
        folder = builder.data_path
        if not (folder / "dataset_info.json").exists():
            raise UsageError(f"data set {name!r} is not prepared: {_how_to_prepare(name, data_dir)}") from None
        if isinstance(error, NotImplementedError):
            how = f"remove {str(folder)!r}, then {_how_to_prepare(name, data_dir)}"
            raise UsageError(f"data set {name!r} is prepared in a format without random access: {how}") from None
        if isinstance(error, ValueError | AssertionError | KeyError):
            allowed = f"the splits are: {', '.join(splits)}"
            raise UsageError(f"split={split!r} of {name!r}: {_first_sentence(error)}; {allowed}") from None
        raise
    if len(data) == 0:
        raise UsageError(f"split={split!r} of {name!r} holds no images; the splits are: {', '.join(splits)}")
    return data


class TfdsSource:
    """One split of a prepared TFDS data set.

    Args:
        builder: a `tfds.core.DatasetBuilder`.
        data: its records, from `read`.
        image_size: side of the centre square in pixels; None keeps the images as they are.
        channels: 1, 3 or None, which keeps what the images have (3 for images with an alpha channel).

    The first `Image` feature is the image and the first `ClassLabel`, if any, the label. A negative label (TFDS's mark
    for an unlabelled example) is given as `num_classes`, the null label.

    Raises:
        UsageError: for a set without images, or images of several sizes and no `image_size`.
    """

    shape: tuple[int, int, int]
    num_classes: int

    def __init__(self, builder: Any, data: Any, *, image_size: int | None = None, channels: int | None = None) -> None:
        import tensorflow_datasets as tfds

        self.name = builder.name
        features = dict(builder.info.features.items()) if hasattr(builder.info.features, "items") else {}
        images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
        if not images:
            raise UsageError(f"data set {self.name!r} has no image feature, only: {', '.join(sorted(features))}")
        self._image_key, self._label_key = images[0], labels[0] if labels else None
        feature = features[self._image_key]
        if np.dtype(feature.np_dtype) != np.uint8:
            raise UsageError(f"data set {self.name!r}: images are {np.dtype(feature.np_dtype)}, only uint8 can be read")
        height, width, depth = feature.shape
        if image_size is None and (height is None or width is None):
            raise UsageError(f"data set {self.name!r} has images of several sizes: set image_size")
        channels = channels or (1 if depth == 1 else 3)
        self.shape = (image_size or height, image_size or width, channels)
        self.num_classes = features[self._label_key].num_classes if self._label_key else 0
        self._size = image_size
        self._as_stored = (height, width, depth) == self.shape
        self._data = data
        _hush()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _hush()  # in a worker process

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._data[index]
        pixels = record[self._image_key]
        if not self._as_stored:
            gray = pixels.shape[-1] == 1  # which PIL wants without the channel axis
            pixels = fit(Image.fromarray(pixels[..., 0] if gray else pixels), self.shape[2], self._size)
        if self._label_key is None:
            return {"image": pixels}
        label = int(record[self._label_key])
        return {"image": pixels, "label": label if label >= 0 else self.num_classes}


def _without_opencv_advice(record: logging.LogRecord) -> bool:
    return "OpenCV is not installed" not in str(record.msg)


def _hush() -> None:
    """Keep TFDS from advising OpenCV in every process: PIL decodes the same pixels everywhere."""
    logging.getLogger("absl").addFilter(_without_opencv_advice)  # adding it again changes nothing


def _first_sentence(error: Exception) -> str:
    # TFDS prefixes the call it was making and appends links and long lists.
    text = " ".join(str(error).split()).rsplit('}": ', 1)[-1]
    return text.split(". ")[0][:200].rstrip(".")


def _how_to_prepare(name: str, data_dir: str | None) -> str:
    where = f", data_dir={str(data_dir)!r}" if data_dir is not None else ""
    call = f'tfds.builder("{name}", file_format="array_record"{where}).download_and_prepare()'
    return f"pip install 'jaxdiff[tf]', then in Python: import tensorflow_datasets as tfds; {call}"


def _unknown_set(name: str) -> UsageError:
    import tensorflow_datasets as tfds

    names = [*NAMES, *tfds.list_builders(with_community_datasets=False)]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    allowed = f"{', '.join(NAMES)}, or a name of tfds.list_builders()"
    return UsageError(f"unknown data set {name!r}: {hint}allowed: {allowed}")
