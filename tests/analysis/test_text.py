"""Tables of an analysis as text."""

from imm_jax.analysis.text import gap_table

GAP = {"seed": 3, "round": 1, "arm": "imm", "generated": 0.25, "verified": 0.5, "gap": 0.25,
       "relative": 1 / 3, "kept_questions": 0.5}  # fmt: skip
ENDS = {"low": 0.1, "high": 0.4, "relative_low": 0.125, "relative_high": 0.5}


def test_gaps_have_the_intervals_that_the_run_recorded():
    """Runs of earlier versions recorded none."""
    old, new = gap_table([GAP]).splitlines(), gap_table([GAP, GAP | ENDS]).splitlines()
    assert old[-1].split() == ["1", "imm", "3", "0.250", "0.500", "0.250", "0.333"]
    assert new[-2].split() == old[-1].split()
    words = ["0.250", "[0.10,", "0.40]", "0.333", "[0.12,", "0.50]"]
    assert new[-1].split() == ["1", "imm", "3", "0.250", "0.500", *words]
