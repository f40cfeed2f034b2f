"""The generation-verification gap, by hand."""

import pytest

from imm_jax.analysis.gap import generation_verification_gap
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
