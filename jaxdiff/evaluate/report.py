"""The report of a run as one HTML file that needs no network and runs no script: what was logged, drawn."""

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jaxdiff.evaluate import noise_levels
from jaxdiff.train.logging import METRICS, SAMPLES, read_metrics

_FIRST = ("loss", "eval_loss", "grad_norm", "steps_per_second")
_LINE = "#3b82f6"
_PICTURE = re.compile(r"(.+)_(\d+)\.(png|gif)")
_MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "gif": b"GIF8"}
# Moments shown of a picture and of the losses by level; points of a curve, beyond which neighbours are put together.
_MOMENTS, _CURVES, _POINTS = 12, 5, 400

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --dim: #59636e; --paper: #ffffff; --card: #f6f8fa; --edge: #d1d9e0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --dim: #9198a1; --paper: #0d1117; --card: #151b23; --edge: #3d444d } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: 0.5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 0.6rem } p { margin: 0.4rem 0 }
.cards { display: grid; gap: 0.8rem; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)) }
figure { margin: 0; padding: 0.6rem; background: var(--card); border: 1px solid var(--edge); border-radius: 6px }
figure img { width: 100%; display: block } figure svg { width: 100%; height: auto }
figcaption, .dim { color: var(--dim); font-size: 0.85rem } figcaption b { color: var(--ink) }
svg text { fill: var(--ink) !important; font-family: inherit !important }
table { border-collapse: collapse } td, th { padding: 0.15rem 1rem 0.15rem 0; text-align: left; vertical-align: top }
td { font-family: ui-monospace, monospace; font-size: 0.85rem } th { font-weight: 600; font-size: 0.85rem }
summary { cursor: pointer; font-weight: 600; margin: 0.6rem 0 }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body>
<h1>{title}</h1>
{body}
</body></html>
"""

Series = tuple[np.ndarray, np.ndarray]


def page(workdir: Path, record: Mapping[str, Any], checkpoints: Sequence[int] = (), best: int | None = None) -> str:
    """The report of a run.

    Args:
        workdir: the run's folder: its `metrics.jsonl` and `samples/` are read.
        record: what its `config.json` holds: "config" and "versions", plain values.
        checkpoints: the steps there are checkpoints of.
        best: the one of lowest evaluation loss, or None.

    Returns:
        HTML, with every picture inside.
    """
    metrics = read_metrics(workdir / METRICS)
    series = _series(metrics)
    config = dict(_flat(record.get("config", {})))
    parts = [_summary(series, config), *_section("Curves", _curves(series))]
    parts += _section("Errors by noise level", _levels(metrics))
    for name, files in sorted(_pictures(workdir / SAMPLES).items()):
        parts += _section(f"Pictures: {name}", _moments(files))
    if checkpoints:
        rows = {f"step {step}": _checkpoint(step, series, checkpoints[-1], best) for step in checkpoints}
        parts += ["<h2>Checkpoints</h2>", _table(rows)]
    parts += ["<h2>What it was made with</h2>"]
    for name, values in (("Config", config), ("Versions", record.get("versions", {}))):
        parts.append(f"<details><summary>{name}</summary>{_table(dict(_flat(values)))}</details>")
    return _PAGE.format(title=escape(workdir.absolute().name), style=_STYLE, body="\n".join(parts))


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def _series(metrics: list[tuple[int, dict[str, float]]]) -> dict[str, Series]:
    """(steps, values) of every scalar, the best known first."""
    found: dict[str, list[tuple[int, float]]] = {}
    for step, values in metrics:
        for name, value in values.items():
            found.setdefault(name, []).append((step, value))
    rank = {name: i for i, name in enumerate(_FIRST)}
    order = sorted(found, key=lambda name: (rank.get(name, len(rank)), name))
    return {name: (np.array([s for s, _ in found[name]]), np.array([v for _, v in found[name]])) for name in order}


def _section(title: str, figures: Sequence[str]) -> list[str]:
    return [f'<h2>{escape(title)}</h2>\n<div class="cards">', *figures, "</div>"] if figures else []


def _table(rows: Mapping[str, str]) -> str:
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>\n" for name, value in rows.items())
    return f"<table>\n{body}</table>"


def _summary(series: Mapping[str, Series], config: Mapping[str, str]) -> str:
    if not series:
        return '<p class="dim">Nothing was logged yet.</p>'
    last = max(int(steps[-1]) for steps, _ in series.values())
    rows = {"step": f"{last} of {config.get('train.steps', '?')}"}
    for name in ("loss", "eval_loss", "steps_per_second"):
        if name in series:
            rows[name] = f"{series[name][1][-1]:.4g} at the end"
    steps, values = series.get("eval_loss", (np.array([]), np.array([])))
    if np.isfinite(values).any():
        least = np.nanargmin(np.where(np.isfinite(values), values, np.nan))
        rows["eval_loss"] += f", lowest {values[least]:.4g} at step {steps[least]}"
    return _table(rows)


def _checkpoint(step: int, series: Mapping[str, Series], newest: int, best: int | None) -> str:
    steps, values = series.get("eval_loss", (np.array([]), np.array([])))
    words = [f"eval_loss {value:.4g}" for value in values[steps == step][-1:]]
    return ", ".join(words + ["newest"] * (step == newest) + ["best"] * (step == best)) or "kept"


def _curves(series: Mapping[str, Series]) -> list[str]:
    shown = [name for name in series if not name.startswith("noise_levels/")]  # these are drawn together
    return [_figure(name, _curve(*series[name]), _faults(*series[name])) for name in shown]


def _figure(name: str, drawn: str, note: str = "") -> str:
    note = f" {escape(note)}" if note else ""
    return f"<figure><figcaption><b>{escape(name)}</b>{note}</figcaption>{drawn}</figure>"


def _faults(steps: np.ndarray, values: np.ndarray) -> str:
    bad = steps[~np.isfinite(values)]
    more = ", ..." if bad.size > 5 else ""
    return f"no number at step {', '.join(map(str, bad[:5]))}{more}" if bad.size else ""


def _curve(steps: np.ndarray, values: np.ndarray) -> str:
    """A curve as SVG; of many points the mean of neighbours, in front of what lies between the extremes."""
    figure, (axis,) = noise_levels.panels(1)
    good = np.isfinite(values)
    steps, values = steps[good], values[good]
    if values.size > _POINTS:
        starts = np.linspace(0, values.size, _POINTS, endpoint=False).astype(int)
        low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        steps, values = steps[starts], np.add.reduceat(values, starts) / np.diff(np.append(starts, values.size))
        axis.fill_between(steps, low, high, color=_LINE, alpha=0.25, lw=0)
    axis.plot(steps, values, "." if values.size == 1 else "-", color=_LINE, lw=1.3)
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        axis.set_yscale("log")
    axis.set_xlabel("step", fontsize=9)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """A figure to stand in a page: text as text, so that the page chooses its colour."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _evenly(items: Sequence[Any], num: int) -> list[Any]:
    """At most `num` of the items, the first and the last among them."""
    keep = np.unique(np.linspace(0, len(items) - 1, min(num, len(items))).round().astype(int))
    return [items[i] for i in keep]


def _levels(metrics: list[tuple[int, dict[str, float]]]) -> list[str]:
    logged: dict[int, dict[str, float]] = {}
    for step, values in metrics:
        logged.setdefault(step, {}).update(values)
    found = {step: losses for step, values in logged.items() if (losses := noise_levels.logged(values)) is not None}
    if not found:
        return []
    shown = {str(step): found[step] for step in _evenly(sorted(found), _CURVES)}
    return [_figure("errors at fixed noise", _svg(noise_levels.plot(shown)))]


def _pictures(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """(step, file) of every picture by name, oldest first."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _PICTURE.fullmatch(path.name)
        # The plots of the noise levels are drawn anew, all in one.
        if match and match[1] != "noise_levels_plot" and path.is_file() and not path.is_symlink():
            found.setdefault(match[1], []).append((int(match[2]), path))
    return {name: sorted(files) for name, files in found.items()}


def _moments(files: Sequence[tuple[int, Path]]) -> list[str]:
    figures = []
    for step, path in _evenly(files, _MOMENTS):
        kind, data = path.suffix[1:], path.read_bytes()
        if data.startswith(_MAGIC[kind]):
            inside = base64.b64encode(data).decode()
            figures.append(_figure(f"step {step}", f'<img alt="step {step}" src="data:image/{kind};base64,{inside}">'))
    return figures
