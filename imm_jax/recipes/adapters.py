"""PEFT's LoRA adapters: a model's tensors with the adapter's updates, as they are read.

``W' = W + scale B A`` with ``scale = lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with
``use_rslora`` (Hu et al. 2021, arXiv 2106.09685; Kalajdzievski 2023, arXiv 2312.03732). Updated
elements are computed in float64 and given in float32, so what is merged was not rounded to the
model's type before. What else an adapter may do to a model is refused by name.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imm_jax.errors import InputError
from imm_jax.models.huggingface.tensor_files import DTYPES, Entry, TensorReader, read_header
from imm_jax.models.huggingface.weights import read_json
from imm_jax.models.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, resolve_adapter

PREFIX = "base_model.model."  # of every tensor that PEFT saves
FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
# Settings with which W' is more than W + scale B A of the stored W, and what they are without it.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),  # others change W
    **dict.fromkeys(
        (
            "fan_in_fan_out", "use_dora", "use_qalora", "lora_bias", "layer_replication",
            "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
            "arrow_config", "use_bdlora", "kasa_config", "monteclora_config",
        ),
        (False, None, [], {}),
    ),
}  # fmt: skip


class Update(NamedTuple):
    """What is added to one matrix: the names of its factors, ``[r, in]`` and ``[out, r]``."""

    a: str
    b: str
    scale: float


class Adapter(NamedTuple):
    """A LoRA adapter on disk.

    Attributes:
      file: its weights.
      updates: by the name of the model's tensor.
      replaced: what its tensors in place of the model's (``modules_to_save``) are called there.
      reader: its tensors.
    """

    file: Path
    updates: Mapping[str, Update]
    replaced: Mapping[str, str]
    reader: TensorReader

    def entry(self, name: str, entry: Entry) -> Entry:
        """Where a tensor lies; its type stays the model's, whatever the adapter was trained in."""
        if name not in self.replaced:
            return entry
        return self.reader.entries[self.replaced[name]]._replace(dtype=entry.dtype)


class AdaptedReader(TensorReader):
    """A model's tensors with what an adapter does to them.

    Updated ones are float32, replaced ones of the adapter's type.
    """

    def __init__(self, entries: Mapping[str, Entry], adapter: Adapter):
        super().__init__(entries)
        self.adapter = adapter

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor: a view of its file, or computed."""
        if name in self.adapter.replaced:
            return self.adapter.reader[self.adapter.replaced[name]]
        stored = super().__getitem__(name)
        if name not in self.adapter.updates:
            return stored
        return self._updated(name, stored, 0, len(stored))

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements ``[start, stop)`` of a flattened tensor."""
        if name in self.adapter.replaced:
            return self.adapter.reader.read(self.adapter.replaced[name], start, stop)
        if name not in self.adapter.updates:
            return super().read(name, start, stop)
        width = self.entries[name].shape[1]
        first, last = start // width, -(-stop // width)
        rows = super().read(name, first * width, last * width).reshape(-1, width)
        return self._updated(name, rows, first, last).reshape(-1)[
            start - first * width : stop - first * width
        ]

    def stored(self, name: str, start: int, stop: int) -> np.ndarray:
        """What the model's file has of a tensor."""
        return super().read(name, start, stop)

    def origin(self, name: str) -> Path:
        """The adapter's weights, of what it changes."""
        changed = name in self.adapter.updates or name in self.adapter.replaced
        return self.adapter.file if changed else super().origin(name)

    def largest(self, update: Update) -> float:
        """What no element of an update exceeds in size; NaN or infinite where a factor is."""
        a, b = (np.abs(self.adapter.reader[n].astype(np.float64)) for n in update[:2])
        return float(abs(update.scale) * (b.max(axis=0, initial=0) @ a.max(axis=1, initial=0)))

    def _updated(self, name: str, rows: np.ndarray, first: int, last: int) -> np.ndarray:
        update = self.adapter.updates[name]
        a, b = (self.adapter.reader[factor] for factor in update[:2])
        added = b[first:last].astype(np.float64) @ a.astype(np.float64)
        added *= update.scale
        added += rows
        with np.errstate(over="ignore"):  # an error says it, with the tensor's name
            return added.astype(np.float32)


def open_adapter(
    source: str, revision: str | None, model: str, tensors: Mapping[str, Entry]
) -> Adapter:
    """Finds an adapter, reads its settings and header, and checks it against a model's tensors.

    Args:
      source: a folder with PEFT's two files, or a hub id.
      revision: of a hub id.
      model: what the model is called, for messages.
      tensors: the model's.

    Raises:
      InputError: it is not found, is no plain LoRA adapter, or does not fit the model's tensors
        in name or shape; names the file, the key or tensor, what it holds and what was expected.
    """
    folder = resolve_adapter(source, revision=revision)
    config, file = read_json(folder / ADAPTER_CONFIG), folder / ADAPTER_WEIGHTS
    for key, allowed in PLAIN.items():
        value = config.get(key)
        if (key in config or key == "peft_type") and not any(
            value is plain or (value == plain and type(value) is type(plain)) for plain in allowed
        ):
            raise InputError(
                f"{folder / ADAPTER_CONFIG}: {key} is {value!r}, expected {allowed[0]!r}: other "
                "adapters are merged by PEFT itself first (merge_and_unload)"
            )
    entries = read_header(file)
    factors: dict[str, dict[str, str]] = {}
    replaced = {}
    for stored, entry in entries.items():
        name = stored.removeprefix(PREFIX)
        match = FACTOR.fullmatch(name)
        target = f"{match[1]}.weight" if match else name
        if entry.dtype not in DTYPES:
            raise InputError(
                f"{file}: tensor {stored} is stored as {entry.dtype}, expected one of "
                f"{', '.join(DTYPES)}"
            )
        if target not in tensors:
            raise InputError(f"{file}: tensor {stored} belongs to no tensor of {model}")
        if match:
            factors.setdefault(target, {})[match[2]] = stored
        else:
            replaced[target] = stored
    for name in replaced.keys() & factors.keys():
        raise InputError(f"{file}: has {name} whole and factors for it, expected one of the two")
    updates = {
        name: _update(config, folder, entries, name, pair, tensors[name])
        for name, pair in factors.items()
    }
    if not updates and not replaced:
        raise InputError(f"{file}: holds no tensors, expected those of a LoRA adapter")
    return Adapter(file, updates, replaced, TensorReader(entries))


def _update(
    config: Mapping[str, Any],
    folder: Path,
    entries: Mapping[str, Entry],
    name: str,
    pair: Mapping[str, str],
    tensor: Entry,
) -> Update:
    file = folder / ADAPTER_WEIGHTS
    if len(pair) < 2:
        raise InputError(f"{file}: tensor {next(iter(pair.values()))} has no other factor")
    a, b = (entries[pair[letter]].shape for letter in "AB")
    rank = a[0] if a else 0
    fits = len(tensor.shape) == 2 and (b, a) == ((tensor.shape[0], rank), (rank, tensor.shape[1]))
    if not fits or not rank:
        raise InputError(
            f"{file}: the factors of {name} are {list(b)} and {list(a)}, expected [out, r] and "
            f"[r, in] for a matrix {list(tensor.shape)}"
        )
    module = name.removesuffix(".weight")
    alpha = config.get("lora_alpha")
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise InputError(
                f"{folder / ADAPTER_CONFIG}: alpha_pattern {pattern!r} is no pattern ({error})"
            ) from error
        if found:
            alpha = own
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InputError(f"{folder / ADAPTER_CONFIG}: lora_alpha is {alpha!r}, expected a number")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Update(pair["A"], pair["B"], scale)
