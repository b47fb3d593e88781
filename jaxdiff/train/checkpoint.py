"""Checkpoints: the latest two and the best, written in the background, whole or not at all.

The only module that knows orbax.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from jaxdiff.errors import UsageError
from jaxdiff.types import PyTree

_TRASH = ".trash"


def _loss(metrics: dict[str, float]) -> float:
    return metrics["eval_loss"]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: where they are; made if missing unless `read_only`.
        keep: how many of the latest to keep, beside the best by evaluation loss.
        read_only: only restore; the directory must exist.

    Raises:
        UsageError: if `read_only` and there is no checkpoint.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, read_only: bool = False) -> None:
        # Orbax tells every file it writes, and every error that is raised below as one of ours.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.directory = Path(directory).absolute()
        if read_only and not self.directory.is_dir():
            raise UsageError(f"no checkpoint in {self.directory}: train there first")
        policy = managers.AnyPreservationPolicy(
            [
                managers.LatestN(keep),
                managers.BestN(get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_loss,
            best_mode="min",
            cleanup_tmp_directories=not read_only,
            # Deleting is not atomic, renaming is: a step half deleted must not be listed.
            todelete_subdir=None if read_only else _TRASH,
            create=not read_only,
            read_only=read_only,
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "metrics": ocp.JsonCheckpointHandler()}
        if not read_only:
            _empty(self.directory / _TRASH)
        self._manager = ocp.CheckpointManager(self.directory, item_handlers=handlers, options=options)
        if read_only and self.latest is None:
            raise UsageError(f"no checkpoint in {self.directory}: train there first")

    @property
    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """All steps, oldest first."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step of the lowest evaluation loss, or None if none was evaluated."""
        return self._manager.best_step()

    def save(self, step: int, state: PyTree, *, eval_loss: float | None = None) -> None:
        """Begin writing; returns once the arrays are copied. A failed write is raised here or by the next call.

        Args:
            step: the state's step; nothing happens if it is saved already.
            state: arrays, unreplicated.
            eval_loss: the metric "best" is measured by.

        Raises:
            UsageError: if a checkpoint could not be written.
        """
        if step in self._manager.all_steps():
            return
        metrics = None if eval_loss is None else {"eval_loss": eval_loss}
        with _one_line(f"could not write checkpoint {step} in {self.directory}"):
            # Its thread may still be renaming old steps into what is emptied here.
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            _empty(self.directory / _TRASH)
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)), metrics=metrics)

    def restore(self, like: PyTree, step: int | None = None) -> PyTree:
        """Read a state.

        Args:
            like: a tree of arrays or `ShapeDtypeStruct`s that says what is expected.
            step: which one; the newest by default.

        Returns:
            The state, on the first local device.

        Raises:
            UsageError: if there is no such step, or it is a checkpoint of another model.
        """
        step = self.latest if step is None else step
        if step not in self._manager.all_steps():
            raise UsageError(f"no checkpoint of step {step} in {self.directory}: there are {self.steps}")
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like)
        with _one_line(f"could not read checkpoint {step} in {self.directory}"):
            _compare(self._manager.item_metadata(step).state, abstract, f"checkpoint {step} in {self.directory}")
            args = ocp.args.PyTreeRestore(abstract, ocp.checkpoint_utils.construct_restore_args(abstract))
            return self._manager.restore(step, args=ocp.args.Composite(state=args)).state

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            UsageError: if a checkpoint could not be written.
        """
        with _one_line(f"could not write a checkpoint in {self.directory}"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Wait, and release the manager's threads."""
        self.wait()
        self._manager.close()
        _empty(self.directory / _TRASH)


class _one_line:  # noqa: N801
    """Turns orbax's and TensorStore's many kinds of errors into one of ours, in one line."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UsageError):
            text = next(
                (line.strip() for line in str(error).splitlines() if line.strip()), kind.__name__ if kind else ""
            )
            if "No space left" in str(error):
                text = "no space left on device"
            raise UsageError(f"{self.what}: {text[:200]}") from error


def _empty(directory: Path) -> None:
    """Remove what was renamed away; a kill in the middle leaves it to the next start."""
    shutil.rmtree(directory, ignore_errors=True)


def _compare(saved: Any, expected: PyTree, what: str) -> None:
    """Refuse a checkpoint whose arrays are not those of the model, naming the first that differs."""
    saved = getattr(saved, "tree", saved)

    def listed(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {"/".join(_name(part) for part in path): tuple(leaf.shape) for path, leaf in leaves}

    have, want = listed(saved), listed(expected)
    differing = [
        f"{name} is {have.get(name, 'missing')} there and {want.get(name, 'missing')} here"
        for name in sorted({*have, *want})
        if have.get(name) != want.get(name)
    ]
    if differing:
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise UsageError(f"{what} is of another model: {differing[0]}{more}")


def _name(part: Any) -> str:
    return str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))
