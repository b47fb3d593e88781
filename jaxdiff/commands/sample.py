"""Draw images from a trained run and write them where people look: a grid, an array file, a moving picture."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.progress import Progress

from jaxdiff import build, convert, pictures
from jaxdiff.config import default_config
from jaxdiff.data.transforms import to_uint8
from jaxdiff.errors import UsageError
from jaxdiff.files import write_whole
from jaxdiff.model import Index, Model
from jaxdiff.numerics import batch_keys
from jaxdiff.samplers import check, prior_sample, sample
from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.run import AVERAGE, CHECKPOINTS, read_record
from jaxdiff.types import Array, Level, PyTree

# The moving picture shows this many images and at most this many moments; the grid at most this many images.
_GIF_IMAGES, _GIF_FRAMES, _GRID_IMAGES = 40, 60, 400
_GIF_BYTES = 256 * 2**20  # on the device, where every step of the moving picture is kept


def load_run(
    workdir: Path, checkpoint: str = "latest", part: str = f"ema/{AVERAGE}"
) -> tuple[ConfigDict, Model, PyTree]:
    """The config, model and parameters of a run.

    Args:
        workdir: the run's folder.
        checkpoint: "latest", "best", or a step as a number.
        part: of the training state: the averaged parameters, or "params", the last ones.

    Raises:
        UsageError: if there is no run, no such checkpoint, or one of another model.
    """
    config = default_config()
    config.update(read_record(workdir)["config"])
    model = build.model(config)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    like = jax.eval_shape(lambda: build.init(config, model))
    step = None if checkpoint == "latest" else checkpoints.find(checkpoint)
    return config, build.exact(config, model), checkpoints.restore_part(like, part, step)


def load_weights(path: Path) -> tuple[ConfigDict, Model, PyTree]:
    """A model that `jaxdiff export` or `jaxdiff convert` wrote, and a config with the default ways to sample it.

    Raises:
        UsageError: what `jaxdiff.convert.load` refuses, and a model of other things than square images.
    """
    spec, params = convert.load_spec(path)
    if len(spec.shape) != 3 or spec.shape[0] != spec.shape[1]:
        raise UsageError(f"{path} is a model of shape {spec.shape}: allowed are square images, [H, H, C]")
    config = default_config()
    config.data.image_size, config.data.channels = spec.shape[0], spec.shape[2]
    config.data.num_classes = spec.fields.get("num_classes", 0)
    config.model.learned_variance = spec.fields.get("learned_variance", False)
    if not spec.fields.get("null_label", True):
        config.objective.label_dropout = 0.0
    return config, build.exact(config, build.model_of(spec)), jax.tree.map(jnp.asarray, params)


def labels_of(config: ConfigDict, num: int, labels: Sequence[str] | None) -> np.ndarray | None:
    """The label of each image: the given ones in turn, or all classes in turn; None for a model without classes."""
    classes = config.data.num_classes
    if not classes:
        if labels:
            raise UsageError("labels: this model was trained without classes")
        return None
    if labels and not all(label.strip().isdigit() and int(label) < classes for label in labels):
        raise UsageError(f"labels={','.join(labels)}: allowed are whole numbers 0 to {classes - 1}")
    chosen = np.array([int(label) for label in labels], np.int32) if labels else np.arange(classes, dtype=np.int32)
    return np.resize(chosen, num)


def _moment(state: Any, level: Level) -> Array:
    """A frame of the moving picture: x at unit scale, as uint8."""
    return pictures.visible(state.x, level)


def sample_run(
    workdir: Path | None,
    out: Path,
    *,
    weights: Path | None = None,
    num: int = 100,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    between: bool = False,
    batch_size: int = 128,
    checkpoint: str = "latest",
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Write `out`.png, `out`.npz and `out`.gif. See `jaxdiff sample --help` for the arguments.

    Raises:
        UsageError: for anything that does not fit; nothing is written then.
    """
    for name, value in (("num", num), ("batch_size", batch_size)):
        if value < 1:
            raise UsageError(f"{name}={value}: allowed is 1 or more")
    if (workdir is None) == (weights is None):
        raise UsageError("one of workdir and weights is needed: a trained run, or an exported model")
    config, model, params = load_weights(weights) if weights else load_run(Path(workdir or ""), checkpoint)
    if overrides.get("sampler", config.sample.sampler) != config.sample.sampler:
        config.sample.sampler_args = {}
    config.sample.update(overrides)
    wanted = labels_of(config, num, labels)
    sampler, levels = build.sampler(config), build.levels(config, model.process)
    if between and isinstance(model.time_input, Index):
        model = replace(model, time_input=replace(model.time_input, between=True))
    denoise = model.denoiser(params)
    check(denoise, sampler, levels)
    for transform in build.transforms(config):
        denoise = transform(denoise)
    out.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the work
    keys = batch_keys(jax.random.key(seed), num)

    def draw(rows: np.ndarray, collect: Any) -> tuple[np.ndarray, Array, PyTree]:
        cond = None if wanted is None else {"label": jnp.asarray(wanted[rows])}
        start = prior_sample(model.process, keys[rows], (len(rows), *build.shape(config)))
        x, moments = sample(denoise, sampler, levels, start, keys[rows], cond=cond, collect=collect)
        return to_uint8(np.asarray(x)), start, moments

    bytes_each = config.sample.steps * math.prod(build.shape(config))
    shown = min(num, _GIF_IMAGES, max(1, _GIF_BYTES // bytes_each))
    parts, first = [], jax.tree.map(lambda a: a[0], levels)
    with Progress(transient=True) as progress:
        task = progress.add_task(f"{sampler}, {config.sample.steps} steps", total=num)
        images, start, moments = draw(np.arange(shown), _moment)
        parts.append(images)
        progress.update(task, advance=shown)
        for begin in range(shown, num, batch_size):
            # The last batch is filled up, so that one compilation serves all.
            rows = np.minimum(np.arange(begin, begin + batch_size), num - 1)
            parts.append(draw(rows, None)[0][: num - begin])
            progress.update(task, advance=len(parts[-1]))
    images = np.concatenate(parts)

    classes = len(set(wanted.tolist())) if wanted is not None else 0
    columns = classes * max(1, round(math.sqrt(min(num, _GRID_IMAGES)) / classes)) if 0 < classes <= 20 else None
    frames = np.concatenate([np.asarray(pictures.visible(start, first))[None], np.asarray(moments)])
    frames = frames[np.unique(np.linspace(0, len(frames) - 1, _GIF_FRAMES).round().astype(int))]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, labels=wanted if wanted is not None else np.full(num, -1, np.int32))
    out = out.with_suffix("") if out.suffix in (".png", ".npz", ".gif") else out
    written = [
        write_whole(f"{out}.png", pictures.png(pictures.grid(images[:_GRID_IMAGES], columns))),
        write_whole(f"{out}.npz", buffer.getvalue()),
        write_whole(f"{out}.gif", pictures.gif([pictures.grid(f, min(columns or 8, shown)) for f in frames])),
    ]
    print(f"{num} images: " + ", ".join(str(path) for path in written))
    return 0
