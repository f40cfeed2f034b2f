"""Figures of ``analysis.json``, from sections made by hand."""

import re

import pytest

from imm_jax.analysis.analysis_figures import analysis_figures

ARMS = ["vanilla", "imm"]


def score(accuracy: float) -> dict:
    return {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}


def change(arm: str, t: int, model: str = "model", seed: int = 0) -> dict:
    where = {"seed": seed, "round": t, "arm": arm, "model": model}
    return where | {"layers_relative": [1e-4 * t, 2e-4, 3e-4], "layers": [1.0, 2.0, 3.0]}


def correlation(arm: str, t: int, rho: float | None, **changes) -> dict:
    row = {"seed": 0, "round": t, "arm": arm, "model": "model", "importance": "taylor"}
    row |= {"change": "layers_relative", "rho": rho, "low": -0.25, "high": 0.75, "p_value": 0.5}
    return row | changes


def drawn(arm: str, t: int, **changes) -> dict:
    row = {"seed": 0, "round": t, "arm": arm, "self_bleu": 0.5, "answer_entropy": 1.0}
    row |= {"token_entropy": 0.5, "unique_correct": 3, "pass_at_k": {"1": 0.25, "4": 0.5}}
    return row | changes


WHOLE = {
    "importance": {
        "settings": {},
        "taylor": {"layers": [0.2, 0.3, 0.5]},
        "influence": {"layers": [0.9, 0.1, 0.1]},
    },
    "change": {
        "settings": {},
        "rows": [change("vanilla", 1), change("vanilla", 2), change("imm", 2, "tuned")],
    },
    "correlation": {
        "settings": {},
        "rows": [
            correlation("vanilla", 1, 0.11),
            correlation("vanilla", 2, 0.22),
            correlation("vanilla", 2, 0.33, change="layers"),
            correlation("vanilla", 2, 0.44, importance="influence"),
        ],
    },
    "path": {
        "settings": {"name": "seed 0, round 2, vanilla"},
        "1": {"tasks": {"sums": score(0.8), "dates": score(0.2)}, "loss": 1.0},
        "0": {"tasks": {"sums": score(0.5), "dates": score(0.4)}, "loss": 2.0},
        "0.5": {"tasks": {"sums": score(0.7), "dates": score(0.4)}, "loss": None},
    },
    "memorisation": {
        "settings": {"name": "seed 0, round 2, imm"},
        "base": {"scores": {"trained": score(0.5), "new": score(0.5)}},
        "tuned": {"scores": {"trained": score(0.8), "new": score(0.6)}},
    },
    "diversity": {"settings": {}, "rows": [drawn(arm, t) for t in (1, 2) for arm in ARMS]},
    "gap": {"settings": {}, "rows": [{"seed": 0, "round": 1, "arm": "imm", "gap": 0.1}]},
    "verification": {
        "settings": {},
        "rows": [
            {"seed": seed, "round": t, "arm": "imm", "gap": 0.1, "low": -0.1, "high": 0.2 + seed}
            for seed in (0, 1)
            for t in (1, 3)
        ],
        "missing": [{"seed": seed, "round": 2, "arm": "imm"} for seed in (0, 1)],
    },
}


def by_title(analysis: dict) -> dict:
    figures, failed = analysis_figures(analysis, ARMS)
    assert failed == []
    return {figure.title: figure for figure in figures}


@pytest.fixture(scope="module")
def found() -> dict:
    return by_title(WHOLE)


def test_every_section_has_its_figures(found):
    assert len(found) == 2 + 1 + 1 + 5 + 1 + 1
    colours = {
        title: set(re.findall(r"var\(--s(\d)\)", figure.svg)) for title, figure in found.items()
    }
    # Bars in the original's colour, and the last model that is kept of an arm in the arm's.
    assert colours["Importance of layers (taylor) against change"] == {"0", "1"}
    assert colours["Accuracy on questions trained on, varied, and new"] == {"0", "2"}
    assert colours["Answer entropy by round, nats"] == {"1", "2"}
    assert colours["Generation-verification gap by round"] == {"2"}


def test_captions_say_the_rank_correlation_of_what_is_drawn(found):
    caption = found["Importance of layers (taylor) against change"].caption
    assert caption.endswith("Rank correlation with 95 % interval: vanilla 0.22 (−0.25 to 0.75).")
    caption = found["Importance of layers (influence) against change"].caption
    assert "vanilla 0.44" in caption
    layers = {name: WHOLE[name] for name in ("importance", "change")}
    undefined = layers | {"correlation": {"rows": [correlation("vanilla", 2, None)]}}
    caption = by_title(undefined)["Importance of layers (taylor) against change"].caption
    assert "Rank" not in caption


def test_the_path_goes_by_weight(found):
    figure = found["Accuracy on the line from the original to the tuned model"]
    assert "Tuned: seed 0, round 2, vanilla." in figure.caption
    words = re.findall(r"<text[^>]*>([^<]+)</text>", figure.svg)
    assert "ID" in words and "OOD" in words
    alone = {name: {"tasks": {"sums": score(0.5)}} for name in ("0", "1")}
    alone = by_title({"path": alone})["Accuracy on the line from the original to the tuned model"]
    assert ">OOD<" not in alone.svg


def test_a_gap_has_bars_where_its_rows_have_intervals(found):
    """Runs of earlier versions recorded none."""
    old = found["Generation-verification gap by round"]
    rows = [row | {"low": -0.2, "high": 0.5} for row in WHOLE["gap"]["rows"]]
    [new] = by_title({"gap": {"rows": rows}}).values()
    mixed = by_title({"gap": {"rows": rows + WHOLE["gap"]["rows"]}})
    assert new.caption == f"{old.caption} Bars are 95 % intervals over questions."
    assert [figure.caption for figure in mixed.values()] == [old.caption]
    lowest = [">−0.2<" in figure.svg for figure in (old, new)]
    assert lowest == [False, True]  # the axis reaches as far as the interval


def test_rounds_whose_gap_was_not_measured_are_named(found):
    figure = found["Gap of models that verify their own samples, by round"]
    assert figure.caption.endswith("Not measured, for the model is not kept: round 2.")
    assert set(re.findall(r"var\(--s(\d)\)", figure.svg)) == {"0", "2"}  # a line at 0, and imm
    whole = {"verification": WHOLE["verification"] | {"missing": []}}
    [caption] = [figure.caption for figure in by_title(whole).values()]
    assert "Not measured" not in caption
    assert by_title({"verification": {"settings": {}, "rows": [], "missing": []}}) == {}


def test_a_section_needs_no_other():
    assert by_title({}) == {}
    assert len(by_title({"importance": WHOLE["importance"]})) == 2
    assert by_title({name: WHOLE[name] for name in ("change", "correlation")}) == {}


def test_what_was_not_measured_is_not_drawn():
    rows = [drawn("imm", 1, self_bleu=None)]
    found = by_title({"diversity": {"rows": rows}, "gap": {"rows": []}, "path": {"settings": {}}})
    assert len(found) == 4 and not any("BLEU" in title for title in found)


@pytest.mark.parametrize(
    ("section", "content"),
    [
        ("importance", {"taylor": {}}),
        ("path", {"settings": {}, "half": {"tasks": {}}}),
        ("memorisation", {"base": 1}),
        ("diversity", {"rows": [{"arm": "imm"}]}),
        ("gap", {"rows": 3}),
        ("verification", {"rows": [{"round": 1}], "missing": []}),
    ],
)
def test_a_section_of_another_kind_is_named(section, content):
    good = {"gap": WHOLE["gap"]} if section != "gap" else {"path": WHOLE["path"]}
    figures, failed = analysis_figures(good | {section: content}, ARMS)
    assert failed == [section] and len(figures) == 1
