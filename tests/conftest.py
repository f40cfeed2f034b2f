"""Fixtures that every room's tests share: tiny configurations, weights and a tokenizer."""

import dataclasses
import shutil
import time

import jax
import numpy as np
import pytest

from imm_jax.cli import main
from imm_jax.models.config import ModelConfig
from imm_jax.models.layout import param_shapes
from tests.answering import SECONDS, SECONDS_WITH_WORK, snapshot
from tests.compiling import memory_maps, optimisations
from tests.processes import import_all

CORPUS = (
    "Natalia sold 48 clips in April and then half as many in May. How many clips did she sell?",
    "There are 15 trees in the grove. After the workers plant more there will be 21 trees.",
    "Tom has 7 apples and buys 12 more, so he has 7 + 12 = 19 apples. The answer is 19.",
    "Question: what is 3 times 14? Answer: 3 * 14 = 42. The answer is 42.",
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "Each box holds 6 eggs. Five boxes hold 5 * 6 = 30 eggs, and 30 - 4 = 26 eggs are left.",
    "Sam reads 9 pages on Monday and 13 pages on Tuesday; in total 22 pages. The answer is 22.",
)
TOGETHER = "rounds"  # the room whose tests share what takes long to make
SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>")  # ids 0 and 1
VOCAB_SIZE = 320

TINY = ModelConfig(
    model_type="llama",
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    eos_token_id=0,
    pad_token_id=1,
)
LOCAL_GLOBAL = ("sliding_attention", "full_attention", "sliding_attention")
TINY_FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 6, "layer_types": ("sliding_attention",) * 3},
    "qwen2": {"qkv_bias": True, "tie_word_embeddings": True},
    "qwen3": {"qk_norm": True, "head_dim": 16},
    "gemma3_text": {
        "qk_norm": True,
        "sandwich_norm": True,
        "rms_norm_unit_offset": True,
        "hidden_act": "gelu_pytorch_tanh",
        "head_dim": 16,
        "num_key_value_heads": 1,
        "embed_scale": 32**0.5,
        "query_pre_attn_scalar": 24.0,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window": 5,
        "layer_types": LOCAL_GLOBAL,
        "tie_word_embeddings": True,
    },
}


def pytest_addoption(parser):
    words = "of every file the first N tests, and of one with several cases the first alone"
    parser.addoption("--first-tests", type=int, metavar="N", help=words)


def pytest_collection_modifyitems(config, items):
    """The longest files come first, so that no process is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.parent.name != TOGETHER, item.path not in slow))
    first = config.getoption("first_tests")
    if first is not None:
        cases: dict = {}
        for item in items:
            every = item.get_closest_marker("every_case")
            file = cases.setdefault(item.path, {})
            if item.originalname in file or len(file) < first:
                own = file.setdefault(item.originalname, [])
                own += [item] if every or not own else []
        items[:] = [item for file in cases.values() for own in file.values() for item in own]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With ``--dist loadfile`` one process takes all tests of runs, which share one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return TOGETHER if file.startswith(f"tests/{TOGETHER}/") else file

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def quick_compilation():
    """More than half the time of most tests is XLA optimising programs that run for a millisecond.

    For the session, so that what its fixtures compute was compiled in the same way.
    """
    with optimisations(False):
        yield


@pytest.fixture(scope="module", autouse=True)
def not_too_many_programs():
    """Frees what files before this one have compiled, once it is much.

    A program on a CPU holds some memory maps, of which Linux allows a process 65,530 in all; with
    the programs of every file in one process the next one crashed. One file's are below 10,000.
    """
    yield
    if memory_maps() > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_config():
    """``tiny_config(family, **changes)``: a three-layer configuration, 320 tokens, 32 wide.

    Token 0 ends a text, token 1 pads, as in ``tiny_tokenizer``.
    """

    def build(family: str = "llama", **changes) -> ModelConfig:
        return dataclasses.replace(TINY, model_type=family, **(TINY_FAMILIES[family] | changes))

    return build


@pytest.fixture(scope="session")
def random_params():
    """``random_params(config, seed=0)``: the canonical tree, float32 NumPy, norms near identity."""

    def build(config: ModelConfig, seed: int = 0) -> dict:
        rng = np.random.default_rng(seed)
        tree: dict = {}
        for path, shape in param_shapes(config).items():
            *folders, leaf = path.split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            centre = 1.0 if leaf == "scale" and not config.rms_norm_unit_offset else 0.0
            width = 0.2 if leaf != "kernel" else shape[-2] ** -0.5
            node[leaf] = (centre + width * rng.standard_normal(shape)).astype(np.float32)
        return tree

    return build


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer of 320 tokens, trained on a few sentences; eos 0, pad 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL_TOKENS[0],
        pad_token=SPECIAL_TOKENS[1],
        model_max_length=256,
    )


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    """A copy of the module's ``whole``, a folder in which everything is right, to work in."""
    folder = tmp_path / "place"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set, so that the command leaves it alone")
    return folder


@pytest.fixture
def refused(place, capsys):
    """``refused(argv)`` gives the message, once all that holds of every mistake is checked.

    Where it is found after some work, files may be there (``unchanged``) or words (``silent``).
    """
    import_all()  # some seconds of a process's first mistake, which are not the mistake's

    def check(argv, unchanged: bool = True, silent: bool = True) -> str:
        before, start = snapshot(place), time.process_time()
        code = main(list(argv))
        seconds = time.process_time() - start  # others at work do not count
        printed = capsys.readouterr()
        lines = printed.err.splitlines()
        assert code == 2, printed.err
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], printed.err
        assert "Traceback" not in printed.err and not (silent and printed.out)
        assert len(lines[-1]) < 500 and "_" * 9 not in lines[-1]
        assert seconds < (SECONDS if unchanged and silent else SECONDS_WITH_WORK)
        if unchanged:
            assert snapshot(place) == before
        return lines[-1].removeprefix("error: ")

    return check


@pytest.fixture
def command(capsys):
    """``command(*argv)``: runs it, which must succeed, and gives what it printed."""

    def call(*argv) -> str:
        code = main([str(word) for word in argv])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return call
