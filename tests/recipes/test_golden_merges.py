"""Merges of tiny models equal mergekit's, without mergekit.

The golden file is mergekit 0.1.5's: ``python -m tests.recipes.mergekit_merges`` writes it where
mergekit is installed; the parity test makes it again. It holds a result for each recipe in ``CORE``
and each type, all tensors in the order of their names, of models that NumPy makes from seeds
(``mergekit_merges.models``): float32, and the bits of bfloat16 models that mergekit was told to
merge in float32 (``dtype: float32, out_dtype: bfloat16``).
"""

import contextlib

import numpy as np
import pytest

from tests.recipes import tiny_llamas
from tests.recipes.mergekit_merges import (
    BFLOAT16,
    GOLDEN,
    SMALL,
    generate,
    golden_keys,
    ours,
    recipe,
    save_models,
)

MERGEKITS = dict(np.load(GOLDEN))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each type, with models of it."""
    found = {dtype: tmp_path_factory.mktemp(dtype.name) for _, dtype in golden_keys()}
    for dtype, folder in found.items():
        save_models(folder, tiny_llamas.config(**SMALL), dtype)
    return found


def test_golden_file_is_complete():
    assert MERGEKITS.keys() == {f"{name}/{dtype.name}" for name, dtype in golden_keys()}
    assert GOLDEN.stat().st_size < 150_000


@pytest.mark.parametrize("name, dtype", golden_keys(), ids=str)
def test_merges_equal_mergekits(name, dtype, folders):
    with contextlib.chdir(folders[dtype]):
        merged = ours(recipe(name))
    differing = 0
    start, theirs = 0, MERGEKITS[f"{name}/{dtype.name}"].view(dtype)
    for tensor in sorted(merged):
        found = merged[tensor].reshape(-1)
        expected = theirs[start : start + found.size]
        start += found.size
        assert found.dtype == dtype, tensor
        if dtype == BFLOAT16:
            steps = np.abs(found.view(np.int16).astype(int) - expected.view(np.int16))
            assert steps.max() <= 1, tensor
            differing += np.sum(steps)
        else:
            np.testing.assert_allclose(
                found, expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=tensor
            )
    assert start == theirs.size
    # Sums of bfloat16 numbers often lie in the middle of two, where float32's last bit decides.
    assert differing <= 0.01 * start


@pytest.mark.parity
def test_golden_file_is_mergekits():
    pytest.importorskip("mergekit")
    made = generate()
    assert made.keys() == MERGEKITS.keys()
    for key, values in made.items():
        if values.dtype == np.uint16:
            assert np.mean(values != MERGEKITS[key]) < 1e-3, key
        else:
            np.testing.assert_allclose(values, MERGEKITS[key], rtol=1e-6, atol=1e-7, err_msg=key)
