"""What a run's folder holds, and what it says: arms compared after the last round."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from imm_jax.analysis.verdict import Paired, Verdicts, compare_paired, sentence

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
                found.append(Compared(first, shown_name(second), what, result))
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


def shown_name(arm: str) -> str:
    """What an arm is called where people read it."""
    return "original" if arm == "base" else arm
