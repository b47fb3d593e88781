"""Exact denoisers, scores and densities of distributions in closed form: the oracle to test a method against."""

from jaxdiff.analytic.gaussian import Gaussian
from jaxdiff.analytic.mixture import Mixture

__all__ = ["Gaussian", "Mixture"]
