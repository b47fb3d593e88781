"""Training objectives: (model, params, batch, keys) -> (loss [B], metrics), built from times and weights."""

from typing import Any

from jaxdiff.errors import unknown
from jaxdiff.objectives.condition_dropout import ConditionDropout
from jaxdiff.objectives.denoising import Denoising, Objective
from jaxdiff.objectives.times import LogNormal, Stratified, Times, Uniform
from jaxdiff.objectives.weights import EDM, P2, SNR, MinSNR, Simple, Weight

__all__ = [
    "EDM",
    "P2",
    "SNR",
    "TIMES",
    "WEIGHTS",
    "ConditionDropout",
    "Denoising",
    "LogNormal",
    "MinSNR",
    "Objective",
    "Simple",
    "Stratified",
    "Times",
    "Uniform",
    "Weight",
    "make",
]

TIMES: dict[str, Any] = {"uniform": Uniform, "stratified": Stratified, "log_normal": LogNormal}
WEIGHTS: dict[str, Any] = {"simple": Simple, "snr": SNR, "min_snr": MinSNR, "p2": P2, "edm": EDM}


def make(times: str = "uniform", weight: str = "simple") -> Denoising:
    """A denoising objective by the names of its times and its weight, with their default arguments.

    Raises:
        UsageError: for an unknown name, with the nearest one.
    """
    if times not in TIMES:
        raise unknown("times", times, TIMES)
    if weight not in WEIGHTS:
        raise unknown("weight", weight, WEIGHTS)
    return Denoising(TIMES[times](), WEIGHTS[weight]())
