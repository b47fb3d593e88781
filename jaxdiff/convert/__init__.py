"""Weights of other projects, read and written without their code, and our own format for a model on disk.

    model, params = convert.load("models/ddpm-cifar10-32")                       # a diffusers folder says what it is
    model, params = convert.load("256x256_diffusion.safetensors", preset="adm_256")   # a file of weights does not
    convert.save("models/adm", presets.get("adm_256"), params)                   # ours: model.json, params.safetensors

A family of checkpoints is a module with `FAMILY`, `recognises(names)` and `table(spec)` (see `jaxdiff.convert.table`),
and perhaps `prefix(names)`, what stands before every name, for the spec's layout, and `renamed(tensors)`, today's names
for older ones; put the module's name into `FAMILIES` to add one. A file is recognised by the names of its tensors; what
names and shapes do not say is in the preset. Pickles are refused; docs/convert.md says how to turn one into
safetensors.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.convert import files
from jaxdiff.convert.files import read_tensors, write_tensors
from jaxdiff.convert.native import MODEL, PARAMS, load_native_spec, native_table, save_native
from jaxdiff.convert.table import Constant, Row, Rule, clean, leaves, read, shown, write
from jaxdiff.errors import UsageError, unknown
from jaxdiff.model import Model
from jaxdiff.models import presets
from jaxdiff.models.presets import Spec
from jaxdiff.types import PyTree

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
        module: with `spec(config, scheduler)`, `config(spec)` and a table.
        table: the table's name there.
        no_scheduler: what `spec` takes where a folder has no scheduler.
    """

    network: str
    part: str
    module: str
    table: str = "table"
    no_scheduler: Any = None


# By the class in config.json.
DIFFUSERS: dict[str, Kind] = {
    "UNet2DModel": Kind("unet", "unet", "jaxdiff.convert.diffusers"),
    "DiTTransformer2DModel": Kind("dit", "transformer", "jaxdiff.convert.dit", "diffusers_table", {}),
}

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


def shapes(spec: Spec) -> PyTree:
    """The parameter tree of a spec's network; nothing is computed.

    Args:
        spec: a `jaxdiff.models.presets.Spec`.

    Returns:
        jax.ShapeDtypeStruct in nested dicts.

    Raises:
        UsageError: for a spec of no network.
    """
    return _shapes(spec, _model(spec))


def _model(spec: Spec) -> Model:
    from jaxdiff import build  # brings along training and data, which a table does not need

    return build.model_of(spec)


def _shapes(spec: Spec, model: Model) -> PyTree:
    def init() -> PyTree:
        cond = {name: jnp.zeros(shape, kind) for name, (shape, kind) in _conditions(spec).items()}
        return model.apply.init(jax.random.key(0), jnp.zeros((1, *spec.shape)), None, cond)  # type: ignore[attr-defined]

    return jax.eval_shape(init)


def _conditions(spec: Spec) -> dict[str, tuple[tuple[int, ...], str]]:
    """The entries of cond that a network's fields ask for, one example of each."""
    fields = spec.fields
    image = ((1, *spec.shape), "float32")
    made: dict[str, tuple[tuple[int, ...], str]] = dict.fromkeys(fields.get("concat", ()), image)
    if fields.get("num_classes"):
        made["label"] = ((1,), "int32")
    if fields.get("context_dim"):
        made["context"] = ((1, 1, fields["context_dim"]), "float32")
    if fields.get("aug_level"):
        made["aug_level"] = ((1,), "float32")
    if fields.get("pooled", "none") != "none":
        made["pooled"] = ((1, spec.layout.get("pooled_dim", 4 * fields.get("channels", 0))), "float32")
    return made


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
    network = files.network_folder(path)
    if network is None:
        return _find_file(path, read_tensors(files.weights_file(path)), preset)
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
    config = files.read_json(network / files.CONFIG)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in DIFFUSERS:
        raise unknown(f"network (_class_name) in {clean(str(network), 300)}", clean(str(name)), DIFFUSERS)
    kind, scheduler = DIFFUSERS[name], files.read_scheduler(network)
    module = importlib.import_module(kind.module)
    spec = module.spec(config, kind.no_scheduler if scheduler is None else scheduler)
    tensors = _renamed(module, read_tensors(files.weights_file(network, files.WEIGHTS)))
    return Found("diffusers", spec, getattr(module, kind.table)(spec), tensors, shapes(spec))


def _renamed(module: Any, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return module.renamed(tensors) if hasattr(module, "renamed") else tensors


def _find_file(path: Path, tensors: Mapping[str, np.ndarray], preset: str | Spec | None) -> Found:
    """A file of weights alone: the family by its names, the rest from the preset."""
    where = clean(str(path), 300)
    found = _recognise(tensors)
    if not found and tensors and all(name.startswith(_WRAPPER) for name in tensors):
        tensors = {name.removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}
        found = _recognise(tensors)
    if not found:
        raise UsageError(
            f"{where} is of no known family ({', '.join(FAMILIES)}); its {len(tensors)} tensors: {shown(list(tensors))}"
        )
    one = " or ".join(found)
    advice = "; ".join(f"presets of {name}: {', '.join(_presets(name)) or 'none'}" for name in found)
    if "diffusers" in found:
        advice += "; or give the folder with its config.json"
    if preset is None:
        raise UsageError(f"{where} has {one} weights and does not say of which model: give preset; {advice}")
    spec = _spec(preset)
    wanted = spec.layout.get("family")
    chosen = found if wanted is None else {name: module for name, module in found.items() if name == wanted}
    if not chosen:
        raise UsageError(f"{where} has {one} weights, the preset is of {clean(str(wanted))}; {advice}")
    if len(chosen) > 1:
        raise UsageError(f"{where} may be {one}: say which in the preset's layout['family']")
    ((name, module),) = chosen.items()
    layout = {**spec.layout, "family": name}
    if hasattr(module, "prefix"):
        layout["prefix"] = module.prefix(tensors.keys())
    spec = dataclasses.replace(spec, layout=layout)
    return Found(name, spec, module.table(spec), _renamed(module, tensors), shapes(spec))


def _recognise(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The families, with their modules, that know these names."""
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


def _presets(name: str) -> list[str]:
    return [key for key, spec in presets.REGISTRY.items() if spec.layout.get("family") == name]


def _spec(preset: str | Spec) -> Spec:
    return presets.get(preset) if isinstance(preset, str) else preset


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
    spec = _spec(spec)
    _check_params(params, shapes(spec))
    if family == "native":
        return save_native(path, spec, params)
    if family == "diffusers":
        name, kind = _diffusers_kind(spec)
        module = importlib.import_module(kind.module)
        config = {"_class_name": name, **module.config(spec)}
        scheduler = importlib.import_module(FAMILIES["diffusers"]).scheduler(spec)
        tensors = write(getattr(module, kind.table)(spec), params)
        stale = [path / MODEL]  # a folder is one model
        return files.write_pipeline(path, kind.part, config, scheduler, tensors, stale)
    module = importlib.import_module(FAMILIES[family])
    return write_tensors(path, write(module.table(spec), params), {"format": "pt"})


def _diffusers_kind(spec: Spec) -> tuple[str, Kind]:
    for name, kind in DIFFUSERS.items():
        if kind.network == spec.network:
            return name, kind
    allowed = ", ".join(kind.network for kind in DIFFUSERS.values())
    raise UsageError(f"network is {spec.network!r}: allowed for diffusers is {allowed}")


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
    elif path.suffix != ".safetensors" or path.is_dir() or files.is_index(path):
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
