"""A sampler as a file that draws images with jax and flatbuffers alone: without this library and the network's code.

The whole run, from the prior's noise over every step of the sampler to the image, is traced once and kept as StableHLO
(`jax.export`). Image i of seed s is

    x_i = sample(prior(k_i), k_i),    k_i = fold_in(key(s), i),                                         (1)

which is what `generate` makes of key(s), so a program draws the same images in any batches, and one that is exported
for batches of B draws any number.

The file is an uncompressed .npz: `program` (uint8), `about` (JSON), and the parameters `p0`, `p1`, .. in the order in
which the program takes them. They are its arguments and not constants in it: a compiler folds constants, which for a
network takes minutes and twice the memory. Without this library:

    file = numpy.load(path)
    program = jax.export.deserialize(bytearray(file["program"].tobytes()))
    params = [file[f"p{i}"] for i in range(len(file.files) - 2)]
    images = jax.jit(program.call)(params, numpy.uint32(seed), numpy.arange(batch, dtype="uint32"), cond)

`cond` is a dict, empty for a model without conditions. Later releases of jax read a file for as long as `jax.export`
promises, half a year, on the platforms it was made for; earlier ones may not. `jax.export` writes and reads files with
the package flatbuffers, which jax does not install by itself.

Reference: The StableHLO compatibility document, https://openxla.org/stablehlo/compatibility; jax.export's guarantees,
https://docs.jax.dev/en/latest/export/export.html.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxdiff.errors import UsageError, unknown
from jaxdiff.files import write_whole
from jaxdiff.model import Denoiser, Model
from jaxdiff.samplers import Sampler, check, prior_sample, sample
from jaxdiff.types import Array, Level, PyTree

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_FORMAT = "jaxdiff sampler 1"
_ROWS = 2**32 - 1  # image numbers are uint32


def export_sampler(
    model: Model,
    params: PyTree,
    *,
    sampler: Sampler,
    levels: Level,
    shape: tuple[int, ...],
    cond: Mapping[str, jax.ShapeDtypeStruct] | None = None,
    transforms: tuple[Callable[[Denoiser], Denoiser], ...] = (),
    batch: int | None = None,
    platforms: Sequence[str] | None = None,
) -> bytes:
    """Everything that `generate` does with these arguments, as a file's content.

    Args:
        model: the model.
        params: its parameters.
        sampler: one of `jaxdiff.samplers`.
        levels: n + 1 stacked levels from `jaxdiff.grids`; kept in the program.
        shape: of one image, without the batch axis: (32, 32, 3).
        cond: of one image, shape and type of each entry: {"label": jax.ShapeDtypeStruct((), "int32")}.
        transforms: `Denoiser -> Denoiser` functions, applied in order (`jaxdiff.guidance`); with their scales.
        batch: images per call. None leaves it open: the program takes any number, and is compiled for each anew.
        platforms: where it is to run, of "cpu", "cuda", "rocm", "tpu"; None is where it is made. More than one makes
            the file larger by a few kilobytes and nothing slower.

    Returns:
        The content of an .npz file, which `write_whole` writes and `load_sampler` reads.

    Raises:
        UsageError: an unknown platform; a batch below 1; what `generate` refuses.

    Examples:
        >>> from jaxdiff import grids, prediction, processes, samplers
        >>> def network(params, x, t, cond, *, train=False, rngs=None):
        ...     return params * x
        >>> model = Model(network, processes.vp_sde(), prediction.EPS)
        >>> levels = grids.uniform(model.process, 4)
        >>> ddim = samplers.DDIM()
        >>> data = export_sampler(model, jnp.float32(0.5), sampler=ddim, levels=levels, shape=(3,), batch=2)
        >>> load_sampler(data)(seed=0, num=2).shape
        (2, 3)

    Reference: Frostig, Johnson, Leary, Compiling machine learning programs via high-level tracing, 2018 (JAX);
    https://docs.jax.dev/en/latest/export/export.html.
    """
    for name in platforms or ():
        if name not in PLATFORMS:
            raise unknown("platform", name, PLATFORMS)
    if batch is not None and batch < 1:
        raise UsageError(f"batch={batch}: allowed is 1 or more, or None for any")
    check(model.denoiser(params), sampler, levels)
    leaves, tree = jax.tree.flatten(params)
    arrays = [np.asarray(leaf) for leaf in leaves]
    for array in arrays:
        if array.dtype.kind not in "biuf":
            raise UsageError(f"params hold an array of {array.dtype}: allowed are NumPy's own real types")
    of_one = {name: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for name, spec in (cond or {}).items()}

    def run(leaves: list[Array], seed: Array, rows: Array, cond: dict[str, Array]) -> Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)
        denoise = model.denoiser(jax.tree.unflatten(tree, leaves))
        for transform in transforms:
            denoise = transform(denoise)
        x = prior_sample(model.process, keys, (*rows.shape, *shape))
        return sample(denoise, sampler, levels, x, keys, cond=cond or None)[0]

    size = batch if batch is not None else export.symbolic_shape("b")[0]
    program = export.export(jax.jit(run), platforms=tuple(platforms) if platforms else None)(
        [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays],
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct((size,), jnp.uint32),
        {name: jax.ShapeDtypeStruct((size, *spec.shape), spec.dtype) for name, spec in of_one.items()},
    )
    about = {
        "format": _FORMAT,
        "jax": jax.__version__,
        "platforms": list(program.platforms),
        "sampler": str(sampler),
        "steps": levels.t.shape[0] - 1,
        "shape": list(shape),
        "batch": batch,
        "cond": {name: [list(spec.shape), str(spec.dtype)] for name, spec in of_one.items()},
    }
    buffer = io.BytesIO()
    entries: dict[str, Any] = {f"p{i}": array for i, array in enumerate(arrays)}
    content = np.frombuffer(bytes(program.serialize()), np.uint8)
    np.savez(buffer, program=content, about=np.array(json.dumps(about)), **entries)
    return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class Program:
    """An exported sampler, ready to draw. Compiled at the first call.

    Args:
        about: what it is: jax's version, platforms, sampler, steps, shape, batch, cond.
        content: the serialised program.
        params: its parameters in order.
    """

    about: dict[str, Any]
    content: bytes
    params: tuple[np.ndarray, ...]

    @cached_property
    def _call(self) -> Callable[..., Array]:
        program = jax.jit(export.deserialize(bytearray(self.content)).call)
        params = [jnp.asarray(array) for array in self.params]  # once to the device
        return lambda *rest: program(params, *rest)

    def __call__(
        self, seed: int, num: int, cond: Mapping[str, Any] | None = None, *, first: int = 0, batch: int = 128
    ) -> np.ndarray:
        """Draw images first, first + 1, .. of a seed.

        Args:
            seed: in 0..2^32 - 1; image i is that of `generate` with jax.random.key(seed).
            num: how many.
            cond: arrays [num, ...], as the program was exported for; None if it takes none.
            first: the number of the first image.
            batch: images at once, where the program leaves it open.

        Returns:
            Images as the model makes them, usually in [-1, 1], [num, ..shape..].

        Raises:
            UsageError: conditions, a platform or a number that do not fit; a program of a jax too new for this one.
        """
        if not (0 <= seed < 2**32 and num >= 1 and first >= 0 and first + num <= _ROWS and batch >= 1):
            raise UsageError(
                f"seed={seed}, num={num}, first={first}, batch={batch}: allowed are a seed and image numbers "
                "in 0..2^32 - 2, at least one image, and batches of 1 or more"
            )
        here = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
        if here not in self.about["platforms"] and not (here == "cuda" and "rocm" in self.about["platforms"]):
            raise UsageError(f"this machine runs on {here}: the sampler was exported for {self.about['platforms']}")
        given = self._conditions(num, cond or {})
        size = self.about["batch"] or min(batch, num)
        parts = []
        for begin in range(0, num, size):
            # The last batch is filled up: no other number is compiled, or allowed.
            rows = np.minimum(np.arange(begin, begin + size), num - 1)
            some = {name: value[rows] for name, value in given.items()}
            try:
                images = self._call(np.uint32(seed), (first + rows).astype(np.uint32), some)
            except Exception as error:
                made = self.about["jax"]
                if _release(made) <= _release(jax.__version__):
                    raise
                raise UsageError(f"exported with jax {made}, which jax {jax.__version__} cannot read") from error
            parts.append(np.asarray(images)[: num - begin])
        return np.concatenate(parts)

    def _conditions(self, num: int, cond: Mapping[str, Any]) -> dict[str, np.ndarray]:
        expected = self.about["cond"]
        if set(cond) != set(expected):
            raise UsageError(f"cond has the entries {sorted(cond)}: this sampler takes {sorted(expected)}")
        given = {}
        for name, (shape, dtype) in expected.items():
            given[name] = np.asarray(cond[name])
            if given[name].shape != (num, *shape) or not np.can_cast(given[name].dtype, dtype, "same_kind"):
                got = f"{given[name].dtype} {list(given[name].shape)}"
                raise UsageError(f"cond[{name!r}] is {got}: this sampler takes {dtype} {[num, *shape]}")
            given[name] = given[name].astype(dtype)
        return given


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def load_sampler(path: str | Path | bytes) -> Program:
    """An exported sampler.

    Args:
        path: the file, or its content.

    Returns:
        The program: `program(seed, num, cond)` draws images.

    Raises:
        UsageError: for a file that `export_sampler` did not make, or that is cut short.

    Examples:
        >>> load_sampler(b"nothing")
        Traceback (most recent call last):
        ...
        jaxdiff.errors.UsageError: 7 bytes: this is no exported sampler, or one cut short
    """
    name = f"{len(path)} bytes" if isinstance(path, bytes) else str(path)
    try:
        with np.load(io.BytesIO(path) if isinstance(path, bytes) else path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            params = tuple(file[f"p{i}"] for i in range(len(file.files) - 2))
            content = file["program"].tobytes()
        if about["format"] != _FORMAT:
            raise ValueError
    except FileNotFoundError:
        raise UsageError(f"{name}: there is no such file") from None
    except Exception:  # of zip, NumPy or JSON, each with errors of its own
        raise UsageError(f"{name}: this is no exported sampler, or one cut short") from None
    return Program(about, content, params)


def save_sampler(path: str | Path, data: bytes) -> Path:
    """Write what `export_sampler` returned, whole or not at all.

    Args:
        path: where; by custom it ends in ".npz".
        data: the content.

    Returns:
        The path.
    """
    return write_whole(path, data)
