"""A network with everything that is needed to use it: one object that trains and samples.

The network itself knows nothing of noise. A `Model` says which process it was made for, what its output means
(`prediction`), how its input is scaled (`input_scale`, Karras et al.'s c_in) and what it is told for time
(`time_input`). Training and sampling read the same object, so they cannot disagree.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float

from jaxdiff.errors import UsageError, unknown
from jaxdiff.numerics import expand
from jaxdiff.prediction import Parametrization, to_prediction
from jaxdiff.process import ForwardProcess
from jaxdiff.types import Array, Cond, Level, Prediction, PyTree

_MOST_LOG_SNR = 40.0


@runtime_checkable
class Network(Protocol):
    """The raw network: a bare parameter tree in, the raw output out. `rngs["dropout"]` holds one key per example."""

    def __call__(
        self, params: PyTree, x: Array, t: Array, cond: Cond, *, train: bool = False, rngs: dict | None = None
    ) -> Array: ...


@dataclass(frozen=True)
class Unscaled:
    """x as it is: DDPM and every variance-preserving model."""

    def __call__(self, level: Level) -> Array:
        return jnp.ones_like(level.alpha)


@dataclass(frozen=True)
class UnitVariance:
    """1 / sqrt(sigma^2 + sigma_data^2 alpha^2): x at unit variance.

    Reference: Karras et al. 2022. arXiv:2206.00364, table 1 (c_in).
    """

    sigma_data: float = 0.5

    def __call__(self, level: Level) -> Array:
        return 1 / jnp.sqrt(level.sigma**2 + (self.sigma_data * level.alpha) ** 2)


@dataclass(frozen=True)
class Index:
    """The row index i in 0..T-1 of a table process: DDPM's t - 1.

    Args:
        num_steps: T.
        between: whether the network may also be asked between its rows, where it gets a real number. It was trained
            on whole ones; with a smooth time embedding that works (k-diffusion does so), and samplers are refused
            unless it is said here.
        factor: on the index: 1000 / T where a network is told of T rows as if they were 1000 (improved diffusion's
            rescaled timesteps).
    """

    num_steps: int
    between: bool = False
    factor: float = 1.0

    def __call__(self, level: Level) -> Array:
        index = level.t * self.num_steps - 1
        # t = (i + 1) / T is not exact in binary, and a table of embeddings needs i.
        return self.factor * (index if self.between else jnp.round(index))


@dataclass(frozen=True)
class ScaledTime:
    """`factor` times t: what networks made for 1000 steps see of continuous time (Song et al. use 999)."""

    factor: float = 1000.0

    def __call__(self, level: Level) -> Array:
        return level.t * self.factor


@dataclass(frozen=True)
class LogSNR:
    """log_snr, as in variational diffusion models; within +-40, because it is infinite at pure noise."""

    def __call__(self, level: Level) -> Array:
        return jnp.clip(level.log_snr, -_MOST_LOG_SNR, _MOST_LOG_SNR)


@dataclass(frozen=True)
class QuarterLogSigma:
    """log(sigma / (alpha unit)) / 4: EDM's c_noise; the log-SNR within +-40.

    Args:
        unit: what sigma is measured in: 2 for a network made for images in [0, 1], whose sigmas are half of ours.
    """

    unit: float = 1.0

    def __call__(self, level: Level) -> Array:
        return -jnp.clip(level.log_snr, -_MOST_LOG_SNR, _MOST_LOG_SNR) / 8 - math.log(self.unit) / 4


@dataclass(frozen=True)
class Denoiser:
    """A function of a noisy example to a `Prediction`, with the process it belongs to.

    The only thing a sampler sees. It is a pytree: arrays bound into `fn` with `jax.tree_util.Partial` (parameters,
    a guidance scale) are its leaves, so a denoiser made anew from the same parts does not compile again.

    Args:
        fn: (x, level, cond) -> Prediction.
        process: the process whose levels it understands.
        rows_only: whether it understands only the rows of a table process; `sample` refuses what lies between.
    """

    fn: Callable[..., Prediction]
    process: ForwardProcess
    rows_only: bool = False

    def __post_init__(self) -> None:
        if callable(self.fn) and not isinstance(self.fn, Partial):
            object.__setattr__(self, "fn", Partial(self.fn))

    def __call__(self, x: Float[Array, " b *d"], level: Level, cond: Cond = None) -> Prediction:
        """Denoise.

        Args:
            x: noisy examples, shape [B, ...].
            level: their level, scalars or [B].
            cond: conditioning, a dict of arrays with leading axis B, or None.
        """
        return self.fn(x, level, cond)


jax.tree_util.register_dataclass(Denoiser, data_fields=["fn"], meta_fields=["process", "rows_only"])


def check_rows(denoise: Denoiser, t: Any, *, what: str, between: bool = False) -> None:
    """Refuse a time between the rows of a table process where the network takes a row's index.

    Args:
        denoise: the denoiser.
        t: process times, any shape; not looked at while they are traced.
        what: what asks, for the message.
        between: whether it asks at times of its own as well.

    Raises:
        UsageError: naming `what`, or the first such time.
    """
    rows = denoise.process.num_steps
    if not denoise.rows_only or rows is None:
        return
    advice = (
        f"use Index({rows}, between=True) if the network may be asked so (in a config time_input='index_between', "
        "for 'jaxdiff sample' --between)"
    )
    if between:
        raise UsageError(f"{what} evaluates between the rows of a process of {rows} steps: {advice}")
    if isinstance(t, jax.core.Tracer):
        return
    position = np.asarray(t, np.float64) * rows
    off = position[np.abs(position - np.round(position)) > 1e-3]
    if off.size:
        raise UsageError(
            f"t={off[0] / rows:.6g} is between the rows of a process of {rows} steps: {advice}, "
            "or a grid on its rows (uniform, trailing, leading, steps)"
        )


@dataclass(frozen=True)
class Model:
    """A network and the meaning of its input, its output and its time.

    Args:
        apply: the network, `apply(params, x, t, cond, *, train, rngs) -> output`; hashable.
        process: the forward process it is trained on.
        prediction: what its output means, a row of `jaxdiff.prediction`.
        input_scale: level -> the factor on x at its input.
        time_input: level -> the number it gets for time; by default `Index` for a process with steps, which is what
            DDPM's networks see, else `ScaledTime`.
        learned_variance: its output has twice the channels of x; the second half is `var_frac`, in [-1, 1].

    Raises:
        UsageError: if the output cannot determine x0 at t = 1 (eps with zero terminal SNR).

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxdiff import prediction, processes
        >>> def network(params, x, t, cond, *, train=False, rngs=None):
        ...     return params * x
        >>> model = Model(network, processes.vp_sde(), prediction.EPS)
        >>> denoise = model.denoiser(jnp.float32(0.5))
        >>> denoise(jnp.ones((2, 3)), model.process(0.5)).x0.shape
        (2, 3)
    """

    apply: Network
    process: ForwardProcess
    prediction: Parametrization
    input_scale: Callable[[Level], Array] = Unscaled()
    time_input: Callable[[Level], Array] | None = None
    learned_variance: bool = False

    def __post_init__(self) -> None:
        if self.time_input is None:
            steps = self.process.num_steps
            object.__setattr__(self, "time_input", ScaledTime() if steps is None else Index(steps))
        with jax.ensure_compile_time_eval():
            level = self.process(1.0)
            a, b = self.prediction.row(level)
            if level.alpha * b - level.sigma * a == 0:
                name = type(self.prediction).__name__.strip("_").lower()
                raise UsageError(
                    f"prediction {name!r} says nothing of x0 at t = 1, where this process has zero signal: "
                    "use 'v', 'x0', 'flow' or 'edm'"
                )
        if isinstance(self.time_input, Index) and self.time_input.num_steps != self.process.num_steps:
            raise UsageError(
                f"time_input index({self.time_input.num_steps}) does not fit a process of "
                f"{self.process.num_steps} steps"
            )

    def output(
        self,
        params: PyTree,
        x: Float[Array, " b *d"],
        level: Level,
        cond: Cond = None,
        *,
        train: bool = False,
        rngs: dict | None = None,
    ) -> tuple[Float[Array, " b *d"], Float[Array, " b *d"] | None]:
        """The network's output at a level, and its raw variance channels.

        Args:
            params: the bare parameter tree.
            x: noisy examples, shape [B, ...].
            level: scalars, or [B].
            cond: conditioning, or None.
            train: whether dropout is on.
            rngs: {"dropout": keys [B]}, one key per example; needed when `train`.

        Returns:
            (output, variance): the target's estimate in the shape of x, and the variance channels or None.
        """
        assert self.time_input is not None
        t = jnp.broadcast_to(self.time_input(level), x.shape[:1])
        output = self.apply(params, expand(self.input_scale(level), x) * x, t, cond, train=train, rngs=rngs)
        channels = x.shape[-1] * (1 + self.learned_variance)
        if output.shape != (*x.shape[:-1], channels):
            raise UsageError(f"the network answers shape {output.shape}, expected {(*x.shape[:-1], channels)}")
        if self.learned_variance:
            return output[..., : x.shape[-1]], output[..., x.shape[-1] :]
        return output, None

    def denoiser(self, params: PyTree) -> Denoiser:
        """The denoiser of these parameters: `denoise(x, level, cond) -> Prediction`."""
        rows_only = isinstance(self.time_input, Index) and not self.time_input.between
        return Denoiser(Partial(_Predict(self), params), self.process, rows_only)


@dataclass(frozen=True)
class _Predict:
    """Hashable by the model's value, so that two denoisers of one model share a compilation."""

    model: Model

    def __call__(self, params: PyTree, x: Array, level: Level, cond: Cond) -> Prediction:
        output, variance = self.model.output(params, x, level, cond)
        prediction = to_prediction(self.model.prediction, output, x, level)
        return prediction if variance is None else prediction._replace(var_frac=(variance + 1) / 2)


def time_input(name: str, process: ForwardProcess, **args: Any) -> Any:
    """A time input by its name, as a config has it, and its arguments, as a `Spec` has them.

    Args:
        name: index or index_between (`Index`, without and with `between`), time, log_snr, log_sigma.
        process: the process; the first two need one with steps.
        args: `factor` of the index and of time, `unit` of log_sigma.

    Raises:
        UsageError: for an unknown name or argument, or one that does not fit the process.
    """
    if name in ("index", "index_between") and process.num_steps is None:
        raise UsageError(f"time_input {name!r} needs a process with steps; use 'time', 'log_snr' or 'log_sigma'")
    rows = process.num_steps or 0
    inputs: dict[str, tuple[Any, str | None]] = {
        "index": (partial(Index, rows), "factor"),
        "index_between": (partial(Index, rows, True), "factor"),
        "time": (ScaledTime, "factor"),
        "log_snr": (LogSNR, None),
        "log_sigma": (QuarterLogSigma, "unit"),
    }
    if name not in inputs:
        raise unknown("time_input", name, inputs)
    make, known = inputs[name]
    for arg, value in args.items():
        if arg != known:
            raise UsageError(f"time_input {name!r} has no {arg!r}: allowed is {known or 'its name alone'}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UsageError(f"time_input {name!r}: {arg} is {value!r}: allowed is a number > 0")
    return make(**{arg: float(value) for arg, value in args.items()})
