"""Text from files as it may stand in a message: on one line, printable, and not too long."""

from collections.abc import Sequence

_SHOWN = 3


def shown(names: Sequence[str]) -> str:
    """The first three of many names and how many more there are, fit for one line whatever they hold.

    Args:
        names: from a file, so anything.

    Returns:
        Text without line breaks.

    Examples:
        >>> shown(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(clean(name) for name in names[:_SHOWN]) + more


def clean(name: str, most: int = 160) -> str:
    """A name from a file as printable text of at most `most` characters.

    Args:
        name: anything.
        most: longest text returned, beside the dots.

    Returns:
        Text without line breaks or control characters.

    Examples:
        >>> clean("a" + chr(10) + "b")
        "'a\\\\nb'"
    """
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= most else text[:most] + "..."
