"""Checkpoints: the latest two and the best, written in the background, whole or not at all, and read back bit for bit.

Neither file systems nor orbax notice a bit that flips. So beside every state lies a record of it (`checksums.Record`),
and what is read is held against the record before anybody sees it. Orbax's own lists, metrics and structures are not
trusted for the same reason: the state is stored as a flat dict of its leaves by path.

The only module that knows orbax.
"""

import logging
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxdiff.errors import UsageError, unknown
from jaxdiff.train.checksums import Record, check_same
from jaxdiff.train.damage import attempt, line, one_line, place
from jaxdiff.train.paths import named
from jaxdiff.types import PyTree

_TRASH, _DAMAGED = ".trash", ".damaged"
_STATE, _RECORD, _RECORD_FILE = "state", "record", "record.json"
_T = TypeVar("_T")


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        return False  # or its thread would take part in `stop.Stop`'s agreement


class Checkpoints:
    """The checkpoints of one run. Under several processes all call every method, with global arrays.

    Args:
        directory: where they are; made if missing unless `read_only`.
        keep: how many of the latest to keep, beside the best by evaluation loss.
        read_only: only restore; the directory must exist.
        say: takes the one line that tells of a damaged checkpoint; to stderr by default.

    Raises:
        UsageError: if `read_only` and there is no checkpoint.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 2,
        read_only: bool = False,
        say: Callable[[str], Any] = lambda line: print(f"jaxdiff: {line}", file=sys.stderr, flush=True),
    ) -> None:
        # Orbax tells every file it writes, and every error that is raised below as one of ours.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.directory = Path(directory).absolute()
        self._keep, self._read_only, self._say = keep, read_only, say
        self._empty_trash()
        self._manager = self._open()
        self._losses = {step: self._loss(step) for step in self.steps}
        if read_only and self.latest is None:
            raise UsageError(f"no checkpoint in {self.directory}: train there first")

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=SimpleNamespace(should_preserve=self._kept),
            cleanup_tmp_directories=not self._read_only,
            # Deleting is not atomic, renaming is: a step half deleted must not be listed.
            todelete_subdir=None if self._read_only else _TRASH,
            create=not self._read_only,
            read_only=self._read_only,
            lightweight_initialize=True,  # else one damaged file hides all steps
        )
        handlers = {_STATE: ocp.PyTreeCheckpointHandler(), _RECORD: ocp.JsonCheckpointHandler(_RECORD_FILE)}
        return _Manager(self.directory, item_handlers=handlers, options=options)

    @property
    def steps(self) -> list[int]:
        """All steps, oldest first."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step of the lowest evaluation loss, or None if none was evaluated."""
        return self._best(self.steps)

    @property
    def eval_losses(self) -> dict[int, float | None]:
        """The evaluation loss of every step; None where there is none, or its record is damaged."""
        return {step: self._losses.get(step) for step in self.steps}

    def find(self, name: str) -> int:
        """The step that a user's word means.

        Args:
            name: "latest", "best", or a step.

        Raises:
            UsageError: if it is none of these, or there is no such step.
        """
        named = {"latest": self.latest, "best": self.best}
        if name not in named and not name.isdecimal():
            raise UsageError(f"checkpoint={name!r}: allowed is latest, best, or a step of {self.steps}")
        step = named[name] if name in named else int(name)
        if step is None:
            raise UsageError(f"checkpoint={name!r}: no checkpoint was evaluated; use latest")
        return self._known(step)

    def save(self, step: int, state: PyTree, *, eval_loss: int | float | None = None) -> None:
        """Begin writing; returns once the arrays are copied. A failed write is raised here, or by the next call.

        Args:
            step: the state's step; nothing happens if it is saved already.
            state: arrays, unreplicated.
            eval_loss: the metric "best" is measured by.

        Raises:
            UsageError: if a checkpoint could not be written.
        """
        if step in self.steps:
            return
        flat = named(state)
        with one_line(f"could not write checkpoint {step} in {self.directory}"):
            # Its thread may still be renaming old steps into what is emptied here.
            self._manager.wait_until_finished()
            self._empty_trash()
            record = Record.of(step, flat, eval_loss)
            self._losses[step] = record.eval_loss
            args = {_STATE: ocp.args.PyTreeSave(flat), _RECORD: ocp.args.JsonSave(record.to_json())}
            # Forced: orbax passes over a step below the newest, and raises nothing.
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def restore(self, like: PyTree, step: int | None = None) -> PyTree:
        """Read a state, and see that it is what was saved.

        Args:
            like: a tree of arrays or `ShapeDtypeStruct`s: what is expected and, by their `sharding`, where.
            step: which one. By default the newest good one: a damaged one is told of and, unless `read_only`, moved
                to `.damaged/`.

        Returns:
            The state; on the first local device where `like` has no sharding.

        Raises:
            UsageError: if there is no such step, it is a checkpoint of another model, `step` is damaged, or all are.
        """
        return self._restore(like, "", step)

    def restore_part(self, like: PyTree, part: str, step: int | None = None) -> PyTree:
        """Read a part of a state; the rest may be of another model, and is not read.

        Args:
            like: the part's tree, as in `restore`.
            part: its path in the state, such as "params" or "ema/ema".
            step: as in `restore`.

        Returns:
            The part.

        Raises:
            UsageError: as `restore`, and if the checkpoint has no such part.
        """
        return self._restore(like, part, step)

    def arrays(self, step: int) -> dict[str, jax.Array]:
        """All arrays of a checkpoint by path, whatever model it is of, once they are seen to be what was saved.

        Raises:
            UsageError: if there is no such step, or it is damaged.
        """
        record = self._good(step, *attempt(lambda: self._record(self._known(step)), str(self.directory)))
        like = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in record.leaves.items()}
        return self._restore(like, "", step)

    def check(self) -> None:
        """Raise what went wrong in the background since; cheap enough for every step.

        Raises:
            UsageError: if a checkpoint could not be written.
        """
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            UsageError: if a checkpoint could not be written.
        """
        with one_line(f"could not write a checkpoint in {self.directory}"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Wait, and release the manager's threads."""
        self.wait()
        self._manager.close()
        self._empty_trash()

    def _kept(self, infos: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's question which steps to keep."""
        steps = sorted(info.step for info in infos)
        return [info.step in {*steps[-self._keep :], self._best(steps)} for info in infos]

    def _best(self, steps: list[int]) -> int | None:
        losses = {step: loss for step in steps if (loss := self._losses.get(step)) is not None and math.isfinite(loss)}
        return min(losses, key=lambda step: (losses[step], -step), default=None)

    def _known(self, step: int) -> int:
        if step not in self.steps:
            raise UsageError(f"no checkpoint of step {step} in {self.directory}: there are {self.steps}")
        return step

    def _good(self, step: int, found: _T, problem: str) -> _T:
        if problem:
            raise UsageError(f"checkpoint {step} in {self.directory} is damaged: {problem}")
        return found

    def _restore(self, like: PyTree, part: str, step: int | None) -> PyTree:
        if step is not None:
            return self._good(step, *self._read(self._known(step), like, part))
        bad: dict[int, str] = {}
        for good in reversed(self.steps):
            found, problem = self._read(good, like, part)
            if problem:
                bad[good] = problem
                continue
            self._put_away({number: f"{text}; going back to step {good}" for number, text in bad.items()})
            return found
        told = "; ".join(f"{step}: {problem}" for step, problem in bad.items()) or "there is none; train there first"
        raise UsageError(f"no good checkpoint in {self.directory}: {told}")

    def _read(self, step: int, like: PyTree, part: str) -> tuple[Any, str]:
        """A state or part and "", or None and what is wrong with it. Another model's is refused."""
        record, problem = attempt(lambda: self._record(step), str(self.directory))
        if problem:
            return None, problem
        what = f"checkpoint {step} in {self.directory}"
        there, want = record.part(part), {f"{part}/{name}".strip("/"): leaf for name, leaf in named(like).items()}
        if not there:
            parts = {"/".join(path.split("/")[:depth]) for path in record.leaves for depth in (1, 2)}
            raise unknown(f"part of {what}", part, parts)
        check_same(there, want, what)
        found, problem = attempt(lambda: self._load(step, want), str(self.directory))
        if not problem:
            _, problem = attempt(lambda: record.check(found), str(self.directory))
        return (None if problem else jax.tree.unflatten(jax.tree.structure(like), list(found.values()))), problem

    def _load(self, step: int, want: dict[str, Any]) -> dict[str, jax.Array]:
        first, abstract = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), {}
        for name, a in want.items():
            abstract[name] = jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None) or first)
        places = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(abstract, places, partial_restore=True)
        folder = self._manager.directory / str(step) / _STATE
        try:
            # Not through the manager: its barriers would hang the other processes if this one fails.
            found = ocp.PyTreeCheckpointHandler().restore(folder, args=args)
        except Exception as error:
            where = place(error, want) or f"{step}/{_STATE}/_METADATA or array_metadatas"
            raise ValueError(f"{where}: {line(error)}") from None
        return {name: found[name] for name in want}

    def _record(self, step: int) -> Record:
        return Record.read(self.directory / str(step) / _RECORD / _RECORD_FILE, step)

    def _loss(self, step: int) -> float | None:
        try:
            return self._record(step).eval_loss
        except (OSError, ValueError):
            return None  # told when it is to be restored

    def _put_away(self, bad: dict[int, str]) -> None:
        """Out of the way of the same steps' next checkpoints. Not deleted: the fault may be with who reads."""
        if jax.process_index() == 0:
            for step, problem in bad.items():
                self._say(f"checkpoint {step} in {self.directory} is damaged: {problem}")
                if not self._read_only:
                    target = self.directory / _DAMAGED / str(step)
                    shutil.rmtree(target, ignore_errors=True)
                    target.parent.mkdir(exist_ok=True)
                    (self.directory / str(step)).rename(target)
        if bad and not self._read_only:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints are put away")
            # Not its `reload`, which trusts files that may be damaged.
            self._manager.close()
            self._manager = self._open()

    def _empty_trash(self) -> None:
        """Remove what was renamed away; a kill in the middle leaves it to the next start."""
        if not self._read_only and jax.process_index() == 0:
            shutil.rmtree(self.directory / _TRASH, ignore_errors=True)
