"""Named forward processes, each as its paper defines it.

| name | schedule | scaling | paper |
|---|---|---|---|
| `ddpm_linear` | betas linear from 1e-4 to 0.02, T = 1000 | VP | DDPM |
| `ddpm_cosine` | betas of a squared cosine, clipped at 0.999 | VP | improved DDPM |
| `ddpm_scaled_linear` | squares of linear sqrt(beta) | VP | latent diffusion |
| `from_betas` | any betas | VP | |
| `vp_sde` | beta(t) linear in continuous time | VP | score SDEs |
| `edm` | sigma geometric | VE | EDM |
| `rectified_flow` | the straight path | alpha + sigma = 1 | rectified flow |
"""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxdiff import schedules
from jaxdiff.errors import UsageError, unknown
from jaxdiff.process import ForwardProcess, Straight, VarianceExploding, VariancePreserving


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
    """Betas linear from `beta_start` to `beta_end`.

    Reference: Ho, Jain, Abbeel. 2020. arXiv:2006.11239, section 4.
    """
    return from_betas(np.linspace(beta_start, beta_end, _checked_steps(num_steps)))


def ddpm_cosine(num_steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> ForwardProcess:
    """alpha_t^2 = f(t) / f(0), f(t) = cos^2((t + s) / (1 + s) pi / 2), as betas clipped at `max_beta`.

    Reference: Nichol, Dhariwal. Improved DDPM. 2021. arXiv:2102.09672, equation 17.
    """

    def f(t: float) -> float:
        return math.cos((t + s) / (1 + s) * math.pi / 2) ** 2

    steps = _checked_steps(num_steps)
    return from_betas(min(1 - f((i + 1) / steps) / f(i / steps), max_beta) for i in range(steps))


def ddpm_scaled_linear(num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> ForwardProcess:
    """Betas whose square roots are linear: Stable Diffusion's schedule.

    Reference: Rombach et al. Latent diffusion. 2022. arXiv:2112.10752, and its published configuration.
    """
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, _checked_steps(num_steps)) ** 2)


def vp_sde(beta_min: float = 0.1, beta_max: float = 20.0) -> ForwardProcess:
    """The variance-preserving SDE, DDPM's continuous limit.

    Reference: Song et al. 2021. arXiv:2011.13456, equations 11 and 33.
    """
    return ForwardProcess(schedules.VP(beta_min, beta_max), VariancePreserving())


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


REGISTRY: dict[str, Callable[..., ForwardProcess]] = {
    function.__name__: function
    for function in (ddpm_linear, ddpm_cosine, ddpm_scaled_linear, from_betas, vp_sde, edm, rectified_flow)
}


def make(name: str, **kwargs: Any) -> ForwardProcess:
    """A process by its name in `REGISTRY`.

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
