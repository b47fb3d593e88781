"""What the scripts that store other projects' outputs and the tests that read them share.

A state dict is made from its names and shapes alone, so a fixture holds no weights: only the configuration, the names
with their shapes, the inputs and the original code's outputs.
"""

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"


def tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of the size of trained ones, each a function of its name, its shape and the seed.

    `RandomState`, because NumPy keeps its streams for ever.
    """
    made = {}
    for name, shape in shapes.items():
        draw = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).normal(size=shape)
        if len(shape) > 1:
            draw = draw / np.sqrt(np.prod(shape[1:]))
        else:
            draw = 0.1 * draw + (1.0 if name.endswith("weight") else 0.0)
        made[name] = np.asarray(draw, np.float32)
    return made


def save_cases(family: str, cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `fixtures/FAMILY.npz`. A case: "config" (plain values), "shapes" {name: shape}, and arrays by name."""
    flat: dict[str, np.ndarray] = {}
    for case, entries in cases.items():
        for key, value in entries.items():
            flat[f"{case}/{key}"] = np.array(json.dumps(value)) if key in ("config", "shapes") else np.asarray(value)
    np.savez_compressed(FIXTURES / f"{family}.npz", **flat)


def load_cases(family: str) -> dict[str, dict[str, Any]]:
    """What `save_cases` wrote."""
    cases: dict[str, dict[str, Any]] = {}
    with np.load(FIXTURES / f"{family}.npz") as file:
        for name in file.files:
            case, key = name.rsplit("/", 1)
            plain = key in ("config", "shapes")
            cases.setdefault(case, {})[key] = json.loads(str(file[name])) if plain else file[name]
    return cases


def save_shapes(family: str, models: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
    """Write `fixtures/FAMILY_shapes.json.gz`: model -> {name: shape}."""
    text = json.dumps({model: {k: list(v) for k, v in shapes.items()} for model, shapes in models.items()})
    (FIXTURES / f"{family}_shapes.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def load_shapes(family: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """What `save_shapes` wrote."""
    text = gzip.decompress((FIXTURES / f"{family}_shapes.json.gz").read_bytes())
    return {model: {k: tuple(v) for k, v in shapes.items()} for model, shapes in json.loads(text).items()}


def relative_error(got: Any, want: Any) -> float:
    """max |got - want| / max |want|."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    return float(np.abs(got - want).max() / np.abs(want).max())
