"""The rounds of every arm, from every seed: figures, checkpoints, and what of them is kept."""

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from jaxtyping import PyTree

from imm_jax import hosts
from imm_jax.config import RunConfig
from imm_jax.errors import Diverged
from imm_jax.models.huggingface.saving import save_model
from imm_jax.rounds.bench import Bench
from imm_jax.rounds.costs import Meter, stage_figures
from imm_jax.rounds.judge import MAKERS
from imm_jax.rounds.round import improve
from imm_jax.rounds.select import RULES
from imm_jax.rounds.stages import Later, Stages
from imm_jax.rounds.tools import evaluate_tasks, make_tools

logger = logging.getLogger("imm_jax")


def run_seeds(bench: Bench, base: Later[PyTree], output: Path) -> Iterator[dict]:
    """Yields the figures of each seed, round and arm, and writes the final model."""
    config = bench.config
    started = time.monotonic()
    original = Stages(output / "base", bench.meter)
    with original.measure("evaluate"):
        zero = original.values(
            "scores",
            lambda: {**evaluate_tasks(bench, base(), original, "original"), "distance": 0.0},
        )
    zero["stages"] = stage_figures(original.folder, ("evaluate",))
    for seed in config.seeds:
        yield {"seed": seed, "round": 0, "arm": "base", **zero}
        yield from run_seed(bench, base, output, seed)
    logger.info(f"done in {time.monotonic() - started:.0f} s")


def run_seed(bench: Bench, base: Later[PyTree], output: Path, seed: int) -> Iterator[dict]:
    """The rounds of all arms from one seed; an arm that diverges ends there, the others go on."""
    config, final = bench.config, list(bench.config.arms)[-1]
    lost: dict[str, int] = {}  # arms that diverged, and in which round
    current = {arm: Later(base) for arm in config.arms}
    on_device = jax.default_backend() != "cpu"  # whose memory is not the host's
    for t in range(1, config.rounds + 1):
        place = output / f"seed-{seed}" / f"round-{t}"
        for name, arm in config.arms.items():
            if name in lost:
                continue
            drawn, learned, own = places(config, t, name, place, bench.meter)
            tools = make_tools(bench, seed, f"round {t} / {name}")
            key = jax.random.key(seed)
            before = current[name]
            try:
                current[name], scores = improve(
                    t, arm, base, before, tools, key, drawn, own, learned, put_aside=on_device
                )
            except Diverged as error:
                if hosts.count() > 1:
                    raise  # the others wait for this process
                lost[name] = t
                logger.error(f"seed {seed}, {name}: no round {t} and none after it: {error}")
                continue
            finally:
                before.forget()
            if len(config.arms) > 1 and (t, name) != (config.rounds, final):
                current[name].forget()  # other arms have their turn before it is asked for
            costs = stage_figures(drawn.folder, ("sample",))
            costs |= stage_figures(learned.folder, ("select", "fit"))
            costs |= stage_figures(own.folder, ("merge", "evaluate"))
            yield {"seed": seed, "round": t, "arm": name, **scores, "stages": costs}
        tidy(config, output / f"seed-{seed}", t, lost)
    folder = output / "model"
    first = seed == config.seeds[0] and final not in lost
    if first and hosts.from_primary(lambda: not folder.exists()):
        params = hosts.fetch(current[final]())
        if hosts.is_primary():
            save_model(folder, bench.model, params, tokenizer=bench.tokenizer)
        logger.info(f"{folder}: the {final} model after round {config.rounds}, seed {seed}")
        tidy(config, output / f"seed-{seed}", config.rounds, lost)  # a damaged model was made again
    for later in current.values():
        later.forget()


def places(
    config: RunConfig, t: int, name: str, folder: Path, meter: Meter
) -> tuple[Stages, Stages, Stages]:
    """Where an arm keeps a round's samples, its selection and fine-tune, and the rest.

    What is the same for all arms they make once and share: everything up to the first merge; with a
    teacher the samples of every round; and fine-tunes that start from the original on a selection
    of those that asks no model.
    """
    own, shared = Stages(folder / name, meter), Stages(folder / "shared", meter)
    if t == 1:
        return shared, shared, own
    if config.teacher is None:
        return own, own, own
    asks = not MAKERS.keys().isdisjoint(RULES[config.select.rule].needs)
    same = config.arms[name].start_from == "base" and not asks
    return shared, shared if same else own, own


def tidy(config: RunConfig, folder: Path, t: int, lost: Mapping[str, int]) -> None:
    """Deletes fine-tuned weights whose merge is kept, and models older than the last but one.

    What arms that are ``lost`` stopped at stays, so that they can go on from there.
    """
    hosts.wait()  # for those that still read
    for u in range(1, t + 1):
        for name in ("shared", *config.arms):
            ended = lost.values() if name == "shared" else [lost.get(name)]
            if any(at is not None and u in (at - 1, at) for at in ended):
                continue
            part = Stages(folder / f"round-{u}" / name)
            part.drop("fit")
            if config.keep == "last":
                part.drop("tuned", *(["model"] if u < t - 1 else []))
