"""The ``merge`` command: a recipe's models, or a model and one that was tuned from it."""

import argparse
import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from imm_jax.console import Stop
from imm_jax.errors import InputError
from imm_jax.inputs import check_alike, check_output, generation_config, open_model


def merge(args: argparse.Namespace) -> None:
    """Runs the command."""
    path = Path(args.model)
    ending = path.suffix.lower()
    if ending in (".yaml", ".yml") or (path.is_file() and not ending):
        _merge_recipe(args)
    else:
        _merge_pair(args)


def _merge_recipe(args: argparse.Namespace) -> None:
    from imm_jax.merge_recipe import merge_files

    for option in ("weight", "drop_rate", "from_"):
        if getattr(args, option) is not None:
            name = option.strip("_").replace("_", "-")
            raise InputError(f"--{name}: not for a recipe, expected it in {args.model}")
    if args.second and args.output:
        raise InputError(f"{args.second} and --output {args.output}: expected one output folder")
    output = args.second or args.output
    if not output:
        raise InputError("merge: no output folder, expected imm-jax merge RECIPE.yaml FOLDER")
    check_output(output, folder=True)
    _keep_freed_memory()
    with Stop() as should_stop:
        merge_files(
            args.model,
            output,
            seed=args.seed,
            max_shard_bytes=args.out_shard_size,
            untie=args.untie,
            truncate_vocabulary=args.truncate_vocabulary,
            should_stop=should_stop,
        )
    print(output)


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3), in bytes


def _keep_freed_memory() -> None:
    """Keeps malloc from giving the memory of each block back to the kernel.

    Each new block would be paged in and cleared again: a third of the processor time of a merge.
    """
    with suppress(AttributeError):  # other C libraries than GNU's
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, 1 << 25)  # the most it takes
        mallopt(TRIM_THRESHOLD, 1 << 28)


def _merge_pair(args: argparse.Namespace) -> None:
    import jax

    from imm_jax.merging import drop_and_rescale, merge_params
    from imm_jax.models.huggingface.saving import save_model
    from imm_jax.models.load import load_model
    from imm_jax.pair_card import pair_card

    weight = 0.5 if args.weight is None else args.weight
    rate = 0.0 if args.drop_rate is None else args.drop_rate
    if not args.output:
        raise InputError("merge: no output folder, expected --output FOLDER")
    if bool(args.second) == bool(args.from_):
        raise InputError("merge: expected one tuned model: a second model, or --from CHECKPOINT")
    if args.untie or args.truncate_vocabulary:
        raise InputError("--untie, --truncate-vocabulary: for a recipe (a .yaml file) only")
    check_output(args.output, folder=True)
    if not math.isfinite(weight):
        raise InputError(f"--weight: {weight}, expected a finite number")
    if not 0 <= rate < 1:
        raise InputError(f"--drop-rate: {rate}, expected at least 0 and below 1")
    source, tokenizer = open_model(args.model)
    if args.from_:
        tuned = _restore(args.from_, source)
        model, base = load_model(source.path)
    else:
        from imm_jax.models.sources import resolve

        other = resolve(args.second)
        check_alike(args.model, source, args.second, other)
        model, base = load_model(source.path)
        _, tuned = load_model(other.path)
    merged = merge_params(
        base,
        tuned,
        weight=weight,
        transform=drop_and_rescale(rate) if rate else None,
        key=jax.random.key(args.seed),
    )
    for name, dtype in _not_finite(merged):
        raise InputError(f"merge: {name} would have values that {dtype} cannot hold")
    save_model(
        args.output,
        model,
        merged,
        tokenizer=tokenizer,
        generation_config=generation_config(source),
        max_shard_bytes=args.out_shard_size,
        card=pair_card(
            args.model,
            args.from_ or args.second,
            checkpoint=bool(args.from_),
            weight=weight,
            rate=rate,
            seed=args.seed,
            name=os.path.basename(os.path.abspath(args.output)),
        ),
    )
    print(args.output)


def _restore(folder: str, source):
    """The parameters in an Orbax checkpoint, ours or not, alone or under ``params``."""
    from imm_jax.checkpoints import restore
    from imm_jax.models.layout import param_shapes
    from imm_jax.models.load import read_config
    from imm_jax.orbax_trees import find_tree, read_params, to_model

    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{folder}: no such checkpoint folder")
    place, shapes = find_tree(path), param_shapes(read_config(source))
    params = to_model(path, restore(path), shapes) if place is None else read_params(place, shapes)
    for name, _ in _not_finite(params):
        raise InputError(f"{folder}: {name} has NaN or infinite values")
    return params


def _not_finite(params) -> Iterator[tuple[str, Any]]:
    """The path and type of each array with NaN or infinite values."""
    import jax
    import numpy as np

    from imm_jax.recipes.finite import is_finite
    from imm_jax.tree import path_str

    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not is_finite(np.asarray(leaf).reshape(-1)):
            yield path_str(path), leaf.dtype
