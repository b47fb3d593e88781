"""JSON from anywhere: read with every mistake said in one line."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.convert.text import clean
from jaxdiff.errors import UsageError

MOST_BYTES = 100_000_000  # of a safetensors header, as in the reference implementation; more than any configuration


def parse_json(text: bytes, where: str) -> Any:
    """A value of JSON in which no key is given twice.

    Args:
        text: UTF-8.
        where: for messages.

    Returns:
        The value.

    Raises:
        UsageError: not JSON, or a key given twice.

    Examples:
        >>> parse_json(b'{"a": [1]}', "here")
        {'a': [1]}
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise UsageError(f"{where}: '{clean(twice)}' is given twice")
        return made

    try:
        return json.loads(text.decode(), object_pairs_hook=unique)
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {clean(str(error))}") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file that holds a dict.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        UsageError: no such file, not JSON, a key given twice, or not a dict.
    """
    path = Path(path)
    where = clean(str(path), 300)
    if not path.is_file():
        raise UsageError(f"{where}: there is no such file")
    if path.stat().st_size > MOST_BYTES:
        raise UsageError(f"{where} has {path.stat().st_size} bytes: at most {MOST_BYTES} are allowed")
    value = parse_json(path.read_bytes(), where)
    if not isinstance(value, dict):
        raise UsageError(f"{where} is a {type(value).__name__}: needed is a dict")
    return value


def tuples(value: Any) -> Any:
    """A value of JSON with its sequences as tuples: the fields of a network must be hashable.

    Args:
        value: what `json.loads` gave; anything.

    Returns:
        The value, and dicts in it, made anew.

    Examples:
        >>> tuples({"channel_mult": [1, [2]]})
        {'channel_mult': (1, (2,))}
    """
    if isinstance(value, list | tuple):
        return tuple(map(tuples, value))
    return {key: tuples(item) for key, item in value.items()} if isinstance(value, Mapping) else value
