"""A run as one HTML page: what it supports, figures, tables, settings, answers side by side."""

import base64
import dataclasses
import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from imm_jax import __version__
from imm_jax.analysis.analysis_figures import analysis_figures
from imm_jax.analysis.figures import legend, run_figures
from imm_jax.analysis.summary import by_round_and_arm, interval
from imm_jax.analysis.verdict import Paired, Verdicts, compare_paired, sentence, signed
from imm_jax.statistics import seed_interval

Answers = Mapping[str, Sequence[dict]]  # rows of answers by task


class Question(NamedTuple):
    """What was asked, with its options where it has some, and the right answer."""

    text: str
    gold: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's folder holds.

    Attributes:
      name: of the folder.
      config: the settings as plain dicts and lists.
      record: where model and questions came from, the device.
      rows: of ``metrics.jsonl``.
      answers: to the test questions, by seed, round and arm; the original model's is round 0 of
        the arm ``base``.
      questions: the test questions by task and id; a task that could not be read is left out.
      analysis: what ``analysis.json`` holds; empty where there is none.
      notes: what is missing, in words.
    """

    name: str
    config: dict
    record: dict
    rows: list[dict]
    answers: Mapping[tuple[int, int, str], Answers]
    questions: Mapping[str, Mapping[str, Question]]
    analysis: dict = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def arms(self) -> list[str]:
        """The arms in their order, those that have no figures yet too."""
        return list(self.config["arms"])

    @property
    def last(self) -> int:
        """The last round that every arm has finished from one seed at least; 0 for none."""
        done = {(row["seed"], row["round"], row["arm"]) for row in self.rows}
        return max(
            (t for seed, t, _ in done if all((seed, t, arm) in done for arm in self.arms)),
            default=0,
        )

    @property
    def expected(self) -> int:
        """How many rows a finished run has."""
        return len(self.config["seeds"]) * (1 + self.config["rounds"] * len(self.arms))


class Compared(NamedTuple):
    """A row of the table of comparisons."""

    first: str
    second: str
    what: str
    found: Paired


class Shown(NamedTuple):
    """One model's answer to one question; ``correct`` is None where there is no answer."""

    text: str
    answer: str | None
    correct: bool | None
    truncated: bool


class Example(NamedTuple):
    """A test question with the answers of all models."""

    task: int
    id: str
    question: Question | None
    shown: list[Shown]

    @property
    def marks(self) -> str:
        """The classes that the page filters by: ``"right-0 wrong-1"``."""
        return " ".join(
            f"{'right' if one.correct else 'wrong'}-{number}"
            for number, one in enumerate(self.shown)
            if one.correct is not None
        )


def page(runs: Sequence[Run], examples: int = 20) -> str:
    """The runs as one HTML document that needs nothing else.

    Whatever comes from a run is escaped, and the page allows itself no script but its own.

    Args:
      runs: at least one.
      examples: questions of each task whose answers are shown, at most, in the order of the test.
    """
    import jinja2

    folder = resources.files("imm_jax.analysis")
    style, script = ((folder / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"signed": signed, "share": "{:.3f}".format}
    template = environment.from_string((folder / "report.html.j2").read_text("utf-8"))
    return template.render(
        runs=[_view(run, examples) for run in runs],
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
    )


def _view(run: Run, examples: int) -> dict[str, Any]:
    import yaml

    models = ["original", *run.arms]
    compared = comparisons(run)
    analysed, failed = analysis_figures(run.analysis, run.arms)
    return {
        "run": run,
        "models": models,
        "legend": legend(models),
        "sentences": sentences(run, compared),
        "compared": compared,
        "figures": [*run_figures(run.rows, run.last), *analysed],
        "summary": summary_rows(run.rows),
        "tasks": task_rows(run.rows),
        "seeds": len({row["seed"] for row in run.rows}),
        "task_names": list(run.rows[0]["tasks"]),
        "examples": examples_of(run, examples),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        "record": provenance(run),
        "notes": [*notes(run), *(f"analysis.json: {name} cannot be drawn." for name in failed)],
    }


def notes(run: Run) -> list[str]:
    """What a reader has to know first: that a run is not finished, or that something is missing."""
    found = list(run.notes)
    if len(run.rows) < run.expected:
        found.insert(
            0,
            f"This run is not finished: {len(run.rows)} of {run.expected} results "
            "(seed, round and arm) are there, and the page shows those.",
        )
    return found


def comparisons(run: Run) -> list[Compared]:
    """After the last round: each arm with vanilla and with the original, OOD and ID.

    The first is what the run is for: the last arm (merged, in the paper) with vanilla.
    """
    tasks = list(run.rows[0]["tasks"])
    kinds = {"out-of-domain accuracy": tasks[1:], "in-domain accuracy": tasks[:1]}
    vanilla = next((arm for arm in run.arms if is_vanilla(run.config["arms"][arm])), None)
    merged = [arm for arm in reversed(run.arms) if arm != vanilla]
    pairs = [(arm, vanilla) for arm in merged if vanilla] + [(arm, "base") for arm in merged]
    pairs += [(vanilla, "base")] if vanilla else []
    verdicts = {arm: verdicts_of(run, arm, run.last) for arm in run.arms}
    verdicts["base"] = verdicts_of(run, "base", 0)
    found = []
    for first, second in pairs if run.last else ():
        for what, names in kinds.items():
            result = compare_paired(verdicts[first], verdicts[second], names)
            if result is not None:
                found.append(Compared(first, _shown_name(second), what, result))
    return found


def is_vanilla(arm: dict) -> bool:
    """Whether an arm's settings are those of self-improvement without merging."""
    always = set(arm.get("schedule") or (1.0,)) == {1.0}
    return always and (arm["weight"], arm["drop_rate"], arm["start_from"]) == (1.0, 0.0, "merged")


def sentences(run: Run, compared: Sequence[Compared]) -> list[str]:
    """What the run supports: the first comparison, and the one of the other kind of accuracy."""
    if not compared and run.last:
        return [
            f"The answers of round {run.last} are not in the run's folder, so arms cannot be "
            "compared question by question; their accuracies are below."
        ]
    if not compared:
        return ["No round is finished by every arm, so there is nothing to compare yet."]
    first = compared[0]
    same = [row for row in compared if row[:2] == first[:2]]
    return [sentence(*row[:3], run.last, row.found) for row in same]


def verdicts_of(run: Run, arm: str, t: int) -> Verdicts:
    """Whether each answer of an arm after round ``t`` is right; of ``base``, the original, 0."""
    return {
        seed: {
            task: {row["id"]: bool(row["correct"]) for row in rows} for task, rows in found.items()
        }
        for (seed, at, name), found in run.answers.items()
        if (at, name) == (t, arm)
    }


def summary_rows(rows: Sequence[dict]) -> list[dict]:
    """A row for each round and arm: means over seeds, with intervals over questions and seeds."""
    made = []
    for group in by_round_and_arm(rows):
        made.append(
            {
                "round": group[0]["round"],
                "arm": _shown_name(group[0]["arm"]),
                "seeds": len(group),
                "in_domain": _cell(group, "in_domain"),
                "out_of_domain": _cell(group, "out_of_domain"),
                **{key: _mean(group, key) for key in ("samples", "kept", "distinct_2", "distance")},
            }
        )
    return made


def task_rows(rows: Sequence[dict]) -> list[dict]:
    """A row for each round, arm and task: means over seeds, with the mean Wilson interval."""
    made = []
    for group in by_round_and_arm(rows):
        for task in group[0]["tasks"]:
            scores = [row["tasks"][task] for row in group]
            made.append(
                {"round": group[0]["round"], "arm": _shown_name(group[0]["arm"]), "task": task}
                | {key: _mean(scores, key) for key in ("accuracy", "low", "high", "truncated")}
                | {"questions": scores[0]["questions"]}
            )
    return made


def examples_of(run: Run, count: int) -> list[Example]:
    """The first ``count`` questions of each task with every model's answer, from the first seed."""
    seed = min((seed for seed, t, _ in run.answers if t == run.last), default=0)
    places = [(seed, 0, "base"), *((seed, run.last, arm) for arm in run.arms)]
    models = [run.answers.get(place, {}) for place in places]
    made = []
    for number, task in enumerate(run.rows[0]["tasks"]):
        by_id = [{row["id"]: row for row in answers.get(task, ())} for answers in models]
        names = list(dict.fromkeys(name for rows in by_id for name in rows))[:count]
        known = run.questions.get(task, {})
        made += [
            Example(number, name, known.get(name), [_shown(rows.get(name)) for rows in by_id])
            for name in names
        ]
    return made


def provenance(run: Run) -> dict[str, str]:
    """Where it all came from, a line each."""
    record = dict(run.record)
    lines = {}
    for key in ("model", "teacher"):
        for name, value in (record.pop(key, None) or {}).items():
            lines[key if name == "source" else f"{key}: {name}"] = _plain(value)
    for key, label in (("tasks", "task"), ("questions", "hash of the questions of")):
        for name, value in (record.pop(key, None) or {}).items():
            lines[f"{label} {name}"] = _plain(value)
    lines |= {name: _plain(value) for name, value in record.items() if value is not None}
    lines["seeds"] = ", ".join(map(str, run.config["seeds"]))
    lines["command"] = f"imm-jax run {run.name}/config.yaml --output NEW"
    return lines


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shown_name(arm: str) -> str:
    return "original" if arm == "base" else arm


def _shown(row: dict | None) -> Shown:
    if row is None:
        return Shown("", None, None, False)
    cut = row.get("finish_reason") == "length"
    return Shown(row["text"].strip(), row["answer"], bool(row["correct"]), cut)


def _cell(group: Sequence[dict], key: str) -> dict | None:
    """A mean accuracy with its interval over questions and, from several seeds, over them."""
    values = [row.get(key) for row in group]
    if None in values:
        return None
    low, high = interval(group, key)
    made = {"mean": statistics.fmean(values), "low": low, "high": high, "seeds": None}
    if len(values) > 1 and group[0]["arm"] != "base":  # the original is the same for all seeds
        made["seeds"] = seed_interval(values)[1:]
    return made


def _mean(group: Sequence[dict], key: str) -> float | None:
    values = [row.get(key) for row in group]
    return None if None in values else statistics.fmean(values)
