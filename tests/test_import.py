"""Importing the package is quick and touches no device; torch is never needed."""

import json
import subprocess
import sys

import pytest

import imm_jax
from tests.answering import ANSWER, save_answering
from tests.processes import PATIENCE

IMPORT = """
import json, sys, time
start = time.process_time()
import imm_jax
names = dir(imm_jax)
seconds = time.process_time() - start
heavy = [name for name in ("torch", "transformers", "orbax", "datasets", "matplotlib", "flax.nnx",
                           "tensorflow", "gguf", "math_verify") if name in sys.modules]
for name in sorted(imm_jax.__all__):
    getattr(imm_jax, name)
import imm_jax.arguments, imm_jax.cli, imm_jax.analysis.summary, imm_jax.rounds.run
from jax._src import xla_bridge
print(json.dumps({
    "seconds": seconds,
    "heavy": heavy,
    "backends": list(xla_bridge._backends),
    "torch": "torch" in sys.modules,
}))
"""

COMMAND_LINE = """
import sys
from imm_jax.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as left:
    code = left.code
heavy = {"jax", "numpy", "pydantic", "transformers"} & set(sys.modules)
print(f"\\n{code} {sorted(heavy)}")
"""

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it raises ImportError
import imm_jax
model, params = imm_jax.load_model(sys.argv[1])
tokenizer = imm_jax.load_tokenizer(sys.argv[1])
config = imm_jax.SamplingConfig(temperature=0.0, max_new_tokens=16, batch_size=1)
[[sample]] = imm_jax.generate(model, params, tokenizer, ["Answer:"], config=config)
imm_jax.save_model(sys.argv[2], model, params, tokenizer=tokenizer)
assert not [name for name in sys.modules if name.split(".")[0] == "torch" and sys.modules[name]]
print(sample.text, end="")
"""


def run(code: str, *args) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_quick_and_initialises_no_device():
    found = json.loads(run(IMPORT))
    assert found["seconds"] < 2
    assert found["heavy"] == [] and found["backends"] == [] and not found["torch"]


@pytest.mark.parametrize(
    "line, code, said",
    [
        ("--help", 0, "usage: imm-jax "),
        ("run --help", 0, "usage: imm-jax run "),
        ("--version", 0, f"imm-jax {imm_jax.__version__}\n"),
        ("run x.yaml --ouptut y", 2, ""),
    ],
)
def test_help_and_a_wrong_command_line_need_no_jax(line, code, said):
    printed = run(COMMAND_LINE, *line.split())
    assert printed.startswith(said) and printed.endswith(f"\n{code} []\n")


def test_without_torch_a_model_loads_answers_and_is_saved(
    tmp_path, tiny_config, random_params, tiny_tokenizer
):
    folder = save_answering(tmp_path / "model", tiny_config, random_params, tiny_tokenizer)
    assert run(WITHOUT_TORCH, folder, tmp_path / "out") == ANSWER
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (folder / weights).read_bytes()


def test_every_name_is_there_and_a_wrong_one_is_not():
    assert dir(imm_jax) == sorted(imm_jax.__all__)
    for name in imm_jax.__all__:
        assert getattr(imm_jax, name) is not None
    try:
        imm_jax.merge_parms  # noqa: B018
    except AttributeError as error:
        assert "merge_parms" in str(error)
    else:
        raise AssertionError("a name that does not exist was found")
