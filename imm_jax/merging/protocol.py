"""What a merge is made of: task vectors, and small pure transforms of them.

As in optax, a transform is a named tuple of pure functions and a chain of transforms is a
transform. Write a new one with :func:`map_deltas`::

    @transform
    def shrink(amount: float):
        "Moves every change towards zero by ``amount``."
        return map_deltas(lambda d, tensor: jnp.sign(d) * jnp.maximum(jnp.abs(d) - amount, 0))

Functions that make transforms are memoised by :func:`transform`, so that equal arguments give the
same object and a jitted merge is compiled once.
"""

import functools
import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging.exact import Double
from imm_jax.merging.statistics import Measure


class TaskVectors(NamedTuple):
    """What each model changed in one tensor, and the weight it is added with.

    ``deltas[i]`` is ``tuned_i - base`` as a :class:`Double`; ``weights[i]`` is a Double that
    broadcasts to it. The merged tensor is ``base + sum_i weights[i] * deltas[i]``. A transform may
    change either, and how many there are.
    """

    deltas: tuple[Double, ...]
    weights: tuple[Double, ...]

    def with_deltas(self, deltas: Sequence[Array | Double]) -> "TaskVectors":
        """The same weights with new deltas, given as arrays or Doubles."""
        return self._replace(deltas=tuple(as_double(d) for d in deltas))

    def with_weights(self, weights: Sequence[Array | Double]) -> "TaskVectors":
        """The same deltas with new weights, given as arrays or Doubles."""
        return self._replace(weights=tuple(as_double(w) for w in weights))


class Tensor(NamedTuple):
    """Which tensor a transform is looking at. A layer of a stack is one tensor.

    Attributes:
      path: the parameter's name without its layer's number, ``"layers/attn/q/kernel"``; the same
        whether layers are stacked or listed.
      layer: the number of the layer (traced where layers are stacked), or None outside layers.
      base: the base model's tensor in float32.
      key: a random key for this transform and this tensor, or None where the merge got none. Fold
        in the model's number for each model.
      leaf_path: the path in the tree as it was given, ``"layers/3/attn/q/kernel"``.
      start: the position of the first element, where ``base`` is a part of a tensor.
    """

    path: str
    layer: Any
    base: Array
    key: Array | None
    leaf_path: str
    start: Any = 0


class Transform(NamedTuple):
    """A pure function of task vectors, and optionally a statistic it needs beforehand.

    Attributes:
      apply: ``(vectors, tensor, statistic) -> vectors`` for one tensor, or for a part of it.
      measure: the statistic: :class:`Totals`, :class:`Largest` or :class:`Ranks` of values that are
        computed from ``(vectors, tensor)``; or None.
      scope: ``"tensor"``: measured in each tensor alone; ``"model"``: in all tensors together.
      reach: what ``apply`` and the measure's values look at besides one element of every model:
        ``"element"``: nothing, so any part of a tensor will do; ``"row"``: its row along
        :func:`fan_in_axis`; ``"tensor"``: anything.
      includes: which tensors the transform is for; others are not measured. None: all.
      random: whether apply uses ``tensor.key``.
      name: how it was made, for messages.
      same_everywhere: whether apply and measure look at nothing of the tensor's path but its
        :func:`fan_in_axis`, so that leaves of equal shape share a compiled program.
      by_leaf_path: whether they look at ``tensor.leaf_path``, which differs in lists of layers.
      once: made from arrays, so that a merge compiled with it must not be remembered.
    """

    apply: Callable[[TaskVectors, Tensor, Any], TaskVectors]
    measure: Measure | None = None
    scope: str = "tensor"
    reach: str = "tensor"
    includes: Callable[[Tensor], bool] | None = None
    random: bool = False
    name: str = "transform"
    same_everywhere: bool = False
    by_leaf_path: bool = False
    once: bool = False

    def __repr__(self) -> str:
        return self.name


Chain = tuple[Transform, ...]


def as_double(x: Array | Double) -> Double:
    """``x`` as a Double without a remainder, unless it is one already."""
    return x if isinstance(x, Double) else Double(x, jnp.zeros_like(x))


def chain(*transforms: Transform | Chain | None) -> Chain:
    """Applies transforms from left to right: a flat tuple of them."""
    flat: list[Transform] = []
    for item in transforms:
        if isinstance(item, Transform):
            flat.append(item)
        elif isinstance(item, (tuple, list)):
            flat.extend(chain(*item))
        elif item is not None:
            raise InputError(f"a transform was expected, not {type(item).__name__}: {item!r:.60}")
    return tuple(flat)


def transform(make: Callable[..., Transform | Chain]) -> Callable[..., Any]:
    """Decorates a function that makes a transform: equal arguments give the same object.

    Arguments that cannot be hashed (traced arrays) work, without the memory.
    """
    signature = inspect.signature(make)

    @functools.lru_cache(maxsize=512)
    def remembered(arguments: tuple) -> Transform | Chain:
        made = make(**dict(arguments))
        return made._replace(name=describe(arguments)) if isinstance(made, Transform) else made

    def describe(arguments: tuple) -> str:
        return f"{make.__name__}({', '.join(f'{k}={v!r}' for k, v in arguments)})"

    @functools.wraps(make)
    def wrapper(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = tuple(
            (k, tuple(v) if isinstance(v, list) else v) for k, v in bound.arguments.items()
        )
        try:
            hash(arguments)
        except TypeError:
            return tuple(t._replace(once=True) for t in chain(make(*args, **kwargs)))
        return remembered(arguments)

    return wrapper


def map_deltas(fn: Callable[[Array, Tensor], Array], **fields: Any) -> Transform:
    """A transform from a function ``fn(delta, tensor) -> delta`` of one float32 tensor."""

    def apply(vectors: TaskVectors, tensor: Tensor, _: Any) -> TaskVectors:
        return vectors.with_deltas([fn(d.hi, tensor) for d in vectors.deltas])

    return Transform(apply, **fields)


shareable = functools.partial(Transform, same_everywhere=True)
elementwise = functools.partial(shareable, reach="element")


def for_models(value: Any, models: int, name: str) -> tuple:
    """``value`` for each of ``models`` models: one for all, or a tuple with one for each."""
    if not isinstance(value, tuple):
        return (value,) * models
    if len(value) != models:
        raise InputError(f"{name} has {len(value)} values for {models} tuned models: {value}")
    return value


def known(value: Any) -> float | None:
    """A number, also of an array that holds one; None where it is traced."""
    if isinstance(value, jax.core.Tracer):
        return None
    return value if isinstance(value, numbers.Real) else float(value)


def require_share(value: Any, name: str) -> None:
    """Raises InputError unless ``value`` (or each of a tuple) is a share in [0, 1].

    Of a traced one only that it is a single number.
    """
    for v in value if isinstance(value, tuple) else (value,):
        if not isinstance(v, (numbers.Real, np.ndarray, Array)):
            raise InputError(f"{name} is {v!r:.60}; expected a number")
        if np.shape(v) != ():
            raise InputError(f"{name} has shape {np.shape(v)}; expected a number for each model")
        share = known(v)
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"{name} is {v}; expected 0 <= {name} <= 1")


def require_flags(**flags: Any) -> None:
    """Raises InputError unless each is True or False (or 1 or 0)."""
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_, int, float)) or value not in (0, 1):
            raise InputError(f"{name} is {value!r:.60}; expected True or False")


def fan_in_axis(path: str) -> int:
    """The axis that a layer sums over: -2 for kernels ``[in, out]``, -1 for everything else.

    Methods that work on the rows of ``[out, in]`` weights, as mergekit's do, use this axis.
    """
    return -2 if path.rsplit("/", 1)[-1] == "kernel" else -1


def rows_like(path: str) -> str:
    """A path that stands for all those with the same :func:`fan_in_axis`."""
    return "" if fan_in_axis(path) == -1 else "kernel"
