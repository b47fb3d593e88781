"""How a pure step runs on the devices of all processes: the only other place that knows there are several.

`pmap` gives every device a copy of the state and its share of the batch. `mesh` lays devices out in a grid of data x
fsdp and shares the batch over both; parameters, averages and the optimiser's state are cut along the second, so that
each device keeps 1 / fsdp of them, and XLA gathers what a layer needs where it needs it. Both run the same step on the
same rows: a mesh with fsdp = 1 gives the bits of `pmap`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.errors import UsageError, unknown
from jaxdiff.train.step import Step
from jaxdiff.types import PyTree

AXIS, FSDP = "data", "fsdp"
KINDS = ("pmap", "mesh")
# Leaves of fewer elements are kept whole on every device: gathering them costs more than they weigh.
SMALL = 2**14


@dataclass(frozen=True)
class Executor:
    """How a pure step runs on the devices of all processes.

    Attributes:
        step: (state, batch) -> (state, metrics), all laid out; the state is donated.
        put_state: lays a state out: one that is whole on a device, or as `take` or a restored `abstract` has it.
        put_batch: lays out this process's rows of a batch, [b, ...].
        take: a laid-out tree as checkpoints and evaluation see it: every leaf once, a global array.
        scalars: laid-out metrics as numbers; waits for them.
        abstract: a state's shapes, with the sharding in which it is to be restored.
    """

    step: Step
    put_state: Callable[[PyTree], PyTree]
    put_batch: Callable[[PyTree], PyTree]
    take: Callable[[PyTree], PyTree]
    scalars: Callable[[dict[str, jax.Array]], dict[str, float]]
    abstract: Callable[[PyTree], PyTree]


def executor(make: Callable[[str | None], Step], like: PyTree, *, kind: str = "pmap", fsdp: int = 1) -> Executor:
    """The executor of a config.

    Args:
        make: the mapped axis to sum over, or None -> the step, such as `make_train_step` without its `axis_name`.
        like: the state, or its shapes.
        kind: "pmap" or "mesh".
        fsdp: how many devices share one copy of the state; 1 unless `kind` is "mesh".

    Returns:
        The executor, over all devices of all processes.

    Raises:
        UsageError: for a kind that does not exist, or an `fsdp` that does not fit it or the devices.
    """
    if kind not in KINDS:
        raise unknown("train.executor", kind, KINDS)
    if fsdp < 1 or jax.device_count() % fsdp:
        raise UsageError(f"train.fsdp={fsdp}: allowed are divisors of the {jax.device_count()} devices")
    if kind == "pmap":
        if fsdp > 1:
            raise UsageError(f"train.fsdp={fsdp} needs train.executor='mesh'; 'pmap' keeps a copy on every device")
        return Executor(pmap_step(make(AXIS)), replicate, shard, unreplicate, scalars, _abstract)
    mesh = grid(fsdp)
    layout, rows = shardings(like, mesh), NamedSharding(mesh, PartitionSpec((AXIS, FSDP)))

    def put_batch(batch: PyTree) -> PyTree:
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(rows, np.asarray(a)), batch)

    def abstract(state: PyTree) -> PyTree:
        return jax.tree.map(_shape, state, shardings(state, mesh))

    return Executor(
        mesh_step(make(AXIS if fsdp == 1 else None), mesh, like),
        lambda state: jax.tree.map(_place, state, layout),
        put_batch,
        lambda tree: tree,
        scalars,
        abstract,
    )


def pmap_step(step: Step) -> Step:
    """Data parallelism by `jax.pmap` over the axis `AXIS`; the state is donated.

    Args:
        step: from `make_train_step(..., axis_name=AXIS)`.

    Returns:
        A step on a replicated state and a sharded batch (`replicate`, `shard`); metrics have a leading device axis.
    """
    return jax.pmap(step, axis_name=AXIS, donate_argnums=0)


def mesh_step(step: Step, mesh: Mesh, like: PyTree) -> Step:
    """`jax.jit` over a mesh of data x fsdp; the state is donated.

    Args:
        step: from `make_train_step`; with `axis_name=AXIS` if the mesh cuts nothing, whose devices then run it as
            under `pmap`; with None if it does, and XLA divides the work.
        mesh: from `grid`.
        like: the state, or its shapes.

    Returns:
        A step on global arrays: a state laid out by `shardings`, the batch's rows over all devices, metrics whole on
        every device.
    """
    layout, whole, over = shardings(like, mesh), PartitionSpec(), PartitionSpec((AXIS, FSDP))

    def divided(state: PyTree, batch: PyTree) -> Any:
        with nn.intercept_methods(partial(_by_rows, NamedSharding(mesh, over))):
            return step(state, batch)

    # check_vma would sum the gradients once more.
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(whole, over), out_specs=whole, check_vma=False)
    return jax.jit(
        mapped if mesh.shape[FSDP] == 1 else divided,
        in_shardings=(layout, NamedSharding(mesh, over)),
        out_shardings=(layout, NamedSharding(mesh, whole)),
        donate_argnums=0,
    )


def _by_rows(rows: NamedSharding, call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """A layer's outputs, each device with those of its own examples.

    Left to itself XLA cuts activations the way it finds the parameters cut, and moves those about instead.
    """

    def pin(a: Any) -> Any:
        batched = isinstance(a, jax.Array) and a.ndim > 1 and a.shape[0] % rows.num_devices == 0
        return jax.lax.with_sharding_constraint(a, rows) if batched else a

    made = call(*args, **kwargs)
    return jax.tree.map(pin, made) if context.method_name == "__call__" else made


def grid(fsdp: int = 1) -> Mesh:
    """All devices as a mesh [data, fsdp], those of a process side by side, as `pmap` has them."""
    devices = [device for process in range(jax.process_count()) for device in jax.local_devices(process)]
    return Mesh(np.array(devices).reshape(-1, fsdp), (AXIS, FSDP))


def shardings(like: PyTree, mesh: Mesh) -> PyTree:
    """Where the parts of a state lie: each leaf's largest dimension that divides is cut over `FSDP`.

    Args:
        like: arrays, or their shapes.
        mesh: from `grid`.

    Returns:
        A tree of shardings; leaves of fewer than `SMALL` elements, or with no such dimension, are whole everywhere.
    """
    parts = mesh.shape[FSDP]

    def lay(leaf: Any) -> NamedSharding:
        sizes = [(size, dim) for dim, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or math.prod(leaf.shape) < SMALL or not sizes:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * max(sizes)[1], FSDP))

    return jax.tree.map(lay, like)


def replicate(tree: PyTree) -> PyTree:
    """A copy of every leaf on every local device, along a new first axis."""
    here = jax.local_devices()[0]
    whole = jax.tree.map(lambda a: jax.device_put(a, here) if a.is_fully_addressable else a.addressable_data(0), tree)
    # Under the step's own axis name: another one is another sharding, and the second step would compile again.
    copy = jax.pmap(lambda _, t: t, axis_name=AXIS, in_axes=(0, None))
    return copy(np.arange(jax.local_device_count()), whole)


def unreplicate(tree: PyTree) -> PyTree:
    """The first copy of a replicated tree: global arrays, whole on one device of each process."""
    firsts, whole = _firsts(), jax.make_array_from_single_device_arrays
    return jax.tree.map(lambda a: whole(a.shape[1:], firsts, [a.addressable_data(0)[0]]), tree)


def shard(batch: Any) -> Any:
    """This process's rows [b, ...] split over its devices: [devices, b / devices, ...]."""
    here = jax.local_devices()
    sharding = NamedSharding(Mesh(np.array(here), (AXIS,)), PartitionSpec(AXIS))

    def split(rows: Any) -> jax.Array:
        return jax.device_put(rows.reshape(len(here), rows.shape[0] // len(here), *rows.shape[1:]), sharding)

    return jax.tree.map(split, batch)


def local(tree: PyTree) -> PyTree:
    """A global tree whole on this process's first device, for what each process computes by itself; all call it."""

    def whole(a: jax.Array) -> jax.Array:
        if isinstance(a.sharding, NamedSharding) and not a.is_fully_replicated:
            # One at a time: collectives of two programs may meet in another order in another process.
            a = jax.block_until_ready(_gather(NamedSharding(a.sharding.mesh, PartitionSpec()))(a))
        return a.addressable_data(0)

    return jax.tree.map(whole, tree)


@cache
def _gather(whole: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda a: a, out_shardings=whole)


def scalars(metrics: dict[str, jax.Array]) -> dict[str, float]:
    """Metrics as every device has them, as numbers; waits for them."""
    local = jax.device_get({name: value.addressable_data(0) for name, value in metrics.items()})
    return {name: float(value.item()) for name, value in local.items()}


def check_batch(batch_size: int, accum: int = 1) -> None:
    """Refuse a global batch that the devices cannot share equally.

    Raises:
        UsageError: naming the batch size and the devices.
    """
    parts = jax.device_count() * accum
    if batch_size < 1 or batch_size % parts:
        by = f"{jax.device_count()} devices" + (f" x accum={accum}" if accum > 1 else "")
        raise UsageError(f"batch_size={batch_size} does not divide by {by}: use a multiple of {parts}")


def _firsts() -> NamedSharding:
    """Whole on the first device of each process: what evaluation needs is computed once a process."""
    devices = [jax.local_devices(process)[0] for process in range(jax.process_count())]
    return NamedSharding(Mesh(np.array(devices), ("process",)), PartitionSpec())


def _abstract(state: PyTree) -> PyTree:
    sharding = _firsts()
    return jax.tree.map(lambda leaf: _shape(leaf, sharding), state)


def _shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _place(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """On the devices of a sharding; never the caller's own buffer, which the step would donate."""
    if leaf.is_fully_addressable and not sharding.is_fully_addressable:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: host[index])
    return jax.device_put(leaf, sharding, may_alias=False)
