"""Methods that ask, through recipes: against formulas on the same questions, found here.

What kernels read and entropies come from a Llama in NumPy, one unpadded prompt at a time; Fisher
information from plain gradients; accuracies from ``evaluate``.
"""

import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import imm_jax
from imm_jax import merge_files, merging
from imm_jax.asking_methods import _entropy
from imm_jax.cli import main
from imm_jax.models.decoder import Decoder
from imm_jax.tasks.prompts import HEADING_STOPS
from tests.asking.numpy_llama import forward
from tests.merging import merge_oracles as oracle


def load(name):
    """The decoder's configuration and its parameters, float32 NumPy."""
    model, params = imm_jax.load_model(name, dtype="float32")
    return model.config, jax.tree.map(np.asarray, params)


def prompts(file):
    """Token ids of the plain prompts, and of the answers, written out here."""
    tokenizer = imm_jax.load_tokenizer("good")
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    asked = [tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"] for row in rows]
    said = [tokenizer(f" The answer is {row['answer']}.")["input_ids"] for row in rows]
    return asked, [[*row, tokenizer.eos_token_id] for row in said]


def leaves(params):
    return {
        "/".join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(params)
    }


def merged_leaves(folder):
    return leaves(jax.tree.map(np.asarray, imm_jax.load_model(folder)[1]))


def mean(trees):
    return jax.tree.map(lambda *xs: np.mean(np.float64(xs), axis=0).astype(np.float32), *trees)


def assert_close(found, expected, **close):
    assert found.keys() == expected.keys()
    for path, x in found.items():
        np.testing.assert_allclose(x, expected[path], err_msg=path, **close)


def test_a_soup_of_those_that_do_not_lower_the_accuracy(recipe, tmp_path):
    """Recipe 1 by hand: the models by their accuracy, each kept if the mean's does not fall."""
    names = ["wrong", "near", "good"]
    parameters = {"style": "plain", "shots": 0, "max_new_tokens": 16}
    path = recipe("greedy_soup", *names, parameters={"task": "test.jsonl", **parameters})
    task, tokenizer = imm_jax.make_task("test.jsonl"), imm_jax.load_tokenizer("good")
    sampling = imm_jax.SamplingConfig(temperature=0.0, max_new_tokens=16)

    def accuracy(params):
        model = Decoder(load("good")[0])
        found = imm_jax.evaluate(model, params, tokenizer, [task], style="plain", sampling=sampling)
        return found["test"].accuracy

    trees = [load(name)[1] for name in names]
    alone = [accuracy(params) for params in trees]
    order = sorted(range(3), key=lambda i: -alone[i])
    chosen, scores = [order[0]], [alone[order[0]]]
    for i in order[1:]:
        found = accuracy(mean([trees[j] for j in (*chosen, i)]))
        if found >= scores[-1]:
            chosen, scores = [*chosen, i], [*scores, found]
    assert chosen == [1, 2] and 0 < scores[0] < 1 and alone[0] < scores[0]

    assert main(["merge", str(path), str(tmp_path / "out")]) == 0
    expected = leaves(mean([trees[i] for i in chosen]))
    assert_close(merged_leaves(tmp_path / "out"), expected, rtol=1e-7)
    card = (tmp_path / "out/README.md").read_text()
    for line in (
        f"accuracy of wrong: {alone[0]:.4f}",
        f"accuracy with good added: {scores[1]:.4f}",
        "left out: wrong",
    ):
        assert f"- {line}\n" in card


def expected_regmean(names, asked, alpha):
    """The formula in float64, on what kernels read of each unpadded prompt; the mean elsewhere."""
    loaded = [load(name) for name in names]
    grams = []
    for (config, params), tokens in zip(loaded, asked, strict=True):
        rows = [forward(params, config, row)[1] for row in tokens]
        inputs = {path: np.concatenate([r[path] for r in rows], axis=-2) for path in rows[0]}
        grams.append({p: x.swapaxes(-1, -2) @ x / x.shape[-2] for p, x in inputs.items()})
    trees = [leaves(params) for _, params in loaded]
    found = {path: np.mean([np.float64(t[path]) for t in trees], axis=0) for path in trees[0]}
    for path in grams[0]:
        stacks = [[np.float64(t[path]) for t in trees], [g[path] for g in grams]]
        layers = (3,) if path.startswith("layers/") else ()
        for at in np.ndindex(layers):
            kernels, squares = ([x[at] for x in stack] for stack in stacks)
            found[path][at] = oracle.regmean(kernels, squares, alpha)
    return found


def test_regmean_on_each_models_own_prompts(recipe, tmp_path):
    """Also with models in bfloat16: merged in float32, rounded once."""
    other = {"model": "half", "parameters": {"task": "jsonl:train=other.jsonl,test=test.jsonl"}}
    settings = {"task": "jsonl:train=test.jsonl", "split": "train", "alpha": 0.8, "batch_size": 4}
    path = recipe("regmean", "bad", other, parameters=settings, dtype="float32")
    merge_files(path, tmp_path / "out")
    asked = [prompts("test.jsonl")[0], prompts("other.jsonl")[0]]
    expected = expected_regmean(["bad", "half"], asked, 0.8)
    found = merged_leaves(tmp_path / "out")
    assert_close(found, expected, rtol=2e-3, atol=2e-4)
    same = expected_regmean(["bad", "half"], asked[:1] * 2, 0.8)
    path = "layers/attn/q/kernel"
    assert np.abs(same[path] - expected[path]).max() > 0.01  # the questions matter


def test_adamerging_by_the_entropy_at_every_place(recipe, tmp_path):
    settings = {"task": "test.jsonl", "batch_size": 4, "steps": 3, "learning_rate": 0.05}
    other = {"model": "near", "parameters": {"task": "other.jsonl"}}
    path = recipe("adamerging", other, "bad", parameters=settings, base_model="good")
    merge_files(path, tmp_path / "out")

    one, two = prompts("other.jsonl")[0], prompts("test.jsonl")[0]
    rows = [row for pair in zip(one, two) for row in pair] + two[len(one) :]
    rows = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    tokens = np.zeros((3, 4, max(len(row) for batch in rows for row in batch)), np.int32)
    for at in ((i, j) for i, batch in enumerate(rows) for j in range(len(batch))):
        tokens[at][: len(rows[at[0]][at[1]])] = rows[at[0]][at[1]]
    config, base = load("good")
    trees = [load(name)[1] for name in ("near", "bad")]
    expected, weights, entropies = merging.adamerging(
        lambda params, batch: Decoder(config).apply({"params": params}, batch),
        base,
        trees,
        tokens,
        steps=3,
        optimizer=optax.adam(0.05),
        mask=lambda batch: batch > 0,  # 0 ends a text, and no prompt has it
    )
    assert_close(merged_leaves(tmp_path / "out"), leaves(expected), rtol=1e-4, atol=1e-5)
    start = jax.tree.map(
        lambda b, *xs: b + sum(0.3 * (np.float64(x) - b) for x in xs), base, *trees
    )
    first = np.concatenate([forward(start, config, row)[0] for row in rows[0]])
    np.testing.assert_allclose(entropies[0], oracle.entropy(first), rtol=1e-5)
    lines = (tmp_path / "out/README.md").read_text()
    assert f"at the first step {oracle.entropy(first):.4f}, at the last {entropies[2]:.4f}" in lines
    layers = " ".join(f"{x:.3f}" for x in weights[1].layers)
    assert f"- weight of bad: layers {layers}, elsewhere {weights[1].default:.3f}\n" in lines


@pytest.mark.parametrize("tied, softcap", [(False, None), (True, 2.0)])
def test_adamerging_never_holds_all_logits(tied, softcap, tiny_config, random_params):
    """And its entropy and gradient are those of the logits that it does not hold."""
    config = tiny_config(
        "llama", vocab_size=4099, tie_word_embeddings=tied, final_logit_softcapping=softcap
    )
    model, params = Decoder(config), random_params(config)
    rng = np.random.default_rng(0)
    batch = rng.integers(2, 4099, (8, 64)), rng.random((8, 64)) < 0.7

    def plain(params, batch):
        logits = model.apply({"params": params}, batch[0])
        return merging.mean_entropy(logits, batch[1])

    ours = jax.jit(jax.value_and_grad(partial(_entropy, model.clone(remat=True))))
    value, slopes = ours(params, batch)
    want, expected = jax.jit(jax.value_and_grad(plain))(params, batch)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    assert_close(leaves(slopes), leaves(expected), rtol=1e-4, atol=1e-6)
    program = ours.lower(params, batch).compile().as_text()
    shapes = re.findall(r"\b[a-z]+[0-9]*\[([0-9,]+)\]", program)
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in shapes]
    assert 4099 * config.hidden_size in sizes and max(sizes) < 8 * 64 * 4099 / 2


@partial(jax.jit, static_argnums=0)
def slope(config, params, tokens, answer):
    """The gradient of the negative log-likelihood of the answer, which ends ``tokens``."""

    def loss(params):
        logits = Decoder(config).apply({"params": params}, tokens[None, :-1])[0]
        found = jax.nn.log_softmax(logits)[-len(answer) :]
        return -jnp.sum(jnp.take_along_axis(found, answer[:, None], axis=1))

    return jax.grad(loss)(params)


def expected_fisher(names, pairs):
    """The models, and of each the squared gradients of its unpadded answers, added up."""
    trees, totals = [], []
    for name, (asked, said) in zip(names, pairs, strict=True):
        config, params = load(name)
        total = jax.tree.map(np.zeros_like, params)
        for prompt, answer in zip(asked, said, strict=True):
            found = slope(config, params, jnp.array([*prompt, *answer]), jnp.array(answer))
            total = jax.tree.map(lambda t, g: t + np.square(np.float64(g)), total, found)
        trees.append(leaves(params))
        totals.append(leaves(total))
    return trees, totals


def assert_fisher(found, names, pairs):
    """Where there is information enough to tell from rounding."""
    trees, totals = expected_fisher(names, pairs)
    counts = [len(asked) for asked, _ in pairs]
    told = 0
    for path, x in found.items():
        shares = [total[path] / n for total, n in zip(totals, counts, strict=True)]
        whole = sum(shares)
        expected = sum(f * t[path] for f, t in zip(shares, trees, strict=True)) / np.maximum(
            whole, 1e-300
        )
        clear = whole > 1e-6 * max(whole.max(), 1e-30)
        told += clear.sum()
        np.testing.assert_allclose(x[clear], expected[clear], rtol=5e-3, atol=5e-4, err_msg=path)
    assert told > 0.3 * sum(x.size for x in found.values())


def test_fisher_of_worked_solutions(recipe, tmp_path):
    path = recipe("fisher", "near", "bad", parameters={"task": "few.jsonl"})
    merge_files(path, tmp_path / "out")
    assert_fisher(merged_leaves(tmp_path / "out"), ["near", "bad"], [prompts("few.jsonl")] * 2)


def test_fisher_of_the_models_own_answers(recipe, tmp_path):
    settings = {"task": "few.jsonl", "labels": "samples", "max_new_tokens": 8, "seed": 5}
    path = recipe("fisher", "near", "bad", parameters=settings)
    merge_files(path, tmp_path / "out")
    asked, tokenizer = prompts("few.jsonl")[0], imm_jax.load_tokenizer("good")
    pairs = []
    for name in ("near", "bad"):
        config, params = load(name)
        drawn = imm_jax.generate(
            Decoder(config),
            params,
            tokenizer,
            asked,
            config=imm_jax.SamplingConfig(temperature=1.0, max_new_tokens=8),
            stop=HEADING_STOPS,
            seed=5,
            ids=[example.id for example in imm_jax.make_task("few.jsonl").test],
        )
        pairs.append((asked, [list(sample.tokens) for (sample,) in drawn]))
    assert_fisher(merged_leaves(tmp_path / "out"), ["near", "bad"], pairs)
