"""What a training run is made of, and what of it is kept beside its checkpoints."""

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxdiff import data
from jaxdiff.errors import UsageError
from jaxdiff.files import write_json
from jaxdiff.model import Model
from jaxdiff.objectives import Objective
from jaxdiff.train.ema import EMA, PowerEMA
from jaxdiff.train.logging import Result
from jaxdiff.train.state import TrainState
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
        init: makes its initial parameters; traced, so that each device makes its part of them.
        objective: what is minimised.
        tx: the optimiser.
        evaluated: see `make_train_step`.
        ema: averages of the parameters by name; `AVERAGE` is the one evaluated and pictured.
        batches: the training data; this process's share.
        steps: optimiser steps in all.
        seed: the base of all randomness.
        accum: parts a batch is computed in.
        executor: "pmap" (every device has the whole state) or "mesh".
        fsdp: with "mesh", over how many devices the state is spread.
        evaluate: averaged parameters -> the loss that "best" is measured by, or None.
        picture: averaged parameters -> a picture of samples, uint8 [H, W, C], or None.
        evaluations: more functions of averaged parameters by name, logged when "eval" is due.
        every: steps between "log", "eval", "sample" and "checkpoint"; 0 is never.
        minutes: of this machine's clock between further checkpoints; 0 for none.
        max_skipped: so many steps in a row without a finite loss and gradient end the run.
        watchdog: seconds after which a step that does not end ends the process; 0 for never.
        profile: (first, last) step under JAX's profiler; (0, 0) for none.
        wandb: a project of Weights & Biases to log to as well; "" for none.
        record: what is saved beside the checkpoints, as JSON, to build the model again.
        meaning: the part of the record that gives the parameters their meaning; a run cannot go on with another.
        workers: processes that read data ahead.
    """

    model: Model
    init: Callable[[], PyTree]
    objective: Objective
    tx: optax.GradientTransformation
    ema: dict[str, EMA | PowerEMA]
    batches: data.Batches
    steps: int
    seed: int = 0
    accum: int = 1
    evaluated: Callable[[Any, PyTree], PyTree] = lambda opt_state, params: params
    executor: str = "pmap"
    fsdp: int = 1
    evaluate: Callable[[PyTree], float] | None = None
    picture: Callable[[PyTree], np.ndarray] | None = None
    evaluations: Mapping[str, Callable[[PyTree], Result]] = field(default_factory=dict)
    every: dict[str, int] = field(default_factory=lambda: {"log": 100, "eval": 500, "sample": 500, "checkpoint": 500})
    minutes: int | float = 0
    max_skipped: int = 10
    watchdog: int | float = 0
    profile: tuple[int, int] = (0, 0)
    wandb: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    meaning: dict[str, Any] = field(default_factory=dict)
    workers: int = 0

    def create(self) -> TrainState:
        """The state before the first step."""
        return TrainState.create(self.init(), self.tx, tuple(self.ema))


def write_record(run: Run, workdir: Path) -> None:
    """Write what the model is built from again, and the versions it was trained with."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    record = {**run.record, "meaning": run.meaning, "versions": {**versions, "python": platform.python_version()}}
    write_json(workdir / RUN_FILE, record)


def read_record(workdir: Path) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises:
        UsageError: if there is none, or it is damaged.
    """
    path = workdir / RUN_FILE
    if not path.is_file():
        raise UsageError(
            f"no trained run in {workdir}: train there first, jaxdiff train --config FILE --workdir {workdir}"
        )
    try:
        record = json.loads(path.read_text())
        record["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    return record


def check_shared(workdir: Path, latest: int | None) -> None:
    """Refuse to start where several processes see different checkpoints."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        seen = multihost_utils.process_allgather(np.int64(-1 if latest is None else latest))
        if len(set(np.ravel(seen).tolist())) > 1:
            raise UsageError(f"{workdir} is not the same folder for all processes: they see different checkpoints")


def check_meaning(meaning: dict[str, Any], path: Path) -> None:
    """Arrays of equal shape may still mean something else: eps read as v gives noise."""
    saved = read_record(path.parent).get("meaning", {}) if path.is_file() else {}
    wanted = json.loads(json.dumps(meaning))
    for name in wanted:
        if name in saved and saved[name] != wanted[name]:
            raise UsageError(
                f"{path.parent} is of another model: {name} is {saved[name]} there and {wanted[name]} here"
            )


def check_space(workdir: Path, state: PyTree) -> None:
    """A full disk is better found before the first step than at the first checkpoint."""
    workdir.mkdir(parents=True, exist_ok=True)
    need = 4 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(workdir).free
    if free < need:
        raise UsageError(
            f"no space left for checkpoints in {workdir}: {free / 1e6:.0f} MB free, {need / 1e6:.0f} needed"
        )


def banner(run: Run, params: PyTree) -> str:
    """One line of what is about to run."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return (
        f"{len(run.batches.source)} images; {count / 1e6:.2f} M parameters; "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}{processes}; "
        f"batch {run.batches.batch_size}; {run.steps} steps"
    )
