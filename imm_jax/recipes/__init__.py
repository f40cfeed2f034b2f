"""Merges that a file describes: mergekit's YAML, the parameters of each tensor, vocabularies."""

from imm_jax.recipes.recipe import load_recipe
from imm_jax.recipes.resolve import Resolved, depth, notes, resolve
from imm_jax.recipes.types import Model, Recipe, Slice, Source, TokenizerSettings, TokenRule

__all__ = [
    "Model",
    "Recipe",
    "Resolved",
    "Slice",
    "Source",
    "TokenRule",
    "TokenizerSettings",
    "depth",
    "load_recipe",
    "notes",
    "resolve",
]
