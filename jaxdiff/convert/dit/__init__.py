"""Weights of transformers: those of the original DiT and of U-ViT (`jaxdiff.convert.dit.original`), and of DiT in
diffusers (`jaxdiff.convert.dit.diffusers`).
"""

from jaxdiff.convert.dit.diffusers import config, spec
from jaxdiff.convert.dit.diffusers import table as diffusers_table
from jaxdiff.convert.dit.original import FAMILY, recognises, table
from jaxdiff.convert.dit.parts import NETWORKS

__all__ = ["FAMILY", "NETWORKS", "config", "diffusers_table", "recognises", "spec", "table"]
