r"""What a network is trained to say, and how its word becomes a `Prediction`.

A parametrisation is a row (a, b), a function of the level: the network's target is

    y = a x0 + b eps.                                                              (1)

With x = alpha x0 + sigma eps that is a 2 x 2 linear system. Its determinant D = alpha b - sigma a gives

    x0 = (b x - sigma y) / D,    eps = (alpha y - a x) / D,                        (2)

so alpha x0 + sigma eps = x holds for any y. At fixed x an error in x0 of one unit is an error in y of |D| / sigma
units (3), which converts every loss weight from one target to another.

| name | a | b | from |
|---|---|---|---|
| `EPS` | 0 | 1 | DDPM, arXiv:2006.11239, equation 14 |
| `X0` | 1 | 0 | the denoiser itself |
| `V` | -sigma | alpha | Salimans & Ho 2022, arXiv:2202.00512, appendix D |
| `SCORE` | 0 | -1/sigma | Song et al. 2021, arXiv:2011.13456 |
| `Flow(process)` | d alpha/dt | d sigma/dt | Lipman et al. 2023, arXiv:2210.02747 |
| `EDM(sigma_data)` | s / (sigma_data r) | -sigma_data / r | Karras et al. 2022, arXiv:2206.00364, table 1 |

`FLOW` is the straight path's (-1, 1), whatever the process. s = sigma / alpha and r = sqrt(s^2 + sigma_data^2): EDM's
F is the unit-variance target behind c_skip and c_out.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError, unknown
from jaxdiff.numerics import expand
from jaxdiff.process import ForwardProcess
from jaxdiff.processes import rectified_flow
from jaxdiff.types import Array, Level, Prediction

# Below this no noise is left to tell x0 from eps by; keeps (2) finite at a clean level.
_LEAST_SIGMA = 1e-12


@runtime_checkable
class Parametrization(Protocol):
    """A row (a, b) of equation (1): all that defines what a network is trained to say."""

    def row(self, level: Level) -> tuple[Any, Any]:
        """(a, b) of equation (1), each of the shape of the level."""


@dataclass(frozen=True)
class _Eps:
    """The noise."""

    def row(self, level: Level) -> tuple[Any, Any]:
        return jnp.zeros_like(level.alpha), jnp.ones_like(level.alpha)


@dataclass(frozen=True)
class _X0:
    """The clean example."""

    def row(self, level: Level) -> tuple[Any, Any]:
        return jnp.ones_like(level.alpha), jnp.zeros_like(level.alpha)


@dataclass(frozen=True)
class _V:
    """alpha eps - sigma x0: finite and of unit variance at every level of a variance-preserving process."""

    def row(self, level: Level) -> tuple[Any, Any]:
        return -level.sigma, level.alpha


@dataclass(frozen=True)
class _Score:
    """grad log q(x | x0) = -eps / sigma."""

    def row(self, level: Level) -> tuple[Any, Any]:
        return jnp.zeros_like(level.alpha), -1 / level.sigma


@dataclass(frozen=True)
class Flow:
    """The velocity dx/dt of `process` along x = alpha x0 + sigma eps."""

    process: ForwardProcess

    def row(self, level: Level) -> tuple[Any, Any]:
        return self.process.velocity(level.t)


@dataclass(frozen=True)
class EDM:
    """EDM's preconditioned network output F, for data of standard deviation `sigma_data`."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise UsageError(f"sigma_data={self.sigma_data:g}: need sigma_data > 0")

    def row(self, level: Level) -> tuple[Any, Any]:
        norm = jnp.sqrt(level.sigma**2 + (self.sigma_data * level.alpha) ** 2)
        return level.sigma / (self.sigma_data * norm), -self.sigma_data * level.alpha / norm


EPS = _Eps()
X0 = _X0()
V = _V()
SCORE = _Score()
FLOW = Flow(rectified_flow())

REGISTRY = ("eps", "x0", "v", "score", "flow", "edm")


def make(name: str, process: ForwardProcess, *, sigma_data: float = 0.5) -> Parametrization:
    """A parametrisation by its name in `REGISTRY`; "flow" is the velocity of `process`.

    Args:
        name: registry name.
        process: the forward process.
        sigma_data: the data's standard deviation, for "edm".

    Raises:
        UsageError: for an unknown name, with the nearest one.
    """
    made: tuple[Parametrization, ...] = (EPS, X0, V, SCORE, Flow(process), EDM(sigma_data))
    rows = dict(zip(REGISTRY, made, strict=True))
    if name not in rows:
        raise unknown("prediction", name, REGISTRY)
    return rows[name]


def _noisy(level: Level) -> Level:
    return level._replace(sigma=jnp.maximum(level.sigma, _LEAST_SIGMA))


def target(
    p: Parametrization, x0: Float[Array, " b *d"], eps: Float[Array, " b *d"], level: Level
) -> Float[Array, " b *d"]:
    """What the network should answer, equation (1).

    Args:
        p: the parametrisation.
        x0: clean examples, shape [B, ...].
        eps: the noise, the shape of x0.
        level: scalars, or [B].

    Returns:
        a x0 + b eps, the shape of x0.
    """
    a, b = p.row(_noisy(level))
    return expand(a, x0) * x0 + expand(b, x0) * eps


def to_prediction(
    p: Parametrization, output: Float[Array, " b *d"], x: Float[Array, " b *d"], level: Level
) -> Prediction:
    """The network's answer as x0 and eps, equation (2).

    Args:
        p: the parametrisation.
        output: the network's output, shape [B, ...].
        x: the noisy examples it was given, the shape of output.
        level: scalars, or [B].

    Returns:
        A prediction with alpha x0 + sigma eps == x.
    """
    level = _noisy(level)
    a, b = p.row(level)
    det = level.alpha * b - level.sigma * a
    x0 = expand(b / det, x) * x - expand(level.sigma / det, x) * output
    eps = expand(level.alpha / det, x) * output - expand(a / det, x) * x
    return Prediction(x0, eps)


def error_scale(p: Parametrization, level: Level) -> Float[Array, "..."]:
    """The error of the target, per unit of error in x0, at fixed x: |alpha b - sigma a| / sigma (3).

    A weight w on the squared x0 error is the weight w / error_scale^2 on the squared target error.

    Args:
        p: the parametrisation.
        level: scalars, or [B].

    Returns:
        A positive factor of the shape of the level.
    """
    level = _noisy(level)
    a, b = p.row(level)
    return jnp.abs(level.alpha * b - level.sigma * a) / level.sigma
