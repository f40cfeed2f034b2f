"""Merge methods that ask whole models questions, each as one function of a job."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from imm_jax import merging
from imm_jax.asking_prompts import Questions, Tokens, interleave, pad_answers, pad_prompts
from imm_jax.errors import Interrupted
from imm_jax.evaluation import ask, score
from imm_jax.models.decoder import Decoder, unembedding
from imm_jax.models.grams import kernel_grams
from imm_jax.progress import Progress
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.decode import decode_weights
from imm_jax.sampling.engine import generate
from imm_jax.tasks.prompts import get_style
from imm_jax.training.loss import prediction_entropy, response_loss


class Job(NamedTuple):
    """A merge to do.

    Attributes:
      model: the decoder of all models.
      tokenizer: of all models.
      base: the base's parameters, where the method has a base.
      tuned: the others', float32, in the recipe's order.
      names: what the recipe calls these.
      asked: the questions for each of these; the same object where they are the same.
      responses: the worked solutions of each one's questions, where they count.
      settings: the recipe's parameters.
      should_stop: asked between small steps of work.
    """

    model: Decoder
    tokenizer: Any
    base: PyTree | None
    tuned: Sequence[PyTree]
    names: Sequence[str]
    asked: Sequence[Questions]
    responses: Sequence[Sequence[Tokens]]
    settings: Mapping[str, Any]
    should_stop: Callable[[], bool]

    def check_stop(self, label: str) -> None:
        """Raises Interrupted where the work is to stop."""
        if self.should_stop():
            raise Interrupted(f"{label}: stopped")


class Found(NamedTuple):
    """The merged model, and what there is to say of how it was found, a line each."""

    params: PyTree
    lines: tuple[str, ...] = ()


def greedy_soup(job: Job) -> Found:
    """:func:`merging.greedy_soup` by greedily sampled answers, graded."""
    settings, questions = job.settings, job.asked[0]
    names = ("max_new_tokens", "batch_size")
    sampling = SamplingConfig(temperature=0.0, **{name: settings[name] for name in names})

    def accuracy(params: PyTree, label: str) -> float:
        answers = ask(
            job.model,
            decode_weights(params, job.model.dtype),
            job.tokenizer,
            questions.task,
            questions.examples,
            style=settings["style"],
            shots=settings["shots"],
            sampling=sampling,
            samples=1,
            seed=settings["seed"],
            label=f"evaluate {label}",
            should_stop=job.should_stop,
        )
        return score(answers).accuracy

    alone = [accuracy(*pair) for pair in zip(job.tuned, job.names, strict=True)]
    soup = merging.greedy_soup(job.tuned, lambda params: accuracy(params, "soup"), alone=alone)
    lines = [
        f"accuracy of {name}: {value:.4f}" for name, value in zip(job.names, alone, strict=True)
    ]
    mixed = list(zip(soup.chosen, soup.scores, strict=True))[1:]
    lines += [f"accuracy with {job.names[index]} added: {value:.4f}" for index, value in mixed]
    left = [name for index, name in enumerate(job.names) if index not in soup.chosen]
    lines += [f"left out: {', '.join(left)}"] if left else []
    return Found(soup.params, (*lines,))


def regmean(job: Job) -> Found:
    """:func:`merging.regmean` on what the kernels of each model read of its prompts."""
    grams = []
    for params, name, questions in zip(job.tuned, job.names, job.asked, strict=True):
        rows, masks = pad_prompts(questions.tokens, job.settings["batch_size"])
        batches = list(zip(rows, masks, strict=True))
        shapes = jax.eval_shape(partial(_grams, job.model), params, *batches[0])
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, count = _add_up(job, f"inputs of {name}", _add_grams, sums, params, batches)
        grams.append(_over(total, count))
    settings = {name: job.settings[name] for name in ("alpha", "ridge")}
    return Found(merging.regmean(job.tuned, grams, **settings))


def adamerging(job: Job) -> Found:
    """:func:`merging.adamerging` by the entropy of the next token at every place of the prompts."""
    settings = job.settings
    different = list({id(questions): questions.tokens for questions in job.asked}.values())
    rows, masks = pad_prompts(interleave(different), settings["batch_size"])
    model = job.model.clone(remat=True)
    entropies: list[float] = []
    with Progress("adamerging", settings["steps"], "step") as progress:

        def after(number: int, entropy: float) -> None:
            entropies.append(entropy)
            progress.update(1, f"entropy {entropy:.4f}")
            job.check_stop("adamerging")

        params, weights, _ = merging.adamerging(
            partial(_entropy, model),
            job.base,
            list(job.tuned),
            (jnp.asarray(rows), jnp.asarray(masks)),
            steps=settings["steps"],
            init=settings["init"],
            per_layer=settings["per_layer"],
            optimizer=optax.adam(settings["learning_rate"]),
            after=after,
        )
    lines = [f"entropy at the first step {entropies[0]:.4f}, at the last {entropies[-1]:.4f} nats"]
    for name, weight in zip(job.names, weights, strict=True):
        layers = getattr(weight, "layers", None)
        each = "" if layers is None else f"layers {_numbers(layers)}, elsewhere "
        lines.append(f"weight of {name}: {each}{_numbers(getattr(weight, 'default', weight))}")
    return Found(params, (*lines,))


def fisher(job: Job) -> Found:
    """``fisher`` with :func:`merging.diagonal_fisher` of each model on its questions.

    Of worked solutions the empirical Fisher information; of answers that the model draws at
    temperature 1, its own.
    """
    found = []
    for number, (params, name, questions) in enumerate(
        zip(job.tuned, job.names, job.asked, strict=True)
    ):
        sampled = job.settings["labels"] == "samples"
        responses = _samples(job, params, name, questions) if sampled else job.responses[number]
        examples = pad_answers(questions.tokens, responses)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        label, rows = f"Fisher information of {name}", list(zip(*examples, strict=True))
        total = _add_up(job, label, _add_fisher, zeros, params, rows)
        found.append(_over(total, len(rows)))
    return Found(merging.merge_models("fisher", job.tuned, weight=found))


ASKED: dict[str, Callable[[Job], Found]] = {
    "regmean": regmean,
    "adamerging": adamerging,
    "greedy_soup": greedy_soup,
    "fisher": fisher,
}


def _add_up(
    job: Job, label: str, add: Callable, total: PyTree, params: PyTree, rows: Iterable[tuple]
) -> PyTree:
    """Adds every row to ``total``, whose memory is given away each time."""
    rows = list(rows)
    model = job.model.clone(remat=add is _add_fisher)
    with Progress(label, len(rows), "batch") as progress:
        for row in rows:
            job.check_stop(label)
            total = jax.block_until_ready(add(model, total, params, *row))
            progress.update()
    return total


def _over(total: PyTree, count: float | Array) -> PyTree:
    return jax.tree.map(lambda x: x / count, total)


def _grams(model: Decoder, params: PyTree, tokens_BT: Array, mask_BT: Array) -> tuple:
    return kernel_grams(model, params, tokens_BT, mask=mask_BT)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_grams(model: Decoder, total: tuple, params: PyTree, tokens_BT: Array, mask_BT: Array):
    return jax.tree.map(jnp.add, total, _grams(model, params, tokens_BT, mask_BT))


def _entropy(model: Decoder, params: PyTree, batch: tuple[Array, Array]) -> Array:
    """Of the next token at every place that the batch's mask counts, without all their logits."""
    tokens_BT, mask_BT = batch
    hidden_BTD = model.apply({"params": params}, tokens_BT, method="hidden")
    softcap = model.config.final_logit_softcapping
    return prediction_entropy(hidden_BTD, unembedding(params), mask_BT, softcap=softcap)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_fisher(model: Decoder, total: PyTree, params: PyTree, *row: Array) -> PyTree:
    def loss(params: PyTree, row: Sequence[Array]) -> Array:
        tokens, targets, mask = (x[None] for x in row)
        hidden_BTD = model.apply({"params": params}, tokens, method="hidden")
        softcap = model.config.final_logit_softcapping
        return response_loss(hidden_BTD, unembedding(params), targets, mask, softcap=softcap).loss

    one = merging.diagonal_fisher(loss, params, tuple(x[None] for x in row))
    return jax.tree.map(jnp.add, total, one)


def _samples(job: Job, params: PyTree, name: str, questions: Questions) -> list[Tokens]:
    """An answer of the model's own to each question, as the tokens that it drew."""
    drawn = generate(
        job.model,
        decode_weights(params, job.model.dtype),
        job.tokenizer,
        questions.tokens,
        config=SamplingConfig(temperature=1.0, max_new_tokens=job.settings["max_new_tokens"]),
        stop=get_style(job.settings["style"]).stops,
        seed=job.settings["seed"],
        ids=[example.id for example in questions.examples],
        label=f"sample {name}",
        should_stop=job.should_stop,
    )
    return [sample.tokens for (sample,) in drawn]


def _numbers(values: Array) -> str:
    return " ".join(f"{value:.3f}" for value in np.ravel(values))
