"""The sides of a comparison: their processes, what they came to, and a table of it."""

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.timing import NotMeasuredError, Spread, Worker, interleave, ratio
from jaxdiff import runtime

# What `jaxdiff train` and `jaxdiff sample` set on a CPU.
XLA_FLAGS = " ".join(runtime.flags())
JAX, DEFAULT, EAGER, COMPILED = "jaxdiff", "jaxdiff, default flags", "PyTorch", "PyTorch compiled"
ALL = (JAX, DEFAULT, EAGER, COMPILED)
PLAIN = (JAX, EAGER)


@dataclass
class Measured:
    """What the sides of a row came to: rounds of seconds, what was known before, or why there is none."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    info: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def time(self, side: str, unit: float = 1.0) -> str:
        """Seconds over `unit` of a side, or why not."""
        if side in self.seconds:
            return f"{Spread.of(s / unit for s in self.seconds[side]):.3g}"
        return f"not measured: {self.missing[side][:80]}" if side in self.missing else "-"

    def ratio(self, ours: str, theirs: str) -> str:
        """ours / theirs by rounds."""
        if ours in self.seconds and theirs in self.seconds:
            return f"{ratio(self.seconds[ours], self.seconds[theirs]):.2f}"
        return "not measured" if ours in self.missing or theirs in self.missing else "-"

    def rate(self, side: str, flops: float | None) -> float | None:
        """Floating-point operations a second."""
        return flops / Spread.of(self.seconds[side]).median if flops and side in self.seconds else None


class Sides:
    """Starts the processes of the sides on one kind of device.

    Args:
        peer: the interpreter with torch; None: that side is not measured.
        on_gpu: on the accelerator, or on the CPU even where there is one.
        scratch: a folder for compiled programs of PyTorch, empty at the start, so that it compiles.
        one_core: each side has one core and counts its own processor seconds.
    """

    def __init__(self, peer: str | None, on_gpu: bool, scratch: str, one_core: bool = False) -> None:
        self.peer, self.on_gpu, self.scratch, self.one_core = peer, on_gpu, scratch, one_core

    def start(self, side: str, **env: str) -> Worker:
        """A process of a side."""
        ours = side in (JAX, DEFAULT)
        if not ours and self.peer is None:
            raise NotMeasuredError("no interpreter with torch and diffusers (--peer)")
        given = os.environ.get("XLA_FLAGS", "")
        both: dict[str, str] = {
            "JAX_PLATFORMS": "" if self.on_gpu else "cpu",
            "XLA_FLAGS": given if self.on_gpu or side == DEFAULT else f"{given} {XLA_FLAGS}".strip(),
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the device is shared with the other side
            "TORCHINDUCTOR_CACHE_DIR": self.scratch,
            **env,
        }
        if not self.on_gpu:
            both["CUDA_VISIBLE_DEVICES"] = ""
        python, name = (sys.executable, "ours") if ours else (str(self.peer), "theirs")
        command = [python, "-P", "-m", f"benchmarks.{name}", *(["one-core"] if self.one_core else [])]
        return Worker(command, both)

    def measure(self, job: dict, sides: tuple[str, ...], repeats: int) -> Measured:
        """One row: all sides prepare, then take turns."""
        made = Measured()
        with contextlib.ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for side in sides:
                try:
                    workers[side] = stack.enter_context(self.start(side))
                except NotMeasuredError as error:
                    made.missing[side] = str(error)
            for side, worker in list(workers.items()):
                try:
                    made.info[side] = worker.ask("prepare", job={**job, "compiled": side == COMPILED, "flops": True})
                except NotMeasuredError as error:
                    made.missing[side] = str(error)
                    del workers[side]
            _same(made.info, exactly=job.get("net") == "ddpm_cifar10")

            def turn(side: str, worker: Worker) -> Callable[[], float]:
                def run() -> float:
                    answer = worker.ask("run")
                    made.info[side]["peak_bytes"] = answer["peak_bytes"]
                    return answer["seconds"]

                return run

            try:
                made.seconds = interleave({side: turn(side, worker) for side, worker in workers.items()}, repeats)
            except NotMeasuredError as error:
                made.missing.update(dict.fromkeys(workers, str(error)))
        return made


def _same(info: dict[str, dict], exactly: bool) -> None:
    """Refuse to compare networks of different size: not one parameter, or a hundredth of them, may be missing."""
    counts = {side: known["parameters"] for side, known in info.items() if known.get("parameters")}
    if counts and max(counts.values()) > (1 if exactly else 1.01) * min(counts.values()):
        raise SystemExit(f"the sides' numbers of parameters differ: {counts}")


def flops_of(made: Measured, turns: int = 1) -> float | None:
    """Of one call, as XLA counts the program before it optimises it; the body of a loop of `turns` counts once."""
    flops = made.info.get(JAX, {}).get("flops")
    return flops * turns if flops else None


def number(value: float | None, unit: float, spec: str = ".3g") -> str:
    return "-" if value is None else f"{value / unit:{spec}}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]
