"""The generation-verification gap, by hand."""

import itertools

import numpy as np
import pytest

from imm_jax.analysis.gap import gap_interval, generation_verification_gap
from tests.rounds.samples import samples

ROWS = samples(a="Axxx", b="BBxx", c="CCCC", d="xxxx")
BY_NAME = {f"{row.id}{row.sample}": row for row in ROWS}


@pytest.mark.parametrize(
    ("kept", "verified", "questions"),
    [
        ("a0 a1 b0 c3 d2", (1 / 2 + 1 + 1 + 0) / 4, 1.0),
        ("a0 b0 b1", (1 + 1 + 1 + 0) / 4, 0.5),  # c and d stand as they are
        ("a1", (0 + 1 / 2 + 1 + 0) / 4, 0.25),
        ("", (1 / 4 + 1 / 2 + 1 + 0) / 4, 0.0),
    ],
)
def test_it_is_the_gain_of_the_mean_over_questions(kept, verified, questions):
    found = generation_verification_gap(ROWS, [BY_NAME[name] for name in kept.split()])
    generated = (1 / 4 + 1 / 2 + 1 + 0) / 4
    assert found.generated == generated and found.verified == verified
    assert found.gap == verified - generated and found.kept_questions == questions
    assert found.relative == pytest.approx((verified - generated) / (1 - generated))


def test_nothing_left_to_gain():
    rows = samples(a="AA")
    assert generation_verification_gap(rows, rows[:1]) == (1.0, 1.0, 0.0, 0.0, 1.0)


def test_the_interval_draws_questions_again():
    kept = [BY_NAME[name] for name in ("a0", "b0", "b2")]
    found = gap_interval(ROWS, kept)
    gains, left = np.array([3 / 4, 0, 0, 0]), np.array([3 / 4, 1 / 2, 0, 1])
    again = np.array(list(itertools.product(range(4), repeat=4)))  # all ways to draw four of four
    gaps, rest = gains[again].mean(axis=1), left[again].mean(axis=1)
    relative = np.where(rest > 0, gaps / np.maximum(rest, 1e-9), 0)
    for ends, values in ((found[:2], gaps), (found[2:], relative)):
        assert ends == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-9)


def test_the_interval_of_no_gain():
    assert gap_interval(ROWS, []) == (0, 0, 0, 0)
