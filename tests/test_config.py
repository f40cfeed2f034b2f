"""Configurations: YAML in and out, overrides, differences."""

import dataclasses
import typing
from pathlib import Path

import pytest
import yaml

from imm_jax.config import SMOKE, ArmConfig, RunConfig, load_config, save_config
from imm_jax.errors import InputError
from imm_jax.sampling.config import SamplingConfig
from imm_jax.settings import build, differences, to_dict
from imm_jax.tasks.answers import RULES
from imm_jax.training.config import LoraConfig, TrainingConfig

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SMALL = {"model": "some/model", "data": {"in_domain": "builtin:one_step"}}


@pytest.fixture
def load(tmp_path):
    """``load(data or text, *overrides)``"""

    def call(data, *overrides, **options):
        path = tmp_path / "run.yaml"
        path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
        return load_config(path, overrides, **options)

    return call


def test_only_the_model_and_a_task_are_needed(load):
    config = load(SMALL)
    assert config == RunConfig(model="some/model", data=config.data)
    assert config.data.in_domain == "builtin:one_step" and config.data.out_of_domain == ()
    # The paper's: alpha 0.5 and mask rate 0.2, next to no merging at all.
    assert config.arms["imm"] == ArmConfig(weight=0.5, drop_rate=0.2)
    assert config.arms["vanilla"] == ArmConfig(weight=1.0, drop_rate=0.0)
    assert config.evaluation.temperature == 0 and config.rounds == 3


def test_what_is_saved_loads_as_the_same(load, tmp_path):
    config = load(
        SMALL,
        "seeds=[3, 1]",
        "data.out_of_domain=[a.jsonl, b.jsonl]",
        "training.max_grad_norm=null",
        "training.learning_rate=1e-7",
        "arms={über: {weight: 0.25, merge_with: previous}, fresh: {start_from: base}}",
        "select.samples_per_question=2",
    )
    save_config(config, tmp_path / "saved.yaml")
    again = load_config(tmp_path / "saved.yaml")
    assert again == config
    assert list(again.arms) == ["über", "fresh"]
    assert again.seeds == (3, 1) and again.data.out_of_domain == ("a.jsonl", "b.jsonl")
    assert differences(to_dict(config), to_dict(again)) == []


def test_every_setting_is_saved(load, tmp_path):
    save_config(load(SMALL), tmp_path / "saved.yaml")
    saved = yaml.safe_load((tmp_path / "saved.yaml").read_text())
    assert set(saved) == {field.name for field in dataclasses.fields(RunConfig)}
    assert set(saved["training"]) == {field.name for field in dataclasses.fields(TrainingConfig)}
    assert set(saved["sampling"]) == {field.name for field in dataclasses.fields(SamplingConfig)}


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001", "'1e-5'"])
def test_a_rate_however_it_is_written(load, text):
    """YAML 1.1 takes 1e-5 for text."""
    assert load(SMALL, f"training.learning_rate={text}").training.learning_rate == 1e-5
    data = f"model: m\ndata: {{in_domain: t}}\ntraining: {{learning_rate: {text}}}\n"
    assert load(data).training.learning_rate == 1e-5


def test_overrides_go_before_the_file_and_the_last_before_the_first(load):
    data = SMALL | {"rounds": 5, "sampling": {"temperature": 0.3, "top_k": 4}}
    config = load(data, "rounds=2", "sampling.temperature=1.5", "rounds=4")
    assert config.rounds == 4
    assert config.sampling == SamplingConfig(temperature=1.5, top_k=4)
    assert load(data, "model=a=b").model == "a=b"
    assert load(data, "data.train_style=").data.train_style is None


def test_a_setting_of_a_group_leaves_the_defaults_of_the_others(load):
    config = load(SMALL, "evaluation.max_new_tokens=99", "arms.imm.weight=0.3")
    assert config.evaluation.temperature == 0 and config.evaluation.max_new_tokens == 99
    assert list(config.arms) == ["vanilla", "imm"] and config.arms["imm"].weight == 0.3
    assert config.arms["vanilla"] == ArmConfig(weight=1.0, drop_rate=0.0)
    assert list(load(SMALL, "arms={only: {}}").arms) == ["only"]


def test_adapters_are_a_group_that_may_be_there_or_not(load, tmp_path):
    assert load(SMALL).training.lora is None
    assert load(SMALL, "training.lora={}").training.lora == LoraConfig()
    data = SMALL | {"training": {"lora": {"rank": 4, "targets": ["layers/attn", "layers/mlp/up"]}}}
    config = load(data, "training.lora.alpha=3")
    assert config.training.lora == LoraConfig(
        rank=4, alpha=3.0, targets=("layers/attn", "layers/mlp/up")
    )
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert load(data, "training.lora=null").training.lora is None


def test_smoke_changes_what_exists_and_only_that(load):
    plain, smoke = to_dict(load(SMALL)), to_dict(load(SMALL, smoke=True))
    assert {line.split(" ")[0] for line in differences(plain, smoke)} <= set(SMOKE)
    for key, value in SMOKE.items():
        node = smoke
        for part in key.split("."):
            node = node[part]
        assert node == value
    assert load(SMALL, "rounds=9", smoke=True).rounds == 9


@pytest.mark.parametrize(
    "path", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(EXPERIMENTS))
)
def test_every_experiment_loads(path):
    data = yaml.safe_load(path.read_text())
    if "model" not in data:
        pytest.skip("not a run's settings")
    assert isinstance(load_config(path), RunConfig)
    assert isinstance(load_config(path, smoke=True), RunConfig)


def test_differences_are_named_with_both_values():
    old = {"a": 1, "b": {"c": [1, 2], "d": None}, "gone": 3}
    new = {"a": 1, "b": {"c": [1, 3], "d": None}, "come": None}
    assert differences(old, new) == [
        "b.c ([1, 2] there, [1, 3] now)",
        "gone (3 there, None now)",
        "come (None there, None now)",
    ]
    assert differences(old, old) == []


def test_the_first_mistake_is_named_with_its_place(load):
    with pytest.raises(InputError, match=r"run.yaml: arms.imm.drop_rate: 2.0, expected"):
        load(SMALL | {"arms": {"imm": {"drop_rate": 2}}})
    with pytest.raises(InputError, match=r"^here: expected a mapping of keys, found list$"):
        build(RunConfig, [], "here")


def test_answer_rules_are_those_that_tasks_know():
    hint = typing.get_type_hints(type(build(RunConfig, SMALL, "").data))["answer_rule"]
    assert typing.get_args(hint) == RULES
