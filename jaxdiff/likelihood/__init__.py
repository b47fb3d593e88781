"""Likelihood: the density of data by the probability flow, variational bounds, dequantisation, bits per dimension."""

from jaxdiff.likelihood.bound import Bound, bound
from jaxdiff.likelihood.dequantize import bits_per_dim, dequantized_log_prob, uniform_noise
from jaxdiff.likelihood.flow import LogProb, angular, log_prob

__all__ = [
    "Bound",
    "LogProb",
    "angular",
    "bits_per_dim",
    "bound",
    "dequantized_log_prob",
    "log_prob",
    "uniform_noise",
]
