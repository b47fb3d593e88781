"""What went wrong with a checkpoint's files: one line out of many kinds of errors, and the same in every process."""

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdiff.errors import UsageError

_MOST = 300  # characters
_T = TypeVar("_T")


def attempt(read: Callable[[], _T], directory: str) -> tuple[_T, str]:
    """What a function gives and "", or nothing and what went wrong in any process; all processes must call.

    Args:
        read: reads files. A `UsageError` goes through, and must be raised in all processes alike.
        directory: what need not be said of where.

    Returns:
        The value, and the first process's problem, the same in all.

    Examples:
        >>> attempt(lambda: open("here/there").read(), "here")
        (None, "[Errno 2] No such file or directory: 'there'")
    """
    found: Any = None
    problem = ""
    try:
        found = read()
    except UsageError:
        raise
    except Exception as error:
        problem = line(error).replace(f"{directory}/", "")
    if jax.process_count() > 1:
        sent = np.frombuffer(problem.encode()[:_MOST].ljust(_MOST), np.uint8)
        told = [bytes(row).decode(errors="replace").strip() for row in multihost_utils.process_allgather(sent)]
        problem = next(filter(None, told), "")
    return found, problem


def line(error: BaseException) -> str:
    """The deepest cause of an error in one line, without TensorStore's lists of its own layers.

    Examples:
        >>> line(ValueError('DATA_LOSS: Error opening "zarr" driver: Error reading "a/0": short [tensorstore_spec='))
        'Error reading "a/0": short'
    """
    while error.__cause__ is not None and not isinstance(error.__cause__, OSError):
        error = error.__cause__
    if "No space left" in str(error):
        return "no space left on device"
    text = next((part.strip() for part in str(error).splitlines() if part.strip()), "")
    text = re.sub(r'^[A-Z_]+: |Error opening "\w+" driver: | \[(tensorstore|source).*', "", text)
    return text[:_MOST] if " " in text else f"{type(error).__name__} {text}".strip()


def place(error: BaseException | None, names: Iterable[str]) -> str | None:
    """The first of the arrays by name that an error or its causes are about, or None."""
    text = ""
    while error is not None:
        text, error = f"{text} {error}", error.__cause__
    return next((name for name in names if f'"{name}/' in text or f"'{name}/'" in text), None)


class one_line:  # noqa: N801
    """Turns whatever is raised under it into a `UsageError` that begins with `what`."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UsageError):
            raise UsageError(f"{self.what}: {line(error)}") from error
