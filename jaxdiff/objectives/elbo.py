r"""The diffusion term of the variational bound, of continuous and of T-step models: VDM's loss.

In continuous time the bound's diffusion term is an integral over the log-SNR alone, whatever the schedule,

    L = -(1/2) E_t[d log_snr/dt e^log_snr |x0 - x0_hat|^2 / p(t)]
      = (1/2) E_log_snr[|eps - eps_hat|^2 / p(log_snr)],                               (1)

and with T steps, from a row t to the one before it, s,

    L = (T / 2) E_i[(SNR(s) - SNR(t)) |x0 - x0_hat|^2]
      = (T / 2) E_i[(e^(log_snr_s - log_snr_t) - 1) |eps - eps_hat|^2],                (2)

which is the KL divergence of each reverse step with the posterior's own variance, and decreases to (1) as T grows.
Both are in **nats per example**, summed over its D numbers. The terms at the ends (the prior's, and the data given
the cleanest level) have no part in training a network and are left out; `jaxdiff.likelihood` adds them.

At the exact denoiser of Gaussian data with variances l_i, (1) is sum_i (1/2) log(1 + e^log_snr l_i) between its ends.

Reference: Kingma, Salimans, Poole, Ho. Variational diffusion models. 2021. arXiv:2107.00630, equations 13-14 for (2)
and 15-17 for (1).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Model
from jaxdiff.numerics import mean_per_example
from jaxdiff.objectives.base import Noised, noised, sum_per_example
from jaxdiff.objectives.importance import UniformLogSNR
from jaxdiff.objectives.times import Dense, Times, check_t_min, need_continuous
from jaxdiff.prediction import error_scale, target
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Level, PyTree


def _eps_error(model: Model, drawn: Noised) -> tuple[Float[Array, " b"], dict[str, Array]]:
    """|eps - eps_hat|^2 of each example, whatever the target, and the metrics."""
    square = (drawn.output - target(model.prediction, drawn.x0, drawn.eps, drawn.level)) ** 2
    scale = error_scale(model.prediction, drawn.level) ** 2
    return jnp.exp(drawn.level.log_snr) / scale * sum_per_example(square), {"mse": mean_per_example(square)}


@dataclass(frozen=True)
class ContinuousELBO:
    """Equation (1) between the ends of its times: the same expectation for all, so the choice is one of variance.

    Args:
        times: `UniformLogSNR()` (importance sampling), `Uniform()` or `Stratified()`.
        train: whether the network runs with dropout; False to evaluate.

    Raises:
        UsageError: for times without a density; at the call, for a process with steps.

    Examples:
        >>> from jaxdiff.objectives import Uniform
        >>> ContinuousELBO(Uniform(1e-3)).times
        Uniform(t_min=0.001)
    """

    times: Times = UniformLogSNR()
    train: bool = True

    learned_variance = False

    def __post_init__(self) -> None:
        if not isinstance(self.times, Dense):
            name = type(self.times).__name__
            raise UsageError(f"times {name} tell no density of the log-SNR; use 'uniform_log_snr' or 'uniform'")

    def check(self, process: ForwardProcess) -> None:
        """Refuse a process that this objective is not for."""
        need_continuous("objective 'elbo'", process)

    def __call__(
        self, model: Model, params: PyTree, batch: dict[str, Any], keys: Array
    ) -> tuple[Float[Array, " b"], dict]:
        """Losses of a batch, as `Denoising`'s: (nats [B], {"mse": target error [B]})."""
        self.check(model.process)
        drawn = noised(model, params, batch, keys, self.times, train=self.train)
        error, metrics = _eps_error(model, drawn)
        assert isinstance(self.times, Dense)
        return 0.5 * self.times.inverse_density(model.process, drawn.level) * error, metrics


@dataclass(frozen=True)
class _Steps:
    """Row i in 2..T of a table process, or the end of step i in 1..T of [t_min, 1]; uniform over i."""

    steps: int | None
    t_min: float

    def count(self, process: ForwardProcess) -> int:
        """The number of terms."""
        return (process.num_steps or 1) - 1 if self.steps is None else self.steps

    def __call__(self, process: ForwardProcess, keys: Array, strata: Array | None = None) -> Level:
        u = jax.vmap(jax.random.uniform)(keys) if strata is None else strata
        count = self.count(process)
        return process(self.time(process, jnp.minimum(jnp.floor(u * count), count - 1) + 1))

    def time(self, process: ForwardProcess, i: Array) -> Array:
        """The time after i steps."""
        if self.steps is None:
            return (i + 1) / (process.num_steps or 1)
        return self.t_min + (1 - self.t_min) * (i / self.steps)

    def before(self, process: ForwardProcess, level: Level) -> Level:
        """The level one step cleaner."""
        if self.steps is None:
            return process(jnp.round(level.t * (process.num_steps or 1) - 1) / (process.num_steps or 1))
        i = jnp.round((level.t - self.t_min) / (1 - self.t_min) * self.steps)
        return process(self.time(process, i - 1))


@dataclass(frozen=True)
class DiscreteELBO:
    """Equation (2).

    Args:
        steps: T, for a continuous process; None for the rows of a process with steps, its first row (from the clean
            data) left to the reconstruction term.
        t_min: where the steps of a continuous process start.
        train: whether the network runs with dropout; False to evaluate.

    Raises:
        UsageError: for arguments out of range; at the call, for steps given twice, or not at all.
    """

    steps: int | None = None
    t_min: float = 1e-5
    train: bool = True

    learned_variance = False

    def __post_init__(self) -> None:
        check_t_min(self.t_min)
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps={self.steps}: allowed is 1 or more")

    def check(self, process: ForwardProcess) -> None:
        """Refuse a process that this objective is not for."""
        rows = process.num_steps
        if (rows is None) == (self.steps is None) or rows == 1:
            raise UsageError(f"steps={self.steps} with a process of {rows} steps: give steps for a continuous one only")

    def __call__(
        self, model: Model, params: PyTree, batch: dict[str, Any], keys: Array
    ) -> tuple[Float[Array, " b"], dict]:
        """Losses of a batch, as `Denoising`'s: (nats [B], {"mse": target error [B]}); uses the strata where given."""
        self.check(model.process)
        times = _Steps(self.steps, self.t_min)
        drawn = noised(model, params, batch, keys, times, train=self.train)
        square = sum_per_example((drawn.output - target(model.prediction, drawn.x0, drawn.eps, drawn.level)) ** 2)
        before, here = times.before(model.process, drawn.level).log_snr, drawn.level.log_snr
        # In the error of x0, which is finite where the level has no signal.
        gain = -jnp.exp(before) * jnp.expm1(here - before) / error_scale(model.prediction, drawn.level) ** 2
        metrics = {"mse": square / (drawn.x0.size // drawn.x0.shape[0])}
        return 0.5 * times.count(model.process) * gain * square, metrics
