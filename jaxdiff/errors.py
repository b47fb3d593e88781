"""The one error that is the caller's to mend, and the hint that goes with it.

Everything wrong with what a user gave (an argument, a config value, a file) is raised as `UsageError` with a
message of one line that names the argument, the value and what is allowed. The command line prints that line and
leaves with exit code 2; any other exception is a defect and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

_SHOWN = 20


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
