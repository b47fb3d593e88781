"""The named systems' networks as data: a name, and the `Spec` of network, process and parametrisation.

`jaxdiff.build.model_of(presets.get(name))` is the model; a preset is changed by `dataclasses.replace`. One file per
family; `parameters` is the count the original code gives, held by a test.
"""

import importlib

from jaxdiff.errors import unknown
from jaxdiff.models.presets.spec import Spec

FAMILIES = ("ddpm", "improved", "adm", "score_sde", "edm", "edm2", "ncsnv2", "dit", "uvit", "mlp")

REGISTRY: dict[str, Spec] = {
    name: spec for family in FAMILIES for name, spec in importlib.import_module(f"{__name__}.{family}").PRESETS.items()
}


def get(name: str) -> Spec:
    """The preset of a name.

    Args:
        name: a key of `REGISTRY`.

    Returns:
        Its spec.

    Raises:
        UsageError: an unknown name, with the nearest one.

    Examples:
        >>> get("ddpm_cifar10").parameters
        35746307
    """
    if name not in REGISTRY:
        raise unknown("preset", name, REGISTRY)
    return REGISTRY[name]


__all__ = ["FAMILIES", "REGISTRY", "Spec", "get"]
