"""The training loop: data in, checkpoints, metrics and pictures out; run again, it goes on where it was."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff import data
from jaxdiff.errors import UsageError
from jaxdiff.train import distributed, parallel
from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.logging import Logger, Progress
from jaxdiff.train.profile import trace
from jaxdiff.train.run import (
    AVERAGE,
    CHECKPOINTS,
    RUN_FILE,
    Run,
    banner,
    check_meaning,
    check_shared,
    check_space,
    write_record,
)
from jaxdiff.train.step import Step, make_train_step
from jaxdiff.train.stop import Stop


def train(run: Run, workdir: str | Path) -> int:
    """Train to the last step, from the newest checkpoint in `workdir` if there is one.

    Args:
        run: the run.
        workdir: its folder, which all processes see: `config.json`, `checkpoints/`, `metrics.jsonl`, `samples/`,
            `tensorboard/`.

    Returns:
        0 when all steps are done; 128 + the signal's number when SIGINT or SIGTERM ended it, after saving.

    Raises:
        UsageError: for a batch that does not fit the devices, a checkpoint of another model, a full disk, or
            `run.max_skipped` steps in a row without a finite loss.
    """
    workdir = Path(workdir)
    parallel.check_batch(run.batches.batch_size, run.accum)
    like = jax.eval_shape(run.create)
    executor = parallel.executor(partial(_step, run), like, kind=run.executor, fsdp=run.fsdp)
    layout = executor.abstract(like)
    with Stop() as stop, contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir / CHECKPOINTS)
        stack.push(partial(_close, checkpoints))
        check_shared(workdir, checkpoints.latest)
        if checkpoints.latest is not None:
            state = checkpoints.restore(layout)
            check_meaning(run.meaning, workdir / RUN_FILE)
        else:
            check_space(workdir, like)
            state = jax.jit(run.create, out_shardings=jax.tree.map(lambda s: s.sharding, layout))()
        start = int(state.step)
        if start > run.steps:
            raise UsageError(f"steps={run.steps}: the run in {workdir} is at step {start} already")
        if jax.process_index() == 0:
            write_record(run, workdir)
        logged = Logger(workdir, start, wandb=run.wandb, config=run.record)
        logger = stack.enter_context(contextlib.closing(logged))
        progress = stack.enter_context(Progress(start, run.steps, run.batches.batch_size))
        progress.say(f"{banner(run, like.params)}; {f'going on from step {start}' if start else 'from the start'}")
        watchdog = stack.enter_context(distributed.Watchdog(run.watchdog))
        profiled = stack.enter_context(trace(workdir, *run.profile))
        loop = _Loop(run, executor, executor.put_state(state), start, checkpoints, logger, progress)
        step = loop.go(stop, watchdog, profiled)
    if stop.signal and step < run.steps:
        progress.say(f"{stop.signal.name} at step {step}: saved; run the same command to go on")
        return 128 + stop.signal
    progress.say(f"done: step {step}, {workdir}")
    return 0


def _step(run: Run, axis: str | None) -> Step:
    """The run's pure step; `axis` is the mapped axis of devices, if there is one."""
    loss = partial(run.objective, run.model)
    return make_train_step(
        loss, run.tx, run.ema, seed=run.seed, accum=run.accum, axis_name=axis, evaluated=run.evaluated
    )


def _close(checkpoints: Checkpoints, kind: Any, error: BaseException | None, trace: Any) -> None:
    """What is being written is finished; the first error is the one to tell."""
    with contextlib.suppress(UsageError) if error else contextlib.nullcontext():
        checkpoints.close()


@dataclass
class _Loop:
    """The steps of a run, and what is due after each."""

    run: Run
    executor: parallel.Executor
    state: Any
    step: int
    checkpoints: Checkpoints
    logger: Logger
    progress: Progress

    def go(self, stop: Stop, watchdog: distributed.Watchdog, profiled: Callable[..., Any]) -> int:
        """Returns the last step done, which is saved or being saved."""
        run, first, saved = self.run, self.step + 1, time.monotonic()
        batches = data.iterate(run.batches, self.step, run.steps, workers=run.workers)
        for batch in data.prefetch(batches, self.executor.put_batch):
            self.step += 1
            self.state, metrics = profiled(self.step, self.executor.step, self.state, batch)
            self.progress.advance(self.step)
            self.checkpoints.check()
            if self.due("log") or self.step == first:
                self._log(self.executor.scalars(metrics))
            eval_loss = self._evaluate() if self.due("eval") else None
            stopping = stop.due(self.step)
            last = stopping or self.step == run.steps
            if self.due("checkpoint") or eval_loss is not None or last or self._overdue(saved):
                self._check_skipped()
                self.checkpoints.save(self.step, self.executor.take(self.state), eval_loss=eval_loss)
                saved = time.monotonic()
            if run.picture and self.due("sample"):
                self.logger.picture(self.step, "samples", run.picture(self._average()))
            watchdog.beat()
            if stopping:
                break
        return self.step

    def due(self, what: str) -> bool:
        """Whether something is due after this step."""
        every = self.run.every[what]
        return every > 0 and (self.step % every == 0 or self.step == self.run.steps)

    def _overdue(self, saved: float) -> bool:
        """Whether the clock asks for a checkpoint; with several processes the first one's clock does."""
        if not self.run.minutes:
            return False
        late = time.monotonic() - saved > 60 * self.run.minutes
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return bool(multihost_utils.broadcast_one_to_all(np.array(late))) if self.due("log") else False
        return late

    def _average(self) -> Any:
        tree = self.executor.take(self.state.ema[AVERAGE])
        return parallel.local(tree) if jax.process_count() > 1 else tree

    def _log(self, values: dict[str, float]) -> None:
        rate = self.progress.rate(self.step)
        self.progress.report(self.step, values["loss"], rate)
        self.logger.scalars(self.step, {**values, "steps_per_second": rate})
        self._check_skipped()

    def _check_skipped(self) -> None:
        in_a_row = int(np.asarray(self.executor.take(self.state.skipped))[1])
        if in_a_row >= self.run.max_skipped:
            raise UsageError(
                f"the loss or its gradient was not finite in the last {in_a_row} steps, up to step {self.step}: "
                "lower the learning rate"
            )

    def _evaluate(self) -> float | None:
        average, loss = self._average(), None
        if self.run.evaluate:
            loss = self.run.evaluate(average)
            self.logger.scalars(self.step, {"eval_loss": loss})
            self.progress.say(f"step {self.step}: eval_loss {loss:.4f}")
        if self.run.evaluations:
            self.logger.results(self.step, {name: of(average) for name, of in self.run.evaluations.items()})
        return loss
