"""What a run needs in each device's memory, by arithmetic, before anything is allocated.

Letters: N parameters, L layers, D embed, F feed-forward, H query and K key-value heads of E, V
vocabulary; b rows of T tokens, n = b T; c bytes of a computed number (2 for bfloat16). On a mesh t
is the size of the tensor axis; what it splits is divided by it. Factors that count how many arrays
of a kind exist at a time were read off compiled programs (XLA's ``memory_analysis``).
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from imm_jax.likelihood import TEXT_BUCKET
from imm_jax.models.block_attention import block_size
from imm_jax.models.layout import param_shapes
from imm_jax.sampling.batch import PREFILL_ROWS, cache_slots
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sharding import Sizes, batch_shards, partition
from imm_jax.training.batching import micro_batch_rows
from imm_jax.training.lora import init_adapters
from imm_jax.training.optimizer import make_optimizer
from imm_jax.tree import path_str
from imm_jax.workload import FLOAT32, Workload

OPTIONS = 2  # of critics: yes and no


def param_bytes(work: Workload, itemsize: int, sizes: Sizes | None = None) -> int:
    """Of one model: the sum over its arrays of ``size / parts * itemsize``, split by the table."""
    sizes = sizes or work.sizes
    shapes = param_shapes(work.model).items()
    return sum(_part(path, shape, sizes) for path, shape in shapes) * itemsize


def trained_shapes(work: Workload) -> dict[str, tuple[int, ...]]:
    """Of what is trained: all parameters, or LoRA's adapters."""
    shapes = param_shapes(work.model)
    if work.training.lora is None:
        return shapes
    arrays = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    make = lambda: init_adapters(arrays, work.training.lora, jax.random.key(0))
    adapters = jax.tree_util.tree_leaves_with_path(jax.eval_shape(make))
    return {path_str(path): leaf.shape for path, leaf in adapters}


def trained_bytes(work: Workload) -> int:
    """The float32 copies that the optimizer changes: ``4 N``, or 4 times what adapters hold."""
    shapes = trained_shapes(work).items()
    return FLOAT32 * sum(_part(path, shape, work.sizes) for path, shape in shapes)


def optimizer_bytes(work: Workload) -> int:
    """What the optimizer keeps, split as the parameters; AdamW: two float32 moments, ``8 N``.

    The optimizer is asked for the shapes of its state, so the figure is right for any.
    """
    params = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in trained_shapes(work).items()
    }
    state = jax.eval_shape(make_optimizer(work.training).init, params)
    return sum(
        _part(path_str(path), leaf.shape, work.sizes) * leaf.dtype.itemsize
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    )


def gradient_bytes(work: Workload) -> int:
    """Float32: the sum over micro batches, ``4 N``, to which layers add in place; without remat a
    micro batch's own too, ``8 N``.
    """
    return (1 if work.training.remat else 2) * trained_bytes(work)


def activation_bytes(work: Workload) -> int:
    """Of a micro batch of b rows, n = b T on each part of the batch (``micro_batch_rows``)::

        with remat     L n D c + n c (8 D + 4 H E / t + 6 F / t) + 4 * 4 b H / t T Q
          "minimal"    L n c (D + 2 (H + K) E / t + 2 F / t) more
        without        L (n c (6 D + 4 H E / t + 4 F / t) + 3 * 4 b H / t T^2)
          on CPU       L n c (6 D + 8 H E / t + 4 F / t) + 4 * 4 b H / t T Q

    With remat the inputs of all blocks are kept, and one block at a time is computed again and
    differentiated; the last term is its attention scores, in float32, of Q = T queries at a time
    or, on CPU, of those of a block.
    """
    c, config = work.model, work.training
    rows, length = micro_batch(work)
    tokens, size, t = rows * length, work.computed, work.tensor
    queries, keys = work.heads(c.num_attention_heads), work.heads(c.num_key_value_heads)
    at_once = block_size(length) if work.on_cpu else length
    scores = FLOAT32 * rows * queries * length * at_once
    width, heads, inner = c.hidden_size, queries * c.head_dim, c.intermediate_size / t
    layers = c.num_hidden_layers * tokens * size
    if config.remat:
        kept = width
        if config.remat_policy == "minimal":
            kept += width + 2 * (queries + keys) * c.head_dim + 2 * inner
        block = tokens * size * (8 * width + 4 * heads + 6 * inner) + 4 * scores
        return round(layers * kept + block)
    if work.on_cpu:
        return round(layers * (6 * width + 8 * heads + 4 * inner) + 4 * scores)
    kept = layers * (6 * width + 4 * heads + 4 * inner)
    return round(kept + 3 * c.num_hidden_layers * scores)


def loss_bytes(work: Workload) -> int:
    """Logits of a chunk of response tokens and their gradient, and copies of the head::

        (4 + c) chunk V / t + (4 m + c) V D / t

    c is the size of a number in products, and its copy of the head exists where it is less than 4.
    m counts float32 arrays of the head's size beside the gradients: 1 where the head is tied to the
    embedding (each has a gradient), 1 where the batch is split (a gradient before the sum over
    parts), 4 more where fsdp gathers embedding and head and sums up their gradients.
    """
    c, config = work.model, work.training
    tokens = math.prod(micro_batch(work))
    chunk = min(config.loss_chunk or _logits_chunk(work), tokens)
    copies = c.tie_word_embeddings + (batch_shards(work.sizes) > 1) + 4 * (work.sizes["fsdp"] > 1)
    size = jnp.dtype(config.compute_dtype).itemsize
    head = (FLOAT32 * copies + (size if size < FLOAT32 else 0)) * c.vocab_size * c.hidden_size
    return ((FLOAT32 + size) * chunk * c.vocab_size + head) // work.tensor


def gathered_bytes(work: Workload) -> int:
    """With fsdp, one layer's weights whole, the next one's too, and its gradient before it is split
    again: ``(2 c + 4) N_layer / t``; 0 without.
    """
    if work.sizes["fsdp"] == 1:
        return 0
    sizes = {**work.sizes, "fsdp": 1}
    layers = {p: s for p, s in param_shapes(work.model).items() if p.startswith("layers/")}
    layer = sum(_part(path, shape, sizes) for path, shape in layers.items())
    return (2 * work.computed + FLOAT32) * layer // work.model.num_hidden_layers


def decode_weight_bytes(work: Workload, config: SamplingConfig) -> int:
    """Weights as decoding takes them, whole on every part of the batch: ``N c / t``; where their
    matrices are kept narrower (``config.weights``) that copy too: ``2 N / t`` beside a few vectors.
    """
    sizes = {**work.sizes, "data": 1, "fsdp": 1}
    weights = param_bytes(work, work.sampled, sizes)
    narrow = work.sampled if config.weights == "model" else jnp.dtype(config.weights).itemsize
    if narrow == work.sampled:
        return weights
    for path, shape in param_shapes(work.model).items():
        is_matrix = len(shape) - path.startswith("layers/") > 1
        weights += _part(path, shape, sizes) * (narrow if is_matrix else work.sampled)
    return weights


def cache_bytes(work: Workload, config: SamplingConfig) -> int:
    """Keys and values of the rows side by side, ``2 L b K / t S E c``, before and after the cache
    is grown to its last size.

    S is the prompt and the answer in slots (``sampling.batch.cache_slots``); before, the largest 64
    times a power of two that is less.
    """
    longest = work.prompt + config.max_new_tokens
    slots = cache_slots(longest, longest)
    before = cache_slots(slots // 2, longest)
    return _kv_bytes(work, config.batch_size * (slots + before))


def decode_bytes(work: Workload, config: SamplingConfig) -> int:
    """Temporaries of sampling, the larger of a prefill's and a decode step's::

    prefill    2 L n K / t E c + 2 n F / t c + 2 * 4 b H / t T^2      n = b T, b = 16 prompts
    decode     2 * 4 b V, or 3 with top_k, top_p or min_p
    """
    filters = bool(config.top_k or config.min_p or config.top_p < 1)
    decode = (2 + filters) * FLOAT32 * config.batch_size * work.model.vocab_size
    return max(_prefill_bytes(work, min(PREFILL_ROWS, config.batch_size)), decode)


def weighing_bytes(work: Workload, config: SamplingConfig) -> int:
    """Temporaries of finding how likely a yes and a no are, the larger of a prefill's, as in
    :func:`decode_bytes`, and two arrays of logits ``4 b V`` of a chunk of options' tokens.

    Keys and values of the rows that share a prompt exist a layer at a time.
    """
    rows = min(config.batch_size, OPTIONS * PREFILL_ROWS)
    logits = FLOAT32 * min(_logits_chunk(work), rows * TEXT_BUCKET) * work.model.vocab_size
    return max(_prefill_bytes(work, -(-rows // OPTIONS)), 2 * logits)


def sampling_bytes(work: Workload, config: SamplingConfig) -> dict[str, int]:
    """What answering needs beside the model, by what holds it."""
    return {
        "weights for decoding": decode_weight_bytes(work, config),
        "KV cache": cache_bytes(work, config),
        "sampling temporaries": decode_bytes(work, config),
    }


def merge_bytes(work: Workload) -> int:
    """Temporaries of a merge: no more than the largest array in float32."""
    shapes = param_shapes(work.model).items()
    return FLOAT32 * max(_part(path, shape, work.sizes) for path, shape in shapes)


def plan(work: Workload) -> dict[str, dict[str, int]]:
    """Bytes on each device by phase of a round and by what they hold.

    Models are counted as a round holds them. On CPU: the original and the one it began with, and
    from the merge on the tuned and the merged one too. Elsewhere those that a step does not need
    wait in the host's memory: one answers, one is trained (in its float32 copy, or beside LoRA's
    adapters), and two are merged into a third.

    A teacher is there beside them while it samples, and gone before anything else is done. A model
    that judges its samples answers once more, to prompts that hold them, or as its critics weighs a
    yes and a no: the phase ``select``.
    """
    model = param_bytes(work, work.weights)
    counts = (2, 2, 4, 4) if work.on_cpu else (1, int(work.training.lora is not None), 3, 1)
    sample, train, merge, evaluate = ({"models": n * model} if n else {} for n in counts)

    training = {
        "trained parameters": trained_bytes(work),
        "optimizer state": optimizer_bytes(work),
        "gradients": gradient_bytes(work),
        "activations": activation_bytes(work),
        "loss": loss_bytes(work),
        "gathered layers": gathered_bytes(work),
    }
    samples, judges = work, {}
    if work.teacher is not None:
        samples = dataclasses.replace(work, model=work.teacher)
        sample = {**sample, "teacher": param_bytes(samples, work.weights)}
    if work.judge_prompt is not None:
        asked = dataclasses.replace(work, prompt=work.judge_prompt)
        models = {"models": counts[0] * model}
        judges = {"select": {**models, **sampling_bytes(asked, work.sampling)}}
    if work.critic_prompt is not None:
        asked = dataclasses.replace(work, prompt=work.critic_prompt)
        critics = {
            "models": counts[0] * model,
            "weights for decoding": decode_weight_bytes(work, work.sampling),
            "sampling temporaries": weighing_bytes(asked, work.sampling),
        }
        judges = {"select": critics}
    return {
        "sample": {**sample, **sampling_bytes(samples, work.sampling)},
        **judges,
        "train": {**train, **training},
        "merge": {**merge, "merge temporaries": merge_bytes(work)},
        "evaluate": {**evaluate, **sampling_bytes(work, work.evaluation)},
    }


def peak(table: Mapping[str, Mapping[str, int]]) -> tuple[str, int]:
    """The phase that needs most, and how many bytes."""
    totals = {phase: sum(parts.values()) for phase, parts in table.items()}
    return max(totals.items(), key=lambda item: item[1])


def micro_batch(work: Workload) -> tuple[int, int]:
    """Rows of a micro batch on each part of the batch and their tokens, where these are most.

    That need not be where sequences are longest: more of shorter ones may fill a CPU's batch.
    """
    config, parts = work.training, batch_shards(work.sizes)
    longest = _up(max(1, config.max_length - 1), config.bucket)
    rows = lambda width: micro_batch_rows(config, width, width, on_cpu=work.on_cpu, shards=parts)
    width = max(
        range(config.bucket, longest + 1, config.bucket),
        key=lambda width: (rows(width) * width, width),
    )
    return rows(width), width


def _logits_chunk(work: Workload) -> int:
    """The default of ``training.loss``, on the planned device."""
    return 128 if work.on_cpu else 2048


def _prefill_bytes(work: Workload, rows: int) -> int:
    """``2 L n K / t E c + 2 n F / t c + 2 * 4 b H / t T^2`` with n = b T."""
    c, tokens = work.model, rows * work.prompt
    scores = FLOAT32 * tokens * work.prompt * work.heads(c.num_attention_heads)
    inner = 2 * tokens * c.intermediate_size * work.sampled // work.tensor
    return _kv_bytes(work, tokens) + inner + 2 * scores


def _kv_bytes(work: Workload, tokens: int) -> int:
    c = work.model
    heads = work.heads(c.num_key_value_heads)
    return 2 * c.num_hidden_layers * tokens * heads * c.head_dim * work.sampled


def _part(path: str, shape: tuple[int, ...], sizes: Sizes) -> int:
    """A device's elements of an array."""
    spec = [axis for axis in partition(path, shape, sizes) if axis is not None]
    return math.prod(shape) // math.prod(sizes[axis] for axis in spec)


def _up(length: int, unit: int) -> int:
    return -(-length // unit) * unit
