"""Named forward processes, each as its paper defines it.

| name | schedule | scaling | paper |
|---|---|---|---|
| `ddpm_linear` | betas linear from 1e-4 to 0.02, T = 1000 | VP | DDPM |
| `ddpm_cosine` | betas of a squared cosine, clipped at 0.999 | VP | improved DDPM |
| `ddpm_scaled_linear` | squares of linear sqrt(beta) | VP | latent diffusion |
| `from_betas` | any betas | VP | |
| `vp_sde` | beta(t) linear in continuous time | VP | score SDEs |
| `sub_vp_sde` | the same | sigma = 1 - alpha^2 | score SDEs |
| `ve_sde` | sigma geometric, 0.01 to 50 | VE | score SDEs |
| `ncsn` | a table of sigmas | VE | NCSN, NCSNv2 |
| `edm` | sigma geometric, 0.002 to 80 | VE | EDM |
| `cosine` | alpha = cos(pi t / 2) | VP | simple diffusion |
| `cosine_log_snr` | the same between two log-SNRs, shifted by resolution | VP | simple diffusion |
| `sigmoid` | alpha^2 a piece of the logistic function | VP | Chen |
| `laplace` | log-SNR Laplace distributed | VP | Hang et al. |
| `geometric` | log-SNR linear in t | VP | VDM |
| `rectified_flow` | the straight path | alpha + sigma = 1 | rectified flow |

`shifted` and `zero_terminal_snr` make a process from a process; as they need one, they are functions only and have no
name in `REGISTRY`.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxdiff import schedules
from jaxdiff.errors import UsageError, unknown
from jaxdiff.process import (
    ForwardProcess,
    Straight,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)


def from_betas(betas: Iterable[float]) -> ForwardProcess:
    """The discrete variance-preserving process of a list of betas; row i sits at t = (i + 1) / T.

    Args:
        betas: T variances in (0, 1); the last may be 1.
    """
    return ForwardProcess(schedules.Table(tuple(float(b) for b in betas)), VariancePreserving())


def _checked_steps(num_steps: int) -> int:
    if num_steps < 1:
        raise UsageError(f"num_steps={num_steps}: a process needs at least 1 step")
    return num_steps


def ddpm_linear(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> ForwardProcess:
    """Betas linear from `beta_start` to `beta_end`, over `num_steps` steps.

    Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, section 4.
    """
    return from_betas(np.linspace(beta_start, beta_end, _checked_steps(num_steps)))


def ddpm_cosine(num_steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> ForwardProcess:
    """alpha_t^2 = f(t) / f(0), f(t) = cos^2((t + s) / (1 + s) pi / 2), as betas clipped at `max_beta`.

    Args:
        num_steps: T.
        s: offset that keeps the first betas from being too small.
        max_beta: the largest beta, below 1.

    Reference: Nichol, Dhariwal. Improved DDPM. 2021. arXiv:2102.09672, equation 17.
    """

    def f(t: float) -> float:
        return math.cos((t + s) / (1 + s) * math.pi / 2) ** 2

    steps = _checked_steps(num_steps)
    return from_betas(min(1 - f((i + 1) / steps) / f(i / steps), max_beta) for i in range(steps))


def ddpm_scaled_linear(num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> ForwardProcess:
    """Betas whose square roots are linear: Stable Diffusion's schedule.

    Args:
        num_steps: T.
        beta_start: the first beta.
        beta_end: the last.

    Reference: Rombach et al. Latent diffusion. 2022. arXiv:2112.10752, and its published configuration.
    """
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, _checked_steps(num_steps)) ** 2)


def vp_sde(beta_min: float = 0.1, beta_max: float = 20.0) -> ForwardProcess:
    """The variance-preserving SDE, DDPM's continuous limit.

    Args:
        beta_min: beta(0), above 0.
        beta_max: beta(1), at least `beta_min`.

    Reference: Song et al. 2021. arXiv:2011.13456, equations 11 and 33.
    """
    return ForwardProcess(schedules.VP(beta_min, beta_max), VariancePreserving())


def sub_vp_sde(beta_min: float = 0.1, beta_max: float = 20.0) -> ForwardProcess:
    """The sub-VP SDE: the VP SDE's alpha with sigma = 1 - alpha^2, its variance.

    Args:
        beta_min: beta(0), above 0.
        beta_max: beta(1), at least `beta_min`.

    Reference: Song et al. 2021. arXiv:2011.13456, equations 12 and 29.
    """
    return ForwardProcess(schedules.SubVP(beta_min, beta_max), SubVariancePreserving())


def ve_sde(sigma_min: float = 0.01, sigma_max: float = 50.0) -> ForwardProcess:
    """The variance-exploding SDE: x = x0 + sigma eps, sigma geometric in t; t = 0 keeps the noise `sigma_min`.

    Args:
        sigma_min: the least noise, in the units of the data. The paper's data lie in [0, 1].
        sigma_max: the most; about the largest distance between two examples.

    Reference: Song et al. 2021. arXiv:2011.13456, equation 9 and appendix C.
    """
    return ForwardProcess(schedules.Geometric(sigma_min, sigma_max), VarianceExploding())


def ncsn(sigmas: Iterable[float] | None = None) -> ForwardProcess:
    """The noise levels of a score network trained on each of them: x = x0 + sigma_i eps, row i at t = (i + 1) / T.

    Args:
        sigmas: T noise levels, increasing (the papers count them downwards). By default NCSNv2's for CIFAR-10, 232
            from 0.01 to 50 in geometric progression; NCSN itself has 10 from 0.01 to 1.

    Reference: Song, Ermon. 2019. arXiv:1907.05600, section 4; Song, Ermon. Improved techniques for training
        score-based generative models. 2020. arXiv:2006.09011, and its published configuration.
    """
    levels = np.geomspace(0.01, 50.0, 232) if sigmas is None else sigmas
    return ForwardProcess(schedules.NoiseLevels(tuple(float(s) for s in levels)), VarianceExploding())


def cosine() -> ForwardProcess:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), in continuous time, down to zero terminal SNR.

    Reference: Hoogeboom, Heek, Salimans. Simple diffusion. 2023. arXiv:2301.11093, section 2.
    """
    return ForwardProcess(schedules.Cosine(), VariancePreserving())


def cosine_log_snr(
    log_snr_min: float = -15.0, log_snr_max: float = 15.0, image_size: int = 64, base_size: int = 64
) -> ForwardProcess:
    """The cosine schedule cut to [log_snr_min, log_snr_max] and shifted by 2 log(base_size / image_size).

    Args:
        log_snr_min: the log-SNR at t = 1, before the shift.
        log_snr_max: the log-SNR at t = 0, before the shift.
        image_size: the images' height and width in pixels.
        base_size: the size at which there is no shift: 64 in the paper, smaller for more noise.

    Reference: Hoogeboom, Heek, Salimans. Simple diffusion. 2023. arXiv:2301.11093, section 3.1.
    """
    if image_size < 1 or base_size < 1:
        raise UsageError(f"image_size={image_size}, base_size={base_size}: need sizes of at least 1 pixel")
    process = ForwardProcess(schedules.Cosine(log_snr_min, log_snr_max), VariancePreserving())
    return process if image_size == base_size else shifted(process, 2 * math.log(base_size / image_size))


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0, clip_min: float = 1e-9) -> ForwardProcess:
    """alpha^2 the logistic function between `start` / tau and `end` / tau, stretched to run from 1 to 0.

    Args:
        start: where the logistic function begins, at t = 0.
        end: where it ends, above `start`.
        tau: temperature, above 0.
        clip_min: the least alpha^2, in [0, 1); reached at t = 1.

    Reference: Chen. On the importance of noise scheduling. 2023. arXiv:2301.10972, algorithm 1.
    """
    return ForwardProcess(schedules.Sigmoid(start, end, tau, clip_min), VariancePreserving())


def laplace(mu: float = 0.0, b: float = 0.5) -> ForwardProcess:
    """The log-SNR Laplace distributed around `mu` with scale `b`, for uniform t.

    Reference: Hang et al. Improved noise schedule for diffusion training. 2024. arXiv:2407.03297, table 1.
    """
    return ForwardProcess(schedules.Laplace(mu, b), VariancePreserving())


def geometric(log_snr_min: float = -5.0, log_snr_max: float = 13.3) -> ForwardProcess:
    """The log-SNR linear in t, from `log_snr_max` at t = 0 to `log_snr_min`: VDM's gamma = -log_snr where it is fixed.

    Reference: Kingma et al. Variational diffusion models. 2021. arXiv:2107.00630, and its published configuration.
    """
    if not log_snr_min < log_snr_max:
        raise UsageError(f"log_snr_min={log_snr_min:g}, log_snr_max={log_snr_max:g}: need log_snr_min < log_snr_max")
    schedule = schedules.Geometric(math.exp(-0.5 * log_snr_max), math.exp(-0.5 * log_snr_min))
    return ForwardProcess(schedule, VariancePreserving())


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> ForwardProcess:
    """x = x0 + sigma eps, with sigma from `sigma_min` at t = 0 to `sigma_max` at t = 1, geometrically.

    The paper's own clock is sigma itself; here levels are addressed by their log-SNR, so the clock only matters
    to what is uniform in t. Its noise-level grid is `grids.karras`.

    Reference: Karras et al. Elucidating the design space. 2022. arXiv:2206.00364, table 1.
    """
    return ForwardProcess(schedules.Geometric(sigma_min, sigma_max), VarianceExploding())


def rectified_flow(shift: float = 1.0) -> ForwardProcess:
    """The straight path x = (1 - t) x0 + t eps; `shift` > 1 spends more of [0, 1] at high noise.

    Reference: Liu, Gong, Liu. 2022. arXiv:2209.03003; Esser et al. 2024. arXiv:2403.03206, equation 23.
    """
    return ForwardProcess(schedules.Flow(shift), Straight())


def shifted(process: ForwardProcess, log_snr_shift: float) -> ForwardProcess:
    """`process` with `log_snr_shift` added to its log-SNR at every time, in the same scaling.

    A noisier schedule for larger images: 2 log(64 / d) for a size of d pixels where 64 needs no shift.

    Args:
        process: any process.
        log_snr_shift: negative is noisier.

    Examples:
        >>> print(f"{shifted(vp_sde(), 2 * math.log(64 / 256))(0.5).log_snr - vp_sde()(0.5).log_snr:.4f}")
        -2.7726

    Reference: Hoogeboom, Heek, Salimans. Simple diffusion. 2023. arXiv:2301.11093, section 3.1.
    """
    return ForwardProcess(schedules.Shifted(process.schedule, float(log_snr_shift)), process.scaling)


def zero_terminal_snr(process: ForwardProcess) -> ForwardProcess:
    """`process` with its alphas moved and scaled so that the last is 0 and the first stays.

        alpha_i <- (alpha_i - alpha_{T-1}) alpha_0 / (alpha_0 - alpha_{T-1})

    Args:
        process: a process made of two or more betas (`ddpm_linear`, `ddpm_scaled_linear`, ...).

    Raises:
        UsageError: for any other process.

    Examples:
        >>> float(zero_terminal_snr(ddpm_scaled_linear())(1.0).alpha)
        0.0

    Reference: Lin, Liu, Li, Yang. Common diffusion noise schedules and sample steps are flawed. 2024.
        arXiv:2305.08891, algorithm 1.
    """
    schedule = process.schedule
    if not isinstance(schedule, schedules.Table) or schedule.num_steps < 2:
        name = type(schedule).__name__
        raise UsageError(f"zero_terminal_snr needs a process of two or more betas, got schedule {name!r}")
    alpha = np.cumprod(np.sqrt(1 - np.asarray(schedule.betas, np.float64)))
    alpha = alpha - alpha[-1]  # the scale drops out of the ratios, and the first beta stays what it was
    return from_betas([schedule.betas[0], *(1 - (alpha[1:] / alpha[:-1]) ** 2)])


REGISTRY: dict[str, Callable[..., ForwardProcess]] = {
    function.__name__: function
    for function in (
        ddpm_linear,
        ddpm_cosine,
        ddpm_scaled_linear,
        from_betas,
        vp_sde,
        sub_vp_sde,
        ve_sde,
        ncsn,
        edm,
        cosine,
        cosine_log_snr,
        sigmoid,
        laplace,
        geometric,
        rectified_flow,
    )
}


def make(name: str, **kwargs: Any) -> ForwardProcess:
    """A process by its name in `REGISTRY`.

    Args:
        name: registry name.
        kwargs: the constructor's own arguments.

    Raises:
        UsageError: for an unknown name or argument, with the nearest one.
    """
    if name not in REGISTRY:
        raise unknown("process", name, REGISTRY)
    allowed = inspect.signature(REGISTRY[name]).parameters
    for given in kwargs:
        if given not in allowed:
            raise unknown(f"argument of process '{name}'", given, allowed)
    return REGISTRY[name](**kwargs)
