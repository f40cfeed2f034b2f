"""Arcee Fusion where changes are so small that a divergence in float32 needs care."""

import numpy as np
import pytest

from imm_jax import merging
from tests.merging import merge_oracles as oracle


# Rows differ in how much they changed. In the last, ratios of softmax leave float32's range.
@pytest.mark.parametrize(
    "scale, change", [(0.02, 1e-5), (0.02, 1e-3), (0.2, 0.1), (1, 5), (50, 99)]
)
def test_the_right_elements_bit_for_bit(scale, change):
    random = np.random.RandomState(0)
    base = scale * random.standard_normal((24, 64))
    rows = np.exp(0.5 * random.standard_normal((24, 1)))
    tuned = (base + change * rows * random.standard_normal(base.shape)).astype(np.float32)
    base = base.astype(np.float32)
    expected = oracle.arcee_fusion(base.astype(np.float64), tuned.astype(np.float64), -1)
    assert 0.05 < np.mean(expected != base) < 0.4
    merged = merging.merge_models("arcee_fusion", [{"w": tuned}], base={"w": base})["w"]
    np.testing.assert_array_equal(merged, expected.astype(np.float32))


def test_what_is_taken_is_taken_bit_for_bit():
    """Tuned elements so small that ``base + float32(tuned - base)`` misses them."""
    base, tuned = np.random.RandomState(0).standard_normal((2, 8, 64)).astype(np.float32)
    tuned *= np.float32(1e-3)
    merged = merging.merge_models("arcee_fusion", [{"w": tuned}], base={"w": base})["w"]
    taken = merged != base
    assert taken.any()
    np.testing.assert_array_equal(merged[taken], tuned[taken])
    assert np.any(base[taken] + (tuned - base)[taken] != tuned[taken])
