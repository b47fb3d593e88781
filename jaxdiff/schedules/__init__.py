r"""Noise schedules: the map between time t in [0, 1] and the log signal-to-noise ratio.

A process is a schedule times a scaling (`jaxdiff.process`). The schedule alone says how noisy time t is,

    log_snr(t) = log(alpha_t^2 / sigma_t^2),   decreasing in t,                    (1)

and its inverse finds the time of a log-SNR. The log-SNR is the primary variable because both `alpha` and `sigma`
follow from it to rounding in float32, while sigma = sqrt(1 - alpha^2) loses two digits near the data
(Kingma et al. 2021, arXiv:2107.00630, section 3.1).

Every schedule is a frozen dataclass: equal by value, hashable, a static argument of jit. `span` is the part of
[0, 1] where the log-SNR is finite and worth a sampler's step; grids spaced in the log-SNR stay inside it.
"""

from jaxdiff.schedules.base import NoiseSchedule
from jaxdiff.schedules.cosine import Cosine
from jaxdiff.schedules.flow import Flow
from jaxdiff.schedules.geometric import Geometric
from jaxdiff.schedules.laplace import Laplace
from jaxdiff.schedules.linear_beta import VP, SubVP
from jaxdiff.schedules.shifted import Shifted
from jaxdiff.schedules.sigmoid import Sigmoid
from jaxdiff.schedules.table import NoiseLevels, Table

__all__ = [
    "VP",
    "Cosine",
    "Flow",
    "Geometric",
    "Laplace",
    "NoiseLevels",
    "NoiseSchedule",
    "Shifted",
    "Sigmoid",
    "SubVP",
    "Table",
]
