"""Our own format: a folder with what the model is and its parameters.

`model.json` holds a `Spec`, `params.safetensors` the leaves of the parameter tree under their paths
("down_0_block_0/conv1/kernel"), float32 and in our own layout. JSON knows one kind of sequence; here it is read as a
tuple, because a network's fields must be hashable.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.convert.files import replace_tensors
from jaxdiff.convert.json_files import read_json, tuples
from jaxdiff.convert.rules import SAME
from jaxdiff.convert.table import Row, leaves
from jaxdiff.convert.text import clean
from jaxdiff.errors import UsageError, unknown
from jaxdiff.files import write_json
from jaxdiff.models.presets.spec import Spec
from jaxdiff.types import PyTree

MODEL, PARAMS = "model.json", "params.safetensors"
VERSION = 1

# A Spec's fields by the kind of value they hold.
_KINDS: dict[str, tuple[type, ...]] = {
    "network": (str,), "fields": (dict,), "shape": (tuple,), "process": (dict,), "prediction": (str,),
    "input_scale": (str,), "time_input": (dict,), "sigma_data": (int, float), "layout": (dict,), "parameters": (int,),
    "reference": (str,),
}  # fmt: skip


def _plain(value: Any, where: str) -> Any:
    """A value as JSON has it; refused where it would come back as another."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item, where) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise UsageError(f"{where}={value!r} cannot be stored: allowed are numbers, text, tuples, and dicts with text keys")


def spec_to_json(spec: Spec) -> dict[str, Any]:
    """A spec as plain JSON values.

    Args:
        spec: any.

    Returns:
        A dict for `json.dumps`, with a field for every one of the spec's.

    Raises:
        UsageError: for a value that JSON has no place for.

    Examples:
        >>> spec_to_json(Spec("unet", {"channel_mult": (1, 2)}, (8, 8, 3)))["fields"]
        {'channel_mult': [1, 2]}
    """
    return {field.name: _plain(getattr(spec, field.name), field.name) for field in dataclasses.fields(spec)}


def spec_from_json(value: Any, where: str = "spec") -> Spec:
    """The spec of `spec_to_json`, sequences as tuples.

    Args:
        value: what `json.loads` gave; anything.
        where: for messages.

    Returns:
        The spec. Whether its network exists is seen when it is made.

    Raises:
        UsageError: for a field unknown, missing, or of another kind.

    Examples:
        >>> spec_from_json({"network": "unet", "fields": {"channel_mult": [1, 2]}, "shape": [8, 8, 3]}).shape
        (8, 8, 3)
    """
    if not isinstance(value, dict):
        raise UsageError(f"{where} is a {type(value).__name__}: needed are the fields of a Spec")
    made = {key: tuples(item) for key, item in value.items()}
    needed = [field.name for field in dataclasses.fields(Spec) if field.default is field.default_factory]
    for key, item in made.items():
        if key not in _KINDS:
            raise unknown(f"field of {where}", clean(key), _KINDS)
        if not isinstance(item, _KINDS[key]) or isinstance(item, bool):
            raise UsageError(f"{where}: {key} is {clean(repr(item))}, needed is a {_KINDS[key][-1].__name__}")
    for key in needed:
        if key not in made:
            raise UsageError(f"{where} lacks {key}")
    if not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**31 for size in made["shape"]):
        raise UsageError(f"{where}: shape is {clean(repr(made['shape']))}, needed are whole numbers above 0")
    if "sigma_data" in made:
        made["sigma_data"] = float(made["sigma_data"])
    return Spec(**made)


def save_native(path: str | Path, spec: Spec, params: PyTree) -> Path:
    """Write a model's folder. `model.json` is written last: a folder that has it is whole.

    Args:
        path: the folder, made if missing.
        spec: what the model is.
        params: its parameter tree.

    Returns:
        The folder.

    Raises:
        UsageError: for a spec that JSON cannot hold.
        OSError: if it cannot be written.

    Examples:
        >>> import tempfile
        >>> spec, params = Spec("unet", {}, (8, 8, 3)), {"out": {"kernel": np.ones((3, 4))}}
        >>> sorted(p.name for p in save_native(tempfile.mkdtemp() + "/model", spec, params).iterdir())
        ['model.json', 'params.safetensors']
    """
    path = Path(path)
    value = {"jaxdiff": VERSION, "spec": spec_to_json(spec)}
    tensors = {name: np.asarray(leaf, np.float32) for name, leaf in leaves(params).items()}
    replace_tensors(path / PARAMS, tensors, [path / MODEL])
    write_json(path / MODEL, value)
    return path


def load_native_spec(path: str | Path) -> Spec:
    """The spec in a model's folder.

    Args:
        path: the folder.

    Raises:
        UsageError: if there is none, or it is not one of ours.
    """
    file = Path(path) / MODEL
    where = clean(str(file), 300)
    value = read_json(file)
    if value.get("jaxdiff") != VERSION or set(value) != {"jaxdiff", "spec"}:
        raise UsageError(f'{where} is not a model of this version: needed is {{"jaxdiff": {VERSION}, "spec": ...}}')
    return spec_from_json(value["spec"], where)


def native_table(like: PyTree) -> list[Row]:
    """The rows of a parameter tree stored under its own names.

    Args:
        like: nested dicts.

    Examples:
        >>> native_table({"out": {"kernel": 0}})[0].theirs
        ('out/kernel',)
    """
    return [Row(name, (name,), SAME) for name in leaves(like)]
