"""The two values every part of the library passes around: a noise level and a prediction.

A noisy example is

    x = alpha x0 + sigma eps,    eps ~ N(0, I),                                   (1)

and a `Level` says which `alpha` and `sigma`. Nothing outside `process` and `grids` knows betas, step indices or
sigma tables. A denoiser answers with a `Prediction` of both `x0` and `eps` that satisfies (1) exactly.
"""

from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any
Cond = Any  # None, or a dict of arrays with a leading batch axis (label, context, low_res, ...)


class Level(NamedTuple):
    """One noise level (scalars), one per example ([B]), or a stack of them along axis 0.

    Attributes:
        t: process time in [0, 1]; 0 is data, 1 is noise, always.
        alpha: signal coefficient of (1). Not DDPM's alpha, which is 1 - beta.
        sigma: noise standard deviation of (1), in the units of the data.
        log_snr: 2 log(alpha / sigma), natural log; +inf where there is no noise.
    """

    t: Array
    alpha: Array
    sigma: Array
    log_snr: Array


class Prediction(NamedTuple):
    """What a denoiser says of a noisy example: alpha x0 + sigma eps == x.

    Attributes:
        x0: the expected clean example, the shape of x.
        eps: the expected noise, the shape of x.
        var_frac: learned variance as a fraction in [0, 1] between the log of the smallest and the largest reverse
            variance (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 15), or None where the network has none.
    """

    x0: Array
    eps: Array
    var_frac: Array | None = None
