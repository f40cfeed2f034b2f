"""The ``plan`` command: what it reads, prints and refuses."""

import json
import re

import pytest
import yaml

from imm_jax.cli import main
from imm_jax.evaluation import Answer
from imm_jax.models.tokenizer import load_tokenizer, save_tokenizer
from imm_jax.rounds.select import passing
from imm_jax.select_config import SelectConfig
from imm_jax.tasks import Example, Task, render

# Qwen2.5-0.5B as published: 494,032,768 parameters, tied.
QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151936,
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a model that is a config.json alone, and a run of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(QWEN))
    run = {
        "model": "model", "data": {"in_domain": "builtin:one_step"}, "mesh": "fsdp=2",
        "dtype": "bfloat16", "training": {"micro_batch_size": 2},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    return tmp_path


@pytest.fixture
def table(place, capsys):
    """``table(*argv)``: the printed figures by row and column, and the whole text."""

    def call(*argv):
        assert main(["plan", *argv]) == 0
        text = capsys.readouterr().out
        lines = text.splitlines()
        assert lines[3].split() == ["sample", "train", "merge", "evaluate"]
        start = len(lines[3]) - 40
        figures = {
            line[:start].strip(): [
                line[at : at + 10].strip() for at in range(start, start + 40, 10)
            ]
            for line in lines[4:-2]
        }
        return figures, text

    return call


def test_only_a_config_is_needed(table):
    figures, text = table("--model", "model")
    assert "qwen2: 494,032,768 parameters in 24 layers, on 1 device" in text
    # One of 1.98 answers, none stands beside the one that is trained, two give a third.
    assert figures["models"] == ["1.98", "", "5.93", "1.98"]
    assert figures["weights for decoding"] == ["0.99", "", "", "0.99"]
    assert figures["optimizer state"] == ["", "3.95", "", ""]
    assert figures["gradients"] == ["", "1.98", "", ""]
    # 2 * 24 layers * 128 rows * (768 + 512 slots) * 2 heads * 64 * 2 bytes
    assert figures["KV cache"] == ["2.01", "", "", "2.01"]
    for column in range(4):
        cells = [float(row[column] or 0) for name, row in figures.items() if name != "total"]
        assert float(figures["total"][column]) == pytest.approx(sum(cells), abs=0.04)


def test_a_runs_settings_and_mesh_count(table):
    figures, text = table("run.yaml")
    assert "on 2 devices (fsdp=2)" in text
    assert figures["models"] == ["0.49", "", "1.48", "0.49"]  # of half a GB on each
    assert figures["weights for decoding"][0] == "0.99"  # whole on each
    more, text = table("run.yaml", "training.micro_batch_size=4", "--mesh", "fsdp=4,data=2")
    assert "on 8 devices (data=2,fsdp=4)" in text
    assert more["optimizer state"][1] == "0.99"
    double = 2 * float(figures["activations"][1])
    assert float(more["activations"][1]) == pytest.approx(double, abs=0.01)


def test_a_model_needs_no_file_for_settings(place, table):
    figures, text = table("training.micro_batch_size=4", "--model", "model", "mesh=fsdp=2")
    assert "on 2 devices (fsdp=2)" in text
    assert figures == table("--model", "model", "mesh=fsdp=2", "training.micro_batch_size=4")[0]
    assert figures["activations"] != table("--model", "model", "mesh=fsdp=2")[0]["activations"]
    (place / "lr=1").mkdir()
    (place / "run.yaml").rename(place / "lr=1/run.yaml")
    assert "on 2 devices (fsdp=2)" in table("lr=1/run.yaml", "--model", "model")[1]


def test_nothing_is_planned_past_the_models_context(place, table):
    """A fine-tune cuts there, and a prompt leaves room for its answer."""
    (place / "model/config.json").write_text(json.dumps(QWEN | {"max_position_embeddings": 384}))
    figures, text = table("run.yaml")
    assert "prompts of up to 128 tokens" in text
    assert table("run.yaml", "training.max_length=384")[0] == figures
    assert "prompts of up to 100 tokens" in table("run.yaml", "--prompt-tokens", "100")[1]


def test_what_a_mesh_does_not_split_is_a_line(place, capsys):
    assert main(["plan", "run.yaml", "--mesh", "tensor=7,data=2"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[2] for line in said] == [
        "mesh: 8 of 11 arrays are not split over tensor=7, such as attn/k/bias: 128 is no multiple"
    ]


def test_whether_it_fits_is_said(table):
    _, text = table("--model", "model", "--memory", "80GB")
    assert text.endswith("(train): fits in 80 GB\n")
    _, text = table("--model", "model", "--memory", "11GiB")
    assert text.endswith("(train): does not fit in 11.81 GB\n")
    _, text = table("--model", "model", "--memory", "14GB")
    assert "peak: 12.41 GB" in text and "MEM_FRACTION=0.89 or more" in text  # jax takes 0.75
    figures, text = table("--model", "model", "--memory", "18GB", "--cpu")
    assert "FRACTION" not in text
    assert figures["models"] == ["3.95", "3.95", "7.90", "7.90"]  # nowhere else to wait


def test_a_teacher_and_a_judge_count(place, command):
    larger = QWEN | {"num_hidden_layers": 48}  # 14,912,384 parameters a layer
    (place / "teacher").mkdir()
    (place / "teacher/config.json").write_text(json.dumps(larger))
    argv = ("plan", "run.yaml", "--mesh", "data=1", "--prompt-tokens", "300")
    lines = command(*argv, "teacher=teacher", "select.rule=self_verify").splitlines()
    assert lines[1] == "teacher, qwen2: 851,929,984 parameters in 48 layers, on 1 device"
    assert lines[4].split() == ["sample", "select", "train", "merge", "evaluate"]
    rows = {line[:20].strip(): line[20:].split() for line in lines[5:-2]}
    assert rows["teacher"] == ["1.70"]  # bfloat16
    assert rows["models"] == ["0.99", "0.99", "2.96", "0.99"]
    assert rows["weights for decoding"] == ["1.70", "0.99", "0.99"]
    # 2 * layers * 128 rows * slots * 2 heads * 64 * 2 bytes; 576 + 512 slots for 300 + 256 tokens,
    # and 1024 + 512 for the judge's 300 + 256 + 211 + 256: without a tokenizer a token a letter.
    assert rows["KV cache"] == ["3.42", "2.42", "1.71"]
    assert lines[2] == (
        "prompts of up to 300 tokens, to judge a sample 767 (a token a letter: no tokenizer is "
        "here); GB on each device"
    )
    assert command(*argv).splitlines()[3].split() == ["sample", "train", "merge", "evaluate"]


@pytest.mark.parametrize("rule", ["self_verify", "n_critics"])
def test_a_judges_prompts_are_as_long_as_its_real_ones(rule, place, command, tiny_tokenizer):
    """With the model's tokenizer; of several critics the longest counts."""
    save_tokenizer(tiny_tokenizer, place / "model")
    critics = ["Is it right?", "Would a teacher who reads every line of it agree to all of it?"]
    config = SelectConfig(rule=rule, critics=tuple(critics))
    question = Example(id="q", question="How many eggs are left of 12?", answer="7")
    tokenizer = load_tokenizer(place / "model")
    count = lambda text: len(tokenizer(text)["input_ids"])
    solution = "There are 12 - 5 = 7. The answer is 7."
    asked = []

    def judge(name, examples):
        shown = (Example(id=e.id, question=e.question, answer="") for e in examples)  # no options
        asked.extend(count(render("plain", example).whole) for example in shown)
        return [[] for _ in examples]

    answer = Answer(
        id="q", sample=0, text=solution, answer="7", correct=True, tokens=count(solution),
        logprob=0.0, finish_reason="stop",
    )  # fmt: skip
    task = Task(name="t", train=(question,), test=(), answer_type="number")
    passing([answer], config, judge, task, judge)
    text = command(
        "plan", "run.yaml", "--prompt-tokens", str(count(render("plain", question).whole)),
        f"sampling.max_new_tokens={count(solution)}", f"select.rule={rule}",
        f"select.critics={json.dumps(critics)}",
    )  # fmt: skip
    found = int(re.search(r", to judge a sample (\d+); GB", text)[1])
    assert 0 <= found - max(asked) <= 6  # where the pieces meet
    assert text.splitlines()[3].split() == ["sample", "select", "train", "merge", "evaluate"]


def test_a_seven_billion_model_is_trained_whole_on_one_80_gb_gpu(table, tmp_path):
    seven = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
             "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
             "tie_word_embeddings": False, "model_type": "qwen2",
             "max_position_embeddings": 32768}  # fmt: skip
    (tmp_path / "seven").mkdir()
    (tmp_path / "seven/config.json").write_text(json.dumps(seven))
    lean = ("training.optimizer=adafactor", "training.compute_dtype=bfloat16", "dtype=bfloat16",
            "training.micro_batch_size=2")  # fmt: skip
    argv = ("run.yaml", "--model", str(tmp_path / "seven"), "--mesh", "data=1", "--memory", "80GB")
    figures, text = table(*argv, *lean)
    assert "7,615,616,512 parameters" in text and ": fits in 80 GB" in text
    assert figures["trained parameters"][1] == figures["gradients"][1] == "30.46"
    _, text = table(*argv, *lean[1:])  # AdamW's moments are as large again, twice
    assert "does not fit" in text


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "plan: no model, expected --model SOURCE or a run's YAML file"),
        (("--model", "nowhere"), "nowhere: no such folder or file"),
        (("--model", "model", "--mesh", "fsdp"), "mesh: 'fsdp', expected AXIS=SIZE"),
        (("--model", "model", "--mesh", ""), "mesh: '', expected AXIS=SIZE"),
        (("--model", "model", "--mesh", "tensor=1000000000000"), "at least 1 and at most 1048576"),
        (("--model", "model", "--memory", "80"), "'80', expected a size such as 80GB or 16GiB"),
        (("--model", "model", "--memory", "0GB"), "expected a size such as 80GB"),
        (
            ("--model", "model", "--prompt-tokens", "100000"),
            "plan: --prompt-tokens 100000 and max_new_tokens=256 exceed the model's context of",
        ),
        (
            ("run.yaml", "sampling.max_new_tokens=40000"),
            "plan: max_new_tokens=40000 leaves no room for a prompt in the model's context",
        ),
        (("training.epochs=2",), "training.epochs=2: "),
        (("training.epoch=2", "--model", "model"), "unknown key training.epoch (did you mean"),
        (("--model", "model", "training.epochs=0"), "training.epochs: found 0, expected a number"),
        (("--model", "model", "a=1", "run.yaml"), "'run.yaml': expected an override KEY=VALUE"),
        (("run.yaml", "rounds"), "'rounds': expected an override KEY=VALUE"),
    ],
)
def test_wrong_input_is_one_line(place, capsys, argv, says):
    assert main(["plan", *argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and says in lines[0]
