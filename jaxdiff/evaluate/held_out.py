"""The loss on held-out data, always on the same batches with the same noise."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxdiff import data
from jaxdiff.model import Model
from jaxdiff.objectives import Objective
from jaxdiff.types import PyTree


def evaluator(
    model: Model, objective: Objective, batches: data.Batches, seed: int, parts: int = 1
) -> Callable[[PyTree], float]:
    """A function of parameters to the mean loss on at most 16 batches, always with the same noise.

    Args:
        model: the model.
        objective: without dropout of any kind.
        batches: held-out data, unshuffled.
        seed: of the noise.
        parts: how many each batch is computed in, a divisor of its size; the result is the same.
    """
    size, rows = batches.batch_size, batches.batch_size // parts

    @jax.jit
    def losses(params: PyTree, batch: dict, first: jax.Array) -> jax.Array:
        index = first + jax.numpy.arange(rows, dtype="uint32")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)
        return objective(model, params, batch, keys)[0]

    def evaluate(params: PyTree) -> float:
        found = []
        for i, batch in enumerate(epoch(batches)):
            for row in range(0, size, rows):
                part = jax.tree.map(lambda a, row=row: a[row : row + rows], batch)
                found.append(losses(params, part, np.uint32(i * size + row)))
        return float(np.mean(found))

    return evaluate


def epoch(batches: data.Batches, most: int = 16) -> Iterator[dict[str, Any]]:
    """The whole batches of one pass, at most so many; one if there is none.

    Args:
        batches: held-out data, unshuffled.
        most: batches.
    """
    for i in range(max(1, min(len(batches.source) // batches.batch_size, most))):
        yield batches[i]
