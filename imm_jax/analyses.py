"""The sections of an analysis that ask no model anything: each puts its figures in a record."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jaxtyping import PyTree

from imm_jax import checkpoints, hosts
from imm_jax.analysis import importance
from imm_jax.analysis.change import Change, change_by_layer
from imm_jax.analysis.correlation import rank_correlation
from imm_jax.analysis.diversity import COLLAPSED, collapse_rows, diversity
from imm_jax.analysis.record import SETTINGS, Record
from imm_jax.evaluation import Answer
from imm_jax.rounds.bench import Bench
from imm_jax.rounds.tools import training_sequences
from imm_jax.run_folder import RunFolder
from imm_jax.tasks.types import digest
from imm_jax.training.batching import Batches

MEASURES = {
    "taylor": importance.taylor_importance,
    "ablation": importance.ablation_importance,
    "influence": importance.block_influence,
}


def put_diversity(record: Record, run: RunFolder, answer_type: str) -> list[dict]:
    """Diversity, collapse and gap of every finished round of a run.

    Returns the rows of diversity.
    """
    rows, gaps = [], []
    for place in run.places():
        where = dataclasses.asdict(place)
        rows.append(where | dataclasses.asdict(diversity(run.samples(place), answer_type)))
        if "verification" in run.row(place):
            gaps.append(where | run.row(place)["verification"])
    record.put("diversity", {"rows": rows}, {})
    rows = record.sections["diversity"]["rows"]  # as JSON has them
    record.put("collapse", {"rows": collapse_rows(rows)}, {"share": COLLAPSED})
    record.put("gap", {"rows": gaps}, {"rule": run.config.select.rule})
    return rows


def put_changes(record: Record, base: PyTree, models: Sequence[tuple[dict, Callable]]) -> None:
    """Weight change of each model by layer and module.

    Args:
      record: where it goes.
      base: theta_0.
      models: what a row says of each model, and how to read its parameters.
    """
    rows = [where | _plain_change(change_by_layer(base, read())) for where, read in models]
    record.put("change", {"rows": rows}, {})


def _plain_change(change: Change) -> dict[str, Any]:
    return {
        "layers": change.layers,
        "layers_relative": change.layers_relative,
        "modules": change.plain.modules,
        "modules_relative": change.relative.modules,
        "outside": change.plain.outside,
        "outside_relative": change.relative.outside,
    }


def saved_models(run: RunFolder, like: PyTree) -> list[tuple[dict, Callable]]:
    """The models that a run keeps, for :func:`put_changes`."""
    return [
        (dataclasses.asdict(place) | {"model": name}, partial(checkpoints.restore, folder, like))
        for place in run.places()
        for name, folder in run.models(place).items()
    ]


def put_importance(
    record: Record,
    measures: Sequence[str],
    bench: Bench,
    base: PyTree,
    solutions: Sequence[Answer],
) -> Batches:
    """Importance of the base's layers by each measure; returns the solutions as batches."""
    sequences = training_sequences(bench, solutions)
    training = bench.config.training
    batches = importance.solution_batches(
        sequences,
        base,
        max_length=min(training.max_length, bench.model.config.max_position_embeddings),
        micro_batch_size=training.micro_batch_size,
    )
    settings = {"solutions": len(batches.sequences), "sequences": digest(batches.sequences)}
    record.begin("importance", settings | {"base": hosts.fingerprint(base)})
    for name in measures:
        make = partial(MEASURES[name], bench.model, base, batches, should_stop=bench.should_stop)
        record.take("importance", name, lambda make=make: _plain_importance(make()))
    return batches


def _plain_importance(found: Any) -> dict[str, Any]:
    if isinstance(found, importance.Taylor):
        sums = found.sums
        own = {"sums": sums.layers, "modules": sums.modules, "outside": sums.outside}
        return {"layers": found.layers, **own, "loss": found.loss}
    if isinstance(found, importance.Ablation):
        return {"layers": found.layers, "losses": found.losses, "loss": found.loss}
    return {"layers": found}


def importances(record: Record, base: PyTree) -> dict[str, list[float]]:
    """For each measure of this base that there is a figure a layer."""
    section = record.sections.get("importance")
    if section is None or section[SETTINGS]["base"] != hosts.fingerprint(base):
        return {}
    return {name: section[name]["layers"] for name in MEASURES if name in section}


def put_correlations(record: Record, measures: dict[str, list[float]]) -> list[dict]:
    """Rank correlation over layers of each importance and each change; returns the rows."""
    rows = []
    for change in record.sections["change"]["rows"]:
        where = {k: v for k, v in change.items() if k in ("seed", "round", "arm", "model")}
        for measure, layers in measures.items():
            for kind in ("layers_relative", "layers"):
                if len(layers) >= 3:
                    found = rank_correlation(layers, change[kind])._asdict()
                    rows.append(where | {"importance": measure, "change": kind} | found)
    record.put("correlation", {"rows": rows}, {})
    return record.sections["correlation"]["rows"]
