"""The protocol of every noise schedule."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class NoiseSchedule(Protocol):
    """t in [0, 1] <-> log_snr. float64 NumPy in, float64 NumPy out; else JAX."""

    @property
    def span(self) -> tuple[float, float]:
        """The cleanest and the noisiest time of finite log-SNR that a sampler should visit."""

    @property
    def num_steps(self) -> int | None:
        """The number of rows of a table schedule; None for a continuous one."""

    def log_snr(self, t: Any) -> Any:
        """The log-SNR at time t."""

    def time(self, log_snr: Any) -> Any:
        """The time in [0, 1] of a log-SNR; what lies outside the schedule's range is clipped."""
