"""How a pure step runs on many devices: the only other place that knows there are several."""

from typing import Any

import jax
import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.train.step import Step
from jaxdiff.types import PyTree

AXIS = "data"


def pmap_step(step: Step) -> Step:
    """Data parallelism by `jax.pmap` over the axis `AXIS`; the state is donated.

    Args:
        step: from `make_train_step(..., axis_name=AXIS)`.

    Returns:
        A step on a replicated state and a sharded batch (`replicate`, `shard`); metrics have a leading device axis.
    """
    return jax.pmap(step, axis_name=AXIS, donate_argnums=0)


def replicate(tree: PyTree) -> PyTree:
    """A copy of every leaf on every local device, along a new first axis."""
    # Under the step's own axis name: another one is another sharding, and the second step would compile again.
    copy = jax.pmap(lambda _, t: t, axis_name=AXIS, in_axes=(0, None))
    return copy(np.arange(jax.local_device_count()), tree)


def unreplicate(tree: PyTree) -> PyTree:
    """The first device's copy of a replicated tree."""
    return jax.tree.map(lambda a: a.addressable_data(0)[0], tree)


def check_batch(batch_size: int, accum: int = 1) -> None:
    """Refuse a global batch that the devices cannot share equally.

    Raises:
        UsageError: naming the batch size and the devices.
    """
    parts = jax.device_count() * accum
    if batch_size < 1 or batch_size % parts:
        by = f"{jax.device_count()} devices" + (f" x accum={accum}" if accum > 1 else "")
        raise UsageError(f"batch_size={batch_size} does not divide by {by}: use a multiple of {parts}")


def shard(batch: Any) -> Any:
    """This process's rows [b, ...] split over its devices: [devices, b / devices, ...]."""
    devices = jax.local_device_count()
    return jax.tree.map(lambda a: a.reshape(devices, a.shape[0] // devices, *a.shape[1:]), batch)
