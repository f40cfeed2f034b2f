"""The section of an analysis in which the model of each round judges what it sampled there."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from imm_jax import checkpoints, hosts
from imm_jax.analysis.gap import gap_figures
from imm_jax.analysis.record import Record
from imm_jax.config import RunConfig
from imm_jax.errors import InputError
from imm_jax.evaluation import Answer
from imm_jax.files import read_object
from imm_jax.rounds.bench import Bench
from imm_jax.rounds.judge import make_judge
from imm_jax.rounds.output import QUESTIONS, RECORD, questions_hash
from imm_jax.rounds.run import open_bench
from imm_jax.rounds.select import passing
from imm_jax.rounds.self_verification import VERSION
from imm_jax.rounds.stages import Later, Stages
from imm_jax.run_folder import Place, RunFolder
from imm_jax.sampling.decode import decode_weights
from imm_jax.select_config import SelectConfig
from imm_jax.tasks.types import Task, digest

ASKED_ONCE = SelectConfig(rule="self_verify", judge_samples=1)


def check_questions(run: RunFolder, task: Task) -> None:
    """Raises InputError where a run's questions, which a judge reads, are no longer those."""
    asked = read_object(run.path / RECORD).get(QUESTIONS) or {}
    now = questions_hash(task)
    if asked.get(task.name, now) != now:
        raise InputError(
            f"--gap: task {task.name} has other questions now, expected those that the run in "
            f"{run.path} began with"
        )


def put_verification(
    record: Record,
    run: RunFolder,
    bench: Bench,
    base: PyTree,
    folder: Path,
    most: int | None = None,
) -> dict[str, Any]:
    """The generation-verification gap of every round whose sampling model is still there.

    The model that drew a round's samples (M_{t-1}, or the teacher) is asked about each of them once
    and greedily, as the rule ``self_verify`` asks (Song et al., arXiv 2412.02674).

    Args:
      record: where the figures go.
      run: whose samples.
      bench: of the run.
      base: theta_0, which draws the first round's samples.
      folder: where the model's verdicts are kept, so that none is asked for twice.
      most: questions of each round to take, the first ones; None takes all.

    Returns:
      The section: ``rows``, one a round, and ``missing``, the rounds whose model is gone.
    """
    judging = greedy(bench.config)
    how = {
        "sampling": dataclasses.asdict(judging.sampling),
        "style": judging.data.sample_style,
        "version": VERSION,
        "questions": most,
    }
    judge, original, known = bench, Later(lambda: base), hosts.fingerprint(base)
    if run.config.teacher is not None:
        judge, original, known = open_bench(
            run.config.teacher, None, bench.config, bench.tasks, bench.should_stop
        )
    taken = {question.id for question in bench.tasks[0].train[:most]}
    rows, missing = [], []
    for place in run.places():
        where = dataclasses.asdict(place)
        sampler = _sampler(run, place, base, original)
        if sampler is None:
            missing.append(where)
            continue
        name, weights = sampler
        samples = [answer for answer in run.samples(place) if answer.id in taken]
        stages = Stages(folder / digest([known, name, how, *samples]))
        key = jax.random.key(0)  # draws nothing: the judge is greedy
        kept = verified(judging, judge, weights, key, stages, samples, str(place))
        counts = {"samples": len(samples), "approved": len(kept)}
        rows.append(where | counts | gap_figures(samples, kept))
    record.put("verification", {"rows": rows, "missing": missing}, how | {"sampler": known})
    return record.sections["verification"]


def greedy(config: RunConfig) -> RunConfig:
    """A run's settings with a rule that asks the model once about each sample, greedily."""
    sampling = dataclasses.replace(config.sampling, temperature=0.0)
    return dataclasses.replace(
        config, sampling=sampling, select=ASKED_ONCE, iterative_deepening=None
    )


def verified(
    config: RunConfig,
    bench: Bench,
    weights: Later[PyTree],
    key: jax.Array,
    stages: Stages,
    samples: Sequence[Answer],
    label: str,
) -> list[Answer]:
    """The samples that pass ``config.select``, a rule for which a model is asked.

    Args:
      config: the run's, with the rule and how the judge answers.
      bench: of the judge.
      weights: its parameters, read when first asked for.
      key: the random key of its responses.
      stages: where they are kept.
      samples: graded, of the in-domain task's questions.
      label: stands before each progress bar.
    """
    judge = make_judge(
        config,
        bench.model,
        bench.tokenizer,
        Later(lambda: decode_weights(weights(), bench.model.dtype)),
        key,
        stages,
        label,
        bench.should_stop,
    )
    return passing(samples, config.select, judge, bench.tasks[0])


def _sampler(
    run: RunFolder, place: Place, base: PyTree, original: Later[PyTree]
) -> tuple[str, Later[PyTree]] | None:
    """Which model drew a round's samples, and its parameters; None where it is not kept."""
    if place.round == 1 or run.config.teacher is not None:
        return "original", original
    before = dataclasses.replace(place, round=place.round - 1)
    folder = run.models(before).get("model")
    return folder and (str(before), Later(partial(checkpoints.restore, folder, base)))
