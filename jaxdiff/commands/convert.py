"""Weights of other projects to our format, and ours to theirs."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress

from jaxdiff import convert as weights
from jaxdiff.convert import files
from jaxdiff.convert.table import Row, clean
from jaxdiff.errors import UsageError


def convert(src: Path, dst: Path, *, preset: str | None = None, to: str = "native", overwrite: bool = False) -> int:
    """Read a model, say what it is, and write it.

    Args:
        src: a folder of ours or of diffusers, or a .safetensors file of another project.
        dst: a folder for "native" and "diffusers", else a .safetensors file.
        preset: which model a file of weights is; folders say it themselves.
        to: "native", or a family of `jaxdiff.convert.FAMILIES`.
        overwrite: replace what is in `dst`.

    Returns:
        0.

    Raises:
        UsageError: for anything that does not fit; nothing is written then.
    """
    # Before the work rather than after it.
    weights.check_target(dst, to)
    _check_free(src, dst, overwrite)
    began = time.perf_counter()
    found = weights.find(src, preset=preset)
    for line in describe(found):
        print(line)
    names = [row.ours for row in found.table if isinstance(row, Row)]
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=len(names))
        params = found.read(lambda name: progress.advance(task))
        progress.add_task(f"writing {to}", total=None)
        weights.save(dst, found.spec, params, family=to)
    size = sum(path.stat().st_size for path in ([dst] if dst.is_file() else dst.rglob("*")) if path.is_file())
    print(f"{'wrote':11} {dst} ({to}, {size / 1e6:,.1f} MB, {time.perf_counter() - began:.1f} s)")
    return 0


def describe(found: weights.Found) -> list[str]:
    """What was found, in lines: family, network, parameters, tensors."""
    spec: Any = found.spec
    kinds = Counter(str(tensor.dtype) for tensor in found.tensors.values())
    count = sum(leaf.size for leaf in jax.tree.leaves(found.like))
    told = "" if spec.parameters in (0, count) else f" (the preset says {spec.parameters:,})"
    widened = [kind for kind in kinds if kind in ("float16", "bfloat16")]
    rows = {
        "family": found.family,
        "network": f"{spec.network}, one example {' x '.join(map(str, spec.shape))}",
        "process": f"{spec.process.get('name')}, prediction {spec.prediction}",
        "parameters": f"{count:,}{told}",
        "tensors": ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        + (f" ({' and '.join(widened)} stored as float32)" if widened else ""),
    }
    if spec.reference:
        rows["reference"] = spec.reference
    return [f"{name:11} {clean(str(value), 300)}" for name, value in rows.items()]


def _check_free(src: Path, dst: Path, overwrite: bool) -> None:
    """Nothing is replaced unasked, and nothing by itself."""
    if src.exists():
        source, target = src.resolve(), dst.resolve()
        # An index is read with the files beside it.
        home = source.parent if files.is_index(src) else source
        if target in (source, *source.parents) or home in target.parents:
            raise UsageError(f"{dst} is, holds or lies in what is to be read: give another place to write to")
    if not overwrite and dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise UsageError(f"{dst} is there already: give another place, or --overwrite to replace it")
