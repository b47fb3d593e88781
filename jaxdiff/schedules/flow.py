"""The straight path's schedule."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdiff.errors import UsageError
from jaxdiff.numerics import namespace, sigmoid


@dataclass(frozen=True)
class Flow:
    r"""The straight path's sigma/alpha = s t / (1 - t), with the resolution shift s.

    Reference: Liu, Gong, Liu. Flow straight and fast. 2022. arXiv:2209.03003, equation 1 (s = 1);
    Esser et al. Scaling rectified flow transformers. 2024. arXiv:2403.03206, equation 23 (the shift).
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise UsageError(f"shift={self.shift:g}: need shift > 0")

    num_steps = None
    span = (1e-3, 1 - 1e-3)

    def log_snr(self, t: Any) -> Any:
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log1p(-t) - xp.log(t) - math.log(self.shift))

    def time(self, log_snr: Any) -> Any:
        return sigmoid(-0.5 * log_snr - math.log(self.shift))
