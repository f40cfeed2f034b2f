"""The README says what the code has."""

from pathlib import Path

from imm_jax.merging.table import methods_table

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_methods_are_those_of_the_table():
    assert methods_table() in README
