"""Model folders as they lie on disk: configuration, tensors by name, layers by number."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imm_jax.errors import InputError
from imm_jax.models.huggingface.family_tables import ties_by_default
from imm_jax.models.huggingface.tensor_files import DTYPES, Entry, TensorReader, read_header
from imm_jax.models.huggingface.weight_names import BUFFERS
from imm_jax.models.huggingface.weights import CONFIG, find_tensors, read_json
from imm_jax.models.sources import ResolvedModel, resolve
from imm_jax.recipes.adapters import AdaptedReader, open_adapter
from imm_jax.recipes.types import Model

LAYER = re.compile(r"(.*?\b(?:layers|h|blocks)\.)(\d+)(\..+)")  # of the text model
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "lm_head.bias", "embed_out.weight", "output.weight")


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorFiles:
    """Tensors on disk.

    Attributes:
      tensors: where each tensor lies.
      reader: their elements.
      adapter: the weights of the adapter that is added to them, or None.
    """

    tensors: Mapping[str, Entry]
    reader: TensorReader
    adapter: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint(TensorFiles):
    """A model folder.

    Attributes:
      model: what the recipe calls it.
      resolved: where it is.
      config: what ``config.json`` holds.
      layers: how many layers the tensors' names count.
    """

    model: Model
    resolved: ResolvedModel
    config: Mapping[str, Any]
    layers: int

    @property
    def folder(self) -> Path:
        """The folder."""
        return self.resolved.path

    @property
    def text(self) -> Mapping[str, Any]:
        """What the configuration says of the text model."""
        text = self.config.get("text_config")
        return text if isinstance(text, dict) else self.config

    @property
    def tied(self) -> bool:
        """Whether the embedding serves as the head; where nothing says so, as in its family."""
        kind = self.text.get("model_type", self.config.get("model_type"))
        own = self.text.get("tie_word_embeddings", ties_by_default(str(kind)))
        return bool(self.config.get("tie_word_embeddings", own))

    def flat(self, name: str) -> np.ndarray:
        """A tensor's elements as a view of its file, 1-D."""
        return self.reader[name].reshape(-1)


def open_checkpoint(model: Model) -> Checkpoint:
    """Finds a model and reads its configuration and the headers of its weight files.

    Raises:
      InputError: it or its adapter is not found, is no folder of safetensors, or a file is damaged.
    """
    resolved = resolve(model.source, revision=model.revision)
    if resolved.kind != "folder":
        raise InputError(
            f"{model}: a GGUF file, expected a model folder with safetensors "
            f"(imm-jax convert {model} FOLDER makes one)"
        )
    tensors = {
        name: entry
        for name, entry in find_tensors(resolved.path).items()
        if not name.endswith(BUFFERS)
    }
    reader, file = None, None
    if model.adapter is not None:
        adapter = open_adapter(
            model.adapter.source, model.adapter.revision, str(resolved.path), tensors
        )
        reader, file = AdaptedReader(tensors, adapter), adapter.file
        tensors = {name: adapter.entry(name, entry) for name, entry in tensors.items()}
    for name, entry in tensors.items():
        if entry.dtype in ("F64", "F8_E4M3", "F8_E5M2"):
            raise InputError(
                f"{entry.file}: tensor {name} is stored as {entry.dtype}, which is not supported; "
                f"expected one of {', '.join(DTYPES)}"
            )
    if not tensors:
        raise InputError(f"{resolved.path}: its weight files hold no tensors")
    return Checkpoint(
        model=model,
        resolved=resolved,
        config=read_json(resolved.path / CONFIG),
        tensors=tensors,
        reader=reader or TensorReader(tensors),
        adapter=file,
        layers=_count_layers(resolved.path, tensors),
    )


def _count_layers(folder: Path, names: Iterable[str]) -> int:
    """How many layers there are, all of them with a number."""
    numbers = {int(match[2]) for match in map(LAYER.fullmatch, names) if match}
    gap = next((n for n in range(len(numbers)) if n not in numbers), None)
    if gap is not None:
        raise InputError(f"{folder}: has tensors of layer {max(numbers)}, but none of layer {gap}")
    return len(numbers)


def open_tensors(path: str) -> TensorFiles:
    """Reads the header of one safetensors file.

    Raises:
      InputError: it cannot be read or is damaged.
    """
    tensors = read_header(path)
    return TensorFiles(tensors=tensors, reader=TensorReader(tensors))


def is_vocabulary(name: str) -> bool:
    """Whether a tensor's first axis is the vocabulary."""
    return name.endswith((*EMBEDDINGS, *HEADS))


def is_head(name: str) -> bool:
    """Whether a tensor belongs to the output head."""
    return name.endswith(HEADS)


def find_embedding(checkpoint: Checkpoint) -> str | None:
    """The name of the embedding, where it has one of the usual names."""
    return next((name for name in checkpoint.tensors if name.endswith(EMBEDDINGS)), None)


def layer_of(name: str) -> tuple[int, str] | None:
    """A layer tensor's number, and its name with ``{}`` in place of it."""
    match = LAYER.fullmatch(name)
    return (int(match[2]), f"{match[1]}{{}}{match[3]}") if match else None


def listed(names: Iterable[str]) -> str:
    """Up to three names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
