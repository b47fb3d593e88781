"""The one error that is the caller's to mend, and the hint that goes with it.

Everything wrong with what a user gave (an argument, a config value, a file) is raised as `UsageError` with a
message of one line that names the argument, the value and what is allowed. The command line prints that line and
leaves with exit code 2; any other exception is a defect and keeps its traceback.
"""

import difflib
import errno
from collections.abc import Iterable

_SHOWN = 20
# Failures of the machine that the user can mend; any other OSError is a defect.
_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip


class UsageError(ValueError):
    """Input that cannot work, said in one line."""


def unknown(kind: str, name: object, allowed: Iterable[str]) -> UsageError:
    """The error for a name that is not among `allowed`, with the nearest one first.

    Args:
        kind: what the name is for, as the user calls it ("sampler", "config key").
        name: what was given.
        allowed: the names that exist.

    Returns:
        An error to raise.

    Examples:
        >>> print(unknown("sampler", "dimm", ["ddim", "ddpm"]))
        unknown sampler 'dimm': did you mean 'ddim'? allowed: ddim, ddpm
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return UsageError(f"unknown {kind} '{name}': {hint}allowed: {', '.join(names[:_SHOWN])}{more}")


def line(error: BaseException) -> str | None:
    """The one line for an error that the user can mend; None for a defect.

    Args:
        error: a `UsageError`, or an `OSError` of a disk that is full or may not be written.

    Examples:
        >>> line(UsageError("steps=0: allowed is 1 or more"))
        'jaxdiff: steps=0: allowed is 1 or more'
        >>> line(KeyError("steps"))
    """
    if isinstance(error, UsageError):
        return f"jaxdiff: {' '.join(str(error).split())}"
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"jaxdiff: {error.strerror}: {error.filename or 'while writing'}"
    return None
