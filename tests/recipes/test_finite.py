"""NaN and infinity are seen by their bits, beside numbers of every size and sign."""

import ml_dtypes
import numpy as np
import pytest

from imm_jax.recipes.finite import is_finite

SPECIAL = [np.inf, -np.inf, np.nan, -np.nan]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_16_bits(dtype):
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    expected = np.isfinite(values.astype(np.float32))
    assert [is_finite(values[i : i + 1]) for i in range(1 << 16)] == expected.tolist()
    finite = values[expected]
    assert is_finite(finite)
    for value in values[~expected]:
        assert not is_finite(np.append(finite, value))


@pytest.mark.parametrize("sign", [1, -1])
def test_float32(sign):
    info = np.finfo(np.float32)
    finite = sign * np.float32([0.0, info.tiny, info.smallest_subnormal, 1, info.max])
    assert is_finite(finite)
    for value in SPECIAL:
        for place in range(len(finite) + 1):
            assert not is_finite(np.insert(finite, place, value))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_limit(dtype):
    for value, below in (
        (4, True),
        (-4, True),
        (8, False),
        (-8, False),
        (9, False),
        (-np.inf, False),
    ):
        assert is_finite(np.array([1, value, -1], dtype), 8) == below
    largest = np.array(ml_dtypes.finfo(dtype).max, dtype)[None]
    assert is_finite(largest, 1e38) == (dtype == np.float16)


def test_nothing_is_finite():
    assert is_finite(np.empty(0, np.float32))
