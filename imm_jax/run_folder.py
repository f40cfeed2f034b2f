"""What a run has left in its folder, for those that look at it afterwards."""

import dataclasses
from pathlib import Path

from imm_jax.config import RunConfig, load_config
from imm_jax.errors import InputError
from imm_jax.evaluation import Answer
from imm_jax.files import read_jsonl
from imm_jax.rounds.output import CONFIG, METRICS
from imm_jax.rounds.select import from_rows

SELECTED = "selected.jsonl"


@dataclasses.dataclass(frozen=True)
class Place:
    """One round of one arm from one seed."""

    seed: int
    round: int
    arm: str

    def __str__(self) -> str:
        return f"seed {self.seed}, round {self.round}, {self.arm}"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run's folder.

    Attributes:
      path: where it is.
      config: the run's settings.
      metrics: the rows of ``metrics.jsonl``, which hold every finished round.
    """

    path: Path
    config: RunConfig
    metrics: list[dict]

    def places(self) -> list[Place]:
        """Finished rounds, in their order; the original model is none."""
        rows = [row for row in self.metrics if row["round"] > 0]
        return [Place(row["seed"], row["round"], row["arm"]) for row in rows]

    def row(self, place: Place) -> dict:
        """The metrics of a round."""
        return next(
            row
            for row in self.metrics
            if (row["seed"], row["round"], row["arm"]) == dataclasses.astuple(place)
        )

    def samples(self, place: Place) -> list[Answer]:
        """All graded samples that the round drew, in the order of the questions."""
        folder = self._holder(place, "samples") / "samples"
        blocks = sorted(folder.glob("*.jsonl"))
        if not blocks:
            raise InputError(f"{folder}: no samples there, expected a run's")
        return from_rows([row for block in blocks for row in read_jsonl(block)])

    def selected(self, place: Place) -> list[Answer]:
        """The samples that the round trained on."""
        return from_rows(read_jsonl(self._holder(place, SELECTED) / SELECTED))

    def trained_on(self, last: Place) -> set[str]:
        """The questions whose samples an arm was trained on, up to a round."""
        return {
            answer.id
            for place in self.places()
            if (place.seed, place.arm) == (last.seed, last.arm) and place.round <= last.round
            for answer in self.selected(place)
        }

    def merges(self, arm: str) -> bool:
        """Whether an arm's model M_t is another than theta_t."""
        settings = self.config.arms[arm]
        factors = set(settings.schedule or (1.0,))
        return settings.weight != 1.0 or settings.drop_rate != 0.0 or factors != {1.0}

    def models(self, place: Place) -> dict[str, Path]:
        """The checkpoints kept of a round: ``model`` (M_t) and, of arms that merge, ``tuned``
        (theta_t), which a run keeps where it is told to keep all.
        """
        folders = {"model": self._own(place) / "model"}
        if self.merges(place.arm):
            folders["tuned"] = self._holder(place, SELECTED) / "tuned"  # beside its selection
        return {name: folder for name, folder in folders.items() if folder.is_dir()}

    def _own(self, place: Place) -> Path:
        return self.path / f"seed-{place.seed}" / f"round-{place.round}" / place.arm

    def _holder(self, place: Place, name: str) -> Path:
        """The arm's folder, or the one that arms share, where that is what holds a result."""
        own = self._own(place)
        shared = own.with_name("shared")
        return shared if (shared / name).exists() and not (own / name).exists() else own


def read_run(path: str | Path) -> RunFolder:
    """Reads the folder of a run that is finished, under way, or was cut off.

    Raises:
      InputError: it is no run's folder, has no result yet, or a file in it is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: is not a folder, expected that of a run")
    if not (path / CONFIG).is_file():
        raise InputError(f"{path}: holds no {CONFIG}, expected the folder of a run")
    config = load_config(path / CONFIG)
    if not (path / METRICS).is_file():
        raise InputError(f"{path}: holds no {METRICS} yet, expected a run with results")
    rows = read_jsonl(path / METRICS)
    if not rows or not all(_is_result(row) for row in rows):
        raise InputError(f"{path / METRICS}: expected the results of a run, a row each")
    return RunFolder(path, config, rows)


def _is_result(row: dict) -> bool:
    return {"seed", "round", "arm", "tasks", "in_domain", "out_of_domain"} <= row.keys()
