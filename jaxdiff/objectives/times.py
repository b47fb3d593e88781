r"""Which noise levels a model is trained on.

A time distribution turns one uniform number per example into a level. `Uniform` draws each on its own;
`Stratified` spreads one draw over the batch,

    u_i = (u + i / B) mod 1,   i = 0..B-1,                                          (1)

which leaves each u_i uniform and the batch's mean loss with less variance (Kingma et al. 2021,
arXiv:2107.00630, appendix I.1).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import UsageError
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Level


@runtime_checkable
class Times(Protocol):
    """(process, keys [B], strata [B] or None) -> levels [B].

    `strata` are the shared draw (1) over the whole batch; a train step gives them, because one shard alone does
    not know its place in the batch.
    """

    def __call__(self, process: ForwardProcess, keys: Array, strata: Array | None = None) -> Level: ...


def log_snr_rate(process: ForwardProcess, t: Array) -> Array:
    """-d log SNR/dt >= 0 at process times t, which is g(t)^2 / sigma(t)^2 of the process's SDE.

    At the ends, where the log-SNR is infinite, it is that of the nearest interior time.
    """
    inside = jnp.clip(t, 1e-12, 1 - jnp.finfo(t.dtype).eps)
    _, rate = jax.jvp(process.schedule.log_snr, (inside,), (jnp.ones_like(inside),))
    return -rate


@runtime_checkable
class Dense(Times, Protocol):
    """Times whose density of the log-SNR is known."""

    def inverse_density(self, process: ForwardProcess, level: Level) -> Array:
        """1 / p(log_snr) at levels that were drawn, for an integral over all log-SNR the times can reach."""


def spread(key: Array, index: Array, total: int) -> Array:
    """Equation (1): uniform numbers in [0, 1) for the examples `index` of a batch of `total`, from one key."""
    return (jax.random.uniform(key) + index.astype(jnp.float32) / total) % 1.0


def check_t_min(t_min: float) -> None:
    """Refuse a cleanest time outside (0, 1)."""
    if not 0 < t_min < 1:
        raise UsageError(f"t_min={t_min:g}: allowed is 0 < t_min < 1")


def need_continuous(name: str, process: ForwardProcess) -> None:
    """Refuse a process with steps, for the time distribution `name`."""
    if process.num_steps is not None:
        raise UsageError(f"{name} needs a continuous process; this one has {process.num_steps} steps")


def time_or_row(process: ForwardProcess, t: Array, t_min: float) -> Level:
    """The level at times t in [0, 1]; the row whose share of [0, 1] holds t where the process has steps."""
    if process.num_steps is None:
        return process(jnp.maximum(t, t_min))
    row = jnp.clip(jnp.floor(t * process.num_steps), 0, process.num_steps - 1)
    return process((row + 1) / process.num_steps)


def _times(process: ForwardProcess, u: Array, t_min: float) -> Level:
    if process.num_steps is None:
        return process(t_min + (1 - t_min) * u)
    row = jnp.minimum(jnp.floor(u * process.num_steps), process.num_steps - 1)
    return process((row + 1) / process.num_steps)


@dataclass(frozen=True)
class Uniform:
    """t uniform: over the rows of a table process, over [t_min, 1] for a continuous one.

    Args:
        t_min: the cleanest time trained on, in (0, 1); 1e-5 in Song et al. 2021, arXiv:2011.13456, appendix C.
    """

    t_min: float = 1e-5

    def __post_init__(self) -> None:
        check_t_min(self.t_min)

    def __call__(self, process: ForwardProcess, keys: Array, strata: Array | None = None) -> Level:
        del strata
        return _times(process, jax.vmap(jax.random.uniform)(keys), self.t_min)

    def inverse_density(self, process: ForwardProcess, level: Level) -> Array:
        """1 / p(log_snr) = -(1 - t_min) d log_snr/dt; of a continuous process."""
        need_continuous("a density of 'uniform' times", process)
        return (1 - self.t_min) * log_snr_rate(process, level.t)


@dataclass(frozen=True)
class Stratified(Uniform):
    """`Uniform`, spread evenly over the batch by equation (1). Args: see `Uniform`."""

    def __call__(self, process: ForwardProcess, keys: Array, strata: Array | None = None) -> Level:
        if strata is None:
            strata = spread(keys[0], jnp.arange(keys.shape[0]), keys.shape[0])
        return _times(process, strata, self.t_min)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) ~ N(mean, std^2).

    Args:
        mean: P_mean, natural log.
        std: P_std.

    Reference: Karras et al. 2022. arXiv:2206.00364, table 1 (-1.2 and 1.2).
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise UsageError(f"std={self.std:g}: need std > 0")

    def check(self, process: ForwardProcess) -> None:
        """Refuse a process with steps, whose network knows its rows only."""
        need_continuous("times 'log_normal'", process)

    def __call__(self, process: ForwardProcess, keys: Array, strata: Array | None = None) -> Level:
        del strata
        return process.at(-2 * (self.mean + self.std * jax.vmap(jax.random.normal)(keys)))
