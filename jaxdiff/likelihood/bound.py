r"""The variational bound on -log p(x0), term by term, in nats.

A diffusion model is a hierarchical latent-variable model, x_T -> ... -> x_1 -> x0. With the grid's rows 1 (the cleanest
noisy one) to T (the noisiest),

    -log p(x0) <= KL(q(x_T | x0) || p(x_T))                                      prior           (1)
                + sum_{t = 2..T} E KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))    diffusion
                + E -log p(x0 | x_1)                                             reconstruction.

Prior: p(x_T) = N(0, sigma_T^2 I), so the first term is SNR_T |x0|^2 / 2. Diffusion, in steps: both sides are Gaussian;
p has the mean of q with the prediction for x0, and one of the variances of `samplers.DDPM`. With the posterior one

    KL = (SNR_{t-1} - SNR_t) |x0 - x0_hat|^2 / 2.                                               (2)

Diffusion, in continuous time: the sum's limit for ever smaller steps, where the choice of variance is gone. With
m = log(1 + SNR), which stays finite at zero SNR, and both errors of the prediction,

    1/2 integral |x0 - x0_hat|^2 dSNR = 1/2 integral (|x0 - x0_hat|^2 + |eps - eps_hat|^2) dm,      (3)

because |eps - eps_hat|^2 = SNR |x0 - x0_hat|^2 and dSNR = (1 + SNR) dm. m is drawn uniformly within each interval of
the grid, so any grid gives (3) without bias and a better grid gives less noise.

Decoders p(x0 | x_1):

    discretized  a Gaussian around x0_hat gives each of the 8-bit values its bin: a probability              (4)
    softmax      each value's likelihood of x_1, normalised: exp(-|x_1 / alpha - value|^2 / (2 s^2))       (5)
    gaussian     N(x0_hat, s^2 I), s = sigma_1 / alpha_1: a density, right where it varies little over s      (6)

The variance in (4) is s^2 in continuous time; in steps it is, as in DDPM's code, the posterior variance of the step
to x_1 (the last step's own is 0), and for "learned" the geometric mean between that and sigma_1^2. (6) bounds minus the
log-density of continuous data, (4) and (5) minus the log-probability of 8-bit data.

Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, equations 5 and 13; Nichol, Dhariwal. 2021. arXiv:2102.09672,
equations 4-7 and 15; Kingma et al. Variational diffusion models. 2021. arXiv:2107.00630, section 4 and appendix E.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdiff.errors import UsageError, unknown
from jaxdiff.likelihood.flow import check
from jaxdiff.model import Denoiser, check_rows
from jaxdiff.numerics import batch_keys, expand, normal_like, softplus
from jaxdiff.objectives.terms import discretized_gaussian_log_prob, gaussian_kl
from jaxdiff.process import q_posterior, q_transition
from jaxdiff.types import Array, Cond, Level, Prediction

KINDS = ("discrete", "continuous")
VARIANCES = ("posterior", "beta", "learned")
DECODERS = ("discretized", "softmax", "gaussian")

# The decoder draws from folds that no term of the sum reaches.
_DECODER = 2**31


class Bound(NamedTuple):
    """The terms of the bound (1), in nats, each of shape [B]; their sum is an upper bound on -log p(x0).

    Attributes:
        prior: what the noisiest level still knows of x0; exact.
        diffusion: the sum over the levels, or the integral.
        reconstruction: the decoder's term.
        stderr: standard error of `total` from the noise and the levels drawn, [B]; an estimate, from few large
            terms where the data is narrow, so that twice it is no sure interval for a single example.
        nfe: denoiser evaluations.
    """

    prior: Array
    diffusion: Array
    reconstruction: Array
    stderr: Array
    nfe: int

    @property
    def total(self) -> Array:
        """The bound, [B]: the sum of the three terms."""
        return self.prior + self.diffusion + self.reconstruction


def bound(
    denoise: Denoiser,
    x0: Float[Array, " b *d"],
    key: Array,
    *,
    levels: Level,
    kind: str = "discrete",
    variance: str = "posterior",
    decoder: str = "discretized",
    draws: int | None = None,
    decodes: int = 8,
    bins: int = 256,
    cond: Cond = None,
) -> Bound:
    """An upper bound on -log p(x0) by term, equation (1), each term an unbiased estimate.

    Compiled once per (kind, variance, decoder, draws, decodes, bins, shapes, structure of the denoiser).

    Args:
        denoise: the denoiser.
        x0: clean examples, shape [B, ...]; for the decoders of 8-bit data on the points -1, -1 + 2 / (bins - 1), ...
        key: one key, or one per example [B]: the same key gives the same value in any batch.
        levels: T + 1 stacked levels, noisiest first, clean data last, T at least 3. For "discrete" they are the model's
            steps (`grids.uniform(process, process.num_steps)` for all of a table's); for "continuous" the intervals
            that (3) is spread over, from the first row to the cleanest noisy one.
        kind: "discrete", ancestral sampling over these levels; "continuous", the limit (3).
        variance: of a discrete reverse step: "posterior", "beta" or "learned", as in `samplers.DDPM`.
        decoder: "discretized", "softmax" or "gaussian", equations (4) to (6).
        draws: None, every step (interval) once: the whole sum over T; or a number of them, at least 2: the sum's
            estimate from as many strata of equal weight, most where the terms are large.
        decodes: draws of x_1 for the reconstruction, at least 2.
        bins: number of values of quantised data, for the decoders that need it.
        cond: conditioning, a dict of arrays with leading axis B, or None.

    Returns:
        The terms [B] in nats, the standard error of their sum, and nfe.

    Raises:
        UsageError: for an unknown kind, variance or decoder, too few levels or draws, a grid that does not end at
            clean data, or "learned" with a denoiser that has no variance.

    Examples:
        >>> import jaxdiff
        >>> process = jaxdiff.processes.ddpm_linear()
        >>> denoise = jaxdiff.analytic.Gaussian(jnp.zeros(2), jnp.eye(2)).denoiser(process)
        >>> levels = jaxdiff.grids.uniform(process, 1000)
        >>> terms = bound(denoise, jnp.zeros((1, 2)), jax.random.key(0), levels=levels, decoder="gaussian")
        >>> terms.total.shape, terms.nfe
        ((1,), 1007)

    Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, equation 5; Kingma et al. 2021. arXiv:2107.00630, section 4.
    """
    for name, value, allowed in (
        ("kind", kind, KINDS),
        ("variance", variance, VARIANCES),
        ("decoder", decoder, DECODERS),
    ):
        if value not in allowed:
            raise unknown(name, value, allowed)
    check(levels, x0, cond, least=3)
    if draws is not None and draws < 2:
        raise UsageError(f"draws={draws}: allowed is 2 or more, or None for every level")
    if decodes < 2:
        raise UsageError(f"decodes={decodes}: allowed is 2 or more")
    check_rows(denoise, levels.t, what=f"bound of kind {kind!r}", between=kind == "continuous")
    keys = batch_keys(key, x0.shape[0])
    prior, diffusion, reconstruction, stderr = _terms(
        denoise, x0, keys, levels, cond, kind == "continuous", variance, decoder, draws, decodes, bins
    )
    evaluations = (levels.t.shape[0] - 2 if draws is None else draws) + (0 if decoder == "softmax" else decodes)
    return Bound(prior, diffusion, reconstruction, stderr, evaluations)


@partial(jax.jit, static_argnums=(5, 6, 7, 8, 9, 10))
def _terms(
    denoise: Denoiser,
    x0: Array,
    keys: Array,
    levels: Level,
    cond: Cond,
    continuous: bool,
    variance: str,
    decoder: str,
    draws: int | None,
    decodes: int,
    bins: int,
) -> tuple[Array, Array, Array, Array]:
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
    steps = levels.t.shape[0] - 2
    count = steps if draws is None else draws

    def row(index: Array | int) -> Level:
        return jax.tree.map(lambda a: a[index], levels)

    share = _share(levels, continuous)

    def term(_: None, j: Array) -> tuple[None, Array]:
        mine = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, j), 3))(keys)
        u, inside = (jax.vmap(partial(jax.random.uniform, dtype=x0.dtype))(mine[:, i]) for i in (0, 1))
        if draws is None:
            index, scale = jnp.full(u.shape, j), jnp.ones_like(u)
        else:
            index = jnp.minimum(jnp.searchsorted(jnp.cumsum(share), (j + u) / draws), steps - 1)
            scale = 1 / (draws * share[index])
        cur, nxt = row(index), row(index + 1)
        eps = normal_like(mine[:, 2], x0)
        if continuous:
            return None, scale * _integrand(denoise, x0, eps, cur, nxt, inside, cond)
        return None, scale * _divergence(denoise, x0, eps, cur, nxt, variance, cond)

    def decode(_: None, r: Array) -> tuple[None, Array]:
        eps = normal_like(jax.vmap(jax.random.fold_in, (0, None))(keys, r), x0)
        last = row(-2)
        x = last.alpha * x0 + last.sigma * eps
        if decoder == "softmax":
            return None, _softmax(x0, x / last.alpha, last.sigma / last.alpha, bins)
        answer = denoise(x, last, cond)
        if decoder == "gaussian" or continuous:
            log_var = 2 * jnp.log(last.sigma / last.alpha)
        else:
            small = jnp.log(q_posterior(row(-3), last, x, x0)[1])
            log_var = small + _fraction(answer, variance) * (2 * jnp.log(last.sigma) - small)
            log_var = log_var if variance == "learned" else small
        if decoder == "gaussian":
            return None, 0.5 * _sum((x0 - answer.x0) ** 2 * jnp.exp(-log_var) + log_var + jnp.log(2 * jnp.pi))
        log_std = jnp.broadcast_to(0.5 * log_var, x0.shape)
        return None, -_sum(discretized_gaussian_log_prob(x0, answer.x0, log_std, bins=bins))

    _, each = jax.lax.scan(term, None, jnp.arange(count))
    _, decoded = jax.lax.scan(decode, None, jnp.arange(decodes, dtype=jnp.uint32) + jnp.uint32(_DECODER))
    first = row(0)
    prior = 0.5 * _sum((first.alpha / first.sigma * x0) ** 2)
    # One draw per stratum: its neighbours stand in for a second draw; the ends have one neighbour, which counts twice.
    square = jnp.diff(each, axis=0) ** 2
    spread = 0.25 * (2 * square.sum(0) + square[0] + square[-1])
    stderr = jnp.sqrt(spread + decoded.var(axis=0, ddof=1) / decodes)
    return prior, each.sum(0), decoded.mean(0), stderr


def _share(levels: Level, continuous: bool) -> Array:
    """How often each step is drawn: in proportion to its term for data of unit scale."""
    log_snr = levels.log_snr[:-1]
    snr = jnp.exp(log_snr)
    weight = jnp.diff(softplus(log_snr)) if continuous else jnp.diff(snr) / (1 + snr[:-1])
    return weight / weight.sum()


def _sum(a: Array) -> Array:
    return a.reshape(a.shape[0], -1).sum(1)


def _fraction(answer: Prediction, variance: str) -> Array:
    """Where log var lies between that of "posterior", 0, and that of "beta", 1."""
    if variance != "learned":
        return jnp.asarray(float(variance == "beta"), answer.x0.dtype)
    if answer.var_frac is None:
        raise UsageError("bound(variance='learned') needs a model with learned_variance; use 'posterior' or 'beta'")
    return answer.var_frac


def _divergence(denoise: Denoiser, x0: Array, eps: Array, cur: Level, nxt: Level, variance: str, cond: Cond) -> Array:
    """One step's KL in (1)."""
    x = expand(cur.alpha, x0) * x0 + expand(cur.sigma, x0) * eps
    answer = denoise(x, cur, cond)
    # Both means share the term in x; what is left is linear in the error.
    gap, var = q_posterior(cur, nxt, jnp.zeros_like(x), x0 - answer.x0)
    small = jnp.broadcast_to(expand(jnp.log(var), x), x.shape)
    large = expand(2 * jnp.log(q_transition(cur, nxt)[1]), x)
    return _sum(gaussian_kl(gap, small, jnp.zeros_like(gap), small + _fraction(answer, variance) * (large - small)))


def _integrand(denoise: Denoiser, x0: Array, eps: Array, cur: Level, nxt: Level, u: Array, cond: Cond) -> Array:
    """One interval of (3), at the fraction u of its m."""
    low, high = softplus(cur.log_snr), softplus(nxt.log_snr)
    m = low + u * (high - low)
    level = denoise.process.at(m + jnp.log(-jnp.expm1(-m)))
    answer = denoise(expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps, level, cond)
    return 0.5 * (high - low) * _sum((x0 - answer.x0) ** 2 + (eps - answer.eps) ** 2)


def _softmax(x0: Array, x: Array, std: Array, bins: int) -> Array:
    """Minus the log-probability (5) of x0 given x = x_1 / alpha_1."""

    def energy(value: Array) -> Array:
        return -0.5 * ((x - value) / std) ** 2

    def add(k: Array, total: Array) -> Array:
        return jnp.logaddexp(total, energy(-1 + 2 * k.astype(x.dtype) / (bins - 1)))

    return _sum(jax.lax.fori_loop(1, bins, add, energy(jnp.asarray(-1, x.dtype))) - energy(x0))
