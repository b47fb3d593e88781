"""The rows for a CPU: DDPM's network against diffusers', time to the first sample, the input pipeline."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.sides import ALL, COMPILED, DEFAULT, EAGER, JAX, PLAIN, Measured, Sides, flops_of, number, table
from benchmarks.timing import NotMeasuredError, Spread


@dataclass(frozen=True)
class Row:
    """One comparison on the CPU.

    Args:
        name: for `--rows`.
        what: forward, train or sample.
        batch: examples.
        steps: of a sampling run.
        dtype: what to compute in.
        sides: which take part.
        quick: part of `--quick`.
    """

    name: str
    what: str
    batch: int
    steps: int = 0
    dtype: str = "float32"
    sides: tuple[str, ...] = (JAX, EAGER, COMPILED)
    quick: bool = False

    @property
    def title(self) -> str:
        """As the table has it."""
        steps = f", {self.steps} steps" if self.steps else ""
        return f"{self.what}{steps}, B={self.batch}, {self.dtype}"

    @property
    def job(self) -> dict:
        """The job of `peers`."""
        return {
            "net": "ddpm_cifar10", "what": self.what, "batch": self.batch, "dtype": self.dtype, "steps": self.steps,
            "dispatch": 1, "calls": 1,
        }  # fmt: skip


ROWS = (
    Row("forward-4", "forward", 4, sides=ALL, quick=True),
    Row("forward-16", "forward", 16, sides=ALL),
    Row("train-4", "train", 4, sides=ALL, quick=True),
    Row("train-16", "train", 16, sides=ALL),
    Row("sample-50", "sample", 4, 50),
    Row("sample-1x10", "sample", 1, 10, sides=PLAIN),
    Row("sample-4x10", "sample", 4, 10, sides=PLAIN, quick=True),
    Row("sample-4x25", "sample", 4, 25, sides=PLAIN),
    Row("sample-16x10", "sample", 16, 10, sides=PLAIN),
    Row("bf16-forward-4", "forward", 4, dtype="bfloat16", sides=PLAIN),
    Row("bf16-forward-16", "forward", 16, dtype="bfloat16", sides=PLAIN),
    Row("bf16-train-4", "train", 4, dtype="bfloat16", sides=PLAIN),
    Row("bf16-train-16", "train", 16, dtype="bfloat16", sides=PLAIN),
)


def cpu_rows(sides: Sides, rows: list[Row], repeats: int, say: Callable[[str], None]) -> tuple[list[str], dict]:
    """The table of forward passes, training steps and sampling on the CPU, and what was measured."""
    found: dict[str, Measured] = {}
    lines = []
    for row in rows:
        say(row.title)
        made = found[row.name] = sides.measure(
            row.job, row.sides, repeats if row.what != "sample" else max(repeats // 2, 1)
        )
        flops = flops_of(made, row.steps or 1)
        lines.append(
            [row.title, *(made.time(side) for side in ALL), *(made.ratio(JAX, side) for side in (EAGER, COMPILED)),
             made.ratio(DEFAULT, EAGER), " / ".join(number(made.rate(side, flops), 1e9) for side in (JAX, EAGER)),
             " / ".join(number(f, 1e9, ".4g") for f in (flops, made.info.get(EAGER, {}).get("flops"))),
             " / ".join(number(made.info.get(side, {}).get("compile_s"), 1, ".1f") for side in (JAX, COMPILED)),
             " / ".join(number(made.info.get(side, {}).get("peak_bytes"), 2**30, ".2f") for side in (JAX, EAGER))]
        )  # fmt: skip
        say("    " + " | ".join(lines[-1][1:]))
    head = [
        "DDPM, 35.7 M, 32x32", *(f"{side}, s" for side in ALL), "ratio", "to compiled", "ratio, default flags",
        "GFLOP/s, ours / theirs", "GFLOP, ours / theirs", "compile s, ours / theirs", "peak GiB, ours / theirs",
    ]  # fmt: skip
    return table(head, lines), found


def first_sample(sides: Sides, repeats: int, say: Callable[[str], None]) -> list[str]:
    """Start of the process to the first image, compilation included, with and without its programs kept on disk."""
    say("time to the first sample")
    job = {"net": "ddpm_cifar10", "what": "sample", "batch": 1, "steps": 50, "dtype": "float32", "dispatch": 1,
           "calls": 1, "flops": False}  # fmt: skip
    folder = tempfile.mkdtemp(dir=sides.scratch)

    def once(side: str, cold: bool) -> Callable[[], float]:
        def run() -> float:

            kept = f"{folder}/{'jax' if side == JAX else 'torch'}"
            if cold:
                shutil.rmtree(kept, ignore_errors=True)
            env = {
                "JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": kept,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
                "TORCHINDUCTOR_CACHE_DIR": kept,
            }  # fmt: skip
            with sides.start(side, **env) as worker:
                worker.ask("prepare", job={**job, "compiled": side == COMPILED})
                worker.ask("run")
                return time.perf_counter() - worker.started

        return run

    made = Measured()
    kinds = [("cold", JAX), ("warm", JAX), ("cold", EAGER), ("cold", COMPILED), ("warm", COMPILED)]
    for _ in range(repeats):
        for kind, side in kinds:
            name = f"{side} {kind}"
            if name in made.missing:
                continue
            try:
                made.seconds.setdefault(name, []).append(once(side, kind == "cold")())
            except NotMeasuredError as error:
                made.seconds.pop(name)
                made.missing[name] = str(error)
    eager = f"{EAGER} cold"
    lines = [
        [side, "-" if side == EAGER else kind, made.time(f"{side} {kind}"), made.ratio(f"{side} {kind}", eager)]
        for kind, side in kinds
    ]
    return table(["first sample (B=1, 50 steps)", "programs on disk", "s from start of process", "to PyTorch"], lines)


def input_rows(sides: Sides, found: dict[str, Measured], repeats: int, say: Callable[[str], None]) -> list[str]:
    """What the input pipeline gives beside what a training step takes."""
    say("input pipeline")
    lines = []
    for batch in (4, 16, 128):
        made = sides.measure({"what": "input", "batch": batch, "calls": 100}, (JAX,), repeats)
        rate = batch / Spread.of(made.seconds[JAX]).median if made.seconds else None
        step = found.get(f"train-{batch}")
        takes = batch / Spread.of(step.seconds[JAX]).median if step and JAX in step.seconds else None
        times = rate / takes if rate and takes else None
        lines.append([f"B={batch}", number(rate, 1, ",.0f"), number(takes, 1, ".3g"), number(times, 1, ",.0f")])
    return table(["input pipeline (CIFAR-10's size, in memory, flips)", "gives images/s", "step takes", "times"], lines)


def matrix_row(sides: Sides, repeats: int) -> str:
    """The rate of a large product on the CPU, for scale."""
    job = {"what": "matmul", "batch": 2048, "dtype": "float32", "calls": 4}
    made = sides.measure(job, PLAIN, repeats)
    rates = (number(made.rate(side, 2.0 * 2048**3), 1e9) for side in PLAIN)
    return "Matrix rate of this CPU (2048 x 2048, float32), ours / theirs: " + " / ".join(rates) + " GFLOP/s."
