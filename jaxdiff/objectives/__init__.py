"""Training objectives: (model, params, batch, keys) -> (loss [B], metrics), built from times and weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxdiff.errors import UsageError, unknown
from jaxdiff.objectives.base import Objective
from jaxdiff.objectives.condition_dropout import ConditionDropout
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.distances import Distance, MeanSquared, PseudoHuber
from jaxdiff.objectives.elbo import ContinuousELBO, DiscreteELBO
from jaxdiff.objectives.flow_times import LogitNormal, Mode
from jaxdiff.objectives.hybrid import Hybrid
from jaxdiff.objectives.importance import Likelihood, UniformLogSNR
from jaxdiff.objectives.resampling import LossSecondMoment, Resampled
from jaxdiff.objectives.self_conditioning import SelfConditioning
from jaxdiff.objectives.sliced import SlicedScoreMatching
from jaxdiff.objectives.times import LogNormal, Stratified, Times, Uniform
from jaxdiff.objectives.vlb import VLB
from jaxdiff.objectives.weights import EDM, P2, SNR, MinSNR, Sigmoid, Simple, SoftMinSNR, Weight
from jaxdiff.process import ForwardProcess

__all__ = [
    "DISTANCES",
    "EDM",
    "OBJECTIVES",
    "P2",
    "SNR",
    "TIMES",
    "VLB",
    "WEIGHTS",
    "ConditionDropout",
    "ContinuousELBO",
    "Denoising",
    "DiscreteELBO",
    "Distance",
    "Hybrid",
    "Likelihood",
    "LogNormal",
    "LogitNormal",
    "LossSecondMoment",
    "MeanSquared",
    "MinSNR",
    "Mode",
    "Objective",
    "PseudoHuber",
    "Resampled",
    "SelfConditioning",
    "Sigmoid",
    "Simple",
    "SlicedScoreMatching",
    "SoftMinSNR",
    "Stratified",
    "Times",
    "Uniform",
    "UniformLogSNR",
    "Weight",
    "make",
]

TIMES: dict[str, Any] = {
    "uniform": Uniform,
    "stratified": Stratified,
    "log_normal": LogNormal,
    "uniform_log_snr": UniformLogSNR,
    "logit_normal": LogitNormal,
    "mode": Mode,
}
WEIGHTS: dict[str, Any] = {
    "simple": Simple,
    "snr": SNR,
    "min_snr": MinSNR,
    "soft_min_snr": SoftMinSNR,
    "sigmoid": Sigmoid,
    "p2": P2,
    "edm": EDM,
    "likelihood": Likelihood,
}
DISTANCES: dict[str, Any] = {"mean_squared": MeanSquared, "pseudo_huber": PseudoHuber}
OBJECTIVES: dict[str, Any] = {
    "denoising": Denoising,
    "hybrid": Hybrid,
    "vlb": VLB,
    "elbo": ContinuousELBO,
    "discrete_elbo": DiscreteELBO,
    "sliced_score": SlicedScoreMatching,
}


def make(
    times: str = "",
    weight: str = "",
    *,
    name: str = "denoising",
    process: ForwardProcess | None = None,
    train: bool = True,
    times_args: Mapping[str, Any] | None = None,
    weight_args: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
) -> Objective:
    """An objective by its name in `OBJECTIVES`, with its times and its weight by theirs.

    Args:
        times: a name in `TIMES`; "" is the objective's own.
        weight: a name in `WEIGHTS`; "" is the objective's own.
        name: a name in `OBJECTIVES`.
        process: the model's process, to be held against; weight "likelihood" needs it.
        train: whether the network runs with dropout; False to evaluate.
        times_args: arguments of the times, such as {"mean": -0.8}.
        weight_args: arguments of the weight.
        args: further arguments of the objective, such as {"offset": 0.1}; a distance by its name in `DISTANCES`.

    Raises:
        UsageError: for an unknown name or argument, with the nearest one; for a weight or times where the objective
            has none to choose; for a process that cannot serve.

    Examples:
        >>> make("stratified", "min_snr", weight_args={"gamma": 3.0}).weight
        MinSNR(gamma=3.0)
    """
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    args, weight_args = dict(args or {}), dict(weight_args or {})
    if isinstance(args.get("distance"), str):
        args["distance"] = _checked("distance", args["distance"], DISTANCES)
    if weight == "likelihood":
        if process is None:
            raise UsageError("weight 'likelihood' needs the model's process")
        weight_args["process"] = process
    for key in ("times", "weight", "train"):
        if key in args:
            raise UsageError(f"objective args {key!r}: give it as objective.{key}")
    fields = {field.name for field in dataclasses.fields(OBJECTIVES[name])}
    for part, registry, chosen, given in (
        ("times", TIMES, times, times_args),
        ("weight", WEIGHTS, weight, weight_args),
    ):
        if (chosen or given) and part not in fields:
            raise UsageError(f"objective '{name}' has no {part} to choose, got '{chosen}'; leave it empty")
        if given and not chosen:
            raise UsageError(f"{part}_args={dict(given)}: say which {part} they are for")
        if chosen:
            args[part] = _checked(part, chosen, registry, given)
    made: Objective = _checked("objective", name, OBJECTIVES, {**args, "train": train})
    checks = (getattr(one, "check", None) for one in (made, getattr(made, "times", None)))
    for check in checks:
        if process is not None and check is not None:
            check(process)
    return made


def _checked(kind: str, name: str, registry: dict[str, Any], given: Mapping[str, Any] | None = None) -> Any:
    """An entry of a registry, made with checked arguments."""
    if name not in registry:
        raise unknown(kind, name, registry)
    allowed = [field.name for field in dataclasses.fields(registry[name])]
    for key in given or {}:
        if key not in allowed:
            raise unknown(f"argument of {kind} '{name}'", key, allowed)
    return registry[name](**(given or {}))
