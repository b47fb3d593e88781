r"""The likelihood bound as a weight, and as times that need none.

For the SDE dx = f dt + g dw of a process, denoising score matching with the weight g(t)^2 bounds the negative
log-likelihood. Of any process g^2 = -sigma^2 d log_snr/dt, so per squared error of the score, of eps and of x0 the
bound's integrand in time is

    g^2 / 2 |score error|^2 = g^2 / (2 sigma^2) |eps error|^2 = -(1/2) d log_snr/dt e^log_snr |x0 error|^2,   (1)

which is `Likelihood`, for times uniform in t. Near the data g^2 / sigma^2 grows without bound and so does the variance
of the estimate. Draw t with density proportional to

    g(t)^2 / sigma(t)^2 = -d log_snr/dt                                              (2)

instead, and what is left is a constant weight on eps. The authors find t by bisection of the integral of (2), one
formula for each SDE; that integral is -log_snr, so (2) is a log-SNR drawn uniformly between its ends, for every
process alike: `UniformLogSNR`. With it `objectives.ContinuousELBO` is the same bound with less variance.

Reference: Song, Durkan, Murray, Ermon. Maximum likelihood training of score-based diffusion models. 2021.
arXiv:2101.09258, equation 4, theorem 1 (lambda = g^2), and section 5.1 (importance sampling).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.objectives.times import check_t_min, log_snr_rate, need_continuous
from jaxdiff.prediction import Parametrization
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Level


@dataclass(frozen=True)
class Likelihood:
    """g(t)^2 / 2 on the score: with times uniform in t, the loss per dimension is the bound's integrand in nats.

    Args:
        process: the continuous process the model is trained on.

    Raises:
        UsageError: for a process with steps, whose bound is a sum (`objectives.DiscreteELBO`).
    """

    process: ForwardProcess

    def __post_init__(self) -> None:
        if self.process.num_steps is not None:
            raise UsageError("weight 'likelihood' needs a continuous process; with steps use objective 'discrete_elbo'")

    def __call__(self, level: Level, prediction: Parametrization) -> Array:
        del prediction
        return 0.5 * log_snr_rate(self.process, level.t) * jnp.exp(level.log_snr)


@dataclass(frozen=True)
class UniformLogSNR:
    """log_snr uniform between its values at `t_min` and at the noisy end of the schedule's span: density (2) in time.

    Spread over the batch (`times`, equation 1) where a train step gives the strata.

    Args:
        t_min: the cleanest time trained on, in (0, 1).

    Raises:
        UsageError: for t_min out of range; at the call, for a process with steps.
    """

    t_min: float = 1e-5

    def __post_init__(self) -> None:
        check_t_min(self.t_min)

    def check(self, process: ForwardProcess) -> None:
        """Refuse a process that these times are not for."""
        need_continuous("times 'uniform_log_snr'", process)

    def ends(self, process: ForwardProcess) -> tuple[float, float]:
        """(largest, smallest) log-SNR that is drawn."""
        self.check(process)
        high, low = process(np.array([self.t_min, process.schedule.span[1]])).log_snr
        return float(high), float(low)

    def __call__(self, process: ForwardProcess, keys: Array, strata: Array | None = None) -> Level:
        u = jax.vmap(jax.random.uniform)(keys) if strata is None else strata
        high, low = self.ends(process)
        return process.at(high + (low - high) * u)

    def inverse_density(self, process: ForwardProcess, level: Level) -> Array:
        """The length of the interval of log-SNR."""
        high, low = self.ends(process)
        return jnp.full_like(level.log_snr, high - low)
