"""Questions that can be checked: tasks, prompts, answers."""

from imm_jax.tasks.answers import extract, grade, grade_all, is_correct
from imm_jax.tasks.prompts import (
    Prompt,
    cut_at_stop,
    get_style,
    prompt_version,
    question_styles,
    render,
    response_text,
    training_style,
)
from imm_jax.tasks.sources import make_task
from imm_jax.tasks.suites import make_tasks
from imm_jax.tasks.types import Example, Grade, Task

__all__ = [
    "Example",
    "Grade",
    "Prompt",
    "Task",
    "cut_at_stop",
    "extract",
    "get_style",
    "grade",
    "grade_all",
    "is_correct",
    "make_task",
    "make_tasks",
    "prompt_version",
    "question_styles",
    "render",
    "response_text",
    "training_style",
]
