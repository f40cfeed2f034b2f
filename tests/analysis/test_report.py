"""The page, from a run made by hand: what is on it, what it must not be made to do."""

import copy
import re
from html.parser import HTMLParser

import pytest

from imm_jax.analysis.figures import run_figures, svg
from imm_jax.analysis.outcome import Question, Run, comparisons, is_vanilla, sentences
from imm_jax.analysis.report import examples_of, page, provenance, summary_rows
from imm_jax.statistics import seed_interval, wilson_interval

NASTY = '</p><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }} & "quotes" $x_1$'
CONFIG = {
    "model": "m",
    "arms": {
        "vanilla": {"weight": 1.0, "drop_rate": 0.0, "start_from": "merged"},
        "imm": {"weight": 0.5, "drop_rate": 0.2, "start_from": "merged"},
    },
    "rounds": 1,
    "seeds": [0],
    "note": NASTY,
}
# A digit a question; the first task is in-domain.
RIGHT = {
    "base": {"sums": "1100", "dates": "10", "wor$ds": "01"},
    "vanilla": {"sums": "1111", "dates": "00", "wor$ds": "00"},
    "imm": {"sums": "1110", "dates": "11", "wor$ds": "10"},
}


def answers_of(arm: str) -> dict[str, list[dict]]:
    return {
        task: [
            {
                "id": f"{task}-{i}",
                "text": f" {arm} says {i}. {NASTY}",
                "answer": None if i else f"<i>{i}</i>",
                "correct": digit == "1",
                "finish_reason": "length" if i == 1 else "stop",
            }
            for i, digit in enumerate(digits)
        ]
        for task, digits in RIGHT[arm].items()
    }


def row(arm: str, seed: int = 0, t: int = 1) -> dict:
    tasks = {}
    for task, digits in RIGHT[arm].items():
        share = digits.count("1") / len(digits)
        low, high = wilson_interval(share, len(digits))
        score = {"accuracy": share, "low": low, "high": high}
        tasks[task] = score | {"questions": len(digits), "truncated": 0.25}
    first, *others = (task["accuracy"] for task in tasks.values())
    made = {"seed": seed, "round": 0 if arm == "base" else t, "arm": arm, "tasks": tasks}
    made |= {"in_domain": first, "out_of_domain": sum(others) / len(others), "distance": 0.0}
    drawn = {"samples": 16, "kept": 9, "distinct_2": 0.5, "distance": 0.001}
    return made | ({} if arm == "base" else drawn)


def make_run(**changes) -> Run:
    questions = {
        task: {f"{task}-{i}": Question(f"What? {NASTY}", f"gold {i}") for i in range(len(digits))}
        for task, digits in RIGHT["base"].items()
    }
    places = {"base": (0, 0, "base"), "vanilla": (0, 1, "vanilla"), "imm": (0, 1, "imm")}
    settings = {
        "name": f"run {NASTY}",
        "config": copy.deepcopy(CONFIG),
        "record": {"model": {"source": NASTY, "sha256": "ab"}, "device": "cpu", "mesh": None},
        "rows": [row(arm) for arm in RIGHT],
        "answers": {place: answers_of(arm) for arm, place in places.items()},
        "questions": questions,
    }
    return Run(**settings | changes)


class Reader(HTMLParser):
    """Checks that tags close in order; gathers elements and the text of each class."""

    VOID = ("meta", "input", "br", "img", "link")

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        classes = {name for _, found in self.open for name in (found.get("class") or "").split()}
        self.texts.append((classes, self.open[-1][0] if self.open else "", data))

    def text(self, name: str) -> str:
        return "".join(data for classes, _, data in self.texts if name in classes)

    def count(self, tag: str, name: str = "") -> int:
        return sum(
            found == tag and (not name or name in (attributes.get("class") or "").split())
            for found, attributes in self.elements
        )


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def whole() -> tuple[str, Reader]:
    text = page([make_run()])
    return text, read(text)


def test_the_sentence_comes_first(whole):
    _, found = whole
    said = "imm's out-of-domain accuracy after round 1 is not clearly different from vanilla's: "
    assert said + "0.750 against 0.000, difference +0.750" in found.text("verdict")
    assert "(4 questions, 2 tasks, 1 seed)." in found.text("verdict")
    assert "in-domain accuracy after round 1" in found.text("also")
    assert found.text("note") == ""


def test_nothing_from_the_run_is_markup(whole):
    _, found = whole
    # One script, the page's own; what looks like more is text.
    assert found.count("script") == 1 and found.count("img") == 0 and found.count("i") == 0
    assert "49" not in found.text("said")
    assert found.text("said").count("<script>alert(1)</script><img src=x onerror=alert(2)>") == 24
    assert found.text("asked").count(NASTY) == 8
    for _, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes)


def test_the_page_needs_nothing_else(whole):
    _, found = whole
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    style = "".join(data for _, tag, data in found.texts if tag == "style")
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for t, a in found.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ") and "script-src 'sha256-" in policy
    assert "prefers-color-scheme: dark" in style
    assert any(a.get("name") == "viewport" for _, a in found.elements)


def test_the_script_is_the_one_that_is_allowed(whole):
    import base64
    import hashlib

    text, found = whole
    script = "".join(data for _, tag, data in found.texts if tag == "script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in text.replace("&#43;", "+").replace("&#39;", "'")


def test_names_on_the_page_are_unique(whole):
    ids = [attributes["id"] for _, attributes in whole[1].elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    labelled = [a["aria-labelledby"] for _, a in whole[1].elements if "aria-labelledby" in a]
    assert labelled and set(labelled) <= set(ids)


def test_answers_stand_side_by_side_and_can_be_filtered(whole):
    text, found = whole
    articles = [a["class"].split() for tag, a in found.elements if tag == "article"]
    assert len(articles) == 8
    assert articles[0] == ["question", "task-0", "right-0", "right-1", "right-2"]
    assert articles[4] == ["question", "task-1", "right-0", "wrong-1", "right-2"]
    # Without a script: each choice hides what it does not name.
    ids = {a["id"] for tag, a in found.elements if tag == "input" and "id" in a}
    rules = re.findall(r"#r0:has\(#([\w-]+):checked\) \.question:not\(\.([\w-]+)\)", text)
    assert {name for name, _ in rules} == ids and len(rules) == 3 + 2 * 3
    expected = {f"r0-task-{i}": f"task-{i}" for i in range(3)}
    expected |= {f"r0-model-{i}-{w}": f"{w}-{i}" for i in range(3) for w in ("right", "wrong")}
    assert dict(rules) == expected
    assert found.count("div", "right") == 2 + 1 + 1 + 4 + 3 + 2 + 1
    assert "cut off at the token limit" in found.text("read")
    assert found.text("read").count("no answer stated") == 3 * (3 + 1 + 1)


def test_figures_and_tables(whole):
    text, found = whole
    assert found.count("figure") == found.count("svg") == 6
    assert "0.750" in text and "9 of 16" in text
    assert found.text("record").count("imm-jax run") == 1


def test_as_many_examples_as_are_wanted():
    run = make_run()
    assert [e.id for e in examples_of(run, 1)] == ["sums-0", "dates-0", "wor$ds-0"]
    assert read(page([run], 0)).count("article") == 0
    without = read(page([make_run(questions={})]))
    assert without.count("article") == 8 and "sums-3" in without.text("asked")


def test_a_run_under_way_says_so():
    run = make_run(rows=[row("base"), row("vanilla")])
    assert run.last == 0
    found = read(page([run]))
    assert "not finished: 2 of 3 results" in found.text("note")
    assert "nothing to compare yet" in found.text("verdict")
    without = read(page([make_run(answers={})]))
    assert "answers of round 1 are not in the run's folder" in without.text("verdict")
    only = read(page([make_run(rows=[row("base")], answers={})]))
    assert only.count("article") == 0 and only.count("svg") > 0


def test_seeds_are_compared_where_they_are_finished():
    config = CONFIG | {"seeds": [0, 1]}
    rows = [row("base"), row("vanilla"), row("imm"), row("base", 1), row("vanilla", 1)]
    answers = make_run().answers
    answers |= {(1, 0, "base"): answers_of("base"), (1, 1, "vanilla"): answers_of("vanilla")}
    run = make_run(config=config, rows=rows, answers=answers)
    assert run.last == 1 and len(run.rows) < run.expected
    seeds = {(found.first, found.second): found.found.seeds for found in comparisons(run)}
    assert seeds == {("imm", "vanilla"): 1, ("imm", "original"): 1, ("vanilla", "original"): 2}
    assert "1 seed)" in sentences(run, comparisons(run))[0]


def test_cells_have_intervals_over_questions_and_seeds():
    one, other = row("imm"), row("imm", 1)
    other["in_domain"] = 0.5
    [base, made] = summary_rows([row("base"), row("base", 1), one, other])
    assert made["seeds"] == 2 and made["in_domain"]["mean"] == 0.625
    assert made["in_domain"]["seeds"] == pytest.approx(seed_interval([0.75, 0.5])[1:])
    assert made["in_domain"]["low"] == pytest.approx(wilson_interval(0.75, 4)[0])
    assert base["in_domain"]["seeds"] is None and base["kept"] is None


def test_what_is_compared_with_what():
    arms = CONFIG["arms"] | {"dare": {"weight": 0.5, "drop_rate": 0.9, "start_from": "merged"}}
    run = make_run()
    pairs = [(c.first, c.second, c.what.split("-")[0]) for c in comparisons(run)]
    assert pairs[:2] == [("imm", "vanilla", "out"), ("imm", "vanilla", "in")]
    assert ("vanilla", "original", "out") in pairs
    # An arm that merges in the end is none that never does.
    last = arms["vanilla"] | {"schedule": [1.0, 0.5]}
    assert is_vanilla(arms["vanilla"] | {"schedule": [1.0]}) and not is_vanilla(last)
    # Without vanilla the merged arm is compared with the original; unfinished arms with nothing.
    run = make_run(config=CONFIG | {"arms": {"imm": arms["imm"]}})
    assert {(c.first, c.second) for c in comparisons(run)} == {("imm", "original")}
    assert comparisons(make_run(config=CONFIG | {"arms": arms})) == []


def test_where_it_came_from():
    run = make_run(
        record={"model": {"source": "m", "sha256": "ab"}, "mesh": {"data": 2}, "x": None}
    )
    lines = provenance(run)
    assert lines["model"] == "m" and lines["model: sha256"] == "ab"
    assert lines["mesh"] == '{"data": 2}' and "x" not in lines and lines["seeds"] == "0"


def test_several_runs_on_one_page():
    found = read(page([make_run(), make_run(name="second")]))
    assert found.count("main") == 2 and found.count("article") == 16
    assert [a["href"] for tag, a in found.elements if tag == "a"] == ["#r0", "#r1"]


def test_a_figure_takes_the_pages_colours_and_is_the_same_every_time():
    rows = [row(arm) for arm in RIGHT]
    [plane, *_] = run_figures(rows, 1)
    assert plane.title.startswith("In-domain against") and plane == run_figures(rows, 1)[0]
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", plane.svg))
    assert {"var(--s0)", "var(--s1)", "var(--s2)", "var(--line)", "currentColor"} <= colours
    assert colours <= {f"var(--s{i})" for i in range(3)} | {"var(--line)", "currentColor", "none"}
    assert "<?xml" not in plane.svg and "<metadata" not in plane.svg


def test_text_in_a_figure_is_text():
    made = svg(lambda axis: axis.set_title(NASTY), NASTY)
    found = read(made)
    assert found.count("script") == found.count("img") == 0
    assert NASTY in "".join(data for _, tag, data in found.texts if tag == "text")
    assert dict(found.elements)["svg"]["aria-label"] == NASTY


def test_without_other_tasks_or_arms():
    rows = [row("base"), row("imm")]
    for one in rows:
        one["tasks"], one["out_of_domain"] = {"sums": one["tasks"]["sums"]}, None
    config = CONFIG | {"arms": {"imm": CONFIG["arms"]["imm"]}}
    found = read(page([make_run(rows=rows, config=config)]))
    assert "imm's in-domain accuracy after round 1 is not" in found.text("verdict")
    titles = [a["aria-label"] for tag, a in found.elements if tag == "svg"]
    assert not any("ut-of-domain" in title for title in titles)
