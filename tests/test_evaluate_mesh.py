"""``imm-jax evaluate`` and ``generate`` with ``--mesh`` say on 8 devices what they say on one."""

import json

import pytest

from imm_jax.cli import main
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from tests.devices import ask

EVALUATE = """
from pathlib import Path
from imm_jax import choices, evaluation
from imm_jax.cli import main
from imm_jax.models import load

model, place = sys.argv[1], Path(sys.argv[2])
read, answer, rank = load.load_model, evaluation.answer_tasks, choices.ask_choices

def watch_read(*args, **settings):
    decoder, params = read(*args, **settings)
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    seen["part"] = kernel.size // kernel.addressable_shards[0].data.size
    return decoder, params

def watch_answers(*args, **settings):
    found = answer(*args, **settings)
    seen["texts"] = [one.text for answers in found.values() for one in answers]
    return found

def watch_choices(*args, **settings):
    found = rank(*args, **settings)
    seen["logprobs"] = [one.logprobs for one in found]
    return found

load.load_model, evaluation.answer_tasks = watch_read, watch_answers
choices.ask_choices = watch_choices
plain = ["--style", "plain", "--output", str(place / "scores.json")]
for name, mesh in (("alone", []), ("many", ["--mesh", "data=2,fsdp=2,tensor=2"])):
    answers[name] = []
    for asked in (["sums.jsonl", "--max-new-tokens", "12", "--batch-size", "4"],
                  ["pick.jsonl", "--scoring", "loglikelihood"]):
        seen = {}
        task = str(place / asked[0])
        assert main(["evaluate", model, task, *asked[1:], *plain, *mesh]) == 0
        answers[name].append(seen | json.loads((place / "scores.json").read_text()))
    drawn = str(place / "drawn.jsonl")
    words = ["How many clips?", "Seven days", "--samples", "3", "--max-new-tokens", "8"]
    assert main(["generate", model, *words, "--output", drawn, *mesh]) == 0
    answers[name].append(Path(drawn).read_text().splitlines())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    config = tiny_config("qwen2")
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, Decoder(config), random_params(config), tokenizer=tiny_tokenizer)
    return folder


@pytest.mark.slow
def test_texts_and_choices_are_those_of_one_device(model, tmp_path):
    sums = [{"question": f"What is {i} plus {i + 3}?", "answer": 2 * i + 3} for i in range(11)]
    words = ("red", "blue", "the grey one", "seven")
    pick = [{"question": f"Which is number {i}?", "choices": words[i % 2 :], "answer": "A"}
            for i in range(7)]  # fmt: skip
    for name, rows in (("sums", sums), ("pick", pick)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = ask(EVALUATE, model, tmp_path)
    drawn, by_many = ([json.loads(x) for x in found[name].pop()] for name in ("alone", "many"))
    assert len(drawn) == 6
    for one, two in zip(drawn, by_many, strict=True):
        assert one.pop("logprobs") == pytest.approx(two.pop("logprobs"), abs=1e-4)
        assert one == two
    for alone, many in zip(found["alone"], found["many"], strict=True):
        assert alone.pop("mesh") is None
        assert many.pop("mesh") == {"data": 2, "fsdp": 2, "tensor": 2}
        assert alone.pop("part") == 1 and many.pop("part") == 4  # over fsdp and tensor
        for one, two in zip(alone.pop("logprobs", []), many.pop("logprobs", []), strict=True):
            assert one == pytest.approx(two, abs=1e-4) and len(set(one)) == len(one)
        assert alone == many  # texts, scores and verdicts
    texts = found["many"][0]["texts"]
    assert len(texts) == 11 and len(set(texts)) > 5
    assert 0 < sum(found["many"][1]["verdicts"]["pick"].values()) < 7


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        ("data", "mesh: 'data', expected AXIS=SIZE"),
        ("dat=2", "mesh: 'dat=2' has an axis 'dat' (did you mean 'data'?)"),
        ("data=64", "mesh: 'data=64' is for 64 devices, but there are "),
    ],
)
def test_a_wrong_mesh_is_one_line(mesh, says, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set")
    (tmp_path / "sums.jsonl").write_text('{"question": "What is 1 plus 1?", "answer": 2}\n')
    assert main(["evaluate", str(model), str(tmp_path / "sums.jsonl"), "--mesh", mesh]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line
