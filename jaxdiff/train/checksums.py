r"""Checksums of arrays, taken where the arrays are, and the record of a checkpoint made of them.

The bits of an array are words w_i of 32, numbered in row-major order (an element of 8 or 16 bits fills one, an element
of 64 bits two). Its checksum is

    S = sum_i m(w_i + g i)  mod 2^32,                                             (1)

where m is a chain of x -> x ^ (x >> k) and x -> c x with c odd. Each link has an inverse: the shifted bits can be taken
back from the top down, and an odd number has an inverse mod 2^32, an even one does not. So m never maps two words to
one, and whatever happens within a single word (any flipped bit, first of all) changes one term of the sum and hence S,
with certainty. A plain sum of odd multiples c_i w_i would also catch any flipped bit, but not two elements that differ
in sign alone and change places: the difference of two odd numbers times 2^31 is 0. Under (1) two changed words go
unseen with a chance of 2^-32, as far as m mixes. The position g i makes changed places visible, and that the sum is of
integers makes it the same in any order, hence on any number of devices and however the array is laid out.

Reference: m and its constants: A. Appleby, MurmurHash3, 2011 (public domain), the 32-bit finaliser. g is 2^32 over the
golden ratio, made odd (Knuth, The Art of Computer Programming, volume 3, section 6.4).
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.errors import UsageError
from jaxdiff.types import Array

_GOLDEN, _ODD1, _ODD2 = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35
_SHOWN = 5


@jax.jit
def _checksum(a: Array) -> Array:
    """Equation (1)."""
    bits = a.astype(jnp.uint8) if a.dtype == bool else a
    unsigned = jnp.dtype(f"uint{8 * min(bits.dtype.itemsize, 4)}")
    words = jax.lax.bitcast_convert_type(bits, unsigned).astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        # Not a reshape to one axis, which would gather an array that lies on several devices.
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
    x = words + index * jnp.uint32(_GOLDEN)
    x = (x ^ (x >> 16)) * jnp.uint32(_ODD1)
    x = (x ^ (x >> 13)) * jnp.uint32(_ODD2)
    return jnp.sum(x ^ (x >> 16), dtype=jnp.uint32)


def checksums(arrays: Mapping[str, Any]) -> dict[str, int]:
    """The checksum of every array, computed on its devices; under several processes all must call.

    Args:
        arrays: by name; of any shape and layout, of real numbers or booleans.

    Returns:
        Equation (1) by name, 0 <= S < 2^32.

    Examples:
        >>> one, other = checksums({"a": jnp.array([1.0, -1.0]), "b": jnp.array([-1.0, 1.0])}).values()
        >>> one == other
        False
    """
    several = jax.process_count() > 1
    sums = {}
    for name, a in arrays.items():
        sums[name] = _checksum(a)
        if several:
            # One at a time: collectives of two programs may meet in another order in another process, and hang.
            sums[name].block_until_ready()
    got = jax.device_get(sums)  # in the order of their names
    return {name: int(got[name]) for name in arrays}


class Leaf(NamedTuple):
    """What is known of a saved array: its dtype's name, shape, and checksum (1)."""

    dtype: str
    shape: tuple[int, ...]
    checksum: int


@dataclass(frozen=True)
class Record:
    """What a checkpoint says of itself, stored beside it.

    Attributes:
        step: the step it is of, so that folders that changed places are seen.
        eval_loss: the evaluation loss, or None.
        leaves: its arrays by path.
    """

    step: int
    eval_loss: float | None
    leaves: dict[str, Leaf]

    @classmethod
    def of(cls, step: int, arrays: Mapping[str, Any], eval_loss: int | float | None = None) -> "Record":
        """The record of arrays by path, as they are on their devices."""
        sums = checksums(arrays)
        made = {name: Leaf(str(a.dtype), tuple(a.shape), sums[name]) for name, a in arrays.items()}
        return cls(step, None if eval_loss is None else float(eval_loss), made)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`, with a checksum of their own."""
        value = asdict(self)
        return {**value, "crc32": _crc(value)}

    @classmethod
    def read(cls, path: Path, step: int) -> "Record":
        """The record of `to_json` in a file.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is not what was written, or of another step.
        """
        where = "/".join(path.parts[-3:])
        try:
            value = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{where} is no JSON: {error}") from None
        if not isinstance(value, dict) or value.pop("crc32", None) != _crc(value):
            raise ValueError(f"{where} is not as it was written")
        if value["step"] != step:
            raise ValueError(f"{where} is of step {value['step']}")
        made = {name: Leaf(kind, tuple(shape), checksum) for name, (kind, shape, checksum) in value["leaves"].items()}
        return cls(step, value["eval_loss"], made)

    def part(self, name: str) -> dict[str, Leaf]:
        """The leaves at and under a path; all for ""."""
        return {path: leaf for path, leaf in self.leaves.items() if not name or f"{path}/".startswith(f"{name}/")}

    def check(self, arrays: Mapping[str, Any]) -> None:
        """Compare arrays with what was saved.

        Raises:
            ValueError: naming the first that differs.
        """
        bad = [name for name, value in checksums(arrays).items() if value != self.leaves[name].checksum]
        if bad:
            raise ValueError(f"{bad[0]} is not as it was saved" + (f" (and {len(bad) - 1} more)" if bad[1:] else ""))


def _crc(value: Any) -> int:
    # CRC-32 sees every single flipped bit, and every burst of up to 32.
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def check_same(saved: Mapping[str, Leaf], wanted: Mapping[str, Any], what: str) -> None:
    """Refuse arrays that are not those a model needs.

    Args:
        saved: what is there, by path.
        wanted: arrays or `ShapeDtypeStruct`s, by path.
        what: the name of what is refused.

    Raises:
        UsageError: saying what is missing, surplus, of another shape and of another dtype: how many, and the first.

    Examples:
        >>> check_same({"a": Leaf("float32", (4,), 0)}, {"a": jnp.zeros(5)}, "checkpoint 7")
        Traceback (most recent call last):
        ...
        jaxdiff.errors.UsageError: checkpoint 7 is of another model: 1 of another shape: a is (4,) there and (5,) here
    """
    both = [name for name in saved if name in wanted]
    shapes = {name: (saved[name].shape, tuple(wanted[name].shape)) for name in both}
    kinds = {name: (saved[name].dtype, str(wanted[name].dtype)) for name in both}
    groups = {
        "missing there": [name for name in wanted if name not in saved],
        "only there": [name for name in saved if name not in wanted],
        "of another shape": [f"{name} is {a} there and {b} here" for name, (a, b) in shapes.items() if a != b],
        "of another dtype": [f"{name} is {a} there and {b} here" for name, (a, b) in kinds.items() if a != b],
    }
    told = [f"{len(names)} {kind}: {_first(names)}" for kind, names in groups.items() if names]
    if told:
        raise UsageError(f"{what} is of another model: {'; '.join(told)}")


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if names[_SHOWN:] else "")
