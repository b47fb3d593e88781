"""What a configuration of a diffusers scheduler says of a model: its process, its prediction, its time.

A scheduler there is a sampler and the schedule it runs on in one. The schedule belongs to the model; the rest (spacing,
solver order, clipping) is a choice made anew for every sample and has no place in a `Spec`.

Those with betas are tables of T steps and tell the network the row. The sigmoid schedule has

    beta_i = beta_start + (beta_end - beta_start) / (1 + exp(-u_i)),   u_i from -6 to 6 in equal steps.       (1)

ScoreSdeVeScheduler has sigma from sigma_min to sigma_max, geometric in t, and tells the network sigma; its data lie in
[0, 1]. FlowMatchEulerDiscreteScheduler has the straight path and tells the network T sigma; its shift only says which
levels are visited.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import processes
from jaxdiff.convert.diffusers.values import bad, lists
from jaxdiff.errors import unknown
from jaxdiff.models.presets.spec import Spec
from jaxdiff.schedules import Table

VE, FLOW = "ScoreSdeVeScheduler", "FlowMatchEulerDiscreteScheduler"

# Schedulers with betas: the first beta, the last and the schedule where a configuration does not say.
_DDPM, _SMALL, _SCALED = (1e-4, 0.02, "linear"), (0.00085, 0.012, "linear"), (0.00085, 0.012, "scaled_linear")
BETAS = {
    **dict.fromkeys(
        (
            "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
            "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
            "LMSDiscreteScheduler", "PNDMScheduler", "RePaintScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
        ),
        _DDPM,
    ),
    **dict.fromkeys(
        (
            "DPMSolverSDEScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
            "KDPM2DiscreteScheduler",
        ),
        _SMALL,
    ),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), _SCALED),
}  # fmt: skip
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
LEARNED = "learned_range"
_MOST_STEPS = 1_000_000  # a table is made at once, and the number is from a file
_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
_NAMED = {"linear": "ddpm_linear", "scaled_linear": "ddpm_scaled_linear", "squaredcos_cap_v2": "ddpm_cosine"}


class Meaning(NamedTuple):
    """What a scheduler says of a model.

    Attributes:
        process: arguments of `jaxdiff.processes.make`.
        prediction: a name of `jaxdiff.prediction.REGISTRY`.
        time_input: arguments of the model's time input.
        steps: T of a table; None for continuous time.
        learned: whether the network's output has variance channels; None where it does not say.
    """

    process: dict[str, Any]
    prediction: str
    time_input: dict[str, Any]
    steps: int | None = None
    learned: bool | None = None


def meaning(config: Mapping[str, Any]) -> Meaning:
    """What a scheduler's configuration says of the model it samples from.

    Args:
        config: scheduler_config.json as a dict.

    Returns:
        The process, prediction and time input.

    Raises:
        UsageError: a scheduler, schedule or value that has no counterpart here.

    Examples:
        >>> meaning({"_class_name": "DDPMScheduler", "num_train_timesteps": 200}).process["num_steps"]
        200
    """
    name = config.get("_class_name")
    if name == VE:
        low, high = _number(config, "sigma_min", 0.01), _number(config, "sigma_max", 1348.0)
        return Meaning({"name": "ve_sde", "sigma_min": low, "sigma_max": high}, "eps", {"name": "log_sigma"})
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= _MOST_STEPS:
        raise bad("num_train_timesteps", steps, f"a whole number from 1 to {_MOST_STEPS}")
    if name == FLOW:
        _only(config, "invert_sigmas", False)
        return Meaning({"name": "rectified_flow"}, "flow", {"name": "time", "factor": float(steps)})
    if not isinstance(name, str) or name not in BETAS:
        raise unknown("scheduler (_class_name)", name, (*BETAS, VE, FLOW))
    _only(config, "use_flow_sigmas", False)
    _only(config, "timestep_type", "discrete")
    _only(config, "predict_epsilon", True)
    kind, variance = config.get("prediction_type", "epsilon"), config.get("variance_type")
    if not isinstance(kind, str) or kind not in PREDICTIONS:
        raise unknown("prediction_type", kind, PREDICTIONS)
    if variance == "learned":
        raise bad("variance_type", variance, f"{LEARNED}, or one that is not learned")
    learned = None if variance is None else variance == LEARNED
    process = _betas(config, steps, *BETAS[name])
    rescale = config.get("rescale_betas_zero_snr")
    if rescale not in (True, False, None):
        raise bad("rescale_betas_zero_snr", rescale, "true or false")
    if rescale:
        process = _table(processes.zero_terminal_snr(processes.make(**process)).schedule.betas)  # type: ignore[attr-defined]
    length = processes.make(**process).num_steps
    return Meaning(process, PREDICTIONS[kind], {"name": "index"}, length, learned)


def scheduler(spec: Spec) -> dict[str, Any]:
    """The scheduler_config.json of a model: the one it was read from while the spec still says the same, else
    DDPMScheduler's, ScoreSdeVeScheduler's or FlowMatchEulerDiscreteScheduler's.

    Args:
        spec: of any model.

    Returns:
        A dict for `json.dumps`; what one made anew does not name is diffusers' default.

    Raises:
        UsageError: a process, prediction, time or scale that no scheduler has.

    Examples:
        >>> scheduler(Spec("unet", {}, (32, 32, 3), prediction="v"))["prediction_type"]
        'v_prediction'
    """
    kept = spec.layout.get("scheduler")
    if isinstance(kept, Mapping):
        meant = meaning(kept)
        same = processes.make(**meant.process) == processes.make(**spec.process)
        same = same and meant.learned in (None, bool(spec.fields.get("learned_variance")))
        if same and (meant.prediction, meant.time_input) == (spec.prediction, spec.time_input):
            return lists(kept)
    return _derived(spec)


def _derived(spec: Spec) -> dict[str, Any]:
    name = str(spec.process.get("name"))
    made = processes.make(**spec.process)
    call = inspect.signature(processes.REGISTRY[name]).bind(**{k: v for k, v in spec.process.items() if k != "name"})
    call.apply_defaults()
    given = call.arguments
    if spec.input_scale != "none":
        raise bad("input_scale", spec.input_scale, "none for a diffusers scheduler")
    if name == "ve_sde":
        _fits(spec, "eps", "log_sigma")
        return {"_class_name": VE, **given}
    if name == "rectified_flow":
        _fits(spec, "flow", "time")
        steps = spec.time_input.get("factor", 1000.0)
        if given["shift"] != 1 or steps != round(steps):
            raise bad("process", spec.process, "rectified_flow without shift, and a whole factor of its time")
        return {"_class_name": FLOW, "num_train_timesteps": round(steps)}
    if not isinstance(made.schedule, Table):
        raise bad("process", spec.process, "one made of betas, ve_sde, or rectified_flow")
    theirs = _of_table(spec, made.schedule, given)
    return {"_class_name": "DDPMScheduler", "num_train_timesteps": made.num_steps, **theirs}


def _of_table(spec: Spec, table: Table, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler says of betas, of the prediction and of the variance."""
    kinds = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if spec.prediction not in kinds:
        raise unknown("prediction for a diffusers scheduler", spec.prediction, kinds)
    if spec.time_input.get("name") not in ("index", "index_between"):
        raise bad("time_input", spec.time_input, "index for a process made of betas")
    schedule = {ours: kind for kind, ours in _NAMED.items()}.get(spec.process["name"])
    if schedule == "squaredcos_cap_v2" and (given["s"], given["max_beta"]) != (0.008, 0.999):
        schedule = None
    if schedule is None:
        theirs: dict[str, Any] = {"trained_betas": list(table.betas)}
    else:
        theirs = {key: given[key] for key in ("beta_start", "beta_end") if key in given}
        theirs["beta_schedule"] = schedule
    theirs["prediction_type"] = kinds[spec.prediction]
    if spec.shape[-1] not in (1, 3):
        theirs["clip_sample"] = False  # latents go beyond [-1, 1], where a sampler cuts what is not told otherwise
    if spec.fields.get("learned_variance"):
        theirs["variance_type"] = LEARNED
    return theirs


def check_variance(meant: Meaning, out_channels: int, learned: bool) -> None:
    """Refuse a scheduler that asks for a variance which the network does not predict.

    Args:
        meant: of the scheduler.
        out_channels: of the network.
        learned: whether half of them are a variance.

    Raises:
        UsageError: naming out_channels.
    """
    if meant.learned and not learned:
        raise bad("out_channels", out_channels, f"twice in_channels where variance_type is {LEARNED}")


def _betas(config: Mapping[str, Any], steps: int, start: float, end: float, kind: str) -> dict[str, Any]:
    """Arguments of the process before any rescaling."""
    trained = config.get("trained_betas")
    if trained is not None:
        if not isinstance(trained, list | tuple) or not all(
            isinstance(b, int | float) and 0 <= b <= 1 for b in trained
        ):
            raise bad("trained_betas", trained, "null, or a list of numbers in (0, 1]")
        return _table(trained)
    start, end = _number(config, "beta_start", start), _number(config, "beta_end", end)
    kind = config.get("beta_schedule", kind)
    if not isinstance(kind, str) or kind not in _SCHEDULES:
        raise unknown("beta_schedule", kind, _SCHEDULES)
    if kind == "sigmoid":
        return _table(start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))))  # (1)
    ends = {} if kind == "squaredcos_cap_v2" else {"beta_start": start, "beta_end": end}
    return {"name": _NAMED[kind], "num_steps": steps, **ends}


def _table(betas: Any) -> dict[str, Any]:
    return {"name": "from_betas", "betas": tuple(float(beta) for beta in betas)}


def _fits(spec: Spec, prediction: str, time: str) -> None:
    if (spec.prediction, spec.time_input.get("name")) != (prediction, time):
        got = f"{spec.prediction!r}, {spec.time_input}"
        raise bad("prediction, time_input", got, f"{prediction!r}, {{'name': {time!r}}} with {spec.process['name']}")


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise bad(key, value, "a number above 0")
    return float(value)


def _only(config: Mapping[str, Any], key: str, allowed: Any) -> None:
    if config.get(key, allowed) not in (allowed, None):
        raise bad(key, config[key], str(allowed))
