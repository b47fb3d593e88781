"""The problem of the solver benchmarks: four dimensions, eight well-separated narrow modes, and its exact flow.

Where modes are narrow (standard deviation 0.05) and far apart (2 and more), the denoiser turns quickly from their mean
to one of them, which is what makes real images hard for a solver, and the flow from any start is known.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import analytic

DIM, MODES, STD, NUM = 4, 8, 0.05, 512


def data() -> analytic.Mixture:
    """Eight of the sixteen corners of [-1, 1]^4, unevenly weighted."""
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * DIM, indexing="ij")).reshape(DIM, -1).T
    chosen = np.random.default_rng(0).permutation(len(corners))[:MODES]
    weights = np.linspace(1.0, 2.0, MODES)
    return analytic.Mixture(
        jnp.asarray(weights), jnp.asarray(corners[chosen]), jnp.tile(STD**2 * jnp.eye(DIM), (MODES, 1, 1))
    )


def noise() -> jax.Array:
    """The starting points of every solver, in units of the noise."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(NUM, DIM)))


def steps_within(budget: int, nfe: int) -> int:
    """The most steps that a budget of evaluations pays for: `nfe` each, and one for the step to clean data."""
    return (budget - 1) // nfe + 1


def distance(got: jax.Array, exact: jax.Array) -> float:
    """The mean Euclidean distance between where a solver ends and where the exact flow does."""
    return float(jnp.mean(jnp.linalg.norm(got - exact, axis=1)))
