"""From a spec, a short text in a config or on the command line, to a Task.

    builtin:one_step                      a built-in generator (``generators.KINDS``)
    data/questions.jsonl                  a file, as the test split
    jsonl:train=a.jsonl,test=b.jsonl      files for both splits
    hub:gsm8k                             a named data set of the hub (``hub.HUB_SETS``)
    hub:owner/name,test=validation        any other one; also config=, revision=, train=
    tfds:ai2_arc                          TensorFlow Datasets (the extra ``tfds``)
    reasoning_gym:leg_counting            reasoning-gym (the extra ``reasoning-gym``); its task's
                                          settings are options: ``,min_animals=2``

A suite (``suite:out_of_domain``) is several tasks; see ``suites.expand``.
``type=`` says how answers are checked where that is not plain from them, ``name=`` names the task.
"""

import difflib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from imm_jax.errors import InputError, nearest
from imm_jax.tasks import generators
from imm_jax.tasks.drafts import digest
from imm_jax.tasks.gym import generate_gym
from imm_jax.tasks.hub import hub_set, read_hub_split, read_tfds_split
from imm_jax.tasks.hub_sets import HUB_SETS, SUITES
from imm_jax.tasks.jsonl import read_examples
from imm_jax.tasks.shots import WORKED
from imm_jax.tasks.types import Example, Task, check_answer_type
from imm_jax.yaml_files import parse_yaml

logger = logging.getLogger("imm_jax")

OPTIONS = {
    "builtin": ("name",),
    "jsonl": ("train", "test", "type", "name"),
    "hub": ("train", "test", "type", "name", "config", "revision"),
    "tfds": ("train", "test", "type", "name"),
    "suite": ("folder",),
    "reasoning_gym": None,  # it says itself what it knows
}
OPTION = re.compile(r"(?:^|,)([a-z_]+)=")


def make_task(
    spec: str, *, seed: int = 0, train_size: int | None = None, test_size: int | None = None
) -> Task:
    """Makes the task that ``spec`` describes; see the module's text for the forms.

    Args:
      spec: what to load or generate.
      seed: seeds the generators, and the choice where a size is smaller than the data.
      train_size: training questions at most; 0 for none, None for all (the generators: 512).
      test_size: test questions at most; None for all (the generators: 200).

    Raises:
      InputError: an unknown name (with the nearest known one), data that cannot be read or reached,
        a bad row (with file and line), a negative size.
    """
    for key, size in (("train_size", train_size), ("test_size", test_size)):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
            raise InputError(f"{key} should be a whole number from 0, found {size!r}")
    scheme, target, options = parse_spec(spec)
    if scheme == "builtin":
        task = generators.generate(target, seed=seed, train_size=train_size, test_size=test_size)
        return replace(task, name=options.get("name", task.name))
    if scheme == "reasoning_gym":
        name = options.pop("name", target)
        config = {key: parse_yaml(value, f"{spec}: {key}") for key, value in options.items()}
        sizes = {"train_size": train_size, "test_size": test_size}
        return replace(generate_gym(target, config, seed=seed, **sizes), name=name)
    if scheme == "suite":
        raise InputError(f"{spec}: a suite is several tasks, expected one")
    if "type" in options:
        check_answer_type(options["type"], spec)
        if options["type"] not in WORKED:
            raise InputError(f"{spec}: answers of type {options['type']!r} need its own task")
    source = SOURCES[scheme](target, options)
    parts: dict[str, tuple[Example, ...]] = {"train": (), "test": ()}
    types: dict[str, str] = {}
    for split, size in (("train", train_size), ("test", test_size)):
        if source.places.get(split) and size != 0:
            examples, types[split] = source.read(source.places[split])
            # Two files may number their rows alike.
            prefix = "train/" if split == "train" else ""
            parts[split] = tuple(
                replace(example, id=prefix + example.id) for example in subset(examples, size, seed)
            )
    if len(set(types.values())) > 1:
        raise InputError(
            f"{spec}: answers are of type {types['train']!r} in training and {types['test']!r} in "
            "test questions; say which with type="
        )
    shared = {example.question for example in parts["train"]} & {
        example.question for example in parts["test"]
    }
    if shared:
        logger.warning(f"{spec}: {len(shared)} questions are in both splits")
    answer_type = next(iter(types.values()), options.get("type", "text"))
    return Task(
        name=options.get("name", source.name),
        train=parts["train"],
        test=parts["test"],
        shots=WORKED[answer_type],
        answer_type=answer_type,
        source=source.record,
    )


def parse_spec(spec: str) -> tuple[str, str, dict[str, str]]:
    """Splits a spec into scheme, target (may be empty) and options.

    Raises:
      InputError: an unknown scheme, name or option; names the nearest known one.
    """
    if not isinstance(spec, str) or not spec.strip():
        raise InputError(f"a task should be text such as 'builtin:one_step', found {spec!r}")
    spec = spec.strip()
    scheme, colon, rest = spec.partition(":")
    if not colon or scheme not in OPTIONS:
        if ".jsonl" in spec or Path(spec.split(",")[0]).is_file():
            scheme, rest = "jsonl", spec
        else:
            known = {kind: f"builtin:{kind}" for kind in generators.KINDS}
            known |= {name: f"hub:{name}" for name in HUB_SETS}
            known |= {name: f"suite:{name}" for name in SUITES}
            close = difflib.get_close_matches(spec.rpartition(":")[2], known, n=1)
            hint = f" (did you mean '{known[close[0]]}'?)" if close else ""
            raise InputError(
                f"unknown task {spec!r}{hint}; expected builtin:NAME, hub:NAME, tfds:NAME, "
                "reasoning_gym:NAME, suite:NAME or a .jsonl file"
            )
    marks = list(OPTION.finditer(rest))
    options: dict[str, str] = {}
    for mark, following in zip(marks, [*marks[1:], None]):
        key = mark[1]
        known = OPTIONS[scheme]
        if known is not None and key not in known:
            raise InputError(
                f"task {spec!r}: unknown option {key!r}{nearest(key, known)}; "
                f"known: {', '.join(known)}"
            )
        if key in options:
            raise InputError(f"task {spec!r}: the option {key!r} is given twice")
        options[key] = rest[mark.end() : following.start() if following else None]
    target = rest[: marks[0].start()] if marks else rest
    if not target and not (scheme == "jsonl" and {"train", "test"} & set(options)):
        raise InputError(f"task {spec!r}: a name or path is missing after {scheme + ':'!r}")
    return scheme, target, options


def subset(examples: tuple[Example, ...], size: int | None, seed: int) -> tuple[Example, ...]:
    """``size`` of the examples, chosen by the seed and their ids, in their order in the data.

    A larger size only adds. None, or more than there are, gives all.
    """
    if size is None or size >= len(examples):
        return examples
    chosen = sorted(examples, key=lambda example: digest(f"{seed}/{example.id}"))[:size]
    kept = {example.id for example in chosen}
    return tuple(example for example in examples if example.id in kept)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where the splits of a task are (``places``), how to read one, and what to record."""

    places: dict[str, str]
    read: Callable[[str], tuple[tuple[Example, ...], str]]
    name: str
    record: str


def _jsonl(target: str, options: Mapping[str, str]) -> _Source:
    if target and "test" in options:
        raise InputError(f"jsonl:{target}: the test file is given twice, also as test=")
    test, train = target or options.get("test", ""), options.get("train", "")
    return _Source(
        places={"train": train, "test": test},
        read=lambda path: read_examples(path, answer_type=options.get("type")),
        name=Path(test or train).stem,
        record="jsonl:" + ",".join(filter(None, (test, train))),
    )


def _hub(target: str, options: Mapping[str, str]) -> _Source:
    found = hub_set(target, options)
    config = f" {found.config}" if found.config else ""
    return _Source(
        places={"train": found.train, "test": found.test},
        read=lambda split: read_hub_split(found, split, target, options.get("type")),
        name=target,
        record=found.url or f"hub:{found.path}{config} revision {found.revision or 'main'}",
    )


def _tfds(target: str, options: Mapping[str, str]) -> _Source:
    return _Source(
        places={split: options.get(split, split) for split in ("train", "test")},
        read=lambda split: read_tfds_split(target, split, target, options.get("type")),
        name=target,
        record=f"tfds:{target}",
    )


SOURCES = {"jsonl": _jsonl, "hub": _hub, "tfds": _tfds}
