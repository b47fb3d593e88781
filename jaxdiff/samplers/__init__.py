"""Samplers, one file each, and the one scan that runs them.

A new sampler is one file with a frozen dataclass and one line in `REGISTRY`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from jaxdiff.errors import unknown
from jaxdiff.samplers.adaptive import Adaptive
from jaxdiff.samplers.annealed_langevin import AnnealedLangevin
from jaxdiff.samplers.base import Sampler, generate, prior_sample, sample, trajectory
from jaxdiff.samplers.checks import check
from jaxdiff.samplers.ddim import DDIM
from jaxdiff.samplers.ddpm import DDPM
from jaxdiff.samplers.deis import DEIS
from jaxdiff.samplers.dpm_2 import DPM2, DPM2Ancestral
from jaxdiff.samplers.dpm_solver import DPMSolver
from jaxdiff.samplers.dpmpp_multistep import DPMpp2M, DPMpp3M
from jaxdiff.samplers.dpmpp_singlestep import DPMpp2S
from jaxdiff.samplers.euler import Euler, EulerAncestral
from jaxdiff.samplers.euler_maruyama import EulerMaruyama
from jaxdiff.samplers.heun import Heun
from jaxdiff.samplers.inversion import invert
from jaxdiff.samplers.ipndm import IPNDM
from jaxdiff.samplers.langevin import Corrected, langevin
from jaxdiff.samplers.lms import LMS
from jaxdiff.samplers.pndm import PNDM
from jaxdiff.samplers.reverse_diffusion import ReverseDiffusion
from jaxdiff.samplers.sa_solver import SASolver
from jaxdiff.samplers.sde_dpmpp import SDEDPMpp2M, SDEDPMpp3M
from jaxdiff.samplers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "DPM2",
    "IPNDM",
    "LMS",
    "PNDM",
    "REGISTRY",
    "Adaptive",
    "AnnealedLangevin",
    "Corrected",
    "DPM2Ancestral",
    "DPMSolver",
    "DPMpp2M",
    "DPMpp2S",
    "DPMpp3M",
    "Entry",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "Heun",
    "ReverseDiffusion",
    "SASolver",
    "SDEDPMpp2M",
    "SDEDPMpp3M",
    "Sampler",
    "UniPC",
    "check",
    "generate",
    "invert",
    "langevin",
    "make",
    "prior_sample",
    "sample",
    "trajectory",
]


@dataclass(frozen=True)
class Entry:
    """What is known of a sampler before it is made.

    Attributes:
        make: its constructor.
        stochastic: whether it draws noise with its default arguments.
        paper: arXiv id.
        variants: other settings worth a measurement of their own, as (argument, value) pairs.
    """

    make: Callable[..., Sampler]
    stochastic: bool
    paper: str
    variants: tuple[tuple[tuple[str, Any], ...], ...] = ()

    @property
    def order(self) -> int:
        return self.make().order

    @property
    def nfe(self) -> int | None:
        return self.make().nfe


REGISTRY: dict[str, Entry] = {
    "ddpm": Entry(DDPM, stochastic=True, paper="2006.11239"),
    "ddim": Entry(DDIM, stochastic=False, paper="2010.02502"),
    "euler": Entry(Euler, stochastic=False, paper="2206.00364"),
    "euler_ancestral": Entry(EulerAncestral, stochastic=True, paper="2010.02502"),
    "heun": Entry(Heun, stochastic=False, paper="2206.00364", variants=((("alpha", 2 / 3),),)),
    "dpm_2": Entry(DPM2, stochastic=False, paper="2206.00927"),
    "dpm_2_ancestral": Entry(DPM2Ancestral, stochastic=True, paper="2206.00927"),
    "adaptive": Entry(Adaptive, stochastic=False, paper="2206.00927", variants=((("order", 2),),)),
    "lms": Entry(LMS, stochastic=False, paper="2204.13902", variants=((("order", 2),),)),
    "pndm": Entry(PNDM, stochastic=False, paper="2202.09778", variants=((("start", "improved_euler"),),)),
    "ipndm": Entry(IPNDM, stochastic=False, paper="2204.13902", variants=((("variable", True),),)),
    "deis": Entry(DEIS, stochastic=False, paper="2204.13902", variants=((("variable", "log_rho"), ("order", 2)),)),
    "dpm_solver": Entry(DPMSolver, stochastic=False, paper="2206.00927", variants=((("order", 1),), (("order", 3),))),
    "dpmpp_2s": Entry(DPMpp2S, stochastic=False, paper="2211.01095"),
    "dpmpp_2m": Entry(DPMpp2M, stochastic=False, paper="2211.01095", variants=((("rule", "heun"),),)),
    "dpmpp_3m": Entry(DPMpp3M, stochastic=False, paper="2211.01095", variants=((("exact", True),),)),
    "unipc": Entry(
        UniPC,
        stochastic=False,
        paper="2302.04867",
        variants=((("solver_order", 1),), (("solver_order", 3),), (("corrector", False), ("predict", "eps"))),
    ),
    "sde_dpmpp_2m": Entry(SDEDPMpp2M, stochastic=True, paper="2211.01095", variants=((("rule", "heun"),),)),
    "sde_dpmpp_3m": Entry(SDEDPMpp3M, stochastic=True, paper="2211.01095"),
    "sa_solver": Entry(
        SASolver,
        stochastic=True,
        paper="2309.05019",
        variants=((("predictor", 1),), (("predictor", 1), ("corrector", 2), ("tau", 0.5))),
    ),
    "euler_maruyama": Entry(EulerMaruyama, stochastic=True, paper="2011.13456"),
    "reverse_diffusion": Entry(ReverseDiffusion, stochastic=True, paper="2011.13456"),
    "predictor_corrector": Entry(Corrected, stochastic=True, paper="2011.13456"),
    "annealed_langevin": Entry(AnnealedLangevin, stochastic=True, paper="1907.05600"),
}


def make(name: str, **kwargs: Any) -> Sampler:
    """A sampler by its name in `REGISTRY`.

    Args:
        name: registry name.
        kwargs: the sampler's own fields; another sampler among them may be given by its name, too.

    Raises:
        UsageError: for an unknown name or field, with the nearest one.

    Examples:
        >>> make("ddim", eta=0.5)
        DDIM(eta=0.5)
    """
    if name not in REGISTRY:
        raise unknown("sampler", name, REGISTRY)
    allowed = [f.name for f in fields(REGISTRY[name].make)]  # type: ignore[arg-type]
    for given in kwargs:
        if given not in allowed:
            raise unknown(f"argument of sampler '{name}'", given, allowed)
    if isinstance(kwargs.get("sampler"), str):
        kwargs["sampler"] = make(kwargs["sampler"])
    return REGISTRY[name].make(**kwargs)
