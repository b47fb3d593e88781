"""Some steps of a run under JAX's profiler."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxdiff.errors import UsageError

PROFILE = "profile"


def span(text: str) -> tuple[int, int]:
    """The steps that a profile is asked for of.

    Args:
        text: FIRST:LAST, both included.

    Raises:
        UsageError: for anything else.

    Examples:
        >>> span("10:20")
        (10, 20)
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UsageError(f"profile={text!r}: allowed is FIRST:LAST, two steps from 1 on, such as 10:20")
    return first, last


@contextlib.contextmanager
def trace(workdir: Path, first: int, last: int) -> Iterator[Callable[..., Any]]:
    """Run steps, some of them under JAX's profiler; of several processes the first one's.

    Args:
        workdir: the run's folder; the profile goes to its `profile/`, for TensorBoard, XProf or Perfetto.
        first: the first step to profile; 0 for none. A run's own first step is mostly compilation.
        last: the last one.

    Yields:
        `run(step, function, *args)`, which answers `function(*args)`.

    Examples:
        >>> with trace(Path("runs/digits"), 0, 0) as run:
        ...     run(1, max, 3, 4)
        4
    """
    wanted = range(first, last + 1) if first and jax.process_index() == 0 else range(0)
    on = False

    def run(step: int, function: Callable[..., Any], *args: Any) -> Any:
        nonlocal on
        if step not in wanted:
            return function(*args)
        if not on:
            jax.profiler.start_trace(workdir / PROFILE, create_perfetto_trace=True)
            on = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*args)
        if step == last:
            jax.block_until_ready(result)  # steps are only begun here; the device is still at them
            jax.profiler.stop_trace()
            on = False
        return result

    try:
        yield run
    finally:
        if on:
            jax.profiler.stop_trace()
