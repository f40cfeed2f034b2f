"""The README says what the code has."""

from pathlib import Path

from imm_jax.merging.table import methods_table
from imm_jax.recipes.asking import asking_table
from imm_jax.rounds.select import RULES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_methods_are_those_of_the_table():
    assert methods_table() in README
    assert asking_table() in README


def test_the_selection_rules_are_those_of_the_table():
    for name, rule in RULES.items():
        rows = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
        assert len(rows) == 1 and rows[0].endswith(f"| {'yes' if rule.gold else 'no'} |")
