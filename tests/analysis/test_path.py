"""The weights of a path."""

import pytest

from imm_jax.analysis.path import path_weights
from imm_jax.errors import InputError


def test_equal_steps_from_base_to_tuned_and_past_it():
    assert path_weights(2) == [0.0, 1.0]
    assert path_weights(5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert path_weights(11)[3] == 0.3  # nothing is added up
    assert path_weights(3, beyond=2) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert path_weights(3, beyond=1.7) == [0.0, 0.5, 1.0, 1.5]
    assert path_weights(11, beyond=1.3)[-1] == 1.3


@pytest.mark.parametrize(
    ("points", "beyond"), [(1, 1), (0, 1), (3, 0.5), (3, 99), (3, float("nan"))]
)
def test_other_lines_are_refused(points, beyond):
    with pytest.raises(InputError, match=r"path: .*expected"):
        path_weights(points, beyond)
