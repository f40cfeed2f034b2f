"""Rows of public data sets, whatever their columns are called, as examples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from imm_jax.errors import InputError
from imm_jax.tasks.normalize import canonical_number
from imm_jax.tasks.schemas import SCHEMAS, RowError
from imm_jax.tasks.types import Example

QUESTIONS = {"question", "question_stem", "problem", "Body", "query", "sQuestion", "input"}


def examples_from_rows(
    rows: Sequence[Mapping], places: Sequence[str], prefix: str, answer_type: str | None = None
) -> tuple[tuple[Example, ...], str]:
    """Reads rows of one schema.

    Args:
      rows: the rows.
      places: where each stands, for messages (``"data.jsonl:12"``).
      prefix: begins the ids of rows that have none.
      answer_type: how to check the answers; by default what their form says.

    Returns:
      The examples, and their answer type.

    Raises:
      InputError: there are no rows, or one cannot be used; names its place.
    """
    examples: list[Example] = []
    names: list[str] = []
    seen: dict[str, str] = {}
    for index, (row, place) in enumerate(zip(rows, places)):
        try:
            name = schema_of(row)
            if names and name != names[0]:
                raise RowError(f"a row of form {name!r} after rows of form {names[0]!r}")
            example = SCHEMAS[name].read(row)
            identity = _identity(row) or f"{prefix}-{index:05d}"
        except RowError as error:
            raise InputError(f"{place}: {error}") from error
        if identity in seen:
            raise InputError(f"{place}: the id {identity!r} was used before, at {seen[identity]}")
        seen[identity] = place
        names.append(name)
        examples.append(replace(example, id=identity))
    answer_type = answer_type or infer_type(examples, names)
    for example, place in zip(examples, places):
        if answer_type == "number" and canonical_number(example.answer) is None:
            raise InputError(f"{place}: expected a number as the answer, found {example.answer!r}")
        if (answer_type == "choice") != (example.choices is not None):
            has = "no choices" if example.choices is None else "choices"
            raise InputError(f"{place}: the row has {has}, but answers are of type {answer_type!r}")
    return tuple(examples), answer_type


def schema_of(row: Mapping) -> str:
    """The name of the first schema in ``SCHEMAS`` that the row has the columns of."""
    for name, schema in SCHEMAS.items():
        if all(row.get(column) is not None for column in schema.columns) and schema.accepts(row):
            return name
    if not QUESTIONS & set(row):
        raise RowError(f"the key 'question' is missing, found {_keys(row)}")
    raise RowError(f"the key 'answer' is missing or empty, found {_keys(row)}")


def infer_type(examples: Sequence[Example], schemas: Sequence[str]) -> str:
    """``choice``, ``math``, ``number``, or ``text`` where nothing more special fits all."""
    if examples and examples[0].choices is not None:
        return "choice"
    if "math" in schemas:
        return "math"
    if "gsm8k" in schemas or all(canonical_number(example.answer) for example in examples):
        return "number"
    return "text"


def _keys(row: Mapping) -> str:
    return ", ".join(map(repr, row)) or "no keys"


def _identity(row: Mapping) -> str | None:
    for key in ("id", "ID", "unique_id", "qid"):
        value = row.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise RowError(f"'{key}' should be text or a whole number, found {value!r}")
        return str(value)
    return None
