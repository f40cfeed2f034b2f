"""The ``plan`` command: what a run needs in each device's memory, and whether it fits."""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable

from imm_jax.errors import InputError

GB = 1e9
PREALLOCATED = 0.75  # the share of a GPU that jax takes unless told otherwise


def plan(args: argparse.Namespace) -> None:
    """Runs the command."""
    from imm_jax import memory
    from imm_jax.models.layout import param_shapes
    from imm_jax.partition_rules import say_what_is_whole

    work, counted = _workload(args)
    sizes = work.sizes
    table = memory.plan(work)
    phase, most = memory.peak(table)
    count = math.prod(sizes.values())
    axes = ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
    where = f"{count} devices ({axes})" if count > 1 else "1 device"
    for name, model in (("", work.model), ("teacher, ", work.teacher)):
        if model is not None:
            shapes = param_shapes(model)
            say_what_is_whole(shapes, sizes)
            numbers = sum(map(math.prod, shapes.values()))
            layers = model.num_hidden_layers
            print(
                f"{name}{model.model_type}: {numbers:,} parameters in {layers} layers, on {where}"
            )
    longer = work.judge_prompt or work.critic_prompt
    judges = f", to judge a sample {longer}{counted}" if longer else ""
    print(f"prompts of up to {work.prompt} tokens{judges}; GB on each device\n")
    _print_table(table)
    print(f"\npeak: {most / GB:.2f} GB ({phase}){_verdict(most, args.memory, work.on_cpu)}")


def _workload(args: argparse.Namespace):
    """The workload, and what is to be said of how a judge's prompts were counted."""
    import jax.numpy as jnp

    from imm_jax.memory import Workload
    from imm_jax.models.load import read_config
    from imm_jax.models.sources import resolve
    from imm_jax.sharding import parse_mesh

    config = _settings(args)
    mesh = (config.mesh or "data=1") if args.mesh is None else args.mesh
    source = args.model or config.model
    own_revision = None if args.model else config.revision
    resolved = resolve(source, revision=own_revision, weights=False)
    architecture = read_config(resolved)
    context = architecture.max_position_embeddings
    longest = min(config.training.max_length, context)  # where a fine-tune cuts
    teacher = config.teacher and read_config(resolve(config.teacher, weights=False))
    prompt = _longest_prompt(args.prompt_tokens, config, context)
    judges, counted = _judge_prompts(config, prompt, context, resolved)
    work = Workload(
        model=architecture,
        sizes=parse_mesh(mesh),
        weights=jnp.dtype(config.dtype).itemsize,
        sampling=config.sampling,
        evaluation=config.evaluation,
        training=dataclasses.replace(config.training, max_length=longest),
        prompt=prompt,
        teacher=teacher,
        **judges,
        on_cpu=args.cpu,
    )
    return work, counted


def _judge_prompts(config, prompt: int, context: int, resolved) -> tuple[dict[str, int], str]:
    """Tokens of a question, a sample and what is asked about it, as far as there is room, by the
    workload's field; none where the selection asks the model nothing.
    """
    from imm_jax.rounds.select import RULES, check_rule

    check_rule(config.select.rule)
    rule = RULES[config.select.rule]
    asked = rule.asked(config.select)
    if not asked:
        return {}, ""
    count, counted = _counter(resolved)
    longest = prompt + config.sampling.max_new_tokens + max(map(count, asked))
    if "judge" in rule.needs:
        return {"judge_prompt": min(longest, context - config.sampling.max_new_tokens)}, counted
    return {"critic_prompt": min(longest, context)}, counted


def _counter(resolved) -> tuple[Callable[[str], int], str]:
    """Counts a text's tokens, and says how if not with the model's tokenizer.

    Without one (a ``config.json`` alone, a hub id that is not downloaded) each byte counts as one:
    no tokenizer makes more of a text.
    """
    from imm_jax.models.tokenizer import TOKENIZER_FILES, load_tokenizer

    if resolved.kind == "folder" and not any(
        (resolved.path / f).is_file() for f in TOKENIZER_FILES
    ):
        return lambda text: len(text.encode()), " (a token a letter: no tokenizer is here)"
    tokenizer = load_tokenizer(resolved)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]), ""


def _settings(args: argparse.Namespace):
    """The run's, or with a model alone those that need no file."""
    from imm_jax.config import build_config, load_config

    path, overrides = args.config, args.overrides
    if args.model is not None and path is not None and "=" in path and not os.path.exists(path):
        path, overrides = None, [path, *overrides]
    if path is not None:
        return load_config(path, overrides)
    if args.model is None:
        raise InputError("plan: no model, expected --model SOURCE or a run's YAML file")
    return build_config({"model": args.model, "data": {"in_domain": ""}}, overrides, "plan")


def _longest_prompt(asked: int | None, config, context: int) -> int:
    """Its tokens: those asked for, or else what sequences may have; refused as a run refuses it."""
    new = max(config.sampling.max_new_tokens, config.evaluation.max_new_tokens)
    room = context - new
    if room < 1 or (asked or 0) > room:
        what = f"--prompt-tokens {asked} and max_new_tokens={new} exceed"
        if asked is None:
            what = f"max_new_tokens={new} leaves no room for a prompt in"
        raise InputError(f"plan: {what} the model's context of {context}")
    return asked or min(config.training.max_length, room)


def _print_table(table: dict[str, dict[str, int]]) -> None:
    names = dict.fromkeys(name for parts in table.values() for name in parts)
    rows = {name: [parts.get(name) for parts in table.values()] for name in names}
    rows["total"] = [sum(parts.values()) for parts in table.values()]
    width = max(len(name) for name in rows)
    print(" " * width + "".join(f"{phase:>10}" for phase in table))
    for name, row in rows.items():
        cells = ("" if count is None else f"{count / GB:.2f}" for count in row)
        print(f"{name:<{width}}{''.join(f'{cell:>10}' for cell in cells)}".rstrip())


def _verdict(most: int, room: float | None, on_cpu: bool) -> str:
    if room is None:
        return ""
    stated = f"{room / GB:.4g} GB"
    if most > room:
        return f": does not fit in {stated}"
    if most > PREALLOCATED * room and not on_cpu:
        share = math.ceil(100 * most / room) / 100
        return (
            f": fits in {stated}, on a GPU with XLA_PYTHON_CLIENT_MEM_FRACTION={share:.2f} or more"
        )
    return f": fits in {stated}"
