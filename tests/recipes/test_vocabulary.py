"""Vocabularies that differ, against mergekit's tokenizers and embeddings.

The golden file is mergekit 0.1.5's: ``python tests/recipes/mergekit_vocabularies.py`` writes it
where mergekit is installed; the parity test makes it again.
"""

import json

import ml_dtypes
import numpy as np
import pytest

from imm_jax.errors import InputError
from imm_jax.models.sources import resolve
from imm_jax.models.tokenizer import load_tokenizer
from imm_jax.recipes.names import read_tokenizer
from imm_jax.recipes.schema import check_keys
from imm_jax.recipes.types import Model, TokenRule
from imm_jax.recipes.vocabulary import MEAN, PADDING, ZERO, align, mean_row, take_rows
from tests.recipes.mergekit_vocabularies import (
    CASES,
    FOLDERS,
    GOLDEN,
    embedding,
    generate,
    save_folders,
)

MERGEKITS = json.loads(GOLDEN.read_text())
A, B, C, LONG = map(Model, FOLDERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The small models, by name."""
    folder = tmp_path_factory.mktemp("models")
    save_folders(folder)
    return {Model(name): resolve(folder / name) for name in FOLDERS}


@pytest.fixture(scope="module")
def whole(folders):
    """``whole(case)`` gives a case's vocabulary, and the one of the models that are merged."""

    def build(name: str):
        source, base, models, merged, padding, rules = CASES[name]
        source = source if source in ("base", "union") else folders[Model(source)]
        base = base and Model(base)
        settings = read_tokenizer(
            check_keys({"merge_method": "linear", "tokenizer": {"tokens": rules}}, "")
        )
        chosen = {Model(model): folders[Model(model)] for model in models.split()}
        vocabulary = align(source, base, chosen, padding, settings.tokens)
        return vocabulary, vocabulary.among([Model(m) for m in merged.split()], base)

    return build


def embeddings(vocabulary, dtype=np.float32) -> list[np.ndarray]:
    found = [embedding(str(model)).astype(dtype) for model in vocabulary.models]
    for array in found:
        array.flags.writeable = False  # as mapped files are
    return found


@pytest.mark.parametrize("name", CASES)
def test_embeddings_equal_mergekits(name, whole):
    _, vocabulary = whole(name)
    theirs, ids = MERGEKITS[name], vocabulary.tokenizer.get_vocab()
    assert vocabulary.size == theirs["size"]
    assert list(map(str, vocabulary.models)) == list(theirs["rows"])
    for i, (model, rows) in enumerate(theirs["rows"].items()):
        found = take_rows(embeddings(vocabulary), vocabulary, i, 0, vocabulary.size)
        assert found.dtype == np.float32 and found.shape == (vocabulary.size, 2)
        assert ids.keys() == rows.keys()
        for token, row in rows.items():
            np.testing.assert_allclose(found[ids[token]], row, rtol=1e-7, err_msg=token)
        if theirs["padding"]:
            expected = np.tile(theirs["padding"][model], (vocabulary.size - len(ids), 1))
            np.testing.assert_allclose(found[len(ids) :], expected, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, found in MERGEKITS.items() if found["ids"]])
def test_ids_equal_mergekits(name, whole):
    vocabulary, _ = whole(name)
    assert vocabulary.tokenizer.get_vocab() == MERGEKITS[name]["ids"]


@pytest.mark.parity
def test_golden_file_is_mergekits():
    pytest.importorskip("mergekit")
    assert generate() == MERGEKITS


def test_a_union_keeps_the_bases_ids(whole):
    """New tokens follow in the order of the models and their ids, plain ones before added ones."""
    vocabulary, _ = whole("union")
    ids = vocabulary.tokenizer.get_vocab()
    assert sorted(ids, key=ids.get) == [*FOLDERS["a"][1], "w", "zw", "v", "<tool>", "<add>"]
    added = vocabulary.tokenizer.added_tokens_decoder
    assert [(added[i].content, added[i].special) for i in (9, 10)] == [
        ("<tool>", True),
        ("<add>", False),
    ]


def test_rows_and_fill(whole):
    """By hand: the base has x, both others do or not; w is b's alone, and so on."""
    vocabulary, _ = whole("union")
    ids = vocabulary.tokenizer.get_vocab()
    columns = {t: (*vocabulary.rows[:, i], vocabulary.fill[i]) for t, i in ids.items()}
    assert columns == {
        "<unk>": (0, 0, 0, 0),
        "<s>": (1, -1, 5, 0),
        "x": (2, 1, -1, 0),
        "y": (3, 5, -1, 0),
        "xy": (4, -1, 4, 0),
        "z": (5, 2, 1, 0),
        "w": (-1, 3, -1, 1),
        "zw": (-1, 4, -1, 1),
        "v": (-1, -1, 3, 2),
        "<tool>": (-1, 6, 2, MEAN),
        "<add>": (-1, 7, -1, 1),
    }
    assert vocabulary.donor_rows[ids["w"]] == 3 and vocabulary.donor_rows[ids["v"]] == 3
    assert vocabulary.donor_rows[ids["<tool>"]] == -1
    assert vocabulary.rows.dtype == vocabulary.fill.dtype == vocabulary.donor_rows.dtype == np.int64
    alone = vocabulary.among([B], A)
    assert alone.fill[ids["v"]] == ZERO and alone.rows.shape == (1, 11)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_chunks_are_rows_of_the_whole(step, whole):
    _, vocabulary = whole("another base")
    arrays = embeddings(vocabulary)
    for model in range(3):
        one = take_rows(arrays, vocabulary, model, 0, vocabulary.size)
        padding = mean_row(arrays, vocabulary, model)
        chunks = [
            take_rows(arrays, vocabulary, model, i, min(i + step, vocabulary.size), padding)
            for i in range(0, vocabulary.size, step)
        ]
        np.testing.assert_array_equal(np.concatenate(chunks), one)


def test_mean_of_padding_rows_goes_over_chunks(whole, monkeypatch):
    _, vocabulary = whole("another base")
    arrays = embeddings(vocabulary)
    at_once = mean_row(arrays, vocabulary, 1)
    monkeypatch.setattr("imm_jax.recipes.vocabulary.CHUNK", 4)
    np.testing.assert_allclose(mean_row(arrays, vocabulary, 1), at_once, rtol=1e-15)


def test_types(whole):
    """A mean in bfloat16 is rounded once; bfloat16 and float16 both fit into float32."""
    _, vocabulary = whole("union")
    i = vocabulary.tokenizer.get_vocab()["<tool>"]
    arrays = embeddings(vocabulary, ml_dtypes.bfloat16)
    found = take_rows(arrays, vocabulary, 0, i, i + 1)
    mean = (arrays[1][6].astype(np.float64) + arrays[2][2].astype(np.float64)) / 2
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found[0], mean.astype(ml_dtypes.bfloat16))
    arrays[1] = arrays[1].astype(np.float16)
    found = take_rows(arrays, vocabulary, 2, 0, vocabulary.size)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[i], arrays[2][2].astype(np.float32))


def test_matrices_of_more_axes(whole):
    """What follows the first axis is left alone."""
    _, vocabulary = whole("another base")
    flat = embeddings(vocabulary)
    deep = [array[:, :, None] for array in flat]
    for i in range(3):
        found = take_rows(deep, vocabulary, i, 0, vocabulary.size)
        np.testing.assert_array_equal(
            found[:, :, 0], take_rows(flat, vocabulary, i, 0, vocabulary.size)
        )


def test_no_source(folders):
    assert align(None, A, {A: folders[A], B: folders[B]}) is None


def test_tokens_past_a_models_embedding_are_absent(folders):
    """mergekit stops with a KeyError here, unless the model is the base."""
    vocabulary = align("base", A, {A: folders[A], LONG: folders[LONG]})
    ids = vocabulary.tokenizer.get_vocab()
    assert vocabulary.rows[:, ids["<s>"]].tolist() == [1, -1]
    assert vocabulary.rows[:, ids["xy"]].tolist() == [4, 4]


def test_an_added_token_is_no_padding_row_of_the_base(folders):
    """Model a has two rows more than tokens; mergekit takes the first for the new token's."""
    rule = TokenRule(token="<new>", model=B, donor="w")
    models = {A: folders[A], B: folders[B]}
    vocabulary = align("base", A, models, tokens=[rule])
    ids = vocabulary.tokenizer.get_vocab()
    assert ids["<new>"] == 6 and vocabulary.size == 7
    assert vocabulary.rows[:, 6].tolist() == [-1, -1]
    assert (vocabulary.fill[6], vocabulary.donor_rows[6]) == (1, 3)
    found = take_rows(embeddings(vocabulary), vocabulary, 0, 6, 7)
    np.testing.assert_array_equal(found[0], embedding("b")[3])


def test_ids_with_holes(folders, tmp_path):
    """mergekit stops with an IndexError here."""
    change_tokenizer(folders[C], tmp_path, lambda d: d["model"]["vocab"].update(v=8))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 9}))
    holes = resolve(tmp_path)
    vocabulary = align("base", C, {C: holes, A: folders[A]})
    assert vocabulary.size == 9
    assert vocabulary.fill.tolist() == [0, 0, 0, PADDING, 0, 0, PADDING, PADDING, 0]
    arrays = [np.arange(9.0)[:, None], np.zeros((8, 1))]
    found = take_rows(arrays, vocabulary, 0, 0, 9)[:, 0]
    mean = (0 + 1 + 2 + 4 + 5 + 8) / 6
    np.testing.assert_allclose(found, [0, 1, 2, mean, 4, 5, mean, mean, 8])


def change_tokenizer(model, folder, change) -> None:
    for path in model.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))


def test_a_reduced_tokenizer_can_be_saved(folders, tmp_path):
    """The tokens that are gone do not come back, neither as special tokens nor as merges."""
    vocabulary = align("base", LONG, {LONG: folders[LONG], A: folders[A]})
    assert vocabulary.tokenizer.pad_token is None and vocabulary.tokenizer.unk_token == "<unk>"
    vocabulary.tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == {"<unk>": 0, "x": 1, "y": 2, "q": 3, "xy": 4}
    assert again("xyq").input_ids == [4, 3]


def test_merges_of_tokens_that_are_gone(folders, tmp_path):
    for path in folders[LONG].path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 4}))
    vocabulary = align("base", LONG, {LONG: resolve(tmp_path), A: folders[A]})
    assert vocabulary.tokenizer.get_vocab() == {"<unk>": 0, "x": 1, "y": 2, "q": 3}
    assert vocabulary.tokenizer("xyq").input_ids == [1, 2, 3]


def refused(*args, **options) -> str:
    with pytest.raises(InputError) as caught:
        align(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals(folders, tmp_path):
    models = {A: folders[A], B: folders[B], C: folders[C]}
    rule = TokenRule(token="<x>", model=C)
    where = "tokenizer.tokens.<x>.source: c"
    assert refused("union", A, models, tokens=[rule]) == f"{where} has no such token"
    rule = TokenRule(token="<x>", model=C, donor="w")
    message = refused("union", A, models, tokens=[rule])
    assert message == f"{where} has no token 'w' among its 6"
    rule = TokenRule(token="<x>", model=C, donor=6)
    assert refused("union", A, models, tokens=[rule]) == f"{where} has no token 6 among its 6"
    vocabulary = align("union", A, models, tokens=[TokenRule(token="<x>", model=C, donor="v")])
    with pytest.raises(InputError, match=r"tokens\.<x>\.source: c is not merged"):
        vocabulary.among([A, B], A)

    change_tokenizer(folders[C], tmp_path, lambda d: d["model"]["vocab"].update(w=9))
    message = refused("base", C, {C: resolve(tmp_path), A: folders[A]})
    assert message.startswith(f"{tmp_path}: 1 tokens of its WordLevel tokenizer have ids from 6 on")
    (tmp_path / "tokenizer.json").unlink()
    message = refused("base", A, {A: folders[A], C: resolve(tmp_path)})
    assert message.startswith(f"{tmp_path}: has no tokenizer files")
