"""The figures of an analysis as tables of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from imm_jax.analysis.memorisation import SETS, VARIED
from imm_jax.analysis.scores import aligned

Rows = Sequence[Mapping[str, Any]]
COLUMNS = ("distinct_2", "self_bleu", "answer_entropy", "token_entropy")


def diversity_table(rows: Rows, collapse: Rows) -> str:
    """A row a round, arm and seed; below, the round from which a figure has collapsed."""
    lines = [["round", "arm", "seed", *COLUMNS, "unique correct", "pass@k"]]
    for row in rows:
        rates = row["pass_at_k"]
        last = list(rates)[-1]
        passed = " ".join(f"{rates[k]:.3f} ({k})" for k in dict.fromkeys(("1", last)))
        unique = f"{row['unique_correct']}/{row['correct']}"
        where = [str(row["round"]), row["arm"], str(row["seed"])]
        lines.append([*where, *(_number(row[key]) for key in COLUMNS), unique, passed])
    fallen = [
        f"{row['figure']} from round {row['rounds']} ({row['arm']}, seed {row['seed']})"
        for row in collapse
        if row["rounds"] is not None
    ]
    return f"{aligned(lines)}\ncollapsed: {', '.join(fallen) or 'nothing'}"


def gap_table(rows: Rows) -> str:
    """The generation-verification gap, a row a round, arm and seed; with the intervals of rows that
    have some (those of earlier versions have none).
    """
    lines = [["round", "arm", "seed", "generated", "verified", "gap", "relative"]]
    for row in rows:
        where = [str(row["round"]), row["arm"], str(row["seed"])]
        lines.append([*where, *_gap_cells(row)])
    return aligned(lines)


def verification_table(section: Mapping[str, Any]) -> str:
    """A row a round, arm and seed: the gap of a model that judges its samples, with intervals.

    Below, the rounds that could not be measured.
    """
    lines = [["round", "arm", "seed", "generated", "verified", "gap", "relative", "approved"]]
    for row in section["rows"]:
        where = [str(row["round"]), row["arm"], str(row["seed"])]
        lines.append([*where, *_gap_cells(row), f"{row['approved']}/{row['samples']}"])
    return "\n".join([aligned(lines), *map(_unmeasured, section["missing"])])


def _gap_cells(row: Mapping[str, Any]) -> list[str]:
    cells = [_number(row[key]) for key in ("generated", "verified", "gap", "relative")]
    for at, name in ((2, ""), (3, "relative_")):
        if f"{name}low" in row:
            cells[at] += f" [{_number(row[f'{name}low'], 2)}, {_number(row[f'{name}high'], 2)}]"
    return cells


def _unmeasured(where: Mapping[str, Any]) -> str:
    place = f"round {where['round']}, {where['arm']}, seed {where['seed']}"
    return f"{place}: not measured, for the model that sampled is not kept (keep: all keeps it)"


def layer_table(
    importance: Mapping[str, Sequence[float]], changes: Mapping[str, Sequence[float]]
) -> str:
    """A row a layer: importance by each measure, and the relative change of each model."""
    lines = [["layer", *importance, *(f"change, {name}" for name in changes)]]
    for layer, moved in enumerate(zip(*changes.values())):
        cells = [_number(values[layer], 4) for values in importance.values()]
        lines.append([str(layer + 1), *cells, *(f"{value:.2e}" for value in moved)])
    return aligned(lines)


def correlation_table(rows: Rows) -> str:
    """Spearman's rho over layers of importance and relative change, a row a model and measure."""
    lines = [["model", "importance", "rho", "95 % interval", "permutation p", "layers"]]
    for row in rows:
        if row["change"] == "layers_relative":
            interval = f"[{_number(row['low'], 2)}, {_number(row['high'], 2)}]"
            cells = [_number(row["rho"], 2), interval, _number(row["p_value"], 4)]
            lines.append([name_of(row), row["importance"], *cells, str(row["count"])])
    return aligned(lines)


def skipped_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a layer that is left out, and one for the whole model: accuracy with its interval."""
    return aligned([["layer", "accuracy"], *([name, _share(s)] for name, s in scores.items())])


def path_table(points: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a weight: accuracy on each task with its interval, and the loss."""
    tasks = list(next(iter(points.values()))["tasks"])
    lines = [["weight", *tasks, "loss"]]
    for weight, point in points.items():
        cells = [_share(point["tasks"][task]) for task in tasks]
        lines.append([weight, *cells, _number(point["loss"])])
    return aligned(lines)


def memorisation_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a set of questions, base and tuned beside each other, and the tests below."""
    lines = [["questions", *models, "count"]]
    for name in SETS:
        scores = [found["scores"].get(name) for found in models.values()]
        if None not in scores:
            lines.append([name, *map(_share, scores), str(scores[0]["questions"])])
    tests = []
    for name, found in models.items():
        for which in VARIED:
            if found.get(which):
                p_value = found[which]["p_value"]
                tests.append(f"{name}, trained and {which}: McNemar p = {p_value:.3f}")
        tests.append(f"{name}, trained and new: Fisher p = {found['new_p_value']:.3f}")
    return "\n".join([aligned(lines), *tests])


def name_of(row: Mapping[str, Any]) -> str:
    """``"round 2, imm"``, of a fine-tuned model before its merge ``"round 2, imm, tuned"``."""
    if "round" not in row:
        return row["model"]
    seed = f", seed {row['seed']}" if row["seed"] else ""
    tuned = ", tuned" if row["model"] == "tuned" else ""
    return f"round {row['round']}, {row['arm']}{tuned}{seed}"


def by_model(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Any]]:
    """What rows hold under ``key``, a list over seeds for each model of a round."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(name_of({**row, "seed": 0}), []).append(row[key])
    return found


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(score: Mapping[str, Any]) -> str:
    return f"{score['accuracy']:.3f} [{score['low']:.2f}, {score['high']:.2f}]"
