"""What both sides of a row share: the job, the data, the clock.

A job is a dict: `net` (a key of `NETS`), `what` (forward, train, sample, input, matmul, memory), `batch`, `dtype`,
`steps` (of a sampling run), `dispatch` (training steps in one call), `calls` (in one timed repetition), `compiled`
(torch.compile). Both sides compute the same thing: the network in evaluation mode; or one step of training, noise and
times drawn, the mean squared error of eps, its gradient and the gradient's norm, Adam, a moving average; or DDIM. No
dropout. Parameters are float32, drawn N(0, 0.02); bfloat16 is autocast in PyTorch, the network's `dtype` here.

`benchmarks.ours` and `benchmarks.theirs` are the processes of the sides, spoken to by `benchmarks.timing`.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Prepared = tuple[dict[str, Any], Callable[[], float]]

# Preset of jaxdiff, (height, width, channels), classes.
NETS: dict[str, tuple[str, tuple[int, int, int], int]] = {
    "ddpm_cifar10": ("ddpm_cifar10", (32, 32, 3), 0),
    "adm_64": ("adm_64", (64, 64, 3), 1000),
    "adm_256": ("adm_256", (256, 256, 3), 1000),
    "dit_b_2": ("dit_b_2", (32, 32, 4), 1000),
}
RATE, DECAY = 2e-4, 0.9999
ONE_CORE = "one-core" in sys.argv


def timed(call: Callable[[], Any], calls: int, wait: Callable[[Any], Any]) -> Callable[[], float]:
    """One repetition: seconds per call of `calls` of them, waited for together.

    On one core they are the process's own seconds, which others on the machine do not lengthen.
    """
    clock = time.process_time if ONE_CORE else time.perf_counter

    def run() -> float:
        start = clock()
        for _ in range(calls):
            result = call()
        wait(result)
        return (clock() - start) / calls

    return run


def arrays(batch: int, shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of images in [-1, 1] and of labels."""
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (batch, *shape)).astype(np.float32), rng.integers(0, max(classes, 1), batch)


def one_core() -> None:
    """Keep this process on one core, where that was asked."""
    if ONE_CORE:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
