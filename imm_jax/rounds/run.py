"""A whole run: seeds, rounds and arms, from a configuration to a folder of results."""

import dataclasses
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from imm_jax import __version__, hosts
from imm_jax.config import RunConfig, load_config
from imm_jax.devices import peak_flops as known_peak_flops
from imm_jax.errors import Diverged, InputError, nearest
from imm_jax.models.decoder import Decoder
from imm_jax.models.layout import param_shapes
from imm_jax.models.load import load_model, read_config
from imm_jax.models.sources import identify, resolve
from imm_jax.models.tokenizer import check_tokenizer, load_tokenizer
from imm_jax.rounds.bench import Bench, check_prompts, prompt_versions
from imm_jax.rounds.costs import Meter
from imm_jax.rounds.output import (
    QUESTIONS,
    check_record,
    claim,
    locate,
    questions_hash,
    write_metrics,
    write_record,
)
from imm_jax.rounds.profile import Profile
from imm_jax.rounds.seeds import run_seeds
from imm_jax.rounds.select import RULES, check_rule
from imm_jax.rounds.stages import Later
from imm_jax.sharding import make_mesh, placement
from imm_jax.tasks import make_task
from imm_jax.tasks.prompts import STYLES
from imm_jax.tasks.suites import expand
from imm_jax.tasks.types import Task
from imm_jax.training.lora import target_kernels

logger = logging.getLogger("imm_jax")


def run(
    config: RunConfig | str | Path,
    output: str | Path | None = None,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    profile: str | Path | None = None,
    peak_flops: float | None = None,
) -> list[dict]:
    """Runs Iterative Model Merging, or goes on with a run that was cut off.

    The same configuration gives the same samples and, on CPU, bit-equal weights, however often the
    process was killed on the way.

    Args:
      config: the settings, the YAML file that holds them, or a run's folder to go on with.
      output: the folder for everything the run makes; ``runs/<name of the YAML file>`` by default.
        One that holds a run of the same settings, but for fewer rounds or seeds, is gone on with.
      should_stop: asked between small steps; on True the work so far is kept and the run ends with
        ``Interrupted``.
      profile: a folder for traces of a few moments of the first round; see ``rounds.profile``.
      peak_flops: FLOP/s of one device, for MFU; what ``imm_jax.devices`` knows by default.

    Returns:
      A row for each seed, round and arm, as in ``metrics.jsonl``; round 0 is the original model.
      The rows of an arm that diverged end before that round (with several processes the run does).
      ``stages`` alone is not the same every time: what each stage cost, as ``rounds.costs`` has it.
      Arms that share samples or a fine-tune name the same cost.

    Raises:
      InputError: a setting, the model, a task or a folder cannot be used, or a first round keeps no
        sample.
      Diverged: no arm came through its first round.
      Interrupted: ``should_stop`` said so.
    """
    if not isinstance(config, RunConfig):
        path, place = locate(config)
        output, config = output or place, load_config(path)
    if output is None:
        raise InputError("output: missing, expected a folder")
    output = Path(output)
    check_settings(config)
    traces = Profile(profile) if profile is not None and hosts.is_primary() else None
    with ExitStack() as stack:
        hosts.from_primary(lambda: stack.enter_context(claim(output, config)))
        tasks = load_tasks(config)
        meter = Meter(_peak_flops(config, peak_flops), traces)
        bench, base, record = load_bench(config, tasks, should_stop, meter)
        hosts.from_primary(lambda: check_record(output, record))
        base()  # a model that cannot be read is refused before anything is written
        hosts.from_primary(lambda: write_record(output, config, record))
        rows = []
        for row in run_seeds(bench, base, output):
            rows.append(row)
            if hosts.is_primary():
                write_metrics(output, rows)
        if all(row["round"] == 0 for row in rows):
            raise Diverged(f"{output}: every arm diverged in its first round, as said above")
        return rows


def _peak_flops(config: RunConfig, of_one: float | None) -> float | None:
    """FLOP/s of all devices of a run, None where not known."""
    mesh = make_mesh(config.mesh)
    of_one = known_peak_flops() if of_one is None else of_one
    return of_one and of_one * (mesh.size if mesh else 1)


def check_settings(config: RunConfig) -> None:
    """Refuses names that nothing answers to, and a mesh that is not there, before loading."""
    check_rule(config.select.rule)
    deepening = config.iterative_deepening
    if deepening is not None and deepening.retry == "wrong" and not RULES[config.select.rule].gold:
        raise InputError(
            "iterative_deepening.retry: 'wrong' reads the gold answers, which the rule "
            f"{config.select.rule!r} does without; expected 'unfinished'"
        )
    make_mesh(config.mesh)
    for key in ("sample_style", "evaluate_style", "train_style"):
        style = getattr(config.data, key)
        if style is not None and style not in STYLES:
            raise InputError(
                f"data.{key}: unknown prompt style {style!r}{nearest(style, STYLES)}, "
                f"expected one of {', '.join(STYLES)}"
            )


def load_tasks(config: RunConfig) -> tuple[Task, ...]:
    """The in-domain task and the out-of-domain tasks, with as many questions as are used.

    Raises:
      InputError: a task cannot be loaded, has no questions, or has another's name.
    """
    data = config.data
    tasks = [
        make_task(
            spec,
            seed=data.seed,
            train_size=data.train_questions if spec is data.in_domain else 0,
            test_size=data.test_questions,
        )
        for spec in (data.in_domain, *expand(data.out_of_domain))
    ]
    if not tasks[0].train:
        raise InputError(
            f"{data.in_domain}: no training questions, expected some in the task that is first, in "
            "domain (two files: jsonl:train=FILE,test=FILE)"
        )
    for number, task in enumerate(tasks):
        if not task.test:
            raise InputError(f"data: task {task.name} has no test questions")
        if task.name in {other.name for other in tasks[:number]}:
            raise InputError(f"data: two tasks are named {task.name}, expected distinct names")
    return tuple(tasks)


def load_bench(
    config: RunConfig, tasks: tuple[Task, ...], should_stop: Callable[[], bool], meter: Meter
) -> tuple[Bench, Later[PyTree], dict]:
    """The model and all that goes with it, its parameters, and the record of where it came from."""
    settings = config, tasks, should_stop, meter
    bench, base, source = open_bench(config.model, config.revision, *settings)
    if config.training.lora is not None:
        target_kernels(param_shapes(bench.model.config), config.training.lora)
    record = {"model": source}
    if config.teacher is not None:
        *teacher, record["teacher"] = open_bench(config.teacher, None, *settings)
        bench = dataclasses.replace(bench, teacher=tuple(teacher))
    bench = dataclasses.replace(bench, prompts=check_prompts(bench))
    mesh = make_mesh(config.mesh)
    record |= {
        "tasks": {task.name: task.source for task in tasks},
        QUESTIONS: {task.name: questions_hash(task) for task in tasks},
        "prompts": prompt_versions(config),
        "imm_jax": __version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "mesh": None if mesh is None else dict(mesh.shape),
        "processes": hosts.count(),
        "dtype": config.dtype,
    }
    return bench, base, record


def open_bench(
    source: str,
    revision: str | None,
    config: RunConfig,
    tasks: tuple[Task, ...],
    should_stop: Callable[[], bool],
    meter: Meter | None = None,
) -> tuple[Bench, Later[PyTree], dict]:
    """A model and its tokenizer, its parameters read when first asked for, and where it is from."""
    resolved = resolve(source, revision=revision)
    architecture, tokenizer = read_config(resolved), load_tokenizer(resolved)
    check_tokenizer(tokenizer, architecture)
    # XLA:CPU has no bfloat16 arithmetic; it would convert the weights at every use.
    compute = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    model = Decoder(config=architecture, dtype=compute)

    def read() -> PyTree:
        where = placement(config.mesh, param_shapes(architecture))
        dtype = jnp.dtype(config.dtype)
        return load_model(source, dtype=dtype, sharding=where, revision=revision)[1]

    bench = Bench(config, model, tokenizer, tasks, should_stop, meter or Meter())
    return bench, Later(read), identify(resolved)
