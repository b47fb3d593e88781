"""Data sets that fit are decoded once, and a batch becomes one array gather instead of a loop over records."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdiff.data.sources import Source
from jaxdiff.errors import UsageError


@dataclass(frozen=True, eq=False)
class InMemory:
    """Images held as one array.

    Args:
        images: uint8 [N, H, W, C].
        labels: integers [N], or None.
        num_classes: how many labels there are; 0 without labels.

    Raises:
        UsageError: where the arrays do not belong together.

    Examples:
        >>> source = InMemory(np.zeros([5, 8, 8, 1], np.uint8), np.arange(5), num_classes=5)
        >>> len(source), source.shape, source[3]["label"]
        (5, (8, 8, 1), 3)
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    num_classes: int = 0

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise UsageError(f"images must be uint8 [N, H, W, C], got {self.images.dtype} {list(self.images.shape)}")
        if (self.labels is None) != (self.num_classes == 0):
            raise UsageError(f"num_classes={self.num_classes} must be 0 without labels and 1 or more with labels")
        if self.labels is not None and self.labels.shape != self.images.shape[:1]:
            raise UsageError(f"labels must be [{len(self.images)}], one per image, got {list(self.labels.shape)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.labels is None:
            return {"image": self.images[index]}
        return {"image": self.images[index], "label": int(self.labels[index])}


def load(source: Source, limit_bytes: int = 512 * 2**20) -> Source:
    """Decode a source into memory if it fits.

    Args:
        source: any source.
        limit_bytes: the most its uint8 pixels may take; larger sources are left on disk.

    Returns:
        An `InMemory` source, or `source` itself where it is larger (or in memory already).

    Examples:
        >>> small = InMemory(np.zeros([5, 8, 8, 1], np.uint8))
        >>> load(small) is small
        True
    """
    count = len(source)
    if isinstance(source, InMemory) or count * int(np.prod(source.shape)) > limit_bytes:
        return source
    images = np.empty((count, *source.shape), np.uint8)
    labels = np.empty(count, np.int32)
    for i in range(count):
        record = source[i]
        images[i] = record["image"]
        labels[i] = record.get("label", 0)
    return InMemory(images, labels if source.num_classes else None, source.num_classes)
