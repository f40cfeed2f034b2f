"""The sections of an analysis that put questions to models."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from jaxtyping import PyTree

from imm_jax import hosts
from imm_jax.analysis.importance import mean_loss, without_layer
from imm_jax.analysis.memorisation import memorisation, renumber
from imm_jax.analysis.record import Record
from imm_jax.analysis.scores import TaskScore, score_answers
from imm_jax.choices import examine
from imm_jax.errors import InputError
from imm_jax.evaluation import Answer, ask
from imm_jax.merging import merge_params
from imm_jax.rounds.bench import Bench
from imm_jax.rounds.select import from_rows, to_rows
from imm_jax.sampling.decode import decode_weights
from imm_jax.tasks.sources import parse_spec
from imm_jax.tasks.types import Example, Task, digest
from imm_jax.training.batching import Batches
from imm_jax.tree import num_layers


@dataclasses.dataclass(frozen=True)
class Pair:
    """A base and a model tuned from it.

    Attributes:
      base, tuned: their parameters.
      name: the tuned model's.
    """

    base: PyTree
    tuned: PyTree
    name: str

    def settings(self) -> dict[str, str]:
        """What tells this pair from others."""
        return {
            "base": hosts.fingerprint(self.base),
            "tuned": hosts.fingerprint(self.tuned),
            "name": self.name,
        }


def how_asked(bench: Bench) -> dict[str, Any]:
    """What answers depend on beside the weights and the questions."""
    config = bench.config
    return {
        "data": dataclasses.asdict(config.data),
        "evaluation": dataclasses.asdict(config.evaluation),
    }


def answers(
    bench: Bench, weights: PyTree, task: Task, questions: Sequence[Example], label: str
) -> list[Answer]:
    """Graded answers to ``questions``, one to each, drawn as a run evaluates."""
    data = bench.config.data
    return examine(
        bench.model,
        weights,
        bench.tokenizer,
        task,
        questions,
        style=data.evaluate_style,
        shots=data.shots,
        scoring=bench.config.evaluation.scoring,
        sampling=bench.config.evaluation,
        seed=data.seed,
        rule=data.answer_rule,
        label=label,
        should_stop=bench.should_stop,
    )


def put_skipped(record: Record, bench: Bench, base: PyTree, count: int) -> dict[str, dict]:
    """In-domain accuracy of the base without each layer, from 1, on its first ``count`` questions.

    Returns for each layer, and for ``whole``, the score.
    """
    task = bench.tasks[0]
    questions = task.test[:count]
    record.begin(
        "skipped",
        how_asked(bench) | {"base": hosts.fingerprint(base), "questions": digest(questions)},
    )

    def measure(layer: int | None) -> TaskScore:
        params = base if layer is None else without_layer(base, layer)
        label = "whole model" if layer is None else f"without layer {layer + 1}"
        weights = decode_weights(params, bench.model.dtype)
        return score_answers(answers(bench, weights, task, questions, label), task.answer_type)

    layers = {"whole": None} | {str(i + 1): i for i in range(num_layers(base))}
    return {
        name: record.take("skipped", name, partial(measure, layer))
        for name, layer in layers.items()
    }


def put_path(
    record: Record, bench: Bench, pair: Pair, weights: Sequence[float], batches: Batches | None
) -> dict[str, dict]:
    """Accuracy on each task, and the loss of the solutions, along the line; returns the points."""
    sequences = None if batches is None else digest(batches.sequences)
    questions = {task.name: digest(task.test) for task in bench.tasks}
    settings = {"questions": questions, "sequences": sequences}
    record.begin("path", pair.settings() | how_asked(bench) | settings)

    def measure(weight: float) -> dict[str, Any]:
        label = f"path {weight:.3g}"
        params = merge_params(pair.base, pair.tuned, weight=weight)
        loss = None
        if batches is not None:
            loss = mean_loss(
                bench.model,
                params,
                batches,
                label=f"{label}: loss",
                should_stop=bench.should_stop,
            )
        decoding = decode_weights(params, bench.model.dtype)
        del params  # three models are enough
        scores = {
            task.name: score_answers(
                answers(bench, decoding, task, task.test, f"{label}: {task.name}"), task.answer_type
            )
            for task in bench.tasks
        }
        return {"tasks": scores, "loss": loss}

    return {
        f"{weight:.6g}": record.take("path", f"{weight:.6g}", partial(measure, weight))
        for weight in weights
    }


def put_memorisation(
    record: Record,
    bench: Bench,
    pair: Pair,
    trained: Sequence[Example],
    variations: Sequence[Example] = (),
) -> dict[str, dict]:
    """Base and tuned model on trained, varied and new questions; returns both results.

    Args:
      variations: trained questions in other words or numbers, as ``matched`` gives them. Built-in
        arithmetic questions are given other numbers here.
    """
    config, task = bench.config, bench.tasks[0]
    scheme, kind, _ = parse_spec(config.data.in_domain)
    again = [renumber(kind, q, config.data.seed) for q in trained if scheme == "builtin"]
    again = [question for question in again if question is not None]
    questions = {"trained": trained, "renumbered": again, "varied": variations, "new": task.test}
    asked = {name: digest(own) for name, own in questions.items() if own}
    record.begin("memorisation", pair.settings() | how_asked(bench) | {"questions": asked})

    def measure(name: str, params: PyTree) -> Any:
        decoding = decode_weights(params, bench.model.dtype)
        found = {
            which: answers(bench, decoding, task, own, f"{name}: {which} questions") if own else []
            for which, own in questions.items()
        }
        return memorisation(found, task.answer_type)

    return {
        name: record.take("memorisation", name, partial(measure, name, params))
        for name, params in (("base", pair.base), ("tuned", pair.tuned))
    }


def sampled_solutions(record: Record, bench: Bench, base: PyTree, most: int) -> list[Answer]:
    """Right answers of the base to training questions, one a question, at most ``most``."""
    config, task = bench.config, bench.tasks[0]
    settings = {"samples": config.samples, "sampling": dataclasses.asdict(config.sampling)}
    settings |= {"base": hosts.fingerprint(base), "questions": digest(task.train)}
    record.begin("solutions", how_asked(bench) | settings)

    def draw() -> list[dict]:
        weights = decode_weights(base, bench.model.dtype)
        drawn = ask(
            bench.model,
            weights,
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
            should_stop=bench.should_stop,
        )
        return to_rows(drawn)

    return right_solutions(from_rows(record.take("solutions", "rows", draw)), most)


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
