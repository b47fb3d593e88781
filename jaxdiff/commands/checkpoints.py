"""Look at a run's checkpoints: which there are, whether they are good, how two of them differ."""

from datetime import datetime
from pathlib import Path

import jax
import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.run import CHECKPOINTS


def checkpoints(workdir: Path, *, verify: bool = False, compare: str | None = None) -> int:
    """Print the checkpoints of a run, or how two of them differ.

    Args:
        workdir: the run's folder, or that of its checkpoints.
        verify: read all of each and compare it with the checksums it was saved with.
        compare: two of them, "A,B"; each latest, best, or a step.

    Returns:
        0, or 1 if `verify` found a damaged one.

    Raises:
        UsageError: if there is no checkpoint, or `compare` does not name two that can be read.
    """
    folder = workdir / CHECKPOINTS
    there = Checkpoints(folder if folder.is_dir() else workdir, read_only=True)
    return _compare(there, compare) if compare is not None else _list(there, verify)


def _list(there: Checkpoints, verify: bool) -> int:
    bad = 0
    print(f"{'step':>10}  {'date':16}  {'size':>10}  {'eval_loss':>10}")
    for step, loss in there.eval_losses.items():
        folder = there.directory / str(step)
        if not folder.is_dir():
            continue  # a run that goes on has deleted it
        date = datetime.fromtimestamp(folder.stat().st_mtime).astimezone()
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        told = [name for name, which in (("best", there.best), ("latest", there.latest)) if step == which]
        if verify:
            problem = _problem(there, step)
            if problem and not folder.is_dir():
                continue
            bad += bool(problem)
            told.append(problem or "good")
        row = f"{step:10}  {date:%Y-%m-%d %H:%M}  {size / 1e6:7.1f} MB  {'-' if loss is None else f'{loss:.6g}':>10}"
        print(f"{row}  {', '.join(told)}".rstrip())
    if verify:
        print(f"{bad} of {len(there.steps)} damaged")
    return 1 if bad else 0


def _problem(there: Checkpoints, step: int) -> str:
    try:
        there.arrays(step)
    except UsageError as error:
        return str(error)
    return ""


def _compare(there: Checkpoints, names: str) -> int:
    first, _, second = names.partition(",")
    if not (first and second):
        raise UsageError(f"compare={names!r}: two checkpoints are needed, A,B; each latest, best, or a step")
    steps = [there.find(name.strip()) for name in (first, second)]
    one, other = (there.arrays(step) for step in steps)
    names_all = list(dict.fromkeys([*one, *other]))
    width = max(map(len, names_all))
    print(f"{'array':{width}}  {'shape':>16}  max |a - b| of {steps[0]} and {steps[1]}")
    for name in names_all:
        print(f"{name:{width}}  {_difference(one.get(name), other.get(name))}")
    return 0


def _difference(a: jax.Array | None, b: jax.Array | None) -> str:
    if a is None or b is None:
        return f"{'-':>16}  only in the {'first' if b is None else 'second'}"
    kinds = [f"{x.dtype}{list(x.shape)}" for x in (a, b)]
    if kinds[0] != kinds[1]:
        return f"{'-':>16}  {kinds[0]} and {kinds[1]}"
    x, y = np.asarray(a), np.asarray(b)
    # Bytes, because NaN is not equal to itself and -0 is equal to 0.
    largest = 0.0 if not x.size else np.max(np.abs(x.astype(np.float64) - y.astype(np.float64)))
    return f"{list(a.shape)!s:>16}  {'equal' if x.tobytes() == y.tobytes() else f'{largest:.3g}'}"
