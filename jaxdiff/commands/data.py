"""Look at the data of a config: what is in it, whether it can be read, how fast it comes, and a picture."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, pictures
from jaxdiff.config import check
from jaxdiff.data import Batches, InMemory, iterate
from jaxdiff.data.folder import unreadable
from jaxdiff.data.transforms import to_uint8
from jaxdiff.errors import UsageError
from jaxdiff.files import write_whole

_PICTURED = 64
_STATISTICS = 2**28  # values looked at, at most: every image of CIFAR-10, 1,365 of 256 x 256


def data(config: ConfigDict, *, out: Path | None = None, seconds: int | float = 5.0) -> int:
    """Print what a config trains on, and write `out`.png, a batch as the network gets it, sorted by label.

    Args:
        config: a whole config.
        out: path of the picture without ending; None for no picture.
        seconds: how long to measure the pipeline.

    Raises:
        UsageError: for a config or a data set that does not fit, or images that cannot be read.
    """
    check(config)
    if not seconds > 0:
        raise UsageError(f"seconds={seconds:g}: allowed is more than 0")
    if config.data.name == "image_folder" and config.data.path:
        _check_files(config.data.path, config.data.skip_corrupt)
    batches = build.batches(config, config.data.split)
    source, workers = batches.source, config.data.workers
    height, width, channels = source.shape
    kept = "in memory" if isinstance(source, InMemory) else "read when they are asked for"
    print(f"images     {len(source):,} of {config.data.name}, {config.data.split}; {kept}")
    print(f"image      {height} x {width} x {channels}, {source.num_classes or 'no'} classes")
    for line in _statistics(batches, config.sigma_data):
        print(line)
    rate = _rate(batches, workers, seconds)
    print(f"speed      {rate:,.0f} images/s in batches of {batches.batch_size}, {workers or 'no'} workers", flush=True)
    if out is not None:
        out = out.with_suffix("") if out.suffix == ".png" else out
        print(f"picture    {write_whole(f'{out}.png', pictures.png(_picture(batches)))}")
    return 0


def _check_files(path: str, skip: bool) -> None:
    """Say which files cannot be read, and refuse them unless they are to be left out."""
    with _bar("checking files") as show:
        errors = unreadable(path, each=show)
    for error in errors:
        print(f"unreadable {error}")
    if errors and not skip:
        raise UsageError(
            f"path={path!r}: {len(errors)} images cannot be read, listed above: mend or remove them, "
            "or set data.skip_corrupt=True to leave them out"
        )


def _statistics(batches: Batches, sigma_data: float) -> Iterator[str]:
    """The values and labels of the first epoch, or of as much of it as is quick."""
    total = min(len(batches.source), max(_STATISTICS // int(np.prod(batches.source.shape)), 1))
    low, high, sums, labels, done = np.inf, -np.inf, np.zeros(2), [], 0
    with _bar("statistics") as show, contextlib.closing(iterate(batches)) as stream:
        while done < total:
            batch = next(stream)
            x0 = batch["x0"][: total - done]  # the last batch of an epoch runs into the next
            labels.append(batch["cond"].get("label", np.zeros(0, int))[: total - done])
            low, high = min(low, x0.min()), max(high, x0.max())
            sums += x0.sum(dtype=np.float64), np.square(x0, dtype=np.float64).sum()
            done += len(x0)
            show(done, total)
    mean, square = sums / (total * np.prod(batches.source.shape))
    std = np.sqrt(max(square - mean**2, 0.0))
    yield f"x0         min {low:.3f}, max {high:.3f}, mean {mean:.3f}, std {std:.3f} (sigma_data is {sigma_data:g})"
    if batches.source.num_classes:
        counts = np.bincount(np.concatenate(labels), minlength=batches.source.num_classes)[: batches.source.num_classes]
        yield f"labels     {(counts > 0).sum()} of {len(counts)} occur, {counts.min():,} to {counts.max():,} times each"
    if total < len(batches.source):
        yield f"           (both from {total:,} images)"


def _rate(batches: Batches, workers: int, seconds: float) -> float:
    """Images per second that the pipeline gives to one who does nothing with them."""
    rows = batches.batch_size // batches.process_count
    with _bar("speed") as show, contextlib.closing(iterate(batches, workers=workers)) as stream:
        for _ in range(1 + workers):  # what was made while the workers started
            next(stream)
        start, count, passed = time.perf_counter(), 0, 0.0
        while passed < seconds:
            next(stream)
            count += rows
            passed = time.perf_counter() - start
            show(passed, seconds)
    return count / passed


def _picture(batches: Batches) -> np.ndarray:
    batch = batches[0]
    labels = batch["cond"].get("label", np.zeros(len(batch["x0"])))[:_PICTURED]
    return pictures.grid(to_uint8(batch["x0"][np.argsort(labels, kind="stable")]))


@contextlib.contextmanager
def _bar(text: str) -> Iterator[Callable[[float, float], None]]:
    """A progress bar on a terminal, nothing elsewhere; what it gives is called with what is done and what there is."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    last = 0.0

    def show(done: float, total: float) -> None:
        nonlocal last
        if time.perf_counter() - last > 0.1:
            last = time.perf_counter()
            bar.update(task, completed=done, total=total)

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield show
