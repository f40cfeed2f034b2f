"""Merging models: to weights what optax is to gradients.

A merge takes task vectors (``tuned - base``), passes them through a chain of small pure transforms,
weighs them, and adds them to the base::

    from imm_jax import merging

    merging.merge_params(base, tuned, weight=0.5)                     # interpolation
    merging.merge_params(base, [math, code], weight=[0.7, 0.3])       # task arithmetic
    merging.merge_params(base, tuned, transform=merging.drop_and_rescale(0.2), key=key)
    merging.merge_params(base, [math, code], weight=1.0, transform=merging.ties(density=0.2))
    merging.ties(density=0.2) == merging.chain(
        merging.trim(0.2), merging.elect_sign(), merging.scale(1.0))

Weights differ by layer and by path::

    merging.LayerWeights(merging.ramp(0.2, 0.8), default=0.5, patterns={"*/bias": 0.0})

Weights that score best are found by evolution::

    found = merging.search(
        merging.merge_objective(score, base, tuned),
        merging.LayerWeights([merging.Interval(0, 1)] * 4, default=merging.Interval(0, 1)),
        budget=200)

Methods that look at data find their own weights::

    merging.regmean([math, code], grams)                              # Gram matrices of inputs
    merging.adamerging(logits_fn, base, [math, code], batches, steps=500)
    merging.greedy_soup(models, score)                                # held-out score

Methods are known by name too, with mergekit's parameters::

    merging.merge_models("dare_ties", [math, code], base=base, weight=[0.5, 0.5], density=0.6,
                         key=jax.random.key(0))

A transform of one's own is a function of one tensor::

    @merging.transform
    def shrink(amount):
        return merging.map_deltas(
            lambda d, tensor: jnp.sign(d) * jnp.maximum(jnp.abs(d) - amount, 0))
"""

from imm_jax.merging.adamerging import adamerging, mean_entropy
from imm_jax.merging.fisher import diagonal_fisher
from imm_jax.merging.kth import kth_largest
from imm_jax.merging.merge import merge_params
from imm_jax.merging.methods import (
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    expo,
    fisher,
    linear,
    nearswap,
    passthrough,
    task_arithmetic,
    ties,
    wise_ft,
)
from imm_jax.merging.protocol import (
    TaskVectors,
    Tensor,
    Transform,
    chain,
    map_deltas,
    transform,
)
from imm_jax.merging.ram import ram, ramplus_tl
from imm_jax.merging.ramps import Ramp, gradient, ramp
from imm_jax.merging.random_bits import bernoulli, fold_path, random_bits
from imm_jax.merging.regmean import collect_grams, gram, gram_sums, regmean
from imm_jax.merging.rescaling import rescaled
from imm_jax.merging.search import SearchResult, merge_objective, search
from imm_jax.merging.search_space import Interval
from imm_jax.merging.selective import arcee_fusion, sce, select_by_variance, weigh_by_energy
from imm_jax.merging.soup import Soup, greedy_soup
from imm_jax.merging.sparsify import drop_and_rescale, drop_by_magnitude, drop_outliers, trim
from imm_jax.merging.spectral import iso_c, tsv
from imm_jax.merging.spherical import karcher, model_stock, multislerp, nuslerp, slerp
from imm_jax.merging.statistics import Largest, Ranks, Totals
from imm_jax.merging.table import METHODS, Method, merge_models
from imm_jax.merging.transforms import cast, clip, elect_sign, masked, normalize_weights, scale
from imm_jax.merging.weights import LayerWeights

__all__ = [
    "METHODS",
    "Interval",
    "Largest",
    "LayerWeights",
    "Method",
    "Ramp",
    "Ranks",
    "SearchResult",
    "Soup",
    "TaskVectors",
    "Tensor",
    "Totals",
    "Transform",
    "adamerging",
    "arcee_fusion",
    "bernoulli",
    "breadcrumbs",
    "breadcrumbs_ties",
    "cast",
    "chain",
    "clip",
    "collect_grams",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "diagonal_fisher",
    "drop_and_rescale",
    "drop_by_magnitude",
    "drop_outliers",
    "elect_sign",
    "expo",
    "fisher",
    "fold_path",
    "gradient",
    "gram",
    "gram_sums",
    "greedy_soup",
    "iso_c",
    "karcher",
    "kth_largest",
    "linear",
    "map_deltas",
    "masked",
    "mean_entropy",
    "merge_models",
    "merge_objective",
    "merge_params",
    "model_stock",
    "multislerp",
    "nearswap",
    "normalize_weights",
    "nuslerp",
    "passthrough",
    "ram",
    "ramp",
    "ramplus_tl",
    "random_bits",
    "regmean",
    "rescaled",
    "scale",
    "sce",
    "search",
    "select_by_variance",
    "slerp",
    "task_arithmetic",
    "ties",
    "transform",
    "trim",
    "tsv",
    "weigh_by_energy",
    "wise_ft",
]
