"""The README says what the code has."""

import ast
import builtins
import configparser
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import imm_jax
from imm_jax.merging.table import methods_table
from imm_jax.recipes.asking import asking_table
from imm_jax.rounds.select import RULES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCK = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]


def test_the_methods_are_those_of_the_table():
    assert methods_table() in README
    assert asking_table() in README


def test_the_selection_rules_are_those_of_the_table():
    for name, rule in RULES.items():
        rows = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
        assert len(rows) == 1 and rows[0].endswith(f"| {'yes' if rule.gold else 'no'} |")


# In a process of its own: what other tests have imported would be found as well.
NAMES = """
import importlib, sys
import imm_jax
from imm_jax import merging
for name in sys.argv[1:]:
    eval(name)
"""


def test_every_name_is_there():
    names = set(re.findall(r"(?<![\w.])((?:imm_jax|merging)(?:\.[a-z]\w*)+)\b(?!/)", README))
    names -= {f"imm_jax.{module}" for module in re.findall(r"-m imm_jax\.(\w+)", README)}
    names -= set(re.findall(r"from (imm_jax[\w.]*) import", README))  # see the next line
    imports = re.findall(r"from imm_jax[\w.]* import \w+", README)
    assert len(names) > 20 and len(imports) == 3
    code = "\n".join([*imports, NAMES])
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_block_of_python_uses_nothing_undefined():
    tree = ast.parse(BLOCK)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    defined = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            defined |= {node.name, *(argument.arg for argument in node.args.args)}
    assert {node.id for node in names} <= defined


@pytest.mark.slow
def test_the_block_of_python_runs(
    tmp_path, monkeypatch, tiny_config, random_params, tiny_tokenizer
):
    """From top to bottom, with a tiny model and without the run, which brings its own."""
    config = tiny_config("llama", max_position_embeddings=2048)
    model = imm_jax.Decoder(config)
    folder = tmp_path / "tiny"
    imm_jax.save_model(folder, model, random_params(config), tokenizer=tiny_tokenizer)
    monkeypatch.chdir(tmp_path)
    ran, space = [], {}
    monkeypatch.setattr("imm_jax.rounds.run.run", lambda *given: ran.append(given))
    monkeypatch.setattr("imm_jax.config.load_config", lambda path, smoke: (path, smoke))
    code = re.sub(r'SMOLLM2 = ".*"', f"SMOLLM2 = {str(folder)!r}", BLOCK)
    assert str(folder) in code
    exec(code, space)
    assert ran == [(("experiments/quickstart.yaml", True), "runs/example/rounds")]
    assert len(space["answers"][0]) == 2 and 0 <= space["scores"]["two_step"].accuracy <= 1
    scale = "final_norm"
    base, tuned = (space[name][scale]["scale"] for name in ("params", "tuned"))
    assert not np.array_equal(base, tuned)
    found = imm_jax.load_model("runs/example/merged")[1][scale]["scale"]
    np.testing.assert_allclose(found, (base + tuned) / 2, rtol=1e-6)


def test_every_extra_is_there_under_a_name_that_every_pip_knows():
    """pip 23.2, which Python 3.11 brings, takes ``lm_eval`` for an extra that does not exist."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    extras = set(setup["options.extras_require"])
    named = set(re.findall(r"extra `([^`]+)`", README))
    assert {"lm-eval", "reasoning-gym", "search", "tfds"} <= named <= extras
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", extra) for extra in extras)
