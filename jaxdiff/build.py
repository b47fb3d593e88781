"""From a config (`jaxdiff.config`) to objects: the last place that reads a ConfigDict."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxdiff import data, grids, guidance, models, objectives, pictures, prediction, processes, samplers
from jaxdiff.config import check
from jaxdiff.errors import UsageError, unknown
from jaxdiff.evaluate import epoch, evaluator
from jaxdiff.model import Denoiser, Model, UnitVariance, Unscaled, time_input
from jaxdiff.models.presets.spec import Spec
from jaxdiff.objectives import ConditionDropout, Objective
from jaxdiff.process import ForwardProcess
from jaxdiff.train import optimizers
from jaxdiff.train.ema import EMA, PowerEMA
from jaxdiff.train.logging import Result
from jaxdiff.train.precision import Policy
from jaxdiff.train.run import AVERAGE, Run
from jaxdiff.types import Level, PyTree

_MEANING = ("process", "prediction", "input_scale", "time_input", "time_input_args", "sigma_data")


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value


def process(config: ConfigDict) -> ForwardProcess:
    """The forward process of a config."""
    return processes.make(**config.process.to_dict())


def model_of(spec: Spec) -> Model:
    """The model of a spec: network, process, and what ties them.

    Args:
        spec: plain values, as in `jaxdiff.models.presets`.

    Returns:
        The model; `spec.shape` is the shape of one of its examples.

    Raises:
        UsageError: a name or field that does not exist, or values that do not go together.

    Examples:
        >>> from jaxdiff.models import presets
        >>> model_of(presets.get("ddpm_cifar10")).process.num_steps
        1000
    """
    for key in ("process", "time_input"):
        if "name" not in getattr(spec, key):
            raise UsageError(f"{key} is {getattr(spec, key)}: its 'name' is missing")
    made = processes.make(**spec.process)
    scales: dict[str, Any] = {"none": Unscaled, "unit_variance": lambda: UnitVariance(spec.sigma_data)}
    if spec.input_scale not in scales:
        raise unknown("input_scale", spec.input_scale, scales)
    return Model(
        models.make(spec.network, **spec.fields),
        made,
        prediction.make(spec.prediction, made, sigma_data=spec.sigma_data),
        scales[spec.input_scale](),
        time_input(process=made, **spec.time_input),
        learned_variance=bool(spec.fields.get("learned_variance", False)),
    )


def spec(config: ConfigDict) -> Spec:
    """What a config says of the model, as plain values."""
    fields = {key: _plain(value) for key, value in config.model.items() if key != "name"}
    return Spec(
        network=config.model.name,
        fields={"num_classes": config.data.num_classes, **fields},
        shape=shape(config),
        process=_plain(config.process),
        prediction=config.prediction,
        input_scale=config.input_scale,
        time_input={"name": config.time_input, **_plain(config.time_input_args)},
        sigma_data=config.sigma_data,
    )


def model(config: ConfigDict) -> Model:
    """The model of a config."""
    return model_of(spec(config))


def shape(config: ConfigDict) -> tuple[int, int, int]:
    """The shape of one image, [H, W, C]."""
    return config.data.image_size, config.data.image_size, config.data.channels


def example(config: ConfigDict, batch: int) -> dict[str, Any]:
    """A batch's shapes: {"x0": [B, H, W, C], "cond": {"label": [B]}} as ShapeDtypeStructs."""
    cond = {"label": jax.ShapeDtypeStruct((batch,), "int32")} if config.data.num_classes else {}
    return {"x0": jax.ShapeDtypeStruct((batch, *shape(config)), "float32"), "cond": cond}


def init(config: ConfigDict, model: Model) -> PyTree:
    """Fresh parameters, a function of the seed alone."""
    one = example(config, 1)
    zeros = jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), one)
    return model.apply.init(jax.random.key(config.seed), zeros["x0"], cond=zeros["cond"])  # type: ignore[attr-defined]


def objective(config: ConfigDict, *, train: bool = True) -> Objective:
    """The training objective, or (`train=False`) the same without dropout of any kind, for evaluation."""
    spec = config.objective
    made = objectives.make(
        spec.times,
        spec.weight,
        name=spec.name,
        process=process(config),
        train=train,
        times_args=_plain(spec.times_args),
        weight_args=_plain(spec.weight_args),
        args=_plain(spec.args),
    )
    learned = bool(config.model.get("learned_variance", False))
    if learned != getattr(made, "learned_variance", False):
        raise UsageError(
            f"model.learned_variance={learned} does not go with objective.name={spec.name!r}: "
            "'hybrid' and 'vlb' train the variance and need True, the others need False"
        )
    if train and config.data.num_classes and spec.label_dropout:
        if not config.model.get("null_label", True):
            raise UsageError(f"objective.label_dropout={spec.label_dropout:g} needs model.null_label=True; use 0")
        return ConditionDropout(made, spec.label_dropout, (("label", config.data.num_classes),))
    return made


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimiser of a config, with its schedule, clipping and frozen parameters."""
    tx = optimizers.make(**config.optimizer, steps=config.train.steps)
    if config.train.force_normalize:
        if config.optimizer.name == "schedule_free":  # it evaluates a point that would not be normalised
            raise UsageError("train.force_normalize=True does not go with optimizer 'schedule_free'; use adam")
        tx = optimizers.normalize_kernels(tx)
    return optimizers.freeze(tx, tuple(config.train.freeze)) if config.train.freeze else tx


def ema(config: ConfigDict) -> dict[str, EMA | PowerEMA]:
    """The parameter averages by name."""
    powers = {f"power_{sigma_rel:g}": PowerEMA(sigma_rel) for sigma_rel in config.train.power_ema}
    return {AVERAGE: EMA(config.train.ema_decay), **powers}


def source(config: ConfigDict, split: str) -> data.Source:
    """A data set, held against the config's image size, channels and classes.

    Raises:
        UsageError: where they disagree.
    """
    d = config.data
    folder = {"path": d.path or None, "skip_corrupt": d.skip_corrupt} if d.name == "image_folder" else {}
    made = data.make(
        d.name, split=split, image_size=d.image_size, channels=d.channels, data_dir=d.data_dir or None, **folder
    )
    if d.num_classes and made.num_classes != d.num_classes:
        raise UsageError(
            f"data.num_classes={d.num_classes}: the data set {d.name!r} has {made.num_classes}; "
            "give that number, or 0 to train without labels"
        )
    return made


def batches(config: ConfigDict, split: str, *, shuffle: bool = True) -> data.Batches:
    """The batches of a split, decoded to memory where it fits: shuffled for training, this process's share; or in their
    order for evaluation, which every process makes whole."""
    loaded = data.load(source(config, split))
    made = data.transforms.make(tuple(config.data.transforms)) if shuffle else ()
    return data.Batches(
        loaded,
        batch_size=config.train.batch_size,
        seed=config.seed,
        transforms=made,
        process_index=jax.process_index() if shuffle else 0,
        process_count=jax.process_count() if shuffle else 1,
        shuffle=shuffle,
    )


def exact(config: ConfigDict, model: Model) -> Model:
    """The model with the products of `sample.matmul`, as it is sampled."""
    if (dtype := np.dtype(model.apply.module.dtype).name) not in ("float32", "bfloat16"):  # type: ignore[attr-defined]
        raise UsageError(f"model.dtype={dtype}: allowed is float32 or bfloat16")
    policy = Policy(compute=dtype, matmul=config.sample.matmul)
    return replace(model, apply=policy.network(model.apply))  # type: ignore[arg-type]


def sampler(config: ConfigDict) -> samplers.Sampler:
    """The sampler of a config, refused where the model cannot serve it."""
    made = samplers.make(config.sample.sampler, **config.sample.sampler_args)
    if getattr(made, "variance", None) == "learned" and not config.model.get("learned_variance", False):
        raise UsageError("sampler variance 'learned' needs model.learned_variance; use 'posterior' or 'beta'")
    return made


def levels(config: ConfigDict, process: ForwardProcess) -> Level:
    """The noise levels that sampling visits."""
    return grids.make(config.sample.grid, process, config.sample.steps)


def transforms(config: ConfigDict) -> tuple[Callable[[Denoiser], Denoiser], ...]:
    """Guidance, then thresholding."""
    made = []
    if config.sample.guidance != 1:
        if not config.data.num_classes:
            raise UsageError(
                f"sample.guidance={config.sample.guidance:g} needs a model trained with classes; use 1 (off)"
            )
        if not config.objective.label_dropout:
            raise UsageError(
                f"sample.guidance={config.sample.guidance:g} needs a model trained with objective.label_dropout > 0; "
                "use 1 (off)"
            )
        made.append(guidance.classifier_free(config.sample.guidance, {"label": config.data.num_classes}))
    if config.sample.threshold:
        made.append(guidance.static_threshold(1.0))
    return tuple(made)


def picture(config: ConfigDict, model: Model) -> Callable[[PyTree], np.ndarray]:
    """A function of parameters to a grid of samples by the config's own sampler, classes by column, same noise."""
    classes = config.data.num_classes
    columns = classes if 0 < classes <= 16 else 8
    num = columns * (64 // columns)
    model = exact(config, model)
    made, grid = sampler(config), levels(config, model.process)
    samplers.check(model.denoiser(None), made, grid)
    draw_with = partial(samplers.generate, sampler=made, levels=grid, transforms=transforms(config))
    cond = {"label": jax.numpy.arange(num) % classes} if classes else None

    def draw(params: PyTree) -> np.ndarray:
        x = draw_with(model, params, jax.random.key(config.seed), (num, *shape(config)), cond=cond)
        return pictures.grid(data.transforms.to_uint8(np.asarray(x)), columns)

    return draw


def meaning(config: ConfigDict) -> dict[str, Any]:
    """What gives a checkpoint's arrays their meaning, which their shapes do not show."""
    free = ("dropout", "remat", "dtype", "flash")  # these may change while a network is trained
    fields = {f"model.{name}": _plain(value) for name, value in config.model.items() if name not in free}
    return {**{name: _plain(config[name]) for name in _MEANING}, **fields}


def run(config: ConfigDict) -> Run:
    """The training run of a config: everything is made, so everything that cannot work is refused, before a step.

    Raises:
        UsageError: for a value, data set or combination that cannot work.
    """
    check(config)
    made = model(config)
    draw = picture(config, made)  # also where a sampler, grid or guidance that cannot work is refused
    evaluate, evaluations = None, dict[str, Callable[[PyTree], Result]]()
    if config.data.eval_split and config.train.eval_every:
        held_out = batches(config, config.data.eval_split, shuffle=False)
        parts = math.gcd(config.train.batch_size, jax.device_count() * config.train.accum)  # what a step has at once
        evaluate = evaluator(made, objective(config, train=False), held_out, config.seed + 1, parts)
        if config.train.eval_levels:
            from jaxdiff.evaluate import noise_levels  # draws, which few need

            at = noise_levels.spread(made.process, config.train.eval_levels)
            key = jax.random.key(config.seed + 1)
            evaluations["noise_levels"] = noise_levels.evaluation(made, partial(epoch, held_out), key, at)
    return Run(
        model=made,
        init=partial(init, config, made),
        objective=objective(config),
        tx=optimizer(config),
        evaluated=partial(optimizers.eval_params, config.optimizer.name),
        ema=ema(config),
        batches=batches(config, config.data.split),
        steps=config.train.steps,
        seed=config.seed,
        accum=config.train.accum,
        executor=config.train.executor,
        fsdp=config.train.fsdp,
        evaluate=evaluate,
        evaluations=evaluations,
        picture=draw if config.train.sample_every else None,
        every={name: config.train[f"{name}_every"] for name in ("log", "eval", "sample", "checkpoint")},
        minutes=config.train.checkpoint_minutes,
        max_skipped=config.train.max_skipped,
        watchdog=config.train.watchdog,
        record={"config": config.to_dict()},
        meaning=meaning(config),
        workers=config.data.workers,
    )
