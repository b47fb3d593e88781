"""The image files of a folder, with their class names, in a fixed order; links do not lead out of the folder."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from jaxdiff.errors import UsageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})


def list_images(root: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """The files of a folder of images, or of a folder of class folders.

    Args:
        root: the folder.

    Returns:
        The class names in the order of their labels (empty for images without labels), and (file, label), label -1
        where there are none. The order is that of a hash of the relative path.

    Raises:
        UsageError: for no images, images beside class folders, an empty class folder, or a link that leads out.
    """
    real = root.resolve()
    direct, folders = [], []
    for entry in _entries(root, real):
        if entry.is_dir():
            folders.append(entry)
        elif entry.suffix.lower() in SUFFIXES:
            direct.append(entry)
    found = {folder.name: list(_images(folder, real)) for folder in sorted(folders)}
    if direct and any(found.values()):
        raise UsageError(f"path={str(root)!r} holds both images and folders of images: keep one of the two")
    if not direct and not any(found.values()):
        raise UsageError(f"path={str(root)!r} holds no images ({', '.join(sorted(SUFFIXES))})")
    files: list[tuple[Path, int]] = [(file, -1) for file in direct]
    if not direct:
        empty = [name for name, images in found.items() if not images]
        if empty:
            raise UsageError(f"path={str(root)!r}: class folder {empty[0]!r} holds no images: remove it or fill it")
        files = [(file, label) for label, images in enumerate(found.values()) for file in images]
    return (() if direct else tuple(found)), sorted(files, key=lambda item: _rank(item[0].relative_to(root)))


def _images(folder: Path, real: Path) -> Iterator[Path]:
    waiting = [folder]  # not a recursion: a hostile folder is deeper than Python's stack
    while waiting:
        for entry in _entries(waiting.pop(), real):
            if entry.is_dir():
                waiting.append(entry)
            elif entry.suffix.lower() in SUFFIXES:
                yield entry


def _entries(folder: Path, real: Path) -> Iterator[Path]:
    """Visible entries; links are followed to files within the root only, so there are no cycles and no way out."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            if not _target(entry).is_relative_to(real):
                raise UsageError(f"link {str(entry)!r} leads out of the folder: copy what it points to instead")
            if entry.is_dir():
                raise UsageError(f"link {str(entry)!r} leads to a folder: only links to files are followed")
        yield entry


def _target(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError):  # which of them depends on the version of Python
        raise UsageError(f"link {str(link)!r} leads round in a circle: remove it") from None


def _rank(file: Path) -> bytes:
    return hashlib.blake2b(file.as_posix().encode(errors="surrogateescape"), digest_size=16).digest()
