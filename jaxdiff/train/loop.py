"""The training loop: data in, checkpoints, metrics and pictures out; run again, it goes on where it was."""

import importlib.metadata
import platform
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, data, pictures
from jaxdiff.errors import UsageError
from jaxdiff.files import write_json
from jaxdiff.model import Model
from jaxdiff.samplers import generate
from jaxdiff.train import parallel
from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.logging import Logger, Progress
from jaxdiff.train.state import TrainState
from jaxdiff.train.step import make_train_step
from jaxdiff.types import PyTree

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
_PACKAGES = ("jaxdiff", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def train(config: ConfigDict, workdir: str | Path) -> int:
    """Train to `config.train.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
        config: a whole config (`build.default_config`).
        workdir: the run's folder: `config.json`, `checkpoints/`, `metrics.jsonl`, `samples/`, `tensorboard/`.

    Returns:
        0 when all steps are done; 128 + the signal's number when SIGINT or SIGTERM ended it, after saving.

    Raises:
        UsageError: for a config, data set or checkpoint that does not fit, or a disk that is full.
    """
    workdir = Path(workdir)
    build.check(config)
    parallel.check_batch(config.train.batch_size, config.train.accum)
    model, tx, rules = build.model(config), build.optimizer(config), build.ema(config)
    batches = build.batches(config, config.data.split)
    evaluate = evaluator(config, model)
    state = TrainState.create(build.init(config, model), tx, tuple(rules))
    _check_space(workdir, state)
    with Stop() as stop:
        checkpoints = Checkpoints(workdir / CHECKPOINTS)
        if checkpoints.latest is not None:
            state = checkpoints.restore(state)
        start, total = int(state.step), config.train.steps
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        versions["python"] = platform.python_version()
        write_json(workdir / CONFIG_FILE, {"config": config.to_dict(), "versions": versions})
        logger = Logger(workdir, start)
        loss = partial(build.objective(config), model)
        run = parallel.pmap_step(
            make_train_step(loss, tx, rules, seed=config.seed, accum=config.train.accum, axis_name=parallel.AXIS)
        )
        state = parallel.replicate(state)
        now = partial(_due, config.train, total)
        with Progress(start, total, config.train.batch_size) as progress:
            progress.say(f"{_banner(config, state, batches)}; {f'going on from step {start}' if start else 'from the start'}")
            step = start
            for step, batch in enumerate(data.iterate(batches, start, total, workers=config.data.workers), start + 1):
                state, metrics = run(state, parallel.shard(batch))
                progress.advance(step)
                if now("log_every", step) or step == start + 1:
                    values = {name: float(value[0]) for name, value in metrics.items()}
                    rate = progress.rate(step)
                    progress.report(step, values["loss"], rate)
                    logger.scalars(step, {**values, "steps_per_second": rate})
                    if not np.isfinite(values["loss"]):
                        raise UsageError(f"the loss is {values['loss']} at step {step}: lower optimizer.learning_rate")
                eval_loss = None
                if evaluate and now("eval_every", step):
                    eval_loss = evaluate(parallel.unreplicate(state.ema["ema"]))
                    logger.scalars(step, {"eval_loss": eval_loss})
                    progress.say(f"step {step}: eval_loss {eval_loss:.4f}")
                if now("sample_every", step):
                    logger.picture(step, "samples", sample_grid(config, model, parallel.unreplicate(state.ema["ema"])))
                if now("checkpoint_every", step) or stop.signal:
                    checkpoints.save(step, parallel.unreplicate(state), eval_loss=eval_loss)
                if stop.signal:
                    break
            checkpoints.close()
            logger.close()
            if stop.signal and step < total:
                progress.say(f"{stop.signal.name} at step {step}: saved; run the same command to go on")
                return 128 + stop.signal
            progress.say(f"done: step {step}, {workdir}")
            return 0


def evaluator(config: ConfigDict, model: Model) -> Callable[[PyTree], float] | None:
    """A function of parameters to the mean loss on the held-out split, always with the same noise."""
    if not config.data.eval_split or not config.train.eval_every:
        return None
    batches = build.batches(config, config.data.eval_split, shuffle=False)
    objective = build.objective(config, train=False)
    size = config.train.batch_size
    count = max(1, min(len(batches.source) // size, 16))

    @jax.jit
    def losses(params: PyTree, batch: dict, first: int) -> jax.Array:
        index = first + jax.numpy.arange(batch["x0"].shape[0], dtype="uint32")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed + 1), index)
        return objective(model, params, batch, keys)[0]

    return lambda params: float(np.mean([losses(params, batches[i], np.uint32(i * size)) for i in range(count)]))


def sample_grid(config: ConfigDict, model: Model, params: PyTree, num: int = 64) -> np.ndarray:
    """A picture of samples by the config's own sampler, the classes in turn; the same noise each time."""
    classes = config.data.num_classes
    columns = classes if 0 < classes <= 16 else 8
    num = columns * (num // columns)
    cond = {"label": jax.numpy.arange(num) % classes} if classes else None
    images = generate(
        model,
        params,
        jax.random.key(config.seed),
        (num, *build.shape(config)),
        sampler=build.sampler(config),
        levels=build.levels(config, model.process),
        cond=cond,
        transforms=build.transforms(config),
    )
    return pictures.grid(data.transforms.to_uint8(np.asarray(images)), columns)


def _due(train: ConfigDict, total: int, name: str, step: int) -> bool:
    """Whether a thing done every so often is due; every such thing is done at the end too, and 0 is never."""
    every = train[name]
    return every > 0 and (step % every == 0 or step == total)


def _banner(config: ConfigDict, state: Any, batches: data.Batches) -> str:
    count = sum(a.size // a.shape[0] for a in jax.tree.leaves(state.params))
    device = jax.devices()[0].device_kind
    return (
        f"{config.data.name}: {len(batches.source)} images; {count / 1e6:.2f} M parameters; "
        f"{jax.device_count()} x {device}; batch {config.train.batch_size}; {config.train.steps} steps"
    )


def _check_space(workdir: Path, state: TrainState) -> None:
    """A full disk is better found before the first step than at the first checkpoint."""
    workdir.mkdir(parents=True, exist_ok=True)
    need = 4 * sum(a.nbytes for a in jax.tree.leaves(state))
    free = shutil.disk_usage(workdir).free
    if free < need:
        raise UsageError(f"no space left for checkpoints in {workdir}: {free / 1e6:.0f} MB free, {need / 1e6:.0f} needed")


class Stop:
    """Remembers SIGINT and SIGTERM until the step is done; a second one ends at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._old: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for name, old in self._old.items():
            signal.signal(name, old)

    def __enter__(self) -> "Stop":
        for name in (signal.SIGINT, signal.SIGTERM):
            self._old[name] = signal.signal(name, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for name, old in self._old.items():
            signal.signal(name, old)
