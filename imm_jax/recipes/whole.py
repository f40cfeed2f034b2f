"""Whole models merged in memory: what a recipe asks for, checked, and the result as a folder.

Everything but the merge itself, which is handed in between as parameters in memory.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from imm_jax.errors import InputError, Interrupted
from imm_jax.models.config import ModelConfig
from imm_jax.models.huggingface.tensor_files import Planned
from imm_jax.models.huggingface.weight_names import find_prefixes, weight_sources
from imm_jax.progress import Progress
from imm_jax.recipes.agreement import Options
from imm_jax.recipes.card import chat_template, check_tokenizer_files, write_beside
from imm_jax.recipes.checkpoint import Checkpoint, is_vocabulary, listed, open_checkpoint
from imm_jax.recipes.finite import is_finite
from imm_jax.recipes.parameters import Condition
from imm_jax.recipes.plan import Output, donor_of, plan
from imm_jax.recipes.shards import Shard, cut, require_new, require_room, unfinished, write_shards
from imm_jax.recipes.types import Model, Recipe
from imm_jax.tree import path_str


class Whole(NamedTuple):
    """A merge of whole models that can be done.

    Attributes:
      recipe: what is asked for.
      folder: what is to be written.
      checkpoints: every model.
      outputs: the merged model's tensors; where their values come from is not for here.
      shards: the files they go to.
      template: a chat template of the recipe's own.
    """

    recipe: Recipe
    folder: Path
    checkpoints: Mapping[Model, Checkpoint]
    outputs: Sequence[Output]
    shards: Sequence[Shard]
    template: str | None

    @property
    def donor(self) -> Checkpoint:
        """The model whose configuration and tokenizer the merged model has."""
        return donor_of(self.recipe, self.checkpoints)


def plan_whole(recipe: Recipe, folder: str | os.PathLike, max_shard_bytes: float) -> Whole:
    """Finds the models and checks that they can be merged and written, without a weight.

    Raises:
      InputError: as :func:`imm_jax.recipes.run.merge_files`, but for what tokenizers and weights
        hold.
    """
    folder = Path(folder)
    require_new(folder)
    checkpoints = {model: open_checkpoint(model) for model in recipe.models}
    # The tensors are those of a mean of the same models.
    mean = dataclasses.replace(
        recipe, merge_method="linear", parameters={"weight": (Condition(None, 1.0),)}
    )
    outputs = plan(mean, checkpoints, None, Options())
    sizes = [output.shape[0] for output in outputs if is_vocabulary(output.name)]
    if sizes:
        check_tokenizer_files(recipe, checkpoints, sizes[0])
    template = chat_template(recipe, checkpoints)
    shards = cut([Planned(o.name, o.dtype, o.shape) for o in outputs], max_shard_bytes)
    require_room(folder, shards)
    return Whole(recipe, folder, checkpoints, outputs, shards, template)


def check_decoder(whole: Whole, config: ModelConfig) -> None:
    """Refuses models with more tensors than our decoder has.

    Raises:
      InputError: there are some; names them.
    """
    places = _places(whole, config)
    other = [output.name for output in whole.outputs if output.name not in places]
    if other:
        raise InputError(
            f"{whole.donor.folder}: tensors that are none of the decoder's, and "
            f"{whole.recipe.merge_method} merges what it can run: {listed(other)}"
        )


def write_whole(
    whole: Whole,
    config: ModelConfig,
    params: PyTree,
    *,
    found: Sequence[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Writes the merged model's folder, rounding each tensor once to its type.

    The folder appears whole or not at all, and an interrupt leaves nothing.

    Args:
      whole: what :func:`plan_whole` gave.
      config: the architecture of ``params``.
      params: the merged model, float32, the canonical tree.
      found: what the method found out, for the model card.
      should_stop: asked before each tensor.

    Raises:
      InputError: the folder cannot be written, or a type cannot hold a value.
      Interrupted: ``should_stop`` said so.
    """
    leaves = {path_str(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    places, dtypes = _places(whole, config), {o.name: o.dtype for o in whole.outputs}
    total = sum(shard.nbytes for shard in whole.shards)

    def tensors(names: Sequence[str]) -> Iterator[list[np.ndarray]]:
        for name in names:
            if should_stop():
                raise Interrupted(f"{whole.folder}: stopped")
            path, layer, transposed = places[name]
            value = np.asarray(leaves[path] if layer is None else leaves[path][layer])
            with np.errstate(over="ignore"):
                flat = np.ascontiguousarray(value.T if transposed else value).reshape(-1)
                flat = flat.astype(dtypes[name])
            if not is_finite(flat):
                raise InputError(
                    f"{whole.recipe.path}: tensor {name} would have values that {dtypes[name]} "
                    "cannot hold"
                )
            yield [flat]
            progress.update(flat.nbytes)

    with (
        unfinished(whole.folder, {}, whole.shards, keep=False) as beside,
        Progress("write", total, unit="B") as progress,
    ):
        write_shards(beside, whole.shards, tensors, progress.skip)
        write_beside(
            beside,
            whole.recipe,
            whole.checkpoints,
            whole.outputs,
            None,
            whole.template,
            None,
            Options(),
            name=os.path.basename(os.path.abspath(whole.folder)),
            found=found,
        )


def _places(whole: Whole, config: ModelConfig) -> dict[str, tuple[str, int | None, bool]]:
    """Of each file tensor: its canonical path, its layer, and whether it is transposed there."""
    sources = weight_sources(config, find_prefixes(whole.donor.tensors))
    return {
        name: (path, number if path.startswith("layers/") else None, source.transposed)
        for path, source in sources.items()
        for number, name in enumerate(source.names)
    }
