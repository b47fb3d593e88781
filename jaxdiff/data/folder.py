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
        max_pixels: int = 64 * 2**20,
    ) -> None:
        check_shape(image_size, channels)
        self.root, self.max_pixels, self._size = Path(path), max_pixels, image_size
        if not self.root.is_dir():
            raise UsageError(f"path={str(path)!r} is not a folder")
        self.classes, files = list_images(self.root)
        good, headers, first_error = [], [], None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of large headers: max_pixels decides about them
            for file, label in files:
                try:
                    headers.append(self._check(file, decode=skip_corrupt))
                    good.append((file, label))
                except UsageError as error:
                    if not skip_corrupt:
                        raise
                    first_error = first_error or error
        self.skipped = len(files) - len(good)
        if not good:
            raise UsageError(f"path={str(path)!r} holds no readable image ({len(files)} unreadable)")
        if first_error is not None:
            warnings.warn(f"{path}: left out {self.skipped} of {len(files)} images, first: {first_error}", stacklevel=2)
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

    def _check(self, file: Path, *, decode: bool) -> _Header:
        with _Opened(file, self.max_pixels) as image:
            header = _Header(image.width, image.height, image.mode in GRAY_MODES)
            if decode:
                image.load()
        return header

    def _read(self, file: Path) -> np.ndarray:
        with _Opened(file, self.max_pixels) as image:
            return fit(image, self.shape[2], self._size)


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
