"""How answers are drawn. Names follow Hugging Face's generation settings where it has them."""

import dataclasses
from numbers import Integral, Real
from typing import Any

from imm_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of the sampler.

    Attributes:
      max_new_tokens: a sample's length at most, in tokens.
      temperature: logits are divided by it; 0 is greedy, and what is so near that a division could
        overflow is refused.
      top_k: draw from the ``k`` likeliest tokens; 0 is off.
      top_p: draw from the smallest set of tokens whose probability reaches it; 1 is off.
      min_p: leave out tokens less likely than this share of the likeliest; 0 is off.
      batch_size: samples decoded side by side, on a mesh in each part that they are split into; on
        CPU a full batch of 32 or more in two halves at once.
      chunk: decode steps between two looks at the host; 0 picks 8 on CPU and 32 elsewhere.
      weights: ``"bfloat16"`` keeps weight matrices in it and multiplies in it, with float32 sums,
        where the model computes in float32: faster for batches on a CPU with AVX512-BF16, at
        bfloat16's precision. ``"model"`` is the model's own type.
    """

    max_new_tokens: int = 256
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    batch_size: int = 128
    chunk: int = 0
    weights: str = "model"

    def __post_init__(self):
        for field in dataclasses.fields(SamplingConfig):
            if field.name != "weights":
                _check_type(field, getattr(self, field.name))
        warm = 1e-6 <= self.temperature < float("inf")
        for name, ok, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", warm or self.temperature == 0, "0 (greedy) or 1e-6 and more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "over 0 and at most 1 (off)"),
            ("min_p", 0 <= self.min_p < 1, "0 (off) to under 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("chunk", self.chunk >= 0, "0 (automatic) or more"),
            ("weights", self.weights in ("model", "bfloat16"), "model or bfloat16"),
        ):
            if not ok:
                raise InputError(f"{name}: {getattr(self, name)}, expected {expected}")


def _check_type(field: dataclasses.Field, value: Any) -> None:
    """A float where a count is meant would be cut inside a compiled program, or end it."""
    kind, expected = (Integral, "a whole number") if field.type is int else (Real, "a number")
    if isinstance(value, bool) or not isinstance(value, kind):
        raise InputError(f"{field.name}: {value!r}, expected {expected}")
