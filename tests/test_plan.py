"""Arithmetic of memory against the bytes of arrays and of compiled programs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from imm_jax import memory
from imm_jax.laboratory.pretraining import init_params
from imm_jax.memory import Workload
from imm_jax.models.config import ModelConfig
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.decode import decode_weights
from imm_jax.sharding import parse_mesh
from imm_jax.training.batching import Batches, Sequence
from imm_jax.training.config import LoraConfig, TrainingConfig
from tests.devices import ask

FACTOR = 1.5  # how far a formula may be from what XLA says, either way

SMALL = {
    "model_type": "llama", "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 384,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 16,
}  # fmt: skip
LONG = {"micro_batch_size": 4, "max_length": 257, "bucket": 32, "loss_chunk": 128}
SHORT = LONG | {"max_length": 129}
# name: mesh, changes to the model, the fine-tune
STEPS = {
    "remat": ("data=1", {}, LONG),
    "minimal remat": ("data=1", {}, LONG | {"remat_policy": "minimal"}),
    "no remat": ("data=1", {}, LONG | {"remat": False}),
    "tied, large vocabulary": (
        "data=1", {"vocab_size": 32768, "tie_word_embeddings": True}, SHORT,
    ),
    "bfloat16": ("data=1", {"vocab_size": 32768}, SHORT | {"compute_dtype": "bfloat16"}),
    "fsdp": ("fsdp=8", {"vocab_size": 32768}, SHORT),
    "data": ("data=8", {"vocab_size": 32768}, SHORT | {"loss_chunk": 512}),
    "fsdp and tensor": ("fsdp=2,tensor=4", {}, LONG),
}  # fmt: skip
SAMPLING = SamplingConfig(max_new_tokens=100, batch_size=64, chunk=8)
PROMPT = 256

MEASURE = """
from imm_jax import likelihood
from imm_jax.merging import drop_and_rescale, merge_params
from imm_jax.sampling import decode
from imm_jax.sampling.batch import cache_slots
from imm_jax.training.batching import Batch, micro_batch_rows
from imm_jax.training.config import TrainingConfig
from imm_jax.training.optimizer import make_optimizer
from imm_jax.training.step import init_state, make_train_step

small, steps, prompt = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
shape = jax.ShapeDtypeStruct

def shapes(config):
    return jax.eval_shape(lambda: draw(config))

def part_bytes(tree):
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
               for x in jax.tree.leaves(tree))

for name, (text, changes, training) in steps.items():
    config, training = ModelConfig(**small | changes), TrainingConfig(**training)
    model, optimizer = Decoder(config), make_optimizer(training)
    mesh = sharding.make_mesh(text) if text != "data=1" else None
    state = jax.eval_shape(lambda p: init_state(p, optimizer, 10), shapes(config))
    parts = sharding.batch_shards(mesh.shape) if mesh else 1
    width = training.max_length - 1
    rows = micro_batch_rows(training, width, width, on_cpu=True, shards=parts)
    rows = (2, rows * parts, width)
    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    where = sharding.param_shardings(mesh, state) if mesh else jax.tree.map(lambda _: whole, state)
    state = jax.tree.map(lambda x, s: shape(x.shape, x.dtype, sharding=s), state, where)
    by_rows = sharding.batch_sharding(mesh, 1) if mesh else whole
    ids, mask = (shape(rows, dtype, sharding=by_rows) for dtype in (jnp.int32, jnp.float32))
    batch = Batch(ids, ids, mask, ids, ids, shape((), jnp.int32))
    with sharding.on(mesh):
        compiled = make_train_step(model, optimizer, training).lower(state, batch).compile()
    answers[name] = {
        "params": part_bytes(state.params), "optimizer": part_bytes(state.opt_state),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes}

model = Decoder(ModelConfig(**small | {"vocab_size": 32768}))
weights = jax.eval_shape(lambda p: decode.unstack_layers(p), shapes(model.config))
layers = jax.eval_shape(lambda: decode.empty(model, 64, cache_slots(prompt + 100, prompt + 100)))
i = shape((64,), jnp.int32)
rows = decode.Rows(i, i, i, shape((64,), bool), shape((64, 2), jnp.uint32))
chunk = decode.decode_chunk.lower(model, weights, None, layers, rows, 100, 0.7, steps=8, eos=(0,))
prefill = decode.prefill.lower(model, weights, None, shape((16, prompt), jnp.int32)).compile()
prefill = prefill.memory_analysis()
i = lambda *sizes: shape(sizes, jnp.int32)
asked = likelihood.Rows(i(16, prompt), i(32), i(32), i(32, 8), shape((32, 8), jnp.float32))
weighed = likelihood.row_scores.lower(model, weights, None, asked).compile().memory_analysis()
p = shapes(model.config)
merge = jax.jit(lambda one, two, key: merge_params(
    one, two, weight=0.5, transform=drop_and_rescale(0.2), key=key))
merged = merge.lower(p, p, jax.random.key(0)).compile()
nbytes = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
answers["sampling"] = {
    "weights": nbytes(weights), "cache": nbytes(layers),
    "decode": chunk.compile().memory_analysis().temp_size_in_bytes,
    "prefill": prefill.temp_size_in_bytes + prefill.output_size_in_bytes,
    "weighed": weighed.temp_size_in_bytes,
    "merge": merged.memory_analysis().temp_size_in_bytes}
"""


@pytest.fixture(scope="module")
def measured():
    return ask(MEASURE, json.dumps(SMALL), json.dumps(STEPS), PROMPT)


def workload(mesh: str, changes: dict, training: dict, **more) -> Workload:
    return Workload(
        model=ModelConfig(**SMALL | changes),
        sizes=parse_mesh(mesh),
        training=TrainingConfig(**training),
        on_cpu=True,
        **more,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_training_needs_what_the_compiled_step_needs(measured, name):
    work, found = workload(*STEPS[name]), measured[name]
    assert memory.param_bytes(work, 4) == found["params"]
    assert memory.optimizer_bytes(work) == found["optimizer"]
    expected = memory.gradient_bytes(work) + memory.activation_bytes(work)
    expected += memory.loss_bytes(work) + memory.gathered_bytes(work)
    assert found["temporaries"] / FACTOR < expected < found["temporaries"] * FACTOR


@pytest.mark.slow
def test_sampling_needs_what_its_programs_need(measured):
    found = measured["sampling"]
    large = workload("data=1", {"vocab_size": 32768}, LONG, sampling=SAMPLING, prompt=PROMPT)
    assert memory.decode_weight_bytes(large, SAMPLING) == found["weights"]
    assert memory.cache_bytes(large, SAMPLING) == found["cache"] * (1 + 256 / 384)  # while it grows
    # A vocabulary of no size leaves the prefill, a prompt of no length the decode step.
    prefill = dataclasses.replace(large, model=dataclasses.replace(large.model, vocab_size=1))
    expected = memory.decode_bytes(prefill, SAMPLING)
    assert found["prefill"] / FACTOR < expected < found["prefill"] * FACTOR
    decode = memory.decode_bytes(dataclasses.replace(large, prompt=0), SAMPLING)
    assert found["decode"] / FACTOR < decode < found["decode"] * FACTOR
    weighed = memory.weighing_bytes(prefill, SAMPLING)  # 64 rows, of which 32 share 16 prompts
    assert found["weighed"] / FACTOR < weighed < found["weighed"] * FACTOR


@pytest.mark.slow
def test_a_merge_needs_no_more_than_an_array(measured):
    work = workload("data=1", {"vocab_size": 32768}, LONG)
    assert measured["sampling"]["merge"] <= memory.merge_bytes(work) == 4 * 32768 * 128


def test_a_fit_on_cpu_is_planned_with_the_rows_it_takes():
    """More than keep its products busy are not put side by side, whatever the setting."""
    sequences = [Sequence(tuple(range(129)), 1)] * 64
    few, many = ({**SHORT, "micro_batch_size": count} for count in (4, 32))
    batch = Batches(sequences, TrainingConfig(**many), seed=0)[0]
    assert batch.tokens.shape[1:] == (4, 128)
    needs = [memory.plan(workload("data=1", {}, training))["train"] for training in (few, many)]
    assert needs[0] == needs[1]
    # Of sequences that are shorter than they may be two fit where one of the longest does.
    longer = TrainingConfig(**many | {"max_length": 289})
    batch = Batches([Sequence(tuple(range(257)), 1)] * 64, longer, seed=0)[0]
    assert memory.micro_batch(workload("data=1", {}, dataclasses.asdict(longer))) == (2, 256)
    assert batch.tokens.shape[1:] == (2, 256)
    gpu = dataclasses.replace(workload("data=1", {}, many), on_cpu=False)
    assert memory.activation_bytes(gpu) > 4 * needs[1]["activations"]


def test_lora_and_other_optimizers_need_less():
    full = workload("data=1", {}, LONG)
    lora = workload("data=1", {}, LONG | {"lora": LoraConfig(rank=4, targets=("layers/mlp",))})
    adapters = 4 * 3 * 4 * (128 + 384)  # layers, kernels, rank, in + out
    assert memory.trained_bytes(lora) == 4 * adapters
    assert memory.gradient_bytes(lora) == 4 * adapters
    assert memory.optimizer_bytes(lora) == 8 * adapters + 4  # and a count
    assert memory.optimizer_bytes(full) == 8 * memory.param_bytes(full, 1) + 4
    half = workload("data=1", {}, LONG | {"mu_dtype": "bfloat16"})
    assert memory.optimizer_bytes(half) == 6 * memory.param_bytes(full, 1) + 4


def test_narrow_decode_weights_are_a_second_copy():
    """On CPU alone; elsewhere sampling computes in bfloat16 anyway."""
    work, narrow = workload("data=1", {}, LONG), SamplingConfig(weights="bfloat16")
    matrices = 4 * (4 * 128 * 128 + 3 * 128 * 384) + 2 * 2048 * 128  # embedding and head
    vectors = (2 * 4 + 1) * 128  # norms
    usual = memory.decode_weight_bytes(work, SamplingConfig())
    assert usual == 4 * (matrices + vectors)
    assert memory.decode_weight_bytes(work, narrow) == usual + 2 * matrices + 4 * vectors
    params = jax.eval_shape(lambda: init_params(work.model, 0))
    copy = jax.eval_shape(lambda p: decode_weights(p, jnp.float32, jnp.bfloat16), params)
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(copy)) == (
        2 * matrices + 4 * vectors
    )
    split = dataclasses.replace(work, sizes=parse_mesh("data=2,tensor=4"))
    assert memory.decode_weight_bytes(split, narrow) == (4 + 2) * matrices // 4 + 2 * 4 * vectors
    accelerator = dataclasses.replace(work, on_cpu=False)
    assert memory.decode_weight_bytes(accelerator, narrow) == 2 * (matrices + vectors)
    plan = memory.plan(dataclasses.replace(work, sampling=narrow))
    extra = plan["sample"]["weights for decoding"] - plan["evaluate"]["weights for decoding"]
    assert extra == 2 * matrices + 4 * vectors


def bytes_of(config: ModelConfig) -> int:
    """Of its parameters in float32, from their shapes."""
    params = jax.eval_shape(lambda: init_params(config, 0))
    return 4 * sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(("on_cpu", "count"), [(True, 2), (False, 1)])
def test_a_teacher_is_there_while_it_samples(on_cpu, count):
    """With its own shapes, beside the run's models; it does nothing else."""
    work = dataclasses.replace(workload("data=1", {}, LONG), on_cpu=on_cpu, sampling=SAMPLING)
    teacher = ModelConfig(**SMALL | {"vocab_size": 4096, "num_hidden_layers": 6})
    alone, taught = memory.plan(work), dataclasses.replace(work, teacher=teacher)
    answering = memory.plan(dataclasses.replace(work, model=teacher))["sample"]
    models = {"models": count * bytes_of(work.model), "teacher": bytes_of(teacher)}
    found = memory.plan(taught)
    assert found["sample"] == answering | models
    assert found | {"sample": alone["sample"]} == alone
    narrow = dataclasses.replace(taught, weights=2, sizes=parse_mesh("fsdp=2,tensor=2"))
    assert models["teacher"] / 8 <= memory.plan(narrow)["sample"]["teacher"] < bytes_of(teacher) / 7


def test_a_judge_answers_longer_prompts():
    work = workload("data=1", {}, LONG, sampling=SAMPLING, prompt=PROMPT)
    judged = memory.plan(dataclasses.replace(work, judge_prompt=2 * PROMPT))
    assert list(judged) == ["sample", "select", "train", "merge", "evaluate"]
    assert judged["select"] == memory.plan(dataclasses.replace(work, prompt=2 * PROMPT))["sample"]
    assert "select" not in memory.plan(work)
    critics = memory.plan(dataclasses.replace(work, critic_prompt=2 * PROMPT))["select"]
    assert "KV cache" not in critics
    same = {name: judged["select"][name] for name in ("models", "weights for decoding")}
    assert critics == same | {"sampling temporaries": critics["sampling temporaries"]}
    # A teacher does not judge: the model that is trained does.
    taught = dataclasses.replace(work, teacher=work.model, judge_prompt=2 * PROMPT)
    assert memory.plan(taught)["select"] == judged["select"]
