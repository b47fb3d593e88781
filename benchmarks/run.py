"""Speed against PyTorch (diffusers), both measured in this run: python -m benchmarks.run --peer PYTHON

`--peer` is an interpreter that has torch and diffusers; without one the ratios are "not measured". Every side of a row
is a process of its own, and the sides take turns (`benchmarks.timing`); what they compute is in `benchmarks.peers`,
and that they compute the same network is held by their counts of parameters (the operations are shown). A ratio is
jaxdiff's time by PyTorch's, below 1 where jaxdiff is faster: median (least-greatest) of the rounds.
"""

import argparse
import contextlib
import dataclasses
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import cpu, gpu, memory
from benchmarks.sides import COMPILED, EAGER, JAX, PLAIN, XLA_FLAGS, Sides
from benchmarks.timing import NotMeasuredError

FIRST, INPUT, MATRIX, MEMORY = "first-sample", "input", "matrix", "memory"
NAMES = (MATRIX, *(row.name for row in cpu.ROWS), FIRST, INPUT, MEMORY, *(row.name for row in gpu.ROWS))


def _arguments() -> argparse.Namespace:
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
    args.repeats = args.repeats or (2 if args.quick else 7)
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: allowed is 1 or more")
    args.peer = _peer(args.peer)
    return args


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


def _about(peer: str | None, scratch: str) -> tuple[dict[str, dict], bool]:
    """What each side says of itself, and whether all of them have an accelerator."""
    about: dict[str, dict] = {}
    for side in PLAIN:
        with contextlib.suppress(NotMeasuredError), Sides(peer, True, scratch).start(side) as worker:
            about[side] = worker.ask("about")
    needed = (JAX,) if peer is None else PLAIN
    return about, all(about.get(side, {}).get("platform") == "gpu" for side in needed)


def _head(args: argparse.Namespace, processor: str, about: dict[str, dict], has_gpu: bool, busy: float) -> list[str]:
    """What was measured on what, and whether it can be trusted."""
    theirs = about.get(EAGER, {}).get("versions", "PyTorch not measured: no interpreter with torch (--peer)")
    alone = ", each on one core, in its own processor seconds" * args.one_core
    page = [
        "# Speed against PyTorch", "",
        f"Made by `python -m benchmarks.run` on {datetime.date.today()}: {processor}; "
        f"{about[JAX]['device'] if has_gpu else 'no GPU'}; {about[JAX]['versions']}; {theirs}; "
        f"{args.repeats} rounds, the sides in turn{alone}; XLA_FLAGS `{XLA_FLAGS}` on the CPU.", "",
        "Ratios are jaxdiff's time by PyTorch's in the same round, median (least-greatest): below 1 jaxdiff is "
        "faster. What is compared: `benchmarks/peers.py`.", "",
    ]  # fmt: skip
    if busy > 0.3 and not args.one_core:
        page += [
            f"**Not to be trusted**: the machine was busy (load {busy:.1f} at the start), and PyTorch's threads "
            "wait for each other where jaxdiff's do not; on such a machine give `--one-core`.", "",
        ]  # fmt: skip
    return page


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tables(args: argparse.Namespace, scratch: str, amx: bool, has_gpu: bool) -> list[str]:
    """Every table that was asked for."""

    def wanted(name: str, quick: bool = False) -> bool:
        return name in args.rows if args.rows else quick or not args.quick

    sides, page, found = Sides(args.peer, False, scratch, args.one_core), [], {}
    chosen = [row for row in cpu.ROWS if wanted(row.name, row.quick) and (amx or row.dtype == "float32")]
    if args.quick:
        chosen = [_without_compiled(row) for row in chosen]
    if wanted(MATRIX, quick=True):
        page += [cpu.matrix_row(sides, args.repeats), ""]
    if chosen:
        lines, found = cpu.cpu_rows(sides, chosen, args.repeats, _say)
        page += [*lines, ""]
    if not amx:
        page += ["bfloat16 on the CPU: not measured, it has no AMX.", ""]
    if wanted(FIRST):
        page += [*cpu.first_sample(sides, max(args.repeats // 3, 1), _say), ""]
    if wanted(INPUT, quick=True):
        page += [*cpu.input_rows(sides, found, args.repeats, _say), ""]
    if wanted(MEMORY):
        page += [*memory.rows(sides, _say), ""]
    if on_gpu := [row for row in gpu.ROWS if wanted(row.name)]:
        page += [*gpu.gpu_rows(Sides(args.peer, True, scratch) if has_gpu else None, on_gpu, args.repeats, _say), ""]
    return page


def _without_compiled(row: cpu.Row) -> cpu.Row:
    return dataclasses.replace(row, sides=tuple(side for side in row.sides if side != COMPILED))


def main() -> None:
    """Measure, print the page, perhaps write it."""
    busy, args = os.getloadavg()[0], _arguments()
    processor, amx = _cpu()
    with _scratch() as scratch:
        about, has_gpu = _about(args.peer, scratch)
        text = "\n".join([*_head(args, processor, about, has_gpu, busy), *_tables(args, scratch, amx, has_gpu)])
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
