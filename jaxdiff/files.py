"""Files are written whole: under a temporary name, then renamed."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_whole(path: str | Path, data: bytes) -> Path:
    """Write a file so that it is there entire or not at all.

    Args:
        path: where; missing folders are made.
        data: its content.

    Returns:
        The path.

    Raises:
        OSError: if it cannot be written; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's 0600 is not what a plain open would give
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write a value as indented JSON, whole."""
    return write_whole(path, (json.dumps(value, indent=2) + "\n").encode())
