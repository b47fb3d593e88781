"""Weights of other projects, read and written without their code, and our own format for a model on disk.

    model, params = convert.load("models/ddpm-cifar10-32")                       # a diffusers folder says what it is
    model, params = convert.load("256x256_diffusion.safetensors", preset="adm_256")   # a file of weights does not
    convert.save("models/adm", presets.get("adm_256"), params)                   # ours: model.json, params.safetensors

A file is recognised by the names of its tensors; what names and shapes do not say is in the preset. Pickles are
refused; docs/convert.md says how to turn one into safetensors. `jaxdiff.convert.families` says what a new family needs.
"""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.convert.families import DIFFUSERS, FAMILIES, Kind, diffusers_kind, family
from jaxdiff.convert.files import is_index, read_tensors
from jaxdiff.convert.format import write_tensors
from jaxdiff.convert.found import Found, find
from jaxdiff.convert.native import MODEL, save_native
from jaxdiff.convert.networks import model as _model
from jaxdiff.convert.networks import shapes
from jaxdiff.convert.pipeline import write_pipeline
from jaxdiff.convert.rules import Rule
from jaxdiff.convert.table import Constant, Row, leaves, read, write
from jaxdiff.convert.text import clean, shown
from jaxdiff.errors import UsageError, unknown
from jaxdiff.model import Model
from jaxdiff.models import presets
from jaxdiff.models.presets import Spec
from jaxdiff.types import PyTree


def load_spec(path: str | Path, *, preset: str | Spec | None = None) -> tuple[Spec, PyTree]:
    """A model's spec and parameters. See `load` for the arguments.

    Returns:
        The `Spec`, and the tree of float32 NumPy arrays.

    Raises:
        UsageError: as `load`.
    """
    found = find(path, preset=preset)
    return found.spec, found.read()


def load(path: str | Path, *, preset: str | Spec | None = None) -> tuple[Model, PyTree]:
    """A model ready to sample from, with weights from a file or folder.

    float16 and bfloat16 weights become float32, which loses nothing; what the network computes in is its own field.

    Args:
        path: a folder of `save` or of diffusers (of a network, or of a pipeline with unet/ or transformer/), or a
            .safetensors file (or *.safetensors.index.json) of another project.
        preset: for such a file, which model it is: a name of `jaxdiff.models.presets`, or a `Spec`.

    Returns:
        The `jaxdiff.Model`, and its parameters as float32 arrays.

    Raises:
        UsageError: in one line, what cannot be read, is not recognised, or does not fit the network; nothing is
            loaded then.

    Examples:
        >>> load("weights.pt")
        Traceback (most recent call last):
        ...
        jaxdiff.errors.UsageError: weights.pt: there is no such file or folder
    """
    spec, params = load_spec(path, preset=preset)
    return _model(spec), jax.tree.map(jnp.asarray, params)


def save(path: str | Path, spec: str | Spec, params: PyTree, *, family: str = "native") -> Path:
    """Write a model for us or for another project.

    Args:
        path: a folder for "native" and "diffusers", else a file that ends in .safetensors. What is there is replaced.
        spec: what the model is, a `Spec` or a preset's name.
        params: its parameter tree.
        family: "native", or a key of `FAMILIES`.

    Returns:
        The path.

    Raises:
        UsageError: if the parameters are not of the spec's network, or the family has no such network.
        OSError: if it cannot be written.

    Examples:
        >>> save("model.bin", "ddpm_cifar10", {}, family="edm")
        Traceback (most recent call last):
        ...
        jaxdiff.errors.UsageError: model.bin: edm weights are one file whose name ends in .safetensors
    """
    path = Path(path)
    check_target(path, family)
    spec = presets.get(spec) if isinstance(spec, str) else spec
    _check_params(params, shapes(spec))
    if family == "native":
        return save_native(path, spec, params)
    if family == "diffusers":
        name, kind = diffusers_kind(spec)
        module = importlib.import_module(kind.module)
        config = {"_class_name": name, **module.config(spec)}
        scheduler = importlib.import_module(FAMILIES["diffusers"]).scheduler(spec)
        tensors = write(module.table(spec), params)
        stale = [path / MODEL]  # a folder is one model
        return write_pipeline(path, kind.part, config, scheduler, tensors, stale)
    module = importlib.import_module(FAMILIES[family])
    return write_tensors(path, write(module.table(spec), params), {"format": "pt"})


def check_target(path: str | Path, family: str) -> None:
    """Refuse a path that a family's weights cannot be written to.

    Args:
        path: where to.
        family: "native", or a key of `FAMILIES`.

    Raises:
        UsageError: for an unknown family, a folder where a file is needed, or the other way round.
    """
    path = Path(path)
    if family != "native" and family not in FAMILIES:
        raise unknown("family", family, [*FAMILIES, "native"])
    where = clean(str(path), 300)
    if family in ("native", "diffusers"):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{where} is a file: a {family} model is a folder")
        if path.suffix in (".safetensors", ".json"):
            raise UsageError(f"{where} is named like a file: a {family} model is a folder")
    elif path.suffix != ".safetensors" or path.is_dir() or is_index(path):
        raise UsageError(f"{where}: {family} weights are one file whose name ends in .safetensors")


def _check_params(params: PyTree, like: PyTree) -> None:
    got, want = leaves(params), leaves(like)
    missing, surplus = [n for n in want if n not in got], [n for n in got if n not in want]
    if missing or surplus:
        raise UsageError(
            f"params are not of this spec: missing {shown(missing) or '-'}; surplus {shown(surplus) or '-'}"
        )
    other = [f"{n} {list(np.shape(got[n]))} instead of {list(want[n].shape)}" for n in want
             if np.shape(got[n]) != want[n].shape]  # fmt: skip
    if other:
        raise UsageError(f"params are not of this spec: {shown(other)}")


__all__ = [
    "DIFFUSERS", "FAMILIES", "Constant", "Found", "Kind", "Row", "Rule", "check_target", "family", "find", "load",
    "load_spec", "read", "read_tensors", "save", "shapes", "write", "write_tensors",
]  # fmt: skip
