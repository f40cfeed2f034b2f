"""How a fine-tune runs, with the paper's values as defaults."""

import dataclasses
import math
import typing
from typing import Any, Literal

from imm_jax.errors import InputError


def _at_least(low: float) -> tuple:
    return (lambda x: x >= low), f"a number of at least {low}"


def _fraction(name: str) -> tuple:
    return (lambda x: 0 <= x < 1), f"{name}, at least 0 and below 1"


RULES = {
    "learning_rate": ((lambda x: x > 0), "a number above 0"),
    "epochs": _at_least(1),
    "batch_size": _at_least(1),
    "micro_batch_size": _at_least(1),
    "max_length": _at_least(2),
    "warmup_ratio": ((lambda x: 0 <= x <= 1), "a share between 0 and 1"),
    "weight_decay": _at_least(0),
    "b1": _fraction("a decay rate"),
    "b2": _fraction("a decay rate"),
    "eps": ((lambda x: x > 0), "a number above 0"),
    "max_grad_norm": ((lambda x: x > 0), "a number above 0, or null for no clipping"),
    "bucket": _at_least(1),
    "loss_chunk": _at_least(1),
    "save_every_steps": _at_least(1),
    "max_skipped": _at_least(1),
    "rank": _at_least(1),
    "alpha": ((lambda x: x > 0), "a number above 0"),
}
CHOICES = {
    "schedule": ("cosine", "linear", "constant"),
    "optimizer": ("adamw", "adafactor"),
    "remat_policy": ("full", "minimal"),
    "mu_dtype": ("float32", "bfloat16"),
    "compute_dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., arXiv 2106.09685) in the place of a full fine-tune.

    Attributes:
      rank: of an adapter; each holds ``rank * (in + out)`` parameters.
      alpha: the adapter's product counts ``alpha / rank`` times.
      targets: which kernels of the layers get one: patterns of paths with ``*`` and ``?``
        (``"layers/attn/*"``), or the path of a part (``"layers/mlp"``).
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("layers",)

    def __post_init__(self):
        for field in dataclasses.fields(self)[:2]:
            _check(field, getattr(self, field.name), "training.lora")
        texts = isinstance(self.targets, tuple) and all(isinstance(t, str) for t in self.targets)
        if not texts or not self.targets:
            raise InputError(
                f"training.lora.targets: found {self.targets!r}, expected one or more patterns"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to fine-tune on response tokens; by default all parameters, with AdamW, as in the paper.

    Attributes:
      learning_rate: peak of the schedule.
      epochs: passes over the sequences.
      batch_size: sequences of one update.
      micro_batch_size: sequences of one forward and backward pass, on a mesh for each part that
        the batch is split into (on a CPU fewer, where these hold 512 tokens); gradients of a
        batch's micro batches are summed. Changes memory and speed, never the result (to 1e-6).
      max_length: tokens of a sequence, prompt and response; longer ones are cut.
      warmup_ratio: share of the steps in which the rate rises from 0; then ``schedule``.
      schedule: ``cosine`` and ``linear`` fall to 0 at the end.
      optimizer: ``adamw`` holds 8 bytes of state a parameter, ``adafactor`` (factored second
        moments, no first) next to none; a learning rate means the same for both.
      weight_decay: decoupled; kernels and embeddings only.
      b1: decay of AdamW's first moment.
      b2: decay of AdamW's second moment.
      eps: AdamW's epsilon.
      mu_dtype: of AdamW's first moment; ``bfloat16`` saves 2 of the 8 bytes and rounds b1 too.
      max_grad_norm: gradients of a greater global norm are scaled down to it; None: never.
      packing: several sequences share a row (attention and positions keep them apart), else one
        right-padded sequence a row, for which a GPU in half precision uses cuDNN's attention.
      bucket: row lengths are multiples of this many tokens, which bounds the compilations.
      remat: recompute each block in the backward pass.
      remat_policy: ``full`` recomputes all of a block; ``minimal`` all but matrix products and
        attention, which keeps several times as much (``imm-jax plan`` says how much) and is faster
        but where products are cheap: with bfloat16 ones on a CPU ``full`` was.
      compute_dtype: of matrix products and, but on CPU, of activations; weights, optimizer state,
        norms, softmax and loss are float32. Not float16, whose gradients vanish unless the loss is
        scaled.
      loss_chunk: response tokens whose logits exist at one time; None: 128 on CPU, else 2048.
      save_every_steps: how often the state is saved, where a checkpoint folder is given.
      lora: train adapters of this kind and leave the parameters as they are; None: train them all.
      max_skipped: a step whose loss or gradient is not finite is skipped; this many in a row end
        the fine-tune. One bad batch is an accident, three different ones are the parameters.
    """

    learning_rate: float = 2e-5
    epochs: int = 3
    batch_size: int = 64
    micro_batch_size: int = 8
    max_length: int = 512
    warmup_ratio: float = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    max_grad_norm: float | None = 1.0
    packing: bool = True
    bucket: int = 32
    remat: bool = True
    remat_policy: Literal["full", "minimal"] = "full"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    loss_chunk: int | None = None
    save_every_steps: int = 50
    max_skipped: int = 3
    lora: LoraConfig | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.name != "lora":
                _check(field, getattr(self, field.name), "training")
        if not isinstance(self.lora, LoraConfig | None):
            raise InputError(f"training.lora: found {self.lora!r}, expected a LoraConfig or None")
        if self.optimizer == "adafactor" and self.mu_dtype != "float32":
            raise InputError(
                f"training.mu_dtype: found {self.mu_dtype!r}, expected float32, because adafactor "
                "holds no first moment"
            )


def _check(field: dataclasses.Field, value: Any, place: str) -> None:
    if value is None and type(None) in typing.get_args(field.type):
        return
    expected = _expected(field, value)
    if expected:
        raise InputError(f"{place}.{field.name}: found {value!r}, expected {expected}")


def _expected(field: dataclasses.Field, value: Any) -> str:
    """What a wrong value should have been; empty for a good one."""
    if field.name in CHOICES:
        options = CHOICES[field.name]
        return "" if value in options else "one of " + ", ".join(options)
    if isinstance(field.default, bool):
        return "" if isinstance(value, bool) else "true or false"
    good, expected = RULES[field.name]
    whole = field.type in (int, int | None)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return f"{expected} (a whole number)" if whole else expected
    return "" if math.isfinite(value) and good(value) else expected
