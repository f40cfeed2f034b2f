"""The steps of a round, done with a model, its tokenizer and a run's tasks."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jaxtyping import PyTree

from imm_jax import hosts
from imm_jax.analysis.gap import gap_figures
from imm_jax.choices import examine
from imm_jax.errors import InputError
from imm_jax.evaluation import Answer, ask, make_prompts, score
from imm_jax.rounds.bench import Bench, train_style
from imm_jax.rounds.deepening import ask_deepening
from imm_jax.rounds.flops import asking_flops, fit_flops
from imm_jax.rounds.judge import MAKERS
from imm_jax.rounds.round import Tools
from imm_jax.rounds.select import RULES, NothingKept, from_rows, passing, select, to_rows
from imm_jax.rounds.stages import Later, Stages
from imm_jax.sampling.decode import decode_weights
from imm_jax.sampling.engine import end_tokens
from imm_jax.tasks.prompts import get_style
from imm_jax.tasks.types import Example, Task
from imm_jax.training.batching import Sequence as TokenSequence
from imm_jax.training.fit import fit

logger = logging.getLogger("imm_jax")


def make_tools(bench: Bench, seed: int, label: str) -> Tools:
    """The steps of a round for one seed; ``label`` stands before each progress bar."""

    def sample(current: Later[PyTree], t: int, stages: Stages) -> list[Answer]:
        key = jax.random.fold_in(jax.random.key(seed), t)
        asked, params = bench.teacher or (bench, current)
        asked = dataclasses.replace(asked, prompts=bench.prompts)
        samples = sample_blocks(asked, params, key, stages, label)
        if bench.teacher is not None:
            params.forget()  # its weights are not needed for the rest of the round
        return samples

    def aids(current: Later[PyTree], t: int, stages: Stages) -> dict[str, Any]:
        config = bench.config
        made = {
            name: make(
                config,
                bench.model,
                bench.tokenizer,
                Later(lambda: decode_weights(current(), bench.model.dtype)),
                jax.random.fold_in(jax.random.key(seed), t),
                stages,
                label,
                bench.should_stop,
            )
            for name, make in MAKERS.items()
            if name in RULES[config.select.rule].needs
        }
        return {"task": bench.tasks[0], **made}

    def select_samples(
        current: Later[PyTree], samples: Sequence[Answer], t: int, stages: Stages
    ) -> list[Answer]:
        try:
            return select(samples, bench.config.select, **aids(current, t, stages))
        except NothingKept as error:
            if t == 1:
                raise  # the settings' fault rather than what practice has come to
            logger.warning(f"{label}: {error.found}; it goes on without a fine-tune")
            return []

    def describe(current: Later[PyTree], samples: Sequence[Answer], t: int, stages: Stages) -> dict:
        config = bench.config.select
        if RULES[config.rule].gold:
            return {}  # a selection by the gold answers says nothing of the model's own judgement
        # What the model was asked is in the stages, so it is not asked again.
        passed = passing(samples, config, **aids(current, t, stages))
        return {"verification": gap_figures(samples, passed)}

    def fit_selected(
        params: PyTree, selected: Sequence[Answer], t: int, stages: Stages, donate: bool = False
    ) -> PyTree:
        sequences, states = training_sequences(bench, selected), stages.folder / "fit"
        if donate and bench.teacher is not None:
            bench.teacher[1].put_aside()
        # Of one that goes on from a state this process does a part, so it has no speed.
        whole = hosts.from_primary(lambda: not any(states.glob("step_*")))
        tuned, stats = fit(
            bench.model,
            params,
            sequences,
            bench.config.training,
            seed=seed * 1000 + t,
            donate=donate,
            checkpoints=states,
            label=f"{label}: fit",
            should_stop=bench.meter.watching(
                hosts.agreed(bench.should_stop, bench.config.training.save_every_steps)
            ),
        )
        stages.values("training", lambda: stats)
        if whole:
            flops = fit_flops(bench.model.config, sequences, bench.config.training, stats["tokens"])
            bench.meter.count(stats["input_tokens"], flops)
        return tuned

    def evaluate(params: PyTree, stages: Stages) -> dict:
        return evaluate_tasks(bench, params, stages, label)

    return Tools(
        sample=sample,
        select=select_samples,
        fit=fit_selected,
        evaluate=evaluate,
        describe=describe,
    )


def sample_blocks(
    bench: Bench, current: Later[PyTree], key: jax.Array, stages: Stages, label: str
) -> list[Answer]:
    """Samples the training questions block by block, each block kept as soon as it is done."""
    config, task = bench.config, bench.tasks[0]
    weights = Later(lambda: decode_weights(current(), bench.model.dtype))
    starts = range(0, len(task.train), config.block)
    asking = None
    if config.iterative_deepening is not None:
        asking = partial(ask_deepening, deepening=config.iterative_deepening)
    rows = []
    for number, start in enumerate(starts):
        name = f"{label}: sample" + (f" {number + 1}/{len(starts)}" if len(starts) > 1 else "")
        rows += stages.rows(
            f"samples/{number:05d}",
            lambda start=start, name=name: ask_together(
                bench,
                weights(),
                task,
                task.train[start : start + config.block],
                "train",
                style=config.data.sample_style,
                sampling=config.sampling,
                samples=config.samples,
                seed=key,
                label=name,
                asking=asking,
            ),
        )
    return from_rows(rows)


def ask_together(
    bench: Bench,
    weights: PyTree,
    task: Task,
    questions: Sequence[Example],
    split: str,
    *,
    asking: Callable[..., list[Answer]] | None = None,
    **settings: Any,
) -> list[dict]:
    """Rows of graded answers in the order of the questions; each process asks a share of them.

    ``settings`` go to ``asking``, by default :func:`imm_jax.evaluation.ask`.
    """
    data, should_stop = bench.config.data, bench.meter.watching(bench.should_stop)
    settings |= {"shots": data.shots, "rule": data.answer_rule, "should_stop": should_stop}
    asking = asking or ask
    ask_own = lambda own: asking(bench.model, weights, bench.tokenizer, task, own, **settings)
    rows = hosts.share(questions, lambda own: to_rows(ask_own(own)))
    flops = asking_flops(bench.model.config, bench.prompts[task.name, split], rows)
    bench.meter.count(sum(row["tokens"] for row in rows), flops)
    return rows


def training_sequences(bench: Bench, selected: Sequence[Answer]) -> list[TokenSequence]:
    """Zero-shot prompt, response and end token of each selected sample.

    Prompt and response are tokenized apart, as they are when the model answers.
    """
    config, task = bench.config, bench.tasks[0]
    style = train_style(config)
    questions = {question.id: question for question in task.train}
    asked = [questions[answer.id] for answer in selected]
    prompts = make_prompts(task, asked, style, 0, bench.tokenizer)
    lead, end = get_style(style).lead, end_token(bench)
    sequences = []
    for prompt, answer in zip(prompts, selected):
        ids = bench.tokenizer(prompt.whole, add_special_tokens=prompt.add_special_tokens)
        response = bench.tokenizer(lead + answer.text.strip(), add_special_tokens=False)
        tokens = (*ids["input_ids"], *response["input_ids"], end)
        sequences.append(TokenSequence(tokens, len(ids["input_ids"])))
    return sequences


def end_token(bench: Bench) -> int:
    """The token that ends an answer: the tokenizer's, or else the model config's first.

    Raises:
      InputError: neither has one.
    """
    own = bench.tokenizer.eos_token_id
    ends = [own] if own is not None else sorted(end_tokens(bench.model, bench.tokenizer))
    if not ends:
        raise InputError(
            f"{bench.config.model}: no end-of-text token in the tokenizer or the model's config, "
            "expected one to end training answers with"
        )
    return ends[0]


def evaluate_tasks(bench: Bench, params: PyTree, stages: Stages, label: str) -> dict:
    """Scores on every task; the answers are kept in ``answers/<task>``."""
    config = bench.config
    weights = Later(lambda: decode_weights(params, bench.model.dtype))
    scores = {}
    for task in bench.tasks:
        rows = stages.rows(
            f"answers/{task.name}",
            lambda task=task: ask_together(
                bench,
                weights(),
                task,
                task.test,
                "test",
                style=config.data.evaluate_style,
                asking=examine,
                scoring=config.evaluation.scoring,
                sampling=config.evaluation,
                seed=config.data.seed,
                label=f"{label}: evaluate {task.name}",
            ),
        )
        scores[task.name] = dataclasses.asdict(score(from_rows(rows)))
    return {"tasks": scores, **summarise(bench.tasks, scores)}


def summarise(tasks: Sequence[Task], scores: dict[str, dict]) -> dict[str, float | None]:
    """In-domain accuracy, and the mean accuracy of the out-of-domain tasks, None without any."""
    others = [scores[task.name]["accuracy"] for task in tasks[1:]]
    return {
        "in_domain": scores[tasks[0].name]["accuracy"],
        "out_of_domain": sum(others) / len(others) if others else None,
    }
