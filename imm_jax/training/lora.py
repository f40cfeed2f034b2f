"""LoRA (Hu et al., arXiv 2106.09685): kernels stay as they are, small products beside them learn.

A kernel ``W [in, out]`` acts as ``W + (alpha / rank) a b`` (eq. 3) with ``a [in, rank]`` and
``b [rank, out]``. Adapters are a pure pytree, ``{"layers/attn/q/kernel": {"a": ..., "b": ...}}``,
whose arrays carry the layer axis where the kernel does.
"""

import fnmatch
import math
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging.random_bits import fold_path
from imm_jax.training.config import LoraConfig
from imm_jax.tree import STACK, map_with_path, path_str

PyTree = Any
Adapters = dict[str, dict[str, Array]]

A, B = "lora_a", "lora_b"  # names beside a kernel, in the tree that the model reads


def target_kernels(paths: Iterable[str], config: LoraConfig) -> list[str]:
    """The paths of the kernels that get an adapter, sorted.

    Raises:
      InputError: a pattern matches no kernel of a layer.
    """
    kernels = [p for p in paths if p.startswith(f"{STACK}/") and p.endswith("/kernel")]
    chosen = set()
    for pattern in config.targets:
        # As in merge weights: the path of a kernel, or of a part of the tree.
        found = [p for p in kernels for end in ("", "/*") if fnmatch.fnmatchcase(p, pattern + end)]
        if not found:
            raise InputError(
                f"training.lora.targets: {pattern!r} matches no kernel of a layer, expected a "
                f"pattern of paths such as {min(kernels, default='layers/attn/q/kernel')}"
            )
        chosen.update(found)
    return sorted(chosen)


def init_adapters(params: PyTree, config: LoraConfig, key: Array) -> Adapters:
    """Float32 adapters with which a model is exactly itself: ``b`` is 0.

    ``a`` is uniform in ``± 1 / sqrt(in)``, as PEFT draws it (Kaiming with a = sqrt(5)), from
    ``key`` and the kernel's path.

    Args:
      params: a parameter tree, layers stacked or in a list; shapes are enough.
      config: the rank, and patterns of the kernels that get an adapter.
      key: a JAX random key.

    Raises:
      InputError: a pattern matches no kernel of a layer.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {path_str(path): leaf.shape for path, leaf in leaves}
    adapters = {}
    for path in target_kernels(shapes, config):
        *stack, rows, columns = shapes[path]
        bound, shape = 1 / math.sqrt(rows), (*stack, rows, config.rank)
        draw = fold_path(key, path, None)
        adapters[path] = {
            "a": jax.random.uniform(draw, shape, jnp.float32, minval=-bound, maxval=bound),
            "b": jnp.zeros((*stack, config.rank, columns), jnp.float32),
        }
    return adapters


def merge_adapters(params: PyTree, adapters: Adapters, alpha: float) -> PyTree:
    """Full parameters, ``W + (alpha / rank) a b`` where there is an adapter.

    Sums are float32 and rounded once to the kernel's own dtype; all other leaves, and kernels whose
    ``b`` is 0, come back with the same bits.

    Args:
      params: the parameters the adapters were trained on.
      adapters: as :func:`init_adapters` makes them.
      alpha: the one they were trained with.

    Raises:
      InputError: an adapter has no kernel of its shape in ``params``.
    """
    left = set(adapters)

    def merge(path: str, kernel: Array) -> Array:
        if path not in adapters:
            return kernel
        a, b = adapters[path]["a"], adapters[path]["b"]
        if kernel.shape == (*a.shape[:-1], b.shape[-1]):
            left.discard(path)
            return _merge(kernel, a, b, alpha)
        return kernel

    merged = map_with_path(merge, params)
    if left:
        path = min(left)
        a, b = adapters[path]["a"], adapters[path]["b"]
        raise InputError(
            f"adapters: {path} fits no parameter, expected a kernel of shape "
            f"{[*a.shape[:-1], b.shape[-1]]} there"
        )
    return merged


@jax.jit
def _merge(kernel: Array, a: Array, b: Array, alpha: float) -> Array:
    product = jnp.matmul(a, b, precision="highest")
    return (kernel.astype(jnp.float32) + alpha / a.shape[-1] * product).astype(kernel.dtype)


def attach(params: PyTree, adapters: Adapters) -> PyTree:
    """``params``, a nested dict, with each adapter beside its kernel; :func:`low_rank` reads them.

    Nothing is copied or changed.
    """
    flat = flatten_dict(params, sep="/")
    for path, adapter in adapters.items():
        folder = path.removesuffix("kernel")
        flat[folder + A], flat[folder + B] = adapter["a"], adapter["b"]
    return unflatten_dict(flat, sep="/")


def low_rank(alpha: float) -> Callable:
    """For ``nn.intercept_methods``: adds ``(alpha / rank) x a b`` to each ``nn.Dense`` that has an
    adapter attached.

    ``W + a b`` and the gradient of ``W`` are never formed, and the model needs no change.
    """

    def add(call, args, kwargs, context: nn.module.InterceptorContext) -> Any:
        y, module = call(*args, **kwargs), context.module
        applied = isinstance(module, nn.Dense) and context.method_name == "__call__"
        if not applied or not module.has_variable("params", A):
            return y
        a, b = (module.get_variable("params", name).astype(y.dtype) for name in (A, B))
        return y + args[0].astype(y.dtype) @ a * (alpha / a.shape[-1]) @ b

    return add
