r"""The variational bound of a model with learned variance: improved DDPM's L_vlb.

The network answers the mean's target and, per number, v in [0, 1] between the smallest and the largest variance that
a reverse step can need (d <= 0 the difference of log-SNR from a row to the one before it):

    log var = v log(sigma_cur^2 (1 - e^d)) + (1 - v) log(sigma_nxt^2 (1 - e^d)).        (1)

Row i of T pays for its reverse step, and the first row, whose posterior is a point, for 8-bit data:

    L_i = KL(q(x_nxt | x_cur, x0) || N(mean, var)),   L_1 = -log p(x0 | x_1),            (2)
    L_vlb = sum_i L_i = T E_i[L_i].                                                      (3)

The prior's term has no parameters and is left out. (2) and (3) are in **bits per dimension**, as in the authors' code.
In the first row (1) takes its lower end from the second, as theirs does.

Reference: Nichol, Dhariwal. Improved denoising diffusion probabilistic models. 2021. arXiv:2102.09672, equations 4-7
for (2) and (3), 15 for (1).
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError
from jaxdiff.model import Model
from jaxdiff.numerics import expand, mean_per_example
from jaxdiff.objectives.base import Noised, noised
from jaxdiff.objectives.terms import discretized_gaussian_log_prob, gaussian_kl
from jaxdiff.objectives.times import Times, Uniform
from jaxdiff.prediction import target, to_prediction
from jaxdiff.process import ForwardProcess, q_posterior, q_transition
from jaxdiff.types import Array, Level, PyTree


def step_bits(model: Model, drawn: Noised) -> Float[Array, " b"]:
    """The term (2) of each example's row, in bits per dimension.

    Args:
        model: a model with learned variance and a process with two steps or more.
        drawn: its answer at rows of the process.

    Raises:
        UsageError: for another model.
    """
    if drawn.variance is None:
        raise UsageError("this objective trains the variance: it needs a model with learned_variance=True")
    steps = table_steps(model.process)
    x0, x, cur = drawn.x0, drawn.x, drawn.level
    row = jnp.round(cur.t * steps)
    first = row == 1
    nxt = model.process((row - 1) / steps)
    guess = to_prediction(model.prediction, drawn.output, x, cur).x0
    # The first row steps to clean data, where the posterior's variance is 0: the second row's stands for it.
    safe_cur, safe_nxt = (_where(first, model.process((i + 1) / steps), r) for i, r in ((1, cur), (0, nxt)))
    # Means of the two Gaussians differ by what the posterior mean makes of the error in x0.
    gap, small = q_posterior(safe_cur, safe_nxt, jnp.zeros_like(x), guess - x0)
    log_small, log_large = expand(jnp.log(small), x), expand(2 * jnp.log(q_transition(cur, nxt)[1]), x)
    frac = (drawn.variance + 1) / 2
    log_var = frac * log_large + (1 - frac) * log_small
    kl = gaussian_kl(jnp.zeros_like(gap), jnp.broadcast_to(log_small, x.shape), gap, log_var)
    pixels = expand(first, x)  # the other rows get harmless numbers, so that no gradient of theirs is NaN
    nll = -discretized_gaussian_log_prob(x0, jnp.where(pixels, guess, x0), jnp.where(pixels, 0.5 * log_var, 0.0))
    return mean_per_example(jnp.where(pixels, nll, kl)) / math.log(2)


def table_steps(process: ForwardProcess) -> int:
    """The number of steps of a process, refused where a sum over steps makes no sense."""
    if process.num_steps is None or process.num_steps < 2:
        got = process.num_steps
        raise UsageError(f"the variational bound is a sum over steps: it needs a process with 2 or more, got {got}")
    return process.num_steps


def _where(condition: Array, a: Level, b: Level) -> Level:
    return Level(*(jnp.where(condition, left, right) for left, right in zip(a, b, strict=True)))


@dataclass(frozen=True)
class VLB:
    """The variational bound alone, equation (3): the bits per dimension that a data set costs, without the prior's.

    Args:
        times: `Uniform()` or `Stratified()`, over the rows; `Resampled` gives it the paper's importance sampling.
        train: whether the network runs with dropout; False to evaluate.

    Raises:
        UsageError: for other times; at the call, for a model without learned variance or a process without steps.

    Reference: Nichol, Dhariwal. 2021. arXiv:2102.09672, equation 4.
    """

    times: Times = Uniform()
    train: bool = True

    learned_variance = True

    def __post_init__(self) -> None:
        check_times(self.times)

    def check(self, process: ForwardProcess) -> None:
        """Refuse a process that this objective is not for."""
        table_steps(process)

    def __call__(
        self, model: Model, params: PyTree, batch: dict[str, Any], keys: Array
    ) -> tuple[Float[Array, " b"], dict]:
        """Losses of a batch, as `Denoising`'s: (T L_i [B] in bits per dimension, {"mse": target error [B]})."""
        drawn = noised(model, params, batch, keys, self.times, train=self.train)
        y = target(model.prediction, drawn.x0, drawn.eps, drawn.level)
        loss = table_steps(model.process) * step_bits(model, drawn)
        return loss, {"mse": mean_per_example((drawn.output - y) ** 2)}


def check_times(times: Times) -> None:
    """Refuse times that do not visit every step alike."""
    if not isinstance(times, Uniform):
        name = type(times).__name__
        raise UsageError(f"times {name}: allowed for a sum over all steps is 'uniform' or 'stratified'")
