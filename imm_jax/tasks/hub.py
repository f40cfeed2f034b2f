"""Questions from public data sets: the Hugging Face hub and TensorFlow Datasets."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from imm_jax.errors import InputError, nearest
from imm_jax.tasks.hub_sets import HUB_SETS, HubSet
from imm_jax.tasks.rows import examples_from_rows
from imm_jax.tasks.types import Example

logger = logging.getLogger("imm_jax")

REACH_SECONDS = 5.0


def hub_set(name: str, options: Mapping[str, str]) -> HubSet:
    """Looks ``name`` up in ``HUB_SETS``, or takes ``owner/name``; ``options`` override fields."""
    if name in HUB_SETS:
        known = HUB_SETS[name]
    elif name.count("/") == 1:
        known = HubSet(path=name)
    else:
        raise InputError(
            f"unknown hub data set {name!r}{nearest(name, HUB_SETS)}; "
            f"known: {', '.join(HUB_SETS)}, or any 'owner/name'"
        )
    fields = {
        key: options[key] for key in ("config", "revision", "train", "test") if key in options
    }
    if known.url and fields:
        raise InputError(
            f"hub:{name}: {next(iter(fields))}= is of no use, for the set is one file of test "
            "questions"
        )
    return replace(known, **fields)


def read_hub_split(
    source: HubSet, split: str, prefix: str, answer_type: str | None = None
) -> tuple[tuple[Example, ...], str]:
    """Reads one split through ``datasets``; from its cache where the hub is out of reach.

    Raises:
      InputError: the data set or split cannot be had, with the cause; or a row cannot be used.
    """
    import datasets
    import huggingface_hub

    name = source.url or source.path + (f" ({source.config})" if source.config else "")
    read = _read_file if source.url else _read_set
    host = source.url or huggingface_hub.constants.ENDPOINT
    site = host.split("/")[2] if source.url else "the hub"
    with _offline_if_unreachable(datasets, huggingface_hub, host) as reachable:
        try:
            rows = read(datasets, source, split)
        except Exception as error:  # load_dataset raises a dozen kinds
            why = "" if reachable else f"{site} cannot be reached and it is not in the cache: "
            raise InputError(f"data set {name}, split {split!r}: {why}{_line(error)}") from error
    places = [f"{name}[{split}][{index}]" for index in range(len(rows))]
    return examples_from_rows(rows, places, prefix, answer_type)


def _read_set(datasets: Any, source: HubSet, split: str) -> list[Mapping]:
    return list(
        datasets.load_dataset(source.path, source.config, split=split, revision=source.revision)
    )


def _read_file(datasets: Any, source: HubSet, split: str) -> list[Mapping]:
    # Without an ETag a file that was fetched before needs no network.
    path = datasets.utils.file_utils.cached_path(source.url, use_etag=False, disable_tqdm=True)
    found = json.loads(Path(path).read_bytes(), parse_float=Decimal)
    return found[source.field] if source.field else found


@contextmanager
def _offline_if_unreachable(datasets: Any, huggingface_hub: Any, host: str) -> Iterator[bool]:
    """Asks the host once; where nothing answers, lets ``datasets`` look only into its cache.

    By itself it would ask again and again for half a minute.
    """
    flags = ((datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE"))
    before = [getattr(module, flag) for module, flag in flags]
    reachable = not any(before) and _reachable(huggingface_hub, host)
    try:
        for module, flag in flags:
            setattr(module, flag, not reachable)
        yield reachable
    finally:
        for (module, flag), value in zip(flags, before):
            setattr(module, flag, value)


def _reachable(huggingface_hub: Any, host: str) -> bool:
    try:
        huggingface_hub.get_session().head(host, timeout=REACH_SECONDS)
    except Exception as error:
        logger.info(f"{host} cannot be reached ({_line(error)})")
        return False
    return True


def read_tfds_split(
    name: str, split: str, prefix: str, answer_type: str | None = None
) -> tuple[tuple[Example, ...], str]:
    """Reads one split through ``tfds.data_source`` (random access, no TensorFlow graph).

    Raises:
      InputError: tensorflow-datasets is not installed, or the split cannot be had or used.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"tfds:{name} needs tensorflow-datasets: pip install 'imm-jax[tfds]'"
        ) from error
    try:
        source = tensorflow_datasets.data_source(name, split=split)
        rows = [_python(source[index]) for index in range(len(source))]
    except Exception as error:
        raise InputError(f"tfds:{name}, split {split!r}: {_line(error)}") from error
    places = [f"tfds:{name}[{split}][{index}]" for index in range(len(rows))]
    return examples_from_rows(rows, places, prefix, answer_type)


def _python(value: Any) -> Any:
    """NumPy values and bytes, however nested, as plain Python values."""
    if isinstance(value, Mapping):
        return {key: _python(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "tolist"):
        return _python(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_python(item) for item in value]
    return value


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
