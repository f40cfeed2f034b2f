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
from imm_jax.models.huggingface.weights import CONFIG, GENERATION_CONFIG, read_json
from imm_jax.models.tokenizer import TOKENIZER_FILES as ONE_OF
from imm_jax.models.tokenizer import load_tokenizer, save_tokenizer
from imm_jax.recipes.agreement import Options
from imm_jax.recipes.asking import ASKING, asks, row_of
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
    template: str | None,
    seed: int | None,
    options: Options,
    name: str,
    found: Sequence[str] = (),
) -> None:
    """Writes everything but the weights into ``folder``.

    ``template`` is the chat template, ``seed`` that of what is dropped at random (None: nothing
    is), ``options`` those of the command, ``found`` what the method found out, a line each.
    """
    donor = donor_of(recipe, checkpoints)
    ids = _token_ids(recipe, vocabulary)
    _write_json(folder / CONFIG, merged_config(recipe, donor, outputs, ids))
    if (path := donor.folder / GENERATION_CONFIG).is_file() and ids:
        kept = {key: value for key, value in (read_json(path) | ids).items() if value is not None}
        _write_json(folder / GENERATION_CONFIG, kept)
    elif path.is_file():
        shutil.copyfile(path, folder / GENERATION_CONFIG)
    if vocabulary is not None or template is not None:
        tokenizer = load_tokenizer(donor.resolved) if vocabulary is None else vocabulary.tokenizer
        if template is not None:
            tokenizer.chat_template = template
        save_tokenizer(tokenizer, folder)
    else:
        for file in TOKENIZER_FILES:
            if (donor.folder / file).is_file():
                shutil.copyfile(donor.folder / file, folder / file)
    (folder / RECIPE_FILE).write_text(recipe.text, encoding="utf-8")
    (folder / "README.md").write_text(card(recipe, seed, options, name, found), encoding="utf-8")


def _token_ids(recipe: Recipe, vocabulary: Vocabulary | None) -> dict[str, int | None]:
    """The ids of special tokens, where the tokenizer is another model's than the base's."""
    if vocabulary is None or not isinstance(recipe.tokenizer.source, Model):
        return {}
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: getattr(vocabulary.tokenizer, key) for key in keys}


def merged_config(
    recipe: Recipe, donor: Checkpoint, outputs: Sequence[Output], ids: Mapping[str, int | None]
) -> dict[str, Any]:
    """The donor's ``config.json`` with what the merge changes.

    Numbers of the text model stand in ``text_config`` where the donor has them there. ``ids`` are
    those of special tokens that are not the donor's.
    """
    config = json.loads(json.dumps(donor.config))
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    sizes = [o.shape[0] for o in outputs if is_vocabulary(o.name)]
    if sizes:
        text["vocab_size"] = sizes[0]
    if any(is_head(output.name) for output in outputs):
        for part in (config, text):
            if donor.tied or part.get("tie_word_embeddings"):  # what is absent may mean tied
                part["tie_word_embeddings"] = False
    dtype = outputs[0].dtype.name
    for part in (config, text):
        for key in {"torch_dtype", "dtype"} & part.keys() or ({"dtype"} if part is config else ()):
            part[key] = dtype
    if recipe.slices[0].sources[0].layer_range is not None:
        _renumber(recipe, text, donor.layers)
    text.update(ids)
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
    if not any((donor.folder / file).is_file() for file in ONE_OF):
        if recipe.chat_template:
            raise InputError(f"{donor.folder}: has no tokenizer to hold the chat_template")
        return
    tokens = load_tokenizer(donor.resolved).get_vocab()
    token, last = max(tokens.items(), key=lambda item: item[1], default=("", -1))
    if last >= size:
        raise InputError(
            f"{donor.folder}: its token {token!r} has id {last}, but the merged model has {size} "
            "rows"
        )


def card(
    recipe: Recipe, seed: int | None, options: Options, name: str, found: Sequence[str] = ()
) -> str:
    """A model card in the hub's format."""
    models = [str(model) for model in recipe.models]
    head = {"library_name": "transformers", "tags": ["merge", "imm_jax", recipe.merge_method]}
    hub = [source for source in _sources(recipe) if not Path(source).exists()]
    if hub:
        head["base_model"] = hub
    of_base = f", with {recipe.base_model} as the base" if recipe.base_model else ""
    listed = "\n".join(f"- {model}" for model in models)
    result = "".join(f"- {line}\n" for line in found)
    result = f"## Found\n\n{result}\n" if found else ""
    drawn = "" if seed is None else f"Seed {seed}. "
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {name}

A merge of language models by imm_jax {imm_jax.__version__}: {recipe.merge_method}
({_summary(recipe)}){of_base}.

## Models

{listed}

{result}## Recipe

{drawn}Computed in float32, rounded once. The recipe is in `{RECIPE_FILE}`:

```yaml
{recipe.text.strip()}
```

{_command(recipe, seed, options)}
"""


def _command(recipe: Recipe, seed: int | None, options: Options) -> str:
    """How to run the recipe again, and from where."""
    flags = [] if seed is None else [f"--seed {seed}"]
    flags += ["--untie"] if options.untie else []
    flags += ["--truncate-vocabulary"] if options.truncate_vocabulary else []
    local = [f"`{s}`" for s in _sources(recipe) if Path(s).exists() and not Path(s).is_absolute()]
    # Which folder that was is not said: the card is the same wherever the models lie.
    file = f"PATH/{RECIPE_FILE}" if local else RECIPE_FILE
    command = "It is run by\n\n    " + " ".join(["imm-jax merge", file, "FOLDER", *flags])
    if local:
        paths = f"{', '.join(local)} lead to the models"
        command += f"\n\nin the folder in which {paths}; PATH is that of this one."
    return command


def _sources(recipe: Recipe) -> list[str]:
    """Every path and hub id, each once, adapters behind the models that they are added to."""
    both = [one for model in recipe.models for one in (model, model.adapter) if one is not None]
    return list(dict.fromkeys(one.source for one in both))


def _summary(recipe: Recipe) -> str:
    row = ASKING[recipe.merge_method] if asks(recipe) else row_of(recipe.merge_method)
    return row.summary


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
