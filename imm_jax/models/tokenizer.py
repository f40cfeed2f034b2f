"""Tokenizers: from a model folder's own files, or from a GGUF file's metadata."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from imm_jax.errors import InputError
from imm_jax.models.config import ModelConfig
from imm_jax.models.gguf.container import open_gguf
from imm_jax.models.gguf.tokenizer import read_tokenizer
from imm_jax.models.sources import ResolvedModel, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# One of these has to be there; the others are its companions.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(model: ResolvedModel | str | os.PathLike) -> "PreTrainedTokenizerFast":
    """Loads the tokenizer of a model on this machine, its chat template attached.

    From a folder through transformers' ``AutoTokenizer``, which runs no code of the folder's; from
    a GGUF file through :func:`~imm_jax.models.gguf.tokenizer.read_tokenizer`. Neither needs torch.

    Args:
      model: what :func:`~imm_jax.models.sources.resolve` gave, a folder with tokenizer files, or
        any source that ``resolve`` takes.

    Raises:
      InputError: there are no tokenizer files, or they cannot be used; names the folder or file.
    """
    if isinstance(model, str) and not Path(model).exists():
        model = resolve(model)
    path = model.path if isinstance(model, ResolvedModel) else Path(model)
    if path.is_dir():
        return _from_folder(path)
    return read_tokenizer(open_gguf(path))


def _from_folder(folder: Path) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"{folder}: has no tokenizer files (expected {' or '.join(TOKENIZER_FILES)})"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises bare Exception
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{folder}: its tokenizer cannot be read ({lines[0][:200]})") from error
    for key in ("is_local", "local_files_only"):  # how it was loaded is not to be saved with it
        tokenizer.init_kwargs.pop(key, None)
    if not tokenizer.is_fast:
        raise InputError(
            f"{folder}: its tokenizer {type(tokenizer).__name__} has no fast version "
            "(a tokenizer.json), which is needed"
        )
    return tokenizer


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: str | os.PathLike) -> None:
    """Writes a tokenizer's files into a folder.

    Raises:
      OSError: they cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None or isinstance(error, OSError):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def check_tokenizer(tokenizer: "PreTrainedTokenizerFast", config: ModelConfig) -> None:
    """Makes sure that every id the tokenizer can give has a row in the model's embedding.

    A tokenizer with fewer ids than rows is usual: embeddings are padded.

    Raises:
      InputError: the tokenizer has ids past the model's vocabulary, or none.
    """
    vocabulary = tokenizer.get_vocab()
    token, last = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
    if last < 0:
        raise InputError("a tokenizer that does not match: its vocabulary is empty")
    if last >= config.vocab_size:
        raise InputError(
            f"a tokenizer that does not match: {token!r} has id {last}, but the model's vocabulary "
            f"has {config.vocab_size} ids"
        )
