r"""Where on the way from noise to data a model is good: its error at fixed noise levels.

At each level the examples are noised as in training, x = alpha x0 + sigma eps, and the denoiser's two errors are

    |eps - eps_hat|^2 / D,    |x0 - x0_hat|^2 / D,    the first e^log_snr times the second.       (1)

The noise depends on the key and on an example's place alone, so that of two checkpoints the better one is seen, and not
the luckier one. No denoiser's expected errors are below the Bayes risk; of Gaussian data that is
`analytic.Gaussian.bayes_risk`. Against the log-SNR, half the area under D times the first error is the diffusion term
of the variational bound in nats, whatever the schedule: the curve says where a model loses its likelihood.

Reference: Kingma, Salimans, Poole, Ho. Variational diffusion models. 2021. arXiv:2107.00630, equations 15-17 (the
area); Nichol, Dhariwal. Improved denoising diffusion probabilistic models. 2021. arXiv:2102.09672, figure 2 (the
bound's terms by step).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxdiff.errors import UsageError
from jaxdiff.model import Model, check_rows
from jaxdiff.numerics import normal_like
from jaxdiff.process import ForwardProcess, stack
from jaxdiff.types import Array, Level, PyTree

_NAME = re.compile(r"noise_levels/(eps|x0)/(-?\d+\.\d+)")
_COLOURS = {"eps": "#3b82f6", "x0": "#d97706"}  # seen on black and on white
_GREY = "#888888"


class Losses(NamedTuple):
    """Mean squared errors per number, equation (1), by log-SNR: three arrays [L].

    Attributes:
        log_snr: the levels.
        eps: errors of the noise.
        x0: errors of the clean example.
    """

    log_snr: np.ndarray
    eps: np.ndarray
    x0: np.ndarray

    def named(self) -> dict[str, float]:
        """As scalars to log: {"eps/-4.21": error, ..., "x0/-4.21": error, ...}."""
        rows = [(part, getattr(self, part)) for part in ("eps", "x0")]
        return {f"{part}/{at:.2f}": float(v) for part, row in rows for at, v in zip(self.log_snr, row, strict=True)}


def logged(values: Mapping[str, float]) -> Losses | None:
    """What `Losses.named` was, from the scalars of a run, logged under "noise_levels"; None if there is none.

    Args:
        values: a run's scalars of one step, these among others.
    """
    parts: dict[str, dict[float, float]] = {"eps": {}, "x0": {}}
    for name, value in values.items():
        if match := _NAME.fullmatch(name):
            parts[match[1]][float(match[2])] = value
    at = sorted(parts["eps"].keys() & parts["x0"].keys())
    return Losses(*map(np.array, (at, *([parts[part][x] for x in at] for part in ("eps", "x0"))))) if at else None


def spread(process: ForwardProcess, num: int = 16) -> Level:
    """Levels at even steps of log-SNR over the process's span, cleanest first; of a table, the rows nearest to them.

    Args:
        process: any process.
        num: how many, at least 2; fewer where they fall on one row.

    Returns:
        At most `num` stacked levels.

    Examples:
        >>> from jaxdiff import processes
        >>> [f"{sigma:.3g}" for sigma in spread(processes.edm(), 3).sigma]
        ['0.002', '0.4', '80']
    """
    if num < 2:
        raise UsageError(f"num={num}: allowed is 2 or more")
    clean, noisy = process.schedule.log_snr(np.array(process.schedule.span, np.float64))
    even = np.linspace(clean, noisy, num)
    if process.num_steps is None:
        return stack(process.at(even))
    rows = np.unique(np.round(process.schedule.time(even) * process.num_steps))
    return stack(process(rows / process.num_steps))


@partial(jax.jit, static_argnames="model")
def _errors(model: Model, params: PyTree, batch: dict, keys: Array, levels: Level) -> Array:
    """The errors of equation (1), [L, 2]."""
    denoise, x0 = model.denoiser(params), jnp.asarray(batch["x0"])
    eps = normal_like(keys, x0)

    def at(level: Level) -> Array:
        answer = denoise(level.alpha * x0 + level.sigma * eps, level, batch.get("cond"))
        return jnp.stack([jnp.mean((answer.eps - eps) ** 2), jnp.mean((answer.x0 - x0) ** 2)])

    return jax.lax.map(at, levels)


def losses_by_level(model: Model, params: PyTree, batches: Iterable[dict], key: Array, levels: Level) -> Losses:
    """The model's errors at each level, over all examples of some batches.

    Args:
        model: the model.
        params: its parameters.
        batches: {"x0": [B, ...] in [-1, 1], "cond": {...}} each; finitely many, best of one size, because each size
            compiles once.
        key: of the noise; example i of all batches has the same noise at every level and in every call.
        levels: stacked levels [L], such as `spread(model.process)`.

    Returns:
        The errors by level; how the examples are cut into batches changes only their rounding.

    Raises:
        UsageError: for no batch, or levels between the rows of a table that the network cannot be asked for.

    Examples:
        >>> from jaxdiff import prediction, processes
        >>> model = Model(lambda params, x, t, cond, *, train, rngs: params * x, processes.edm(), prediction.EPS)
        >>> x0 = jnp.zeros((32, 8, 8, 1))
        >>> losses = losses_by_level(model, 1.0, [{"x0": x0}], jax.random.key(0), spread(model.process, 3))
        >>> losses.eps.shape, bool(losses.eps[-1] > losses.eps[0])
        ((3,), True)
    """
    check_rows(model.denoiser(params), levels.t, what="losses_by_level")
    total, count = np.zeros((levels.t.shape[0], 2)), 0
    for batch in batches:
        size = batch["x0"].shape[0]
        index = count + np.arange(size, dtype=np.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        total += size * np.asarray(_errors(model, params, batch, keys, levels), np.float64)
        count += size
    if not count:
        raise UsageError("batches is empty: allowed is 1 batch or more")
    return Losses(np.asarray(levels.log_snr, np.float64), *(total / count).T)


def evaluation(
    model: Model, batches: Callable[[], Iterable[dict]], key: Array, levels: Level
) -> Callable[[PyTree], dict[str, Any]]:
    """`losses_by_level` as an evaluation of a run: a function of parameters to the scalars and their plot.

    Logged under "noise_levels" the report of the run shows them.

    Args:
        model: the model.
        batches: a function to the same held-out batches every time.
        key: of the noise.
        levels: stacked levels.
    """

    def evaluate(params: PyTree) -> dict[str, Any]:
        losses = losses_by_level(model, params, batches(), key, levels)
        return {**losses.named(), "plot": picture(plot({"": losses}))}

    return evaluate


def panels(num: int) -> tuple[Figure, list[Axes]]:
    """A narrow figure of charts one below the other, in colours that show on black and on white."""
    figure = Figure(figsize=(3.6, 2.1 * num), layout="constrained")
    axes = [figure.add_subplot(num, 1, i + 1) for i in range(num)]
    for axis in axes:
        axis.grid(color=_GREY, alpha=0.25)
        axis.tick_params(which="both", color=_GREY, labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(_GREY)
    return figure, axes


def plot(losses: Mapping[str, Losses]) -> Figure:
    """The two errors over the log-SNR, on a logarithmic scale.

    Args:
        losses: curves by the name in the legend ("" for none), older first, which are drawn fainter.
    """
    figure, axes = panels(2)
    for part, axis in zip(("eps", "x0"), axes, strict=True):
        for shade, (name, curve) in zip(np.linspace(1, 0.25, len(losses))[::-1], losses.items(), strict=True):
            axis.plot(
                curve.log_snr, getattr(curve, part), ".-", color=_COLOURS[part], alpha=shade, label=name or "_", lw=1.2
            )
        axis.set_yscale("log")
        axis.set_ylabel(f"error of {part}", fontsize=9)
    axes[1].set_xlabel("log-SNR (noise left, data right)", fontsize=9)
    if any(losses):
        axes[0].legend(frameon=False, fontsize=8, title="step", title_fontsize=8)
    return figure


def picture(figure: Figure) -> np.ndarray:
    """A figure as a picture, uint8 [H, W, 3]."""
    figure.set_dpi(150)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
