"""A run as one HTML page: what it supports, figures, tables, settings, answers side by side."""

import base64
import hashlib
import json
import statistics
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

from imm_jax import __version__
from imm_jax.analysis.analysis_figures import analysis_figures
from imm_jax.analysis.figures import legend, run_figures
from imm_jax.analysis.outcome import Question, Run, comparisons, sentences, shown_name
from imm_jax.analysis.summary import by_round_and_arm, interval
from imm_jax.analysis.verdict import signed
from imm_jax.statistics import seed_interval


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


def summary_rows(rows: Sequence[dict]) -> list[dict]:
    """A row for each round and arm: means over seeds, with intervals over questions and seeds."""
    made = []
    for group in by_round_and_arm(rows):
        made.append(
            {
                "round": group[0]["round"],
                "arm": shown_name(group[0]["arm"]),
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
                {"round": group[0]["round"], "arm": shown_name(group[0]["arm"]), "task": task}
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
