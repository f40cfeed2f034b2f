"""The files beside the weights: configuration, tokenizer, and a card that names the recipe."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import imm_jax
from imm_jax.errors import InputError
from imm_jax.merging.table import METHODS
from imm_jax.models.huggingface.weights import CONFIG, GENERATION_CONFIG
from imm_jax.models.tokenizer import load_tokenizer
from imm_jax.recipes.checkpoint import Checkpoint, is_head, is_vocabulary
from imm_jax.recipes.plan import Output, donor_of
from imm_jax.recipes.types import Model, Recipe
from imm_jax.recipes.vocabulary import Vocabulary

RECIPE_FILE = "mergekit_config.yml"  # under which mergekit's users look for it
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def write_beside(
    folder: Path,
    recipe: Recipe,
    checkpoints: Mapping[Model, Checkpoint],
    outputs: Sequence[Output],
    vocabulary: Vocabulary | None,
    seed: int,
    name: str,
) -> None:
    """Writes everything but the weights into ``folder``.

    Raises:
      InputError: a chat template is asked for and there is no tokenizer to hold it.
    """
    donor = donor_of(recipe, checkpoints)
    config = merged_config(recipe, donor, outputs, vocabulary)
    _write_json(folder / CONFIG, config)
    if (donor.folder / GENERATION_CONFIG).is_file():
        shutil.copyfile(donor.folder / GENERATION_CONFIG, folder / GENERATION_CONFIG)
    template = chat_template(recipe, checkpoints)
    if vocabulary is not None or template is not None:
        tokenizer = load_tokenizer(donor.resolved) if vocabulary is None else vocabulary.tokenizer
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    else:
        for file in TOKENIZER_FILES:
            if (donor.folder / file).is_file():
                shutil.copyfile(donor.folder / file, folder / file)
    (folder / RECIPE_FILE).write_text(recipe.text, encoding="utf-8")
    (folder / "README.md").write_text(card(recipe, seed, name), encoding="utf-8")


def merged_config(
    recipe: Recipe, donor: Checkpoint, outputs: Sequence[Output], vocabulary: Vocabulary | None
) -> dict[str, Any]:
    """The donor's ``config.json`` with what the merge changes.

    Numbers of the text model stand in ``text_config`` where the donor has them there.
    """
    config = json.loads(json.dumps(donor.config))
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    sizes = [o.shape[0] for o in outputs if is_vocabulary(o.name)]
    if sizes:
        text["vocab_size"] = sizes[0]
    if any(is_head(output.name) for output in outputs):
        for part in (config, text):
            if part.get("tie_word_embeddings"):
                part["tie_word_embeddings"] = False
    dtype = outputs[0].dtype.name
    for part in (config, text):
        for key in {"torch_dtype", "dtype"} & part.keys() or ({"dtype"} if part is config else ()):
            part[key] = dtype
    if recipe.slices[0].sources[0].layer_range is not None:
        _renumber(recipe, text, donor.layers)
    if vocabulary is not None and isinstance(recipe.tokenizer.source, Model):
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            text[key] = getattr(vocabulary.tokenizer, key)
    return config


def _renumber(recipe: Recipe, text: dict[str, Any], layers: int) -> None:
    """The number of layers, and what the configuration says of each of them."""
    taken = []
    for part in recipe.slices:
        own = [s for s in part.sources if s.model == recipe.models[0]] or part.sources
        taken += range(*own[0].layer_range)
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        if key in text:
            text[key] = len(taken)
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        text["layer_types"] = [kinds[n] for n in taken]


def chat_template(recipe: Recipe, checkpoints: Mapping[Model, Checkpoint]) -> str | None:
    """The template that the recipe asks for; ``auto``: the one that most models have.

    Raises:
      InputError: ``auto``, and a model's tokenizer cannot be read.
    """
    if recipe.chat_template != "auto":
        return recipe.chat_template
    found = [load_tokenizer(c.resolved).chat_template for c in checkpoints.values()]
    texts = [text.strip() for text in found if isinstance(text, str) and text.strip()]
    return Counter(texts).most_common(1)[0][0] if texts else None


def check_tokenizer_files(
    recipe: Recipe, checkpoints: Mapping[Model, Checkpoint], size: int
) -> None:
    """Refuses a tokenizer with more tokens than the merged model has rows.

    Raises:
      InputError: it has, or it cannot be read.
    """
    donor = donor_of(recipe, checkpoints)
    if not any((donor.folder / file).is_file() for file in TOKENIZER_FILES[:2]):
        if recipe.chat_template:
            raise InputError(f"{donor.folder}: has no tokenizer to hold the chat_template")
        return
    tokens = load_tokenizer(donor.resolved).get_vocab()
    token, last = max(tokens.items(), key=lambda item: item[1])
    if last >= size:
        raise InputError(
            f"{donor.folder}: its token {token!r} has id {last}, but the merged model has {size} "
            "rows"
        )


def card(recipe: Recipe, seed: int, name: str) -> str:
    """A model card in the hub's format."""
    models = [str(model) for model in recipe.models]
    head = {"library_name": "transformers", "tags": ["merge", "imm_jax", recipe.merge_method]}
    hub = [model for model in models if not Path(model.partition("@")[0]).exists()]
    if hub:
        head["base_model"] = [model.partition("@")[0] for model in hub]
    of_base = f", with {recipe.base_model} as the base" if recipe.base_model else ""
    listed = "\n".join(f"- {model}" for model in models)
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {name}

A merge of language models by imm_jax {imm_jax.__version__}: {recipe.merge_method}
({METHODS[recipe.merge_method].summary}){of_base}.

## Models

{listed}

## Recipe

Seed {seed}. Computed in float32, rounded once. The recipe is in `{RECIPE_FILE}`:

```yaml
{recipe.text.strip()}
```

It is run by

    imm-jax merge {RECIPE_FILE} FOLDER --seed {seed}
"""


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
