r"""The forward noising steps, reversed one by one.

Song et al. reverse a forward chain x_{i+1} = x_i + f_i(x_i) + G_i z by the same discretisation run backwards,
x_i = x_{i+1} - f_{i+1}(x_{i+1}) + G^2 score + G z (their equation 46). For a variance-exploding process f = 0 and
G^2 = sigma_cur^2 - sigma_nxt^2. Every Gaussian process is one in y = x / alpha with s = sigma / alpha, so

    y_nxt = y + (s_cur^2 - s_nxt^2) score + sqrt(s_cur^2 - s_nxt^2) z,   score = -eps / s_cur,   (1)

or, in x, by y = x0 + s_cur eps and with h = (log_snr_nxt - log_snr_cur) / 2, e^h = s_cur / s_nxt,

    x_nxt = alpha_nxt x0 + sigma_nxt (e^-h eps + sqrt(e^2h - 1) z).                               (2)

The mean is DDPM's; the noise is that of the forward step, where DDPM has that of the posterior. Unlike
Euler-Maruyama it integrates the diffusion over the step exactly. For a VE process (2) is the published predictor
(algorithm 2) and also DDPM(variance="beta"). For a VP process with 1 - beta = (alpha_cur / alpha_nxt)^2 it reads

    x_nxt = (x + beta score) / sqrt(1 - beta) + sqrt(beta / (1 - beta)) z,                        (3)

which is not the paper's VP form (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z (algorithm 3): the difference is
of second order in beta in the mean, and of relative order beta in the noise. (3) gives the same sample for the same
SNRs however the process is scaled; algorithm 3 does not.

The step to clean data, with h infinite, is the prediction x0 (the paper's "denoising" last step); the one from pure
noise (alpha = 0), where (1) has infinite variance, draws alpha_nxt x0 + sigma_nxt z.

Reference: Song et al. Score-based generative modeling through stochastic differential equations. 2021.
arXiv:2011.13456, appendix E and algorithm 2.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxdiff.model import Denoiser
from jaxdiff.numerics import expand, normal_like
from jaxdiff.samplers.base import Point
from jaxdiff.samplers.phi import step_size
from jaxdiff.types import Array, Cond, Level


@dataclass(frozen=True)
class ReverseDiffusion:
    """The reverse-diffusion predictor, equation (2).

    Examples:
        >>> ReverseDiffusion().nfe
        1

    Reference: Song et al. 2021. arXiv:2011.13456, algorithm 2 (predictor).
    """

    order = 1
    nfe = 1

    def init(self, x: Array) -> Point:
        return Point(x)

    def step(self, denoise: Denoiser, state: Point, cur: Level, nxt: Level, key: Array, cond: Cond) -> Point:
        x = state.x
        x0, eps, _ = denoise(x, cur, cond)
        whole, h = step_size(cur, nxt)
        kept = jnp.where(whole, nxt.sigma * jnp.exp(-h), 0.0)
        noise = nxt.sigma * jnp.where(whole, jnp.sqrt(jnp.expm1(2 * h)), 1.0)
        return Point(expand(nxt.alpha, x) * x0 + expand(kept, x) * eps + expand(noise, x) * normal_like(key, x))
