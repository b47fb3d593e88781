"""Speed against PyTorch (diffusers), both measured in this run: python -m benchmarks.run --peer PYTHON

`--peer` is an interpreter that has torch and diffusers; without one the ratios are "not measured". Every side of a row
is a process of its own, and the sides take turns (`benchmarks.timing`); what they compute is in `benchmarks.peers`,
and that they compute the same network is held by their counts of parameters (the operations are shown). A ratio is
jaxdiff's time by PyTorch's, below 1 where jaxdiff is faster: median (least-greatest) of the rounds.
"""

import argparse
import contextlib
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import gpu
from benchmarks.timing import NotMeasuredError, Spread, Worker, interleave, ratio
from jaxdiff import runtime

# What `jaxdiff train` and `jaxdiff sample` set on a CPU.
XLA_FLAGS = " ".join(runtime.flags())
JAX, DEFAULT, EAGER, COMPILED = "jaxdiff", "jaxdiff, default flags", "PyTorch", "PyTorch compiled"


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


ALL = (JAX, DEFAULT, EAGER, COMPILED)
PLAIN = (JAX, EAGER)
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
FIRST, INPUT, MATRIX = "first-sample", "input", "matrix"
NAMES = (MATRIX, *(row.name for row in ROWS), FIRST, INPUT, *(row.name for row in gpu.ROWS))


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
        python, name = (sys.executable, "jax") if ours else (str(self.peer), "torch")
        command = [python, "-P", "-m", "benchmarks.peers", name, *(["one-core"] if self.one_core else [])]
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


def _flops(made: Measured, turns: int = 1) -> float | None:
    """Of one call, as XLA counts the program before it optimises it; the body of a loop of `turns` counts once."""
    flops = made.info.get(JAX, {}).get("flops")
    return flops * turns if flops else None


def _number(value: float | None, unit: float, spec: str = ".3g") -> str:
    return "-" if value is None else f"{value / unit:{spec}}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def cpu_rows(sides: Sides, rows: list[Row], repeats: int, say: Callable[[str], None]) -> tuple[list[str], dict]:
    """The table of forward passes, training steps and sampling on the CPU, and what was measured."""
    found: dict[str, Measured] = {}
    lines = []
    for row in rows:
        say(row.title)
        made = found[row.name] = sides.measure(
            row.job, row.sides, repeats if row.what != "sample" else max(repeats // 2, 1)
        )
        flops = _flops(made, row.steps or 1)
        lines.append(
            [row.title, *(made.time(side) for side in ALL), *(made.ratio(JAX, side) for side in (EAGER, COMPILED)),
             made.ratio(DEFAULT, EAGER), " / ".join(_number(made.rate(side, flops), 1e9) for side in (JAX, EAGER)),
             " / ".join(_number(f, 1e9, ".4g") for f in (flops, made.info.get(EAGER, {}).get("flops"))),
             " / ".join(_number(made.info.get(side, {}).get("compile_s"), 1, ".1f") for side in (JAX, COMPILED)),
             " / ".join(_number(made.info.get(side, {}).get("peak_bytes"), 2**30, ".2f") for side in (JAX, EAGER))]
        )  # fmt: skip
        say("    " + " | ".join(lines[-1][1:]))
    head = [
        "DDPM, 35.7 M, 32x32", *(f"{side}, s" for side in ALL), "ratio", "to compiled", "ratio, default flags",
        "GFLOP/s, ours / theirs", "GFLOP, ours / theirs", "compile s, ours / theirs", "peak GiB, ours / theirs",
    ]  # fmt: skip
    return _table(head, lines), found


def first_sample(sides: Sides, repeats: int, say: Callable[[str], None]) -> list[str]:
    """Start of the process to the first image, compilation included, with and without its programs kept on disk."""
    say("time to the first sample")
    job = {"net": "ddpm_cifar10", "what": "sample", "batch": 1, "steps": 50, "dtype": "float32", "dispatch": 1,
           "calls": 1, "flops": False}  # fmt: skip
    folder = tempfile.mkdtemp(dir=sides.scratch)

    def once(side: str, cold: bool) -> Callable[[], float]:
        def run() -> float:
            import time

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
    return _table(["first sample (B=1, 50 steps)", "programs on disk", "s from start of process", "to PyTorch"], lines)


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
        lines.append([f"B={batch}", _number(rate, 1, ",.0f"), _number(takes, 1, ".3g"), _number(times, 1, ",.0f")])
    return _table(
        ["input pipeline (CIFAR-10's size, in memory, flips)", "gives images/s", "step takes", "times"], lines
    )


def gpu_rows(sides: Sides | None, rows: list[gpu.GPURow], repeats: int, say: Callable[[str], None]) -> list[str]:
    """The accelerator's table; every cell "not measured" without one."""
    head = [
        "bfloat16", "ours, images/s", "compiled PyTorch, images/s", "ratio of times", "MFU, ours / theirs",
        "peak GiB, ours / theirs", "compile s, ours / theirs",
    ]  # fmt: skip
    title = {row.name: f"{row.net} {row.what}, B={row.batch}" + f", {row.dispatch} steps a call" * (row.dispatch > 1)
             for row in rows}  # fmt: skip
    if sides is None:
        return _table(head, [[title[row.name], *["not measured"] * (len(head) - 1)] for row in rows])
    say("matrix rate")
    product = sides.measure(gpu.MATRIX, PLAIN, repeats)
    rates = {side: product.rate(side, 2.0 * gpu.MATRIX["batch"] ** 3) for side in PLAIN}  # type: ignore[operator]
    peak = max((rate for rate in rates.values() if rate), default=None)
    lines = []
    for row in rows:
        say(title[row.name])
        made = sides.measure(row.job, (JAX, COMPILED), repeats)
        images, work = row.batch * row.dispatch, _flops(made, row.dispatch)

        def rate(side: str, made: Measured = made, images: int = images) -> str:
            return (
                f"{Spread.of(images / s for s in made.seconds[side]):.4g}" if side in made.seconds else made.time(side)
            )

        def used(side: str, made: Measured = made, work: float | None = work) -> str:
            got = made.rate(side, work)
            return f"{got / peak:.0%}" if got and peak else "-"

        lines.append(
            [title[row.name], rate(JAX), rate(COMPILED), made.ratio(JAX, COMPILED), f"{used(JAX)} / {used(COMPILED)}",
             " / ".join(_number(made.info.get(side, {}).get("peak_bytes"), 2**30, ".2f") for side in (JAX, COMPILED)),
             " / ".join(_number(made.info.get(side, {}).get("compile_s"), 1, ".1f") for side in (JAX, COMPILED))]
        )  # fmt: skip
        say("    " + " | ".join(lines[-1][1:]))
    note = f"Matrix rate (8192 x 8192 in bfloat16): jaxdiff {_number(rates[JAX], 1e12)}, PyTorch "
    return [*_table(head, lines), "", note + f"{_number(rates[EAGER], 1e12)} TFLOP/s; MFU is against the greater."]


def matrix_row(sides: Sides, repeats: int) -> str:
    """The rate of a large product on the CPU, for scale."""
    job = {"what": "matmul", "batch": 2048, "dtype": "float32", "calls": 4}
    made = sides.measure(job, PLAIN, repeats)
    rates = (_number(made.rate(side, 2.0 * 2048**3), 1e9) for side in PLAIN)
    return "Matrix rate of this CPU (2048 x 2048, float32), ours / theirs: " + " / ".join(rates) + " GFLOP/s."


def _peer(given: str | None) -> str | None:
    """An interpreter that can import torch and diffusers."""
    for python in [given] if given else [sys.executable]:
        test = subprocess.run([python, "-c", "import torch, diffusers"], capture_output=True, check=False)
        if test.returncode == 0:
            return python
    if given:
        raise SystemExit(f"--peer {given}: cannot import torch and diffusers")
    return None


def _cpu() -> tuple[str, bool]:
    """The CPU in words, and whether it multiplies matrices of bfloat16."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        return f"{named.get('model name', 'unknown')}, {os.cpu_count()} cores", "amx_bf16" in named.get("flags", "")
    return f"unknown, {os.cpu_count()} cores", False


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="jaxdiff-benchmarks-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", help="interpreter with torch and diffusers; default: this one if it has them")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"only these: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="few rows, two rounds, no torch.compile")
    parser.add_argument("--repeats", type=int, help="rounds of a row; default 7, with --quick 2")
    parser.add_argument(
        "--one-core", action="store_true",
        help="each side on one core, in its own processor seconds: steady on a machine that others use as well",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="also write the page here, such as benchmarks/RESULTS.md")
    args = parser.parse_args()
    if unknown := set(args.rows or ()) - set(NAMES):
        parser.error(f"--rows {' '.join(sorted(unknown))}: allowed are {', '.join(NAMES)}")
    repeats = args.repeats or (2 if args.quick else 7)
    if repeats < 1:
        parser.error(f"--repeats {repeats}: allowed is 1 or more")
    busy = os.getloadavg()[0]
    peer, (cpu, amx) = _peer(args.peer), _cpu()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def wanted(name: str, quick: bool = False) -> bool:
        return name in args.rows if args.rows else quick or not args.quick

    with _scratch() as scratch:
        sides = Sides(peer, False, scratch, args.one_core)
        about: dict[str, dict] = {}
        for side in PLAIN:
            with contextlib.suppress(NotMeasuredError), Sides(peer, True, scratch).start(side) as worker:
                about[side] = worker.ask("about")
        has_gpu = all(about.get(side, {}).get("platform") == "gpu" for side in ((JAX,) if peer is None else PLAIN))
        chosen = [row for row in ROWS if wanted(row.name, row.quick) and (amx or row.dtype == "float32")]
        if args.quick:
            chosen = [_without_compiled(row) for row in chosen]
        theirs = about.get(EAGER, {}).get("versions", "PyTorch not measured: no interpreter with torch (--peer)")
        alone = ", each on one core, in its own processor seconds" * args.one_core
        page = [
            "# Speed against PyTorch", "",
            f"Made by `python -m benchmarks.run` on {datetime.date.today()}: {cpu}; "
            f"{about[JAX]['device'] if has_gpu else 'no GPU'}; {about[JAX]['versions']}; {theirs}; "
            f"{repeats} rounds, the sides in turn{alone}; XLA_FLAGS `{XLA_FLAGS}` on the CPU.", "",
            "Ratios are jaxdiff's time by PyTorch's in the same round, median (least-greatest): below 1 jaxdiff is "
            "faster. What is compared: `benchmarks/peers.py`.", "",
        ]  # fmt: skip
        if busy > 0.3 and not args.one_core:
            page += [
                f"**Not to be trusted**: the machine was busy (load {busy:.1f} at the start), and PyTorch's threads "
                "wait for each other where jaxdiff's do not; on such a machine give `--one-core`.", "",
            ]  # fmt: skip
        found: dict[str, Measured] = {}
        if wanted(MATRIX, quick=True):
            page += [matrix_row(sides, repeats), ""]
        if chosen:
            lines, found = cpu_rows(sides, chosen, repeats, say)
            page += [*lines, ""]
        if not amx:
            page += ["bfloat16 on the CPU: not measured, it has no AMX.", ""]
        if wanted(FIRST):
            page += [*first_sample(sides, max(repeats // 3, 1), say), ""]
        if wanted(INPUT, quick=True):
            page += [*input_rows(sides, found, repeats, say), ""]
        gpu_chosen = [row for row in gpu.ROWS if wanted(row.name)]
        if gpu_chosen:
            on_gpu = Sides(peer, True, scratch) if has_gpu else None
            page += [*gpu_rows(on_gpu, gpu_chosen, repeats, say), ""]
    text = "\n".join(page)
    print(text)
    if args.out:
        args.out.write_text(text)


def _without_compiled(row: Row) -> Row:
    import dataclasses

    return dataclasses.replace(row, sides=tuple(side for side in row.sides if side != COMPILED))


if __name__ == "__main__":
    main()
