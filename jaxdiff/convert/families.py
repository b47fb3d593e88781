"""Which families of weights there are, and the modules that know them.

A family of checkpoints is a module with `FAMILY`, `recognises(names)` and `table(spec)` (see `jaxdiff.convert.table`),
and perhaps `prefix(names)`, what stands before every name, for the spec's layout, and `renamed(tensors)`, today's names
for older ones; put the module's name into `FAMILIES` to add one.
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.errors import UsageError, unknown
from jaxdiff.models import presets
from jaxdiff.models.presets import Spec

# Family -> module, imported when it is needed.
FAMILIES: dict[str, str] = {
    "diffusers": "jaxdiff.convert.diffusers",
    "openai": "jaxdiff.convert.openai",
    "edm": "jaxdiff.convert.edm",
    "edm2": "jaxdiff.convert.edm2",
    "score_sde": "jaxdiff.convert.score_sde",
    "ncsnv2": "jaxdiff.convert.ncsnv2",
    "dit": "jaxdiff.convert.dit",
}


class Kind(NamedTuple):
    """A network of diffusers.

    Attributes:
        network: ours.
        part: its folder in a pipeline.
        module: with `spec(config, scheduler)`, `config(spec)` and `table(spec)`.
        no_scheduler: what `spec` takes where a folder has no scheduler.
    """

    network: str
    part: str
    module: str
    no_scheduler: Any = None


# By the class in config.json.
DIFFUSERS: dict[str, Kind] = {
    "UNet2DModel": Kind("unet", "unet", "jaxdiff.convert.diffusers"),
    "DiTTransformer2DModel": Kind("dit", "transformer", "jaxdiff.convert.dit.diffusers", {}),
}


def family(name: str) -> Any:
    """The module of a family.

    Args:
        name: a key of `FAMILIES`.

    Returns:
        A module with FAMILY, recognises, table.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in FAMILIES:
        raise unknown("family", name, [*FAMILIES, "native"])
    return importlib.import_module(FAMILIES[name])


def recognise(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The families, with their modules, that know these names.

    Args:
        tensors: by name.

    Returns:
        Modules by family.

    Examples:
        >>> list(recognise({"time_embed.0.weight": 0, "input_blocks.0.0.weight": 0, "middle_block.1.qkv.weight": 0}))
        ['openai']
    """
    modules = {name: _present(name) for name in FAMILIES}
    return {name: module for name, module in modules.items() if module and module.recognises(tensors.keys())}


def _present(name: str) -> Any:
    """The module of a family if it can recognise files of weights alone."""
    try:
        module = family(name)
    except ModuleNotFoundError as error:
        if error.name != FAMILIES[name]:
            raise
        return None
    return module if hasattr(module, "recognises") else None


def renamed(module: Any, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Tensors under the names that a family has today."""
    return module.renamed(tensors) if hasattr(module, "renamed") else tensors


def diffusers_kind(spec: Spec) -> tuple[str, Kind]:
    """The class of diffusers, and the rest of it, for a spec; refused where there is none."""
    for name, kind in DIFFUSERS.items():
        if kind.network == spec.network:
            return name, kind
    allowed = ", ".join(kind.network for kind in DIFFUSERS.values())
    raise UsageError(f"network is {spec.network!r}: allowed for diffusers is {allowed}")


def presets_of(name: str) -> list[str]:
    """The names of a family's presets."""
    return [key for key, spec in presets.REGISTRY.items() if spec.layout.get("family") == name]
