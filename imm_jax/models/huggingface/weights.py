"""Models in Hugging Face layout: ``config.json`` and safetensors in, the canonical tree out."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax.errors import InputError
from imm_jax.models.config import ModelConfig
from imm_jax.models.huggingface.families import config_from_hf
from imm_jax.models.huggingface.tensor_files import (
    DTYPES,
    Entry,
    TensorReader,
    aligned_empty,
    read_header,
)
from imm_jax.models.huggingface.weight_names import (
    Source,
    find_prefixes,
    head_name,
    is_ignorable,
    weight_sources,
)
from imm_jax.models.layout import EMBED
from imm_jax.progress import Progress

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ROWS = 16  # of a transposed copy at a time; whole matrices are three times slower
CHECKED_AT_ONCE = 1 << 24  # elements

Sharding = jax.sharding.Sharding | Callable[[str], jax.sharding.Sharding | None] | None


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
      InputError: it cannot be read, is not JSON, or is no object; names the file.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def read_config(folder: str | os.PathLike) -> ModelConfig:
    """Reads ``config.json``; see :func:`imm_jax.models.huggingface.families.config_from_hf`.

    Tokens that end an answer are also those of ``generation_config.json``, which often has more.

    Raises:
      InputError: either file is damaged or holds what a model cannot be made of.
    """
    path = Path(folder) / CONFIG
    config = config_from_hf(read_json(path), str(path))
    path = Path(folder) / GENERATION_CONFIG
    if not path.is_file():
        return config
    found = read_json(path).get("eos_token_id")
    more = [] if found is None else found if isinstance(found, list) else [found]
    for token in more:
        if type(token) is not int or not 0 <= token < config.vocab_size:
            raise InputError(
                f"{path}: eos_token_id {found!r}, expected token ids below {config.vocab_size}"
            )
    own = config.eos_token_id
    known = own if isinstance(own, tuple) else () if own is None else (own,)
    ends = tuple(dict.fromkeys((*known, *more)))
    if ends == known:
        return config
    return dataclasses.replace(config, eos_token_id=ends if len(ends) > 1 else ends[0])


def read_params(
    folder: str | os.PathLike,
    config: ModelConfig,
    *,
    dtype: Any = None,
    sharding: Sharding = None,
    reader: TensorReader | None = None,
) -> dict[str, Any]:
    """Reads the weights in ``folder`` into the canonical tree of JAX arrays.

    Every check that needs no weight comes first. Then tensors go from the mapped file into their
    place in the stacked arrays, so that at most one array exists twice; with a sharding each device
    gets its part alone, and nothing else is read.

    Args:
      folder: holds ``model.safetensors``, or shards and their index.
      config: the architecture.
      dtype: float32, bfloat16 or float16; None keeps what is stored.
      sharding: of every array, or a function from a path (``"layers/attn/q/kernel"``) to one's.
      reader: gives other elements than the files' for the same tensors, such as with an adapter.

    Raises:
      InputError: a file is missing or damaged, a tensor is missing, unexpected, of the wrong shape,
        of a type that is not supported, or not finite; names the file and the tensor.
    """
    folder = Path(folder)
    reader = reader or TensorReader(find_tensors(folder))
    entries = reader.entries
    prefixes = find_prefixes(entries)
    sources = weight_sources(config, prefixes)
    _check_names(folder, entries, sources, prefixes, config.tie_word_embeddings)
    for source in sources.values():
        for name in source.names:
            _check_entry(name, entries[name], source.shape)
    if config.tie_word_embeddings:
        _check_tied(reader, sources[EMBED].names[0], head_name(prefixes))
    total = sum(entries[n].end - entries[n].begin for s in sources.values() for n in s.names)
    params: dict[str, Any] = {}
    with Progress(f"load {folder.name}", total, unit="B") as progress:
        for path, source in sources.items():
            stored = [DTYPES[entries[name].dtype] for name in source.names]
            kept = functools.reduce(jnp.promote_types, stored)
            read = functools.partial(
                _read_slice,
                reader,
                source,
                path.startswith("layers/"),
                kept if dtype is None else jnp.dtype(dtype),
            )
            where = sharding(path) if callable(sharding) else sharding
            leaf = _place(read, _full_shape(path, source), where)
            _set(params, path, jax.block_until_ready(leaf))  # or host copies would pile up
            reader.release(source.names)
            progress.update(sum(entries[n].end - entries[n].begin for n in source.names))
    return params


def find_tensors(folder: Path) -> dict[str, Entry]:
    """Where each tensor in ``folder`` lies, by the headers of its safetensors files.

    Raises:
      InputError: there is no such file, only pickles; a shard or its part is missing or damaged.
    """
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise InputError(_no_weights(folder))
    path = folder / INDEX
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise InputError(f"{path}: weight_map is missing or empty, expected {{tensor: file}}")
    for name, file in index.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(f"{path}: {name} is in {file!r}, expected a file name in this folder")
        if not (folder / file).is_file():
            raise InputError(f"{path}: {name} is in {file}, but there is no such file")
    entries: dict[str, Entry] = {}
    for file in sorted(set(index.values())):
        for name, entry in read_header(folder / file).items():
            if index.get(name) != file:
                raise InputError(f"{folder / file}: has tensor {name}, but {INDEX} does not say so")
            entries[name] = entry
    for name, file in index.items():
        if name not in entries:
            raise InputError(f"{folder / file}: tensor {name} is missing, but {INDEX} has it there")
    return entries


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder"
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    found = f", only {pickles[0]}: pickled weights are never read" if pickles else ""
    return f"{folder}: no {WEIGHTS} and no {INDEX}{found}"


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _check_names(
    folder: Path,
    entries: Mapping[str, Entry],
    sources: Mapping[str, Source],
    prefixes: tuple[str, str],
    tied: bool,
) -> None:
    wanted = {name for source in sources.values() for name in source.names}
    missing = wanted - set(entries)
    if missing:
        raise InputError(f"{folder}: tensors are missing: {_listed(missing)}")
    known = wanted | ({head_name(prefixes)} if tied else set())
    extra = {n for n in set(entries) - known if not is_ignorable(n, prefixes)}
    if extra:
        raise InputError(f"{folder}: tensors that the config has no place for: {_listed(extra)}")


def _check_entry(name: str, entry: Entry, shape: tuple[int, ...]) -> None:
    if entry.dtype not in DTYPES:
        raise InputError(
            f"{entry.file}: tensor {name} is stored as {entry.dtype}, which is not supported; "
            f"expected one of {', '.join(DTYPES)}"
        )
    if entry.shape != shape:
        raise InputError(
            f"{entry.file}: tensor {name} has shape {list(entry.shape)}, but the config asks for "
            f"{list(shape)}"
        )


def _check_tied(reader: TensorReader, embedding: str, head: str) -> None:
    """A head beside tied embeddings is a copy of them, or the file and the config disagree."""
    if head not in reader.entries:
        return
    one, other = reader.entries[embedding], reader.entries[head]
    same = (one.dtype, one.shape) == (other.dtype, other.shape)
    if not same or not np.array_equal(
        reader[embedding].view(np.uint8), reader[head].view(np.uint8)
    ):
        raise InputError(
            f"{other.file}: tensor {head} differs from {embedding}, but the config says "
            "tie_word_embeddings"
        )
    reader.release((embedding, head))


def _full_shape(path: str, source: Source) -> tuple[int, ...]:
    shape = source.shape[::-1] if source.transposed else source.shape
    return (len(source.names), *shape) if path.startswith("layers/") else shape


def _place(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    if sharding is None:
        return jax.device_put(read((slice(None),) * len(shape)))
    pieces: dict[str, np.ndarray] = {}

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        """Reads once what several devices hold."""
        key = str(index)
        if key not in pieces:
            pieces[key] = read(index)
        return pieces[key]

    return jax.make_array_from_callback(shape, sharding, piece)


def _read_slice(
    reader: TensorReader,
    source: Source,
    stacked: bool,
    dtype: np.dtype,
    index: tuple[slice, ...],
) -> np.ndarray:
    """The part ``index`` of a canonical array, checked; if ``stacked``, axis 0 is the layer."""
    names = source.names[index[0]] if stacked else source.names
    inner = index[1:] if stacked else index
    shape = source.shape[::-1] if source.transposed else source.shape
    shape = tuple(len(range(n)[part]) for n, part in zip(shape, inner))
    out = aligned_empty((len(names), *shape), dtype)
    for name, target in zip(names, out):
        stored = reader[name]
        with np.errstate(over="ignore"):  # said below, with the tensor's name
            copy_into(target, (stored.T if source.transposed else stored)[inner])
        if not _is_finite(target):
            as_read = "" if DTYPES[reader.entries[name].dtype] == dtype else f" as {dtype}"
            raise InputError(
                f"{reader.origin(name)}: tensor {name} has NaN or infinite values{as_read}"
            )
    return out if stacked else out[0]


def copy_into(target: np.ndarray, values: np.ndarray) -> None:
    """``target[...] = values``, in strips where ``values`` is a transpose."""
    if values.ndim < 2 or values.flags.c_contiguous:
        target[...] = values
        return
    for start in range(0, values.shape[1], ROWS):
        target[:, start : start + ROWS] = values[:, start : start + ROWS]


def _is_finite(values: np.ndarray) -> bool:
    flat = values.reshape(-1)
    starts = range(0, flat.size, CHECKED_AT_ONCE)
    return all(np.isfinite(flat[i : i + CHECKED_AT_ONCE]).all() for i in starts)


def _set(tree: dict[str, Any], path: str, leaf: Any) -> None:
    *folders, last = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[last] = leaf
