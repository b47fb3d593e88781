"""Any schedule, moved along the log-SNR."""

import math
from dataclasses import dataclass
from typing import Any

from jaxdiff.errors import UsageError
from jaxdiff.schedules.base import NoiseSchedule


@dataclass(frozen=True)
class Shifted:
    """`schedule` with `shift` added to its log-SNR at every time; negative is noisier.

    Reference: Hoogeboom, Heek, Salimans. Simple diffusion. 2023. arXiv:2301.11093, section 3.1.
    """

    schedule: NoiseSchedule
    shift: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.shift):
            raise UsageError(f"log_snr_shift={self.shift:g}: need a finite number")

    @property
    def num_steps(self) -> int | None:
        return self.schedule.num_steps

    @property
    def span(self) -> tuple[float, float]:
        return self.schedule.span

    def log_snr(self, t: Any) -> Any:
        return self.schedule.log_snr(t) + self.shift

    def time(self, log_snr: Any) -> Any:
        return self.schedule.time(log_snr - self.shift)
