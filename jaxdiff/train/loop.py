"""The training loop: data in, checkpoints, metrics and pictures out; run again, it goes on where it was."""

import contextlib
import importlib.metadata
import json
import platform
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
import optax

from jaxdiff import data
from jaxdiff.errors import UsageError
from jaxdiff.files import write_json
from jaxdiff.model import Model
from jaxdiff.objectives import Objective
from jaxdiff.train import parallel
from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.ema import EMA
from jaxdiff.train.logging import Logger, Progress
from jaxdiff.train.state import TrainState
from jaxdiff.train.step import make_train_step
from jaxdiff.types import PyTree

RUN_FILE = "config.json"
CHECKPOINTS = "checkpoints"
AVERAGE = "ema"
_PACKAGES = ("jaxdiff", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class Run:
    """Everything a training run is made of.

    Attributes:
        model: the model.
        params: its initial parameters.
        objective: what is minimised.
        tx: the optimiser.
        ema: averages of the parameters by name; `AVERAGE` is the one evaluated and pictured.
        batches: the training data.
        steps: optimiser steps in all.
        seed: the base of all randomness.
        accum: parts a batch is computed in.
        evaluate: averaged parameters -> the loss that "best" is measured by, or None.
        picture: averaged parameters -> a picture of samples, uint8 [H, W, C], or None.
        every: steps between "log", "eval", "sample" and "checkpoint"; 0 is never.
        record: what is saved beside the checkpoints, as JSON, to build the model again.
        meaning: the part of the record that gives the parameters their meaning; a run cannot go on with another.
        workers: processes that read data ahead.
    """

    model: Model
    params: PyTree
    objective: Objective
    tx: optax.GradientTransformation
    ema: dict[str, EMA]
    batches: data.Batches
    steps: int
    seed: int = 0
    accum: int = 1
    evaluate: Callable[[PyTree], float] | None = None
    picture: Callable[[PyTree], np.ndarray] | None = None
    every: dict[str, int] = field(default_factory=lambda: {"log": 100, "eval": 500, "sample": 500, "checkpoint": 500})
    record: dict[str, Any] = field(default_factory=dict)
    meaning: dict[str, Any] = field(default_factory=dict)
    workers: int = 0


def train(run: Run, workdir: str | Path) -> int:
    """Train to the last step, from the newest checkpoint in `workdir` if there is one.

    Args:
        run: the run.
        workdir: its folder: `config.json`, `checkpoints/`, `metrics.jsonl`, `samples/`, `tensorboard/`.

    Returns:
        0 when all steps are done; 128 + the signal's number when SIGINT or SIGTERM ended it, after saving.

    Raises:
        UsageError: for a batch that does not fit the devices, a checkpoint of another model, a full disk, a loss that
            is no number, or several processes.
    """
    workdir = Path(workdir)
    if jax.process_count() > 1:
        raise UsageError(f"{jax.process_count()} processes: this loop trains on the devices of one")
    parallel.check_batch(run.batches.batch_size, run.accum)
    state = TrainState.create(run.params, run.tx, tuple(run.ema))
    _check_space(workdir, state)
    with Stop() as stop:
        checkpoints = Checkpoints(workdir / CHECKPOINTS)
        if checkpoints.latest is not None:
            state = checkpoints.restore(state)
            _check_meaning(run, workdir / RUN_FILE)
        start = int(state.step)
        if start > run.steps:
            raise UsageError(f"steps={run.steps}: the run in {workdir} is at step {start} already")
        write_json(workdir / RUN_FILE, {**run.record, "meaning": run.meaning, "versions": _versions()})
        logger = Logger(workdir, start)
        try:
            with Progress(start, run.steps, run.batches.batch_size) as progress:
                progress.say(f"{_banner(run)}; {f'going on from step {start}' if start else 'from the start'}")
                step = _steps(run, parallel.replicate(state), start, checkpoints, logger, progress, stop)
            checkpoints.close()
        except BaseException:
            # What is being written is finished; the first error is the one to tell.
            with contextlib.suppress(UsageError):
                checkpoints.close()
            raise
        finally:
            logger.close()
    if stop.signal and step < run.steps:
        progress.say(f"{stop.signal.name} at step {step}: saved; run the same command to go on")
        return 128 + stop.signal
    progress.say(f"done: step {step}, {workdir}")
    return 0


def _steps(
    run: Run,
    state: TrainState,
    start: int,
    checkpoints: Checkpoints,
    logger: Logger,
    progress: Progress,
    stop: "Stop",
) -> int:
    """The steps themselves; returns the last one done, which is saved or being saved."""
    loss = partial(run.objective, run.model)
    advance = parallel.pmap_step(
        make_train_step(loss, run.tx, run.ema, seed=run.seed, accum=run.accum, axis_name=parallel.AXIS)
    )

    def due(what: str) -> bool:
        every = run.every[what]
        return every > 0 and (step % every == 0 or step == run.steps)

    step = start
    for step, batch in enumerate(data.iterate(run.batches, start, run.steps, workers=run.workers), start + 1):
        state, metrics = advance(state, parallel.shard(batch))
        progress.advance(step)
        if due("log") or step == start + 1:
            values = {name: float(value[0]) for name, value in metrics.items()}
            rate = progress.rate(step)
            progress.report(step, values["loss"], rate)
            logger.scalars(step, {**values, "steps_per_second": rate})
            _check_finite(step, metrics)
        eval_loss = None
        if run.evaluate and due("eval"):
            eval_loss = run.evaluate(parallel.unreplicate(state.ema[AVERAGE]))
            logger.scalars(step, {"eval_loss": eval_loss})
            progress.say(f"step {step}: eval_loss {eval_loss:.4f}")
        if run.picture and due("sample"):
            logger.picture(step, "samples", run.picture(parallel.unreplicate(state.ema[AVERAGE])))
        stopping = stop.signal is not None
        if due("checkpoint") or eval_loss is not None or stopping:
            _check_finite(step, metrics)
            checkpoints.save(step, parallel.unreplicate(state), eval_loss=eval_loss)
        if stopping:
            break
    return step


def _check_finite(step: int, metrics: dict[str, jax.Array]) -> None:
    """A state that is no number must not push a good one out."""
    for name in ("loss", "grad_norm"):
        value = float(metrics[name][0])
        if not np.isfinite(value):
            raise UsageError(f"{name} is {value} at step {step}: lower the learning rate")


def _check_meaning(run: Run, path: Path) -> None:
    """Arrays of equal shape may still mean something else: eps read as v gives noise."""
    saved = json.loads(path.read_text()).get("meaning", {}) if path.is_file() else {}
    wanted = json.loads(json.dumps(run.meaning))
    for name in wanted:
        if name in saved and saved[name] != wanted[name]:
            raise UsageError(
                f"{path.parent} is of another model: {name} is {saved[name]} there and {wanted[name]} here"
            )


def evaluator(model: Model, objective: Objective, batches: data.Batches, seed: int) -> Callable[[PyTree], float]:
    """A function of parameters to the mean loss on at most 16 batches, always with the same noise.

    Args:
        model: the model.
        objective: without dropout of any kind.
        batches: held-out data, unshuffled.
        seed: of the noise.
    """
    size = batches.batch_size
    count = max(1, min(len(batches.source) // size, 16))

    @jax.jit
    def losses(params: PyTree, batch: dict, first: jax.Array) -> jax.Array:
        index = first + jax.numpy.arange(size, dtype="uint32")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)
        return objective(model, params, batch, keys)[0]

    return lambda params: float(np.mean([losses(params, batches[i], np.uint32(i * size)) for i in range(count)]))


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {**found, "python": platform.python_version()}


def _banner(run: Run) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    return (
        f"{len(run.batches.source)} images; {count / 1e6:.2f} M parameters; "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}; batch {run.batches.batch_size}; {run.steps} steps"
    )


def _check_space(workdir: Path, state: TrainState) -> None:
    """A full disk is better found before the first step than at the first checkpoint."""
    workdir.mkdir(parents=True, exist_ok=True)
    need = 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(workdir).free
    if free < need:
        raise UsageError(
            f"no space left for checkpoints in {workdir}: {free / 1e6:.0f} MB free, {need / 1e6:.0f} needed"
        )


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
