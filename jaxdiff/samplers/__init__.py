"""Samplers, one file each, and the one scan that runs them.

A new sampler is one file with a frozen dataclass and one line in `REGISTRY`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from jaxdiff.errors import unknown
from jaxdiff.samplers.base import Sampler, generate, prior_sample, sample, trajectory
from jaxdiff.samplers.ddim import DDIM
from jaxdiff.samplers.ddpm import DDPM

__all__ = ["DDIM", "DDPM", "REGISTRY", "Entry", "Sampler", "generate", "make", "prior_sample", "sample", "trajectory"]


@dataclass(frozen=True)
class Entry:
    """What is known of a sampler before it is made.

    Attributes:
        make: its constructor.
        stochastic: whether it draws noise with its default arguments.
        paper: arXiv id.
    """

    make: Callable[..., Sampler]
    stochastic: bool
    paper: str

    @property
    def order(self) -> int:
        return self.make().order

    @property
    def nfe(self) -> int:
        return self.make().nfe


REGISTRY: dict[str, Entry] = {
    "ddpm": Entry(DDPM, stochastic=True, paper="2006.11239"),
    "ddim": Entry(DDIM, stochastic=False, paper="2010.02502"),
}


def make(name: str, **kwargs: Any) -> Sampler:
    """A sampler by its name in `REGISTRY`.

    Args:
        name: registry name.
        kwargs: the sampler's own fields.

    Raises:
        UsageError: for an unknown name or field, with the nearest one.

    Example:
        >>> make("ddim", eta=0.5)
        DDIM(eta=0.5)
    """
    if name not in REGISTRY:
        raise unknown("sampler", name, REGISTRY)
    allowed = [f.name for f in fields(REGISTRY[name].make)]  # type: ignore[arg-type]
    for given in kwargs:
        if given not in allowed:
            raise unknown(f"argument of sampler '{name}'", given, allowed)
    return REGISTRY[name].make(**kwargs)
