"""The sections of an analysis: each takes what is looked at and puts its figures in a record."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from imm_jax import checkpoints, hosts
from imm_jax.analysis import importance
from imm_jax.analysis.change import Change, change_by_layer
from imm_jax.analysis.correlation import rank_correlation
from imm_jax.analysis.diversity import COLLAPSED, collapse_rows, diversity
from imm_jax.analysis.memorisation import memorisation, renumber
from imm_jax.analysis.record import SETTINGS, Record
from imm_jax.analysis.scores import score_answers
from imm_jax.errors import InputError
from imm_jax.evaluation import Answer, ask
from imm_jax.merging import merge_params
from imm_jax.rounds.tools import Bench, training_sequences
from imm_jax.run_folder import RunFolder
from imm_jax.sampling.decode import decode_weights
from imm_jax.tasks.sources import parse_spec
from imm_jax.tasks.types import Example, Task
from imm_jax.training.batching import Batches

MEASURES = {
    "taylor": importance.taylor_importance,
    "ablation": importance.ablation_importance,
    "influence": importance.block_influence,
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A base and a model tuned from it, with all that is needed to ask them.

    Attributes:
      bench: model, tokenizer, tasks and settings.
      base, tuned: their parameters.
      name: the tuned model's.
      should_stop: asked between small steps of work.
    """

    bench: Bench
    base: PyTree
    tuned: PyTree
    name: str
    should_stop: Callable[[], bool]

    def settings(self, **more: Any) -> dict[str, Any]:
        """What results depend on: which weights, which questions, how they are asked."""
        config = self.bench.config
        return {
            "base": fingerprint(self.base),
            "tuned": fingerprint(self.tuned),
            "name": self.name,
            "questions": {task.name: digest(task.test) for task in self.bench.tasks},
            "data": dataclasses.asdict(config.data),
            "evaluation": dataclasses.asdict(config.evaluation),
            **more,
        }

    def answers(self, params: PyTree, task: Task, questions: Sequence[Example], label: str):
        """Graded answers to ``questions``, drawn as a run evaluates."""
        data, config = self.bench.config.data, self.bench.config
        return ask(
            self.bench.model,
            params,
            self.bench.tokenizer,
            task,
            questions,
            style=data.evaluate_style,
            shots=data.shots,
            sampling=config.evaluation,
            samples=1,
            seed=data.seed,
            rule=data.answer_rule,
            label=label,
            should_stop=self.should_stop,
        )


def put_diversity(record: Record, run: RunFolder, answer_type: str) -> list[dict]:
    """Diversity, collapse and gap of every finished round of a run.

    Returns the rows of diversity.
    """
    rows, gaps = [], []
    for place in run.places():
        where = dataclasses.asdict(place)
        rows.append(where | dataclasses.asdict(diversity(run.samples(place), answer_type)))
        if "verification" in run.row(place):
            gaps.append(where | run.row(place)["verification"])
    record.put("diversity", {"rows": rows}, {})
    rows = record.sections["diversity"]["rows"]  # as JSON has them
    record.put("collapse", {"rows": collapse_rows(rows)}, {"share": COLLAPSED})
    record.put("gap", {"rows": gaps}, {"rule": run.config.select.rule})
    return rows


def put_changes(record: Record, base: PyTree, models: Sequence[tuple[dict, Callable]]) -> None:
    """Weight change of each model by layer and module.

    Args:
      record: where it goes.
      base: theta_0.
      models: what a row says of each model, and how to read its parameters.
    """
    rows = [where | _plain_change(change_by_layer(base, read())) for where, read in models]
    record.put("change", {"rows": rows}, {})


def _plain_change(change: Change) -> dict[str, Any]:
    return {
        "layers": change.layers,
        "layers_relative": change.layers_relative,
        "modules": change.plain.modules,
        "modules_relative": change.relative.modules,
        "outside": change.plain.outside,
        "outside_relative": change.relative.outside,
    }


def saved_models(run: RunFolder, like: PyTree) -> list[tuple[dict, Callable]]:
    """The models that a run keeps, for :func:`put_changes`."""
    return [
        (dataclasses.asdict(place) | {"model": name}, partial(checkpoints.restore, folder, like))
        for place in run.places()
        for name, folder in run.models(place).items()
    ]


def put_importance(
    record: Record,
    measures: Sequence[str],
    bench: Bench,
    base: PyTree,
    solutions: Sequence[Answer],
    should_stop: Callable[[], bool],
) -> Batches:
    """Importance of the base's layers by each measure; returns the solutions as batches."""
    sequences = training_sequences(bench, solutions)
    training = bench.config.training
    batches = importance.solution_batches(
        sequences,
        base,
        max_length=training.max_length,
        micro_batch_size=training.micro_batch_size,
    )
    settings = {"solutions": len(batches.sequences), "sequences": digest(batches.sequences)}
    record.begin("importance", settings | {"base": fingerprint(base)})
    for name in measures:
        make = partial(MEASURES[name], bench.model, base, batches, should_stop=should_stop)
        record.take("importance", name, lambda make=make: _plain_importance(make()))
    return batches


def _plain_importance(found: Any) -> dict[str, Any]:
    if isinstance(found, importance.Taylor):
        sums = found.sums
        own = {"sums": sums.layers, "modules": sums.modules, "outside": sums.outside}
        return {"layers": found.layers, **own, "loss": found.loss}
    if isinstance(found, importance.Ablation):
        return {"layers": found.layers, "losses": found.losses, "loss": found.loss}
    return {"layers": found}


def importances(record: Record, base: PyTree) -> dict[str, list[float]]:
    """For each measure of this base that there is a figure a layer."""
    section = record.sections.get("importance")
    if section is None or section[SETTINGS]["base"] != fingerprint(base):
        return {}
    return {name: section[name]["layers"] for name in MEASURES if name in section}


def put_correlations(record: Record, measures: dict[str, list[float]]) -> list[dict]:
    """Rank correlation over layers of each importance and each change; returns the rows."""
    rows = []
    for change in record.sections["change"]["rows"]:
        where = {k: v for k, v in change.items() if k in ("seed", "round", "arm", "model")}
        for measure, layers in measures.items():
            for kind in ("layers_relative", "layers"):
                if len(layers) >= 3:
                    found = rank_correlation(layers, change[kind])._asdict()
                    rows.append(where | {"importance": measure, "change": kind} | found)
    record.put("correlation", {"rows": rows}, {})
    return record.sections["correlation"]["rows"]


def put_path(
    record: Record, pair: Pair, weights: Sequence[float], batches: Batches | None
) -> dict[str, dict]:
    """Accuracy on each task, and the loss of the solutions, along the line; returns the points."""
    sequences = None if batches is None else digest(batches.sequences)
    record.begin("path", pair.settings(sequences=sequences))

    def measure(weight: float) -> dict[str, Any]:
        label = f"path {weight:.3g}"
        params = merge_params(pair.base, pair.tuned, weight=weight)
        loss = None
        if batches is not None:
            loss = importance.mean_loss(
                pair.bench.model,
                params,
                batches,
                label=f"{label}: loss",
                should_stop=pair.should_stop,
            )
        decoding = decode_weights(params, pair.bench.model.dtype)
        del params  # three models are enough
        scores = {
            task.name: score_answers(
                pair.answers(decoding, task, task.test, f"{label}: {task.name}"), task.answer_type
            )
            for task in pair.bench.tasks
        }
        return {"tasks": scores, "loss": loss}

    return {
        f"{weight:.6g}": record.take("path", f"{weight:.6g}", partial(measure, weight))
        for weight in weights
    }


def put_memorisation(record: Record, pair: Pair, trained: Sequence[Example]) -> dict[str, dict]:
    """Base and tuned model on trained, renumbered and new questions; returns both results."""
    config, task = pair.bench.config, pair.bench.tasks[0]
    scheme, kind, _ = parse_spec(config.data.in_domain)
    again = [renumber(kind, q, config.data.seed) for q in trained if scheme == "builtin"]
    again = [question for question in again if question is not None]
    questions = {"trained": trained, "renumbered": again, "new": task.test}
    record.begin(
        "memorisation",
        pair.settings(**{name: digest(own) for name, own in questions.items()}),
    )

    def measure(name: str, params: PyTree) -> Any:
        decoding = decode_weights(params, pair.bench.model.dtype)
        found = {
            which: pair.answers(decoding, task, own, f"{name}: {which} questions") if own else []
            for which, own in questions.items()
        }
        return memorisation(found, task.answer_type)

    return {
        name: record.take("memorisation", name, partial(measure, name, params))
        for name, params in (("base", pair.base), ("tuned", pair.tuned))
    }


def sampled_solutions(
    bench: Bench, base: PyTree, most: int, should_stop: Callable[[], bool]
) -> list[Answer]:
    """Right answers of the base to training questions, one a question, at most ``most``."""
    config, task = bench.config, bench.tasks[0]
    drawn = ask(
        bench.model,
        decode_weights(base, bench.model.dtype),
        bench.tokenizer,
        task,
        task.train,
        style=config.data.sample_style,
        shots=config.data.shots,
        sampling=config.sampling,
        samples=config.samples,
        seed=config.data.seed,
        rule=config.data.answer_rule,
        label="solutions",
        should_stop=should_stop,
    )
    return right_solutions(drawn, most)


def right_solutions(answers: Sequence[Answer], most: int) -> list[Answer]:
    """The first right answer to each question, at most ``most`` of them.

    Raises:
      InputError: none is right.
    """
    found = {}
    for answer in answers:
        if answer.correct:
            found.setdefault(answer.id, answer)
    if not found:
        raise InputError(
            f"importance: none of {len(answers)} answers is right, expected solutions to look at"
        )
    return list(found.values())[:most]


def fingerprint(params: PyTree) -> str:
    """A hash of about a thousand numbers of each array, which differ from one model to the next."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        flat = leaf.reshape(-1)
        found.update(np.asarray(hosts.fetch(flat[:: max(1, flat.size // 1000)])).tobytes())
    return found.hexdigest()[:16]


def digest(items: Sequence) -> str:
    """A hash of questions or sequences, which are dataclasses of plain values."""
    return hashlib.sha256(repr(tuple(items)).encode()).hexdigest()[:16]
