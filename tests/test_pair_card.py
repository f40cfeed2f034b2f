"""Two models merged on the command line: the card that names them, and what --help says."""

import os
import shlex

import pytest
import yaml

from imm_jax import checkpoints, load_model
from imm_jax.cli import main
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from tests.answering import snapshot


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    """A model, one of its kin, and a checkpoint of the latter."""
    folder, config = tmp_path_factory.mktemp("whole") / "whole", tiny_config("llama")
    for seed, name in enumerate(("base", "my tuned")):
        params = random_params(config, seed)
        save_model(folder / name, Decoder(config), params, tokenizer=tiny_tokenizer)
    checkpoints.save(folder / "checkpoint", load_model(folder / "my tuned")[1])
    return folder


FORMS = {
    "models": (["base", "my tuned"], "wise_ft", "base + 0.5 * (tuned - base)"),
    "dropped": (["base", "my tuned", "--drop-rate", "0.2", "--seed", "3", "--weight", "0.25"],
                "dare_linear", "base + 0.25 * drop_and_rescale(0.2)(tuned - base)"),
    "a checkpoint": (["base", "--from", "checkpoint"], "wise_ft", "base + 0.5 * (tuned - base)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_the_card_names_models_method_and_weight(name, place):
    words, method, formula = FORMS[name]
    assert main(["merge", *words, "--output", "out"]) == 0
    _, head, body = (place / "out/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers", "tags": ["merge", "imm_jax", method],
    }  # fmt: skip
    assert body.startswith("\n# out\n") and f"    {formula}\n" in body
    other = "checkpoint (an Orbax checkpoint)" if "--from" in words else "my tuned"
    assert f"- base: base\n- tuned: {other}\n" in body


@pytest.mark.parametrize("name", FORMS)
def test_the_command_of_the_card_makes_the_same_model(name, place):
    assert main(["merge", *FORMS[name][0], "--output", "out"]) == 0
    lines = (place / "out/README.md").read_text().splitlines()
    command = next(line for line in lines if line.startswith("    imm-jax merge "))
    os.rename("out", "before")
    assert main([w.replace("FOLDER", "out") for w in shlex.split(command)[1:]]) == 0
    assert snapshot(place / "out") == snapshot(place / "before")


def test_models_of_the_hub_are_linked():
    from imm_jax.pair_card import pair_card

    how = {"weight": 0.5, "rate": 0.0, "seed": 0, "name": "x"}
    for checkpoint, linked in ((False, ["org/base", "org/tuned"]), (True, ["org/base"])):
        card = pair_card("org/base", "org/tuned", checkpoint=checkpoint, **how)
        assert yaml.safe_load(card.split("---\n")[1])["base_model"] == linked


def test_help_says_which_form_goes_on(capsys):
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "After a kill, the same command goes on with a recipe, and begins anew with" in said
