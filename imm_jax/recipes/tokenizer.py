"""The merged model's tokenizer: one of the models', or all their tokens together."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imm_jax.errors import InputError
from imm_jax.models.sources import ResolvedModel
from imm_jax.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Tokenizer


def load_stripped(model: ResolvedModel) -> "Tokenizer":
    """Loads a model's tokenizer without the tokens that have no row in the model's embedding.

    Raises:
      InputError: as :func:`~imm_jax.models.tokenizer.load_tokenizer`; there are such tokens, and
        the tokenizer is not a BPE one, of which tokens can be left out.
    """
    from imm_jax.models.load import read_config  # and Flax, which most merges can do without

    tokenizer, rows = load_tokenizer(model), read_config(model).vocab_size
    gone = {token for token, row in tokenizer.get_vocab().items() if row >= rows}
    if not gone:
        return tokenizer
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = data["model"]["type"]
    if kind != "BPE":
        raise InputError(
            f"{model.path}: {len(gone)} tokens of its {kind} tokenizer have ids from {rows} on, "
            "past the model's vocabulary, and only a BPE tokenizer can do without them"
        )
    _leave_out(data, gone)
    return _rebuilt(tokenizer, data, gone)


def _leave_out(data: dict[str, Any], gone: set[str]) -> None:
    """Removes tokens, and the merges that are made of them or make them."""
    model = data["model"]
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in gone]
    model["vocab"] = {token: row for token, row in model["vocab"].items() if token not in gone}
    pairs = [(m.split(" ") if isinstance(m, str) else m, m) for m in model["merges"]]
    model["merges"] = [m for pair, m in pairs if gone.isdisjoint((*pair, "".join(pair)))]


def _rebuilt(tokenizer: "Tokenizer", data: dict[str, Any], gone: set[str]) -> "Tokenizer":
    """The same tokenizer around another core; roles of tokens that are gone are left empty."""
    import tokenizers

    tokenizer._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
    for role, token in tokenizer.special_tokens_map.items():
        if str(token) in gone:
            setattr(tokenizer, role, None)
    # Tokens without a role are saved from here, and loading adds them again.
    extra = [t for t in tokenizer.extra_special_tokens if str(t) not in gone]
    tokenizer.extra_special_tokens = tokenizer.init_kwargs["extra_special_tokens"] = extra
    return tokenizer


def add_all(tokenizer: "Tokenizer", others: Sequence[tuple["Tokenizer", int]]) -> "Tokenizer":
    """Adds the tokens of other tokenizers that ``tokenizer`` lacks, and returns it.

    Ids that are there stay. New ones follow in the order of the others and of their ids: plain
    tokens first, then added ones (special tokens and the like) with their settings; where these
    differ, the first tokenizer's hold.

    Args:
      tokenizer: changed.
      others: tokenizers, each with the number of rows in its model's embedding; tokens past it
        are left out.
    """
    special, plain = {}, {}
    for other, rows in others:
        added = {row: token for row, token in other.added_tokens_decoder.items() if row < rows}
        for _, token in sorted(added.items()):
            special.setdefault(token.content, token)
        for token, row in sorted(other.get_vocab().items(), key=lambda item: item[1]):
            if row < rows:
                plain.setdefault(token)
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([t for t in plain if t not in special and t not in known])
    tokenizer.add_tokens(list(special.values()))
    return tokenizer
