"""A folder of image files as a data set, over PIL.

Images directly in the folder have no labels; otherwise every subfolder is a class, numbered in the order of the sorted
names. Files come in the order of a hash of their relative path: a fixed order in which the classes are mixed, so that
"train[:90%]" holds all of them, and in which a file keeps its side of a split when others are added.

The files are taken to be hostile. Every header is read when the source is made, and an image that claims more pixels
than `max_pixels` is refused before anything is decoded; links that leave the folder are refused; only five formats
are tried, whatever the names say.
"""

import os
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxdiff.data.images import GRAY_MODES, check_shape, fit
from jaxdiff.data.listing import list_images
from jaxdiff.data.splits import bounds
from jaxdiff.errors import UsageError

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_SKIP_HINT = "mend or remove it, or set data.skip_corrupt=True to leave such files out"
_MAX_PIXELS = 64 * 2**20


class _Header(NamedTuple):
    width: int
    height: int
    gray: bool


class ImageFolder:
    """The images of a folder.

    Args:
        path: the folder.
        split: "train" or a slice of it.
        image_size: side of the centre square in pixels; None keeps the size, which has to be one for all.
        channels: 1, 3, or None: 1 where every image is gray, else 3.
        skip_corrupt: leave unreadable files out (every file is decoded once to find them) and warn how many.
        max_pixels: largest width x height that is decoded.

    Attributes:
        classes: the class names, in the order of their labels; empty without labels.
        skipped: how many unreadable files were left out.

    Raises:
        UsageError: for a folder without images, an unreadable file, links out of the folder, mixed sizes without
            `image_size`; from `__getitem__` for a file that turns out to be corrupt.

    Examples:
        >>> import tempfile, numpy as np
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as path:
        ...     Image.new("RGB", (40, 30)).save(path + "/a.png")
        ...     ImageFolder(path, image_size=16)[0]["image"].shape
        (16, 16, 3)
    """

    shape: tuple[int, int, int]
    num_classes: int

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str = "train",
        image_size: int | None = None,
        channels: int | None = None,
        skip_corrupt: bool = False,
        max_pixels: int = _MAX_PIXELS,
    ) -> None:
        check_shape(image_size, channels)
        self.root, self.max_pixels, self._size = Path(path), max_pixels, image_size
        self.classes, files = _list(self.root)
        found = _checked(files, max_pixels, skip_corrupt)
        errors = [header for header in found if isinstance(header, UsageError)]
        if errors and not skip_corrupt:
            more = f"; {len(errors) - 1} more such files: 'jaxdiff data' lists them" if len(errors) > 1 else ""
            raise UsageError(f"{errors[0]}{more}")
        self.skipped = len(errors)
        good = [file for file, header in zip(files, found, strict=True) if not isinstance(header, UsageError)]
        headers = [header for header in found if not isinstance(header, UsageError)]
        if not good:
            raise UsageError(f"path={str(path)!r} holds no readable image ({len(errors)} unreadable)")
        if errors:
            warnings.warn(f"{path}: left out {len(errors)} of {len(files)} images, first: {errors[0]}", stacklevel=2)
        selected = bounds(split, len(good))
        self._files = [good[i] for i in selected]
        # Shape and channels come from the whole folder: the slices of one folder agree.
        sizes = {(header.height, header.width) for header in headers}
        if image_size is None and len(sizes) > 1:
            some = ", ".join(f"{w}x{h}" for h, w in sorted(sizes)[:3])
            raise UsageError(f"path={str(path)!r} has images of {len(sizes)} sizes ({some}, ...): set image_size")
        height, width = (image_size, image_size) if image_size is not None else sizes.pop()
        self.shape = (height, width, channels or (1 if all(header.gray for header in headers) else 3))
        self.num_classes = len(self.classes)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, label = self._files[index]
        pixels = self._read(file)
        if pixels.shape != self.shape:
            raise UsageError(f"image {str(file)!r} changed: its shape is {pixels.shape}, was {self.shape}")
        return {"image": pixels, "label": label} if self.num_classes else {"image": pixels}

    def _read(self, file: Path) -> np.ndarray:
        with _Opened(file, self.max_pixels) as image:
            return fit(image, self.shape[2], self._size)


def unreadable(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = _MAX_PIXELS,
    each: Callable[[int, int], None] | None = None,
) -> list[UsageError]:
    """What is wrong with the images of a folder: every file is decoded, and one error says what is wrong with it.

    Args:
        path: the folder.
        max_pixels: largest width x height that is decoded.
        each: called with how many files were looked at, and of how many.

    Returns:
        The errors, which name the files; none where all can be read.

    Raises:
        UsageError: for a folder without images, or links out of it.
    """
    return [error for error in _checked(_list(Path(path))[1], max_pixels, True, each) if isinstance(error, UsageError)]


def _list(root: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    if not root.is_dir():
        raise UsageError(f"path={str(root)!r} is not a folder")
    return list_images(root)


def _checked(
    files: Sequence[tuple[Path, int]], max_pixels: int, decode: bool, each: Callable[[int, int], None] | None = None
) -> list[_Header | UsageError]:
    """What the header of every file says, or what is wrong with the file."""
    found: list[_Header | UsageError] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of large headers: max_pixels decides about them
        for file, _ in files:
            try:
                with _Opened(file, max_pixels) as image:
                    if decode:
                        image.load()
                    found.append(_Header(image.width, image.height, image.mode in GRAY_MODES))
            except UsageError as error:
                found.append(error)
            if each is not None:
                each(len(found), len(files))
    return found


class _Opened:
    """A PIL image whose header is checked; whatever goes wrong inside is one `UsageError` that names the file."""

    def __init__(self, file: Path, max_pixels: int) -> None:
        self.file, self.max_pixels = file, max_pixels

    def __enter__(self) -> Any:
        try:
            if not stat.S_ISREG(os.stat(self.file).st_mode):  # opening a pipe would wait for ever
                raise UsageError(f"image {str(self.file)!r} is not a regular file: remove it")
            self.image = Image.open(self.file, formats=_FORMATS)
        except Exception as error:
            raise self._mended(error) from None
        pixels = self.image.width * self.image.height
        if pixels > self.max_pixels:
            self.image.close()
            size = f"{self.image.width} x {self.image.height}"
            raise UsageError(f"image {str(self.file)!r} is {size}, over {self.max_pixels} pixels: {_SKIP_HINT}")
        return self.image

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.image.close()
        if isinstance(error, Exception):
            raise self._mended(error) from None

    def _mended(self, error: Exception) -> Exception:
        # Decoders meet hostile bytes with any exception there is, so all are caught; a full memory is not the file's.
        if isinstance(error, UsageError | MemoryError):
            return error
        reason = " ".join(str(error).split())[:100].replace(f"{str(self.file)!r}", "it") or type(error).__name__
        return UsageError(f"image {str(self.file)!r} cannot be read ({reason}): {_SKIP_HINT}")
