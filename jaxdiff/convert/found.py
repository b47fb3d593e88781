"""What lies under a path: a model of ours, a folder of diffusers, or a file of weights that another project wrote."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.convert import pipeline
from jaxdiff.convert.families import DIFFUSERS, FAMILIES, presets_of, recognise, renamed
from jaxdiff.convert.files import read_tensors, weights_file
from jaxdiff.convert.json_files import read_json
from jaxdiff.convert.native import MODEL, PARAMS, load_native_spec, native_table
from jaxdiff.convert.networks import shapes
from jaxdiff.convert.table import Constant, Row, read
from jaxdiff.convert.text import clean, shown
from jaxdiff.errors import UsageError, unknown
from jaxdiff.models import presets
from jaxdiff.models.presets import Spec
from jaxdiff.types import PyTree

_WRAPPER = "module."  # PyTorch's wrapper for several devices puts this before every name


class Found(NamedTuple):
    """What lies under a path, before any weight is read.

    Attributes:
        family: a key of `FAMILIES`, or "native".
        spec: what the model is, a `jaxdiff.models.presets.Spec`.
        table: the rows between the file's names and ours.
        tensors: read-only windows on the file, by its names.
        like: our parameter tree as jax.ShapeDtypeStruct.
    """

    family: str
    spec: Spec
    table: Sequence[Row | Constant]
    tensors: Mapping[str, np.ndarray]
    like: PyTree

    def read(self, done: Callable[[str], object] | None = None) -> PyTree:
        """The parameters, float32 NumPy arrays. See `jaxdiff.convert.table.read` for the arguments."""
        return read(self.table, self.tensors, self.like, done=done)


def find(path: str | Path, *, preset: str | Spec | None = None) -> Found:
    """What lies under a path; no weight is read. See `load` for the arguments.

    Returns:
        The family, spec, table and tensors.

    Raises:
        UsageError: what cannot be recognised or read.
    """
    path = Path(path)
    where = clean(str(path), 300)
    if path.is_file() and path.name == PARAMS and (path.parent / MODEL).is_file():
        path = path.parent
    if path.is_file():
        return _find_file(path, read_tensors(path), preset)
    if not path.is_dir():
        raise UsageError(f"{where}: there is no such file or folder")
    if (path / MODEL).is_file():
        _speaks_for_itself(where, preset)
        return _find_native(path)
    network = pipeline.network_folder(path)
    if network is None:
        return _find_file(path, read_tensors(weights_file(path)), preset)
    _speaks_for_itself(where, preset)
    return _find_diffusers(network)


def _speaks_for_itself(where: str, preset: str | Spec | None) -> None:
    if preset is not None:
        raise UsageError(f"{where} says itself which model it is: leave preset out")


def _find_native(path: Path) -> Found:
    spec = load_native_spec(path)
    try:
        like = shapes(spec)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        # The fields come from a file, and a network need not check the type of each.
        raise UsageError(f"{clean(str(path), 300)} describes no network: {clean(str(error), 300)}") from None
    return Found("native", spec, native_table(like), read_tensors(path / PARAMS), like)


def _find_diffusers(network: Path) -> Found:
    config = read_json(network / pipeline.CONFIG)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in DIFFUSERS:
        raise unknown(f"network (_class_name) in {clean(str(network), 300)}", clean(str(name)), DIFFUSERS)
    kind, scheduler = DIFFUSERS[name], pipeline.read_scheduler(network)
    module = importlib.import_module(kind.module)
    spec = module.spec(config, kind.no_scheduler if scheduler is None else scheduler)
    tensors = renamed(module, read_tensors(weights_file(network, pipeline.WEIGHTS)))
    return Found("diffusers", spec, module.table(spec), tensors, shapes(spec))


def _find_file(path: Path, tensors: Mapping[str, np.ndarray], preset: str | Spec | None) -> Found:
    """A file of weights alone: the family by its names, the rest from the preset."""
    where = clean(str(path), 300)
    found = recognise(tensors)
    if not found and tensors and all(name.startswith(_WRAPPER) for name in tensors):
        tensors = {name.removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}
        found = recognise(tensors)
    if not found:
        raise UsageError(
            f"{where} is of no known family ({', '.join(FAMILIES)}); its {len(tensors)} tensors: {shown(list(tensors))}"
        )
    spec, module = _chosen(where, found, preset)
    layout = {**spec.layout, "family": module.FAMILY}
    if hasattr(module, "prefix"):
        layout["prefix"] = module.prefix(tensors.keys())
    spec = dataclasses.replace(spec, layout=layout)
    return Found(module.FAMILY, spec, module.table(spec), renamed(module, tensors), shapes(spec))


def _chosen(where: str, found: Mapping[str, Any], preset: str | Spec | None) -> tuple[Spec, Any]:
    """The preset's spec, and the module of the one family that it and the names leave."""
    one = " or ".join(found)
    advice = "; ".join(f"presets of {name}: {', '.join(presets_of(name)) or 'none'}" for name in found)
    if "diffusers" in found:
        advice += "; or give the folder with its config.json"
    if preset is None:
        raise UsageError(f"{where} has {one} weights and does not say of which model: give preset; {advice}")
    spec = presets.get(preset) if isinstance(preset, str) else preset
    wanted = spec.layout.get("family")
    chosen = found if wanted is None else {name: module for name, module in found.items() if name == wanted}
    if not chosen:
        raise UsageError(f"{where} has {one} weights, the preset is of {clean(str(wanted))}; {advice}")
    if len(chosen) > 1:
        raise UsageError(f"{where} may be {one}: say which in the preset's layout['family']")
    (module,) = chosen.values()
    return spec, module
