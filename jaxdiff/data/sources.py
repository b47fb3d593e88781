"""Where images come from, by name, behind one interface.

A source is a sized, random-access collection of uint8 images of one shape. Random access is what makes a batch a pure
function of (seed, step); one shape is what makes a batch an array. There are four kinds:

* `digits`: 1,797 real handwritten digits, 8x8, on every machine without a network (`digits.py`);
* `synthetic`: 50,000 images of stripes of CIFAR-10's size, made up as they are asked for (`synthetic.py`);
* any TFDS data set that is prepared in `data_dir` (`tfds_source.py`);
* `image_folder`: a folder of image files, with or without class folders (`folder.py`).
"""

from typing import Any, Protocol, runtime_checkable

from jaxdiff.errors import UsageError


@runtime_checkable
class Source(Protocol):
    """A sized, random-access collection of images of one shape; two attributes (or properties) and two methods."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""

    @property
    def num_classes(self) -> int:
        """How many labels there are; 0: the images have none."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """{"image": uint8 [H, W, C], "label": int}; "label" only when num_classes > 0."""


def make(
    name: str,
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    data_dir: str | None = None,
    path: str | None = None,
    skip_corrupt: bool = False,
) -> Source:
    """Open a data set by name.

    Args:
        name: "digits", "synthetic", "image_folder", or a TFDS name such as "cifar10", "mnist", "lsun/bedroom",
            "celeb_a:2.1.0".
        split: a TFDS split, slices included: "train", "test", "train[:90%]", "train[1000:2000]".
        image_size: side in pixels: the shorter side is scaled to it, then the centre square is cut out. None keeps
            the size, which then has to be the same for all images.
        channels: 1 (gray) or 3 (RGB); None keeps what the images have.
        data_dir: where TFDS keeps prepared sets; None: `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        path: the folder of "image_folder".
        skip_corrupt: "image_folder" only: leave unreadable files out, with a warning that counts them.

    Returns:
        A source. Nothing is ever downloaded.

    Raises:
        UsageError: for an unknown name or split, a set that is not prepared, or a folder that cannot be used.

    Examples:
        >>> source = make("digits", split="train[:10%]")
        >>> len(source), source.shape, source.num_classes
        (180, (8, 8, 1), 10)
    """
    from jaxdiff.data.images import check_shape

    check_shape(image_size, channels)
    if name == "image_folder":
        from jaxdiff.data.folder import ImageFolder

        if path is None:
            raise UsageError("data set 'image_folder' needs path: give the folder that holds the images")
        return ImageFolder(path, split=split, image_size=image_size, channels=channels, skip_corrupt=skip_corrupt)
    if path is not None or skip_corrupt:
        given = f"path={str(path)!r}" if path is not None else "skip_corrupt=True"
        raise UsageError(f"{given} is for the data set 'image_folder' only, got name={name!r}")
    if name == "synthetic":
        from jaxdiff.data.synthetic import Synthetic

        return Synthetic(split, image_size or 32, channels or 3)
    from jaxdiff.data import tfds_source

    if name == "digits":
        from jaxdiff.data.digits import prepare

        builder = prepare(data_dir)
    else:
        builder = tfds_source.find(name, data_dir)
    data = tfds_source.read(builder, split, name=name, data_dir=data_dir)
    return tfds_source.TfdsSource(builder, data, image_size=image_size, channels=channels)
