"""What a run's folder holds, read back for a report; what is missing is said, not an error."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imm_jax.analysis.outcome import Answers, Question, Run
from imm_jax.config import RunConfig
from imm_jax.errors import InputError
from imm_jax.files import read_jsonl, read_object
from imm_jax.rounds.output import QUESTIONS, RECORD, questions_hash
from imm_jax.rounds.run import load_tasks
from imm_jax.run_folder import read_run
from imm_jax.settings import to_dict
from imm_jax.tasks.prompts import question_text

logger = logging.getLogger("imm_jax")

ANALYSIS = "analysis.json"


def read_report(folder: str | Path) -> Run:
    """Reads what a report shows of a run that is finished, under way, or was cut off.

    Raises:
      InputError: it is no run's folder, has no result yet, or a file in it is damaged.
    """
    run = read_run(folder)
    record = read_object(run.path / RECORD)
    tasks = list(run.metrics[0]["tasks"])
    places = {(row["seed"], row["round"], row["arm"]) for row in run.metrics}
    answers = {place: _read_answers(run.path, place, tasks) for place in sorted(places)}
    questions, notes = _read_questions(run.config, record, tasks)
    return Run(
        name=run.path.resolve().name,
        config=to_dict(run.config),
        record=record,
        rows=run.metrics,
        answers=answers,
        questions=questions,
        analysis=read_object(run.path / ANALYSIS),
        notes=tuple(notes),
    )


def _read_answers(folder: Path, place: tuple[int, int, str], tasks: list[str]) -> Answers:
    seed, t, arm = place
    where = folder / "base" if arm == "base" else folder / f"seed-{seed}" / f"round-{t}" / arm
    paths = {task: where / "answers" / f"{task}.jsonl" for task in tasks}
    return {task: read_jsonl(path) for task, path in paths.items() if path.is_file()}


def _read_questions(
    config: RunConfig, record: Mapping[str, Any], names: list[str]
) -> tuple[dict[str, dict[str, Question]], list[str]]:
    """The run's test questions, as far as their source still gives the same ones."""
    try:
        tasks = load_tasks(config)
    except (InputError, OSError) as error:
        logger.warning(f"the questions cannot be read: {error}")
        return {}, ["The questions could not be read again, so answers stand without them."]
    sources, asked = record.get("tasks", {}), record.get(QUESTIONS, {})
    same = [
        task
        for task in tasks
        if task.source == sources.get(task.name, task.source)
        and (hashed := questions_hash(task)) == asked.get(task.name, hashed)
    ]
    found = {
        task.name: {q.id: Question(question_text(q), q.answer) for q in task.test} for task in same
    }
    changed = [name for name in names if name not in found]
    notes = [f"The questions of {', '.join(changed)} are no longer those of the run."]
    return found, notes if changed else []
