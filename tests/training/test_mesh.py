"""Training on 8 devices: the numbers of one device, a state and gradients that are split."""

import pytest

from tests.devices import ask

pytestmark = pytest.mark.slow

TRAIN = """
import re
from imm_jax.training import fit as fits
from imm_jax.training.batching import Batches, Sequence
from imm_jax.training.config import LoraConfig, TrainingConfig
from imm_jax.training.optimizer import make_optimizer
from imm_jax.training.step import init_state, make_train_step

rng = np.random.default_rng(0)
sequences = []
for _ in range(20):
    start, length = int(rng.integers(0, 61)), int(rng.integers(4, 20))
    sequences.append(Sequence(tuple((start + 7 * i) % 61 for i in range(length)), 2))
config = TrainingConfig(
    learning_rate=1e-2, epochs=2, batch_size=8, micro_batch_size=1, max_length=32, bucket=8,
    loss_chunk=4, weight_decay=0.1)

for text, changes, fitting in (
    ("data=2,fsdp=4", {}, config),
    ("data=2,fsdp=2,tensor=2", {"tie_word_embeddings": True, "qkv_bias": True},
     dataclasses.replace(config, packing=False, remat=False, bucket=32)),
):
    model = Decoder(dataclasses.replace(LLAMA, **changes))
    params, mesh = draw(model.config), sharding.make_mesh(text)
    alone, expected = fits.fit(model, params, sequences, fitting, seed=0)
    begun = spread(params, mesh)
    many, stats = fits.fit(model, begun, sequences, fitting, seed=0)
    answers[text] = found = {
        "moved": furthest(alone, params),
        "furthest": furthest(alone, many),
        "losses": [expected["history"]["loss"], stats["history"]["loss"]],
        "tokens": [expected["tokens"], stats["tokens"]],
        "kept where they were": [x.sharding for x in jax.tree.leaves(many)]
        == [x.sharding for x in jax.tree.leaves(begun)],
        "originals": furthest(params, begun),
    }
    # One program for every step of both fine-tunes on this mesh.
    before = fits._train_step(model, fitting)._cache_size()
    fits.fit(model, many, sequences, fitting, seed=0)
    found["new programs"] = fits._train_step(model, fitting)._cache_size() - before

    optimizer = make_optimizer(fitting)
    new = lambda params: init_state(params, optimizer, 6)
    table = sharding.param_shardings(mesh, jax.eval_shape(new, begun))
    state = jax.jit(new, out_shardings=table)(begun)
    batches = Batches(sequences, fitting, seed=0, shards=sharding.batch_shards(mesh.shape))
    batch = sharding.place_batch(mesh, batches[0], axis=1)
    jax.config.update("jax_disable_most_optimizations", False)  # the program that is looked at
    with sharding.on(mesh):
        compiled = make_train_step(model, optimizer, fitting).lower(state, batch).compile()
        state, _ = compiled(state, batch)
    jax.config.update("jax_disable_most_optimizations", True)
    bytes_of = lambda tree: [sum(x.addressable_shards[i].data.nbytes for x in jax.tree.leaves(tree))
                             for i in range(8)]
    found["state"] = {"whole": sum(x.nbytes for x in jax.tree.leaves(state)),
                      "params": bytes_of(state.params), "optimizer": bytes_of(state.opt_state)}
    found["elements"] = {path: int(np.prod(shape))
                         for path, shape in param_shapes(model.config).items()}
    moments = state.opt_state[1].mu
    found["as parameters"] = [x.sharding for x in jax.tree.leaves(moments)] == [
        x.sharding for x in jax.tree.leaves(state.params)]
    gathered = re.findall(r"= \\w+\\[([\\d,]*)\\]\\S* all-gather", compiled.as_text())
    found["gathered"] = [[int(n) for n in shape.split(",") if n] for shape in gathered]
    found["rows"] = [list(batch.tokens.shape),
                     list(batch.tokens.addressable_shards[0].data.shape)]

model, others = Decoder(LLAMA), {
    "lora": {"lora": LoraConfig(rank=4), "packing": False, "bucket": 32},
    "adafactor": {"optimizer": "adafactor"},
    "bfloat16": {"compute_dtype": "bfloat16"},
}
for name, changes in others.items():
    fitting = dataclasses.replace(config, weight_decay=0.0, epochs=1, **changes)
    params = draw(model.config)
    begun = spread(params, sharding.make_mesh("fsdp=4,tensor=2"))
    alone, _ = fits.fit(model, params, sequences, fitting, seed=0)
    many, _ = fits.fit(model, begun, sequences, fitting, seed=0)
    answers[name] = [furthest(alone, many), furthest(alone, params), all(
        x.sharding == y.sharding for x, y in zip(*map(jax.tree.leaves, (many, begun))))]
"""
MESHES = {"data=2,fsdp=4": 4, "data=2,fsdp=2,tensor=2": 4}  # parts a matrix is split into


@pytest.fixture(scope="module")
def found():
    return ask(TRAIN)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_fit_gives_what_one_device_gives(found, mesh):
    here = found[mesh]
    assert here["furthest"] < 1e-5 < 1e-3 < here["moved"]
    alone, many = here["losses"]
    assert len(alone) == 6 and alone == pytest.approx(many, abs=1e-5)
    assert here["tokens"][0] == here["tokens"][1]
    assert here["kept where they were"] and here["originals"] == 0
    assert here["new programs"] == 0


@pytest.mark.parametrize(("mesh", "parts"), MESHES.items())
def test_each_device_holds_its_part_of_the_state(found, mesh, parts):
    here = found[mesh]
    split = ("kernel", "embedding")
    tensor = 2 if "tensor" in mesh else 1
    columns = ("q/bias", "k/bias", "v/bias")

    def part(path: str, size: int) -> float:
        return size / (parts if path.endswith(split) else tensor if path.endswith(columns) else 1)

    params = 4 * sum(part(path, size) for path, size in here["elements"].items())
    assert here["state"]["params"] == [params] * 8
    assert here["state"]["optimizer"] == [2 * params + 4] * 8  # two moments and a count
    assert here["as parameters"]
    # Nearly a quarter of what one device would hold; norms are whole.
    assert 3 * params + 4 < 0.27 * here["state"]["whole"]


@pytest.mark.parametrize("mesh", MESHES)
def test_weights_are_gathered_a_layer_at_a_time(found, mesh):
    here = found[mesh]
    assert here["gathered"]  # or the shapes were not found
    per_layer = max(size for path, size in here["elements"].items() if "layers/" not in path)
    assert all(len(shape) <= 2 for shape in here["gathered"])  # never [L, in, out]
    sizes = [shape[0] * shape[-1] for shape in here["gathered"]]
    assert max(sizes) <= per_layer  # one matrix: the embedding or the head


@pytest.mark.parametrize("mesh", MESHES)
def test_rows_of_a_micro_batch_are_split_over_the_batch_axes(found, mesh):
    whole, part = found[mesh]["rows"]
    shards = 8 if "tensor" not in mesh else 4
    assert whole[1] == shards * part[1] and whole[::2] == part[::2]


@pytest.mark.parametrize("name", ["lora", "adafactor"])
def test_other_fine_tunes_give_what_one_device_gives(found, name):
    furthest, moved, kept = found[name]
    assert furthest < 1e-5 < 1e-3 < moved and kept


def test_narrow_products_give_nearly_what_one_device_gives(found):
    """Sums that differ in their last bit may be rounded to either neighbour in bfloat16."""
    furthest, moved, kept = found["bfloat16"]
    assert furthest < 2e-3 < 1e-2 < moved and kept
