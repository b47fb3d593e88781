"""Values of diffusers' configurations, and the line for a wrong one."""

from collections.abc import Mapping
from typing import Any

from jaxdiff.errors import UsageError


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what save_config adds for itself.

    Examples:
        >>> public({"_diffusers_version": "0.30", "sample_size": 32})
        {'sample_size': 32}
    """
    return {key: value for key, value in config.items() if not key.startswith("_")}


def lists(value: Any) -> Any:
    """A value with its sequences as lists, as JSON has them.

    Examples:
        >>> lists({"block_out_channels": (64, 128)})
        {'block_out_channels': [64, 128]}
    """
    if isinstance(value, list | tuple):
        return list(map(lists, value))
    return {key: lists(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def bad(key: str, value: object, allowed: str) -> UsageError:
    """The error for a value that is not allowed, in JSON's words."""
    shown = "null" if value is None else str(lists(value))
    return UsageError(f"{key} is {shown[:200]}: allowed is {allowed}".replace("\n", " "))
