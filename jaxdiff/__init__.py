"""Diffusion models in JAX: one purely functional core, and every diffusion system a thin wiring of it."""

import importlib
from importlib.metadata import version
from typing import Any

from jaxdiff import analytic, grids, guidance, likelihood, objectives, prediction, processes, samplers, sde
from jaxdiff.model import Denoiser, Model
from jaxdiff.process import q_sample
from jaxdiff.samplers import generate, prior_sample, sample
from jaxdiff.types import Level, Prediction

__version__ = version("jaxdiff")

__all__ = [
    "Denoiser",
    "Level",
    "Model",
    "Prediction",
    "analytic",
    "generate",
    "grids",
    "guidance",
    "likelihood",
    "models",
    "objectives",
    "prediction",
    "prior_sample",
    "processes",
    "q_sample",
    "sample",
    "samplers",
    "sde",
]


def __getattr__(name: str) -> Any:
    # Flax takes as long to import as JAX; who brings another network library need not wait for it.
    if name == "models":
        return importlib.import_module("jaxdiff.models")
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")
