import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from imm_jax.training.config import TrainingConfig
from imm_jax.training.optimizer import learning_rate, make_optimizer, optimizer_bytes
from imm_jax.tree import num_bytes, unstack_layers

STEPS = 25


def reference_rate(config, step, total):
    """transformers' get_cosine_schedule_with_warmup and its kin, in float64."""
    warmup = math.ceil(total * config.warmup_ratio)
    if step < warmup:
        return config.learning_rate * step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    decay = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }
    return config.learning_rate * decay[config.schedule]


def problem(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "attn": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=(3,))},
        "norm": {"scale": rng.normal(size=(3,))},
    }
    # Norms both above and below the clipping threshold of 1.
    grads = [jax.tree.map(lambda x: rng.normal(size=x.shape) * 10.0 ** rng.integers(-2, 1), params)
             for _ in range(STEPS)]  # fmt: skip
    return params, grads


def reference_adamw(config, params, grads):
    """AdamW from its paper's Algorithm 2 (decoupled decay times the rate), in float64."""
    flat = [np.array(x) for x in jax.tree.leaves(params)]
    decayed = ["kernel" in jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(params)]
    m, v = [np.zeros_like(x) for x in flat], [np.zeros_like(x) for x in flat]
    for step, tree in enumerate(grads):
        leaves = jax.tree.leaves(tree)
        norm = math.sqrt(sum((g**2).sum() for g in leaves))
        scale = 1.0 if config.max_grad_norm is None else min(1.0, config.max_grad_norm / norm)
        rate = reference_rate(config, step, STEPS)
        for i, g in enumerate(leaves):
            g = g * scale
            m[i] = config.b1 * m[i] + (1 - config.b1) * g
            v[i] = config.b2 * v[i] + (1 - config.b2) * g**2
            m_hat, v_hat = (
                m[i] / (1 - config.b1 ** (step + 1)),
                v[i] / (1 - config.b2 ** (step + 1)),
            )
            decay = config.weight_decay * flat[i] if decayed[i] else 0
            flat[i] = flat[i] - rate * (m_hat / (np.sqrt(v_hat) + config.eps) + decay)
    return flat


def run(config, params, grads):
    optimizer = make_optimizer(config)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, grads, step):
        updates, state = optimizer.update(grads, state, params, step=step, total_steps=STEPS)
        return jax.tree.map(jnp.add, params, updates), state

    for step, tree in enumerate(grads):
        tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
        params, state = update(params, state, tree, step)
    return jax.tree.leaves(params)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1, "warmup_ratio": 0.2},
        {"schedule": "linear", "max_grad_norm": None},
        {"schedule": "constant", "b1": 0.8, "b2": 0.95, "eps": 1e-3},
    ],
)
def test_updates_match_adamw_in_float64(options):
    config = TrainingConfig(learning_rate=1e-2, **options)
    params, grads = problem()
    for ours, theirs in zip(run(config, params, grads), reference_adamw(config, params, grads)):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.1, 1.0])
@pytest.mark.parametrize("total", [1, 7, 100, 3000])
def test_learning_rate_follows_transformers_schedule(schedule, ratio, total):
    config = TrainingConfig(schedule=schedule, warmup_ratio=ratio, learning_rate=2e-5)
    steps = np.arange(total)
    ours = jax.jit(jax.vmap(lambda s: learning_rate(config, s, total)))(steps)
    want = [reference_rate(config, step, total) for step in steps]
    np.testing.assert_allclose(ours, want, atol=2e-5 * 2e-6)


def test_fine_tunes_of_different_lengths_share_one_program():
    config, traces = TrainingConfig(), []

    @jax.jit
    def rate(step, total):
        traces.append(1)
        return learning_rate(config, step, total)

    assert rate(jnp.int32(9), jnp.int32(10)) < rate(jnp.int32(9), jnp.int32(20))
    assert len(traces) == 1


@pytest.mark.parity
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_match_torch_adamw_and_transformers_schedule(weight_decay):
    torch = pytest.importorskip("torch")
    from transformers import get_cosine_schedule_with_warmup

    config = TrainingConfig(learning_rate=1e-2, weight_decay=weight_decay, warmup_ratio=0.2)
    params, grads = problem()
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(params)]
    tensors = [torch.nn.Parameter(torch.tensor(x)) for x in jax.tree.leaves(params)]
    groups = [
        {"params": [t for t, p in zip(tensors, paths) if "kernel" in p]},
        {"params": [t for t, p in zip(tensors, paths) if "kernel" not in p], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.b1, config.b2), eps=config.eps,
        weight_decay=weight_decay,
    )  # fmt: skip
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(STEPS * 0.2), STEPS)
    for tree in grads:
        for tensor, grad in zip(tensors, jax.tree.leaves(tree)):
            tensor.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_(tensors, config.max_grad_norm)
        optimizer.step()
        schedule.step()
    for ours, theirs in zip(run(config, params, grads), tensors):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=5e-6)


def test_a_bfloat16_first_moment_is_what_optax_makes_of_it():
    """Optax takes ``b1 * m`` in bfloat16, with ``b1`` rounded too, and adds in float32."""
    config = TrainingConfig(mu_dtype="bfloat16", max_grad_norm=None)
    half = lambda x: np.asarray(x, ml_dtypes.bfloat16).astype(np.float64)
    params, grads = problem()
    optimizer = make_optimizer(config)
    state = optimizer.init(jax.tree.map(jnp.float32, params))
    m, v = (jax.tree.map(np.zeros_like, params) for _ in range(2))
    for step, grad in enumerate(grads):
        narrow = jax.tree.map(jnp.float32, grad)
        updates, state = optimizer.update(narrow, state, None, step=step, total_steps=STEPS)
        before = jax.tree.map(lambda m, g: half(half(0.9) * m) + 0.1 * g, m, grad)
        m, v = (
            jax.tree.map(half, before),
            jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, v, grad),
        )
    moments = state[0]
    for ours, theirs in zip(jax.tree.leaves(moments.mu), jax.tree.leaves(m)):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(ours), theirs, rtol=2**-7)
    for ours, theirs in zip(jax.tree.leaves(moments.nu), jax.tree.leaves(v)):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    rate = reference_rate(config, STEPS - 1, STEPS)
    for update, m_, v_ in zip(*map(jax.tree.leaves, (updates, before, v))):
        want = -rate * (m_ / (1 - 0.9**STEPS)) / (np.sqrt(v_ / (1 - 0.999**STEPS)) + 1e-8)
        np.testing.assert_allclose(update, want, rtol=0.02)


FACTORED, PLAIN = (130, 140), (127, 140)  # optax factors from 128 on


def layered(seed=0):
    """Parameters with a stack of two layers and matrices on both sides of the limit."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape)
    return {
        "embed": {"embedding": draw(*FACTORED)},
        "layers": {
            "mlp": {"kernel": draw(2, *FACTORED), "bias": draw(2, 140)},
            "attn": {"kernel": draw(2, *PLAIN)},
        },
    }


def reference_adafactor(config, params, grads):
    """Algorithm 4 of its paper with the given rate in the place of the relative one, float64.

    ``params``: single tensors, so layers must be unstacked.
    """
    flat = [np.array(x) for x in jax.tree.leaves(params)]
    rows, columns, v = ([0.0] * len(flat) for _ in range(3))
    for step, tree in enumerate(grads):
        beta2 = 1 - (step + 1) ** -0.8
        for i, g in enumerate(jax.tree.leaves(tree)):
            square = g**2 + 1e-30
            if g.shape == FACTORED:
                rows[i] = beta2 * rows[i] + (1 - beta2) * square.sum(axis=1)
                columns[i] = beta2 * columns[i] + (1 - beta2) * square.sum(axis=0)
                v[i] = np.outer(rows[i], columns[i]) / rows[i].sum()
            else:
                v[i] = beta2 * v[i] + (1 - beta2) * square
            update = g / np.sqrt(v[i])
            update /= max(1, np.sqrt(np.mean(update**2)))
            flat[i] = flat[i] - reference_rate(config, step, STEPS) * update
    return flat


ADAFACTOR = TrainingConfig(optimizer="adafactor", learning_rate=1e-2, max_grad_norm=None)


def layered_grads(steps):
    """Layers' gradients of unlike size, so that statistics shared between them would show."""
    scale = lambda x: np.stack([x[0], 1e-3 * x[1]]) if len(x) == 2 else x
    return [jax.tree.map(scale, layered(seed + 1)) for seed in range(steps)]


def test_updates_match_adafactor_in_float64_on_each_layer_apart():
    params, grads = layered(), layered_grads(3)
    ours = jax.tree.unflatten(jax.tree.structure(params), run(ADAFACTOR, params, grads))
    apart = [unstack_layers(grad) for grad in grads]
    want = reference_adafactor(ADAFACTOR, unstack_layers(params), apart)
    for x, y in zip(jax.tree.leaves(unstack_layers(ours)), want):
        np.testing.assert_allclose(x, y, atol=1e-6)
    # The same without the stack.
    for x, y in zip(run(ADAFACTOR, unstack_layers(params), apart), want):
        np.testing.assert_allclose(x, y, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "matrix", "small"),
    [
        ({}, 8 * 130 * 140, 8),
        ({"mu_dtype": "bfloat16"}, 6 * 130 * 140, 6),
        ({"optimizer": "adafactor"}, 4 * (130 + 140), 4),
    ],
)
def test_the_bytes_of_optimizer_state_are_what_is_said_and_what_is_held(options, matrix, small):
    config, params = TrainingConfig(**options), layered()
    said = optimizer_bytes(config, jax.eval_shape(lambda: params))
    held = make_optimizer(config).init(jax.tree.map(jnp.float32, params))
    assert said == num_bytes(held) == sum(x.nbytes for x in jax.tree.leaves(held))
    # Three matrices that are factored, the rest not; a step count and stand-ins of a few bytes.
    assert 0 <= said - (3 * matrix + small * (2 * 127 * 140 + 2 * 140)) < 200


@pytest.mark.parity
def test_updates_match_transformers_adafactor():
    torch = pytest.importorskip("torch")
    from transformers.optimization import Adafactor

    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=FACTORED), "bias": rng.normal(size=(140,))}
    grads = [jax.tree.map(lambda x: rng.normal(size=x.shape), params) for _ in range(5)]
    config = TrainingConfig(
        optimizer="adafactor", learning_rate=1e-2, max_grad_norm=None, schedule="constant",
        warmup_ratio=0.0,
    )  # fmt: skip
    tensors = [torch.nn.Parameter(torch.tensor(x)) for x in jax.tree.leaves(params)]
    optimizer = Adafactor(tensors, lr=1e-2, scale_parameter=False, relative_step=False)
    for tree in grads:
        for tensor, grad in zip(tensors, jax.tree.leaves(tree)):
            tensor.grad = torch.tensor(grad)
        optimizer.step()
    for ours, theirs in zip(run(config, params, grads), tensors):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=2e-6)
