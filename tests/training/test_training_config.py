import dataclasses

import pytest

from imm_jax.errors import InputError
from imm_jax.training.config import LoraConfig, TrainingConfig


def test_the_defaults_are_the_papers_values():
    paper = dataclasses.asdict(TrainingConfig())
    expected = {
        "learning_rate": 2e-5, "epochs": 3, "batch_size": 64, "max_length": 512,
        "warmup_ratio": 0.03, "schedule": "cosine", "weight_decay": 0.0,
    }  # fmt: skip
    assert {key: paper[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("learning_rate", 0, "above 0"),
        ("learning_rate", "fast", "above 0"),
        ("learning_rate", float("nan"), "above 0"),
        ("learning_rate", None, "above 0"),
        ("epochs", 0, "at least 1"),
        ("epochs", 1.5, "whole number"),
        ("epochs", True, "whole number"),
        ("batch_size", -1, "at least 1"),
        ("micro_batch_size", 0, "at least 1"),
        ("max_length", 1, "at least 2"),
        ("warmup_ratio", 1.2, "between 0 and 1"),
        ("schedule", "cosin", "cosine, linear, constant"),
        ("weight_decay", -0.1, "at least 0"),
        ("b1", 1.0, "below 1"),
        ("b2", -0.1, "below 1"),
        ("eps", 0.0, "above 0"),
        ("max_grad_norm", 0.0, "above 0"),
        ("remat", "yes", "true or false"),
        ("remat_policy", "some", "one of full, minimal"),
        ("packing", 1, "true or false"),
        ("compute_dtype", "float8", "float32, bfloat16"),
        ("compute_dtype", "float16", "float32, bfloat16"),
        ("optimizer", "adamw_8bit", "adamw, adafactor"),
        ("mu_dtype", "float16", "float32, bfloat16"),
        ("loss_chunk", 0, "at least 1"),
        ("save_every_steps", 0, "at least 1"),
        ("bucket", 0, "at least 1"),
        ("max_skipped", 0, "at least 1"),
        ("lora", {"rank": 8}, "LoraConfig or None"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(key, value, expected):
    with pytest.raises(InputError) as error:
        TrainingConfig(**{key: value})
    message = str(error.value)
    assert f"training.{key}" in message and repr(value) in message and expected in message
    assert "\n" not in message


def test_optional_values_may_be_none_and_whole_numbers_may_be_floats_where_they_fit():
    config = TrainingConfig(max_grad_norm=None, loss_chunk=None, learning_rate=1, weight_decay=0)
    assert config.max_grad_norm is None and config.learning_rate == 1


def test_adafactor_has_no_first_moment_to_store_in_less():
    with pytest.raises(InputError, match=r"^training\.mu_dtype: found 'bfloat16', .* adafactor"):
        TrainingConfig(optimizer="adafactor", mu_dtype="bfloat16")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rank", 0, "at least 1"),
        ("rank", 1.5, "whole number"),
        ("alpha", 0.0, "above 0"),
        ("alpha", True, "above 0"),
        ("targets", (), "one or more patterns"),
        ("targets", "layers", "one or more patterns"),
        ("targets", (3,), "one or more patterns"),
    ],
)
def test_a_wrong_value_of_an_adapter_is_named_in_one_line(key, value, expected):
    with pytest.raises(InputError) as error:
        LoraConfig(**{key: value})
    message = str(error.value)
    assert f"training.lora.{key}: found {value!r}" in message and expected in message
