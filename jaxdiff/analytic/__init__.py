"""Exact denoisers, scores and densities of distributions in closed form: the oracle to test a method against.

`check_sampler` and `check_denoiser` run that test on a method of your own and answer with a report to print.
"""

from jaxdiff.analytic.check import check_sampler
from jaxdiff.analytic.compare import check_denoiser
from jaxdiff.analytic.empirical import Empirical
from jaxdiff.analytic.gaussian import Gaussian
from jaxdiff.analytic.mixture import Mixture
from jaxdiff.analytic.report import Check, Report

__all__ = ["Check", "Empirical", "Gaussian", "Mixture", "Report", "check_denoiser", "check_sampler"]
