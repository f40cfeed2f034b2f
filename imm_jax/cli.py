"""The ``imm-jax`` command: parse, call, print."""

import argparse
import dataclasses
import logging
import os
import signal
import sys
from pathlib import Path

from imm_jax.analyze_command import analyze
from imm_jax.arguments import parse
from imm_jax.console import (
    Stop,
    keep_stdout_for_results,
    logging_to_stderr,
    silence_closed_loops,
)
from imm_jax.errors import Diverged, InputError, Interrupted
from imm_jax.evaluate_command import evaluate
from imm_jax.inputs import (
    check_output,
    check_question_style,
    generation_config,
    open_model,
    sampling_config,
)
from imm_jax.merge_command import merge
from imm_jax.plan_command import plan
from imm_jax.report_command import report


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0: done. 2: bad input, said in one line on standard error. 130, 143: stopped by Ctrl-C or
    SIGTERM with the work so far saved.
    """
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        # Its import otherwise says that it found no PyTorch, which nothing here needs.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        _keep_compiled_programs()
        silence_closed_loops()
        with logging_to_stderr():
            COMMANDS[args.command](args)
        return 0
    except InputError as error:
        return _refuse(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{where}{error.strerror or error}")
    except Interrupted as error:
        then = "goes on from here" if error.saved else "begins anew"
        print(f"{error}; the same command {then}", file=sys.stderr)
        return 128 + (Stop.signal or signal.SIGINT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _refuse(message: str) -> int:
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    return 2


def _run(args: argparse.Namespace) -> None:
    from imm_jax.analysis.summary import plot, table
    from imm_jax.config import load_config
    from imm_jax.hosts import count, is_primary
    from imm_jax.rounds.output import CONFIG, locate
    from imm_jax.rounds.run import run
    from imm_jax.sharding import start_hosts

    start_hosts(args.coordinator, args.processes, args.process)
    if count() > 1:
        keep_stdout_for_results()
    if not is_primary():
        logging.getLogger("imm_jax").setLevel(logging.WARNING)  # the primary says it for all
    path, place = locate(args.config, args.smoke)
    output = Path(args.output or place)
    name = output.resolve().name if path.name == CONFIG else path.stem
    config = load_config(path, args.overrides, smoke=args.smoke)
    if args.mesh is not None:
        config = dataclasses.replace(config, mesh=args.mesh)
    profile = output / "profile" if args.profile == "" else args.profile
    with Stop() as should_stop:
        rows = run(
            config, output, should_stop=should_stop, profile=profile, peak_flops=args.peak_flops
        )
    if not is_primary():
        return
    plot(rows, output / "plot.png", f"{name}: {config.model.rsplit('/', 1)[-1]}")
    print(table(rows))
    model = f"   model: {output}/model" if (output / "model").is_dir() else ""
    print(f"\nfigures: {output}/plot.png, {output}/metrics.jsonl{model}")
    expected = len(config.seeds) * (1 + config.rounds * len(config.arms))
    if len(rows) < expected:
        raise Diverged(
            f"{output}: {expected - len(rows)} of {expected} rows are missing, of arms that "
            "diverged, as said above"
        )


def _generate(args: argparse.Namespace) -> None:
    from imm_jax.files import write_jsonl
    from imm_jax.models.layout import param_shapes
    from imm_jax.models.load import load_model, read_config
    from imm_jax.sampling.checks import check_stop
    from imm_jax.sampling.engine import generate
    from imm_jax.sharding import make_mesh, placement
    from imm_jax.tasks import Example, get_style, render

    sampling = sampling_config(args)
    prompts = [*args.prompts, *_prompt_lines(args.file)]
    if not prompts:
        raise InputError("generate: no prompt, expected some on the command line or in --file")
    for number, prompt in enumerate(prompts):
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # Python's stand-ins
            raise InputError(f"prompt {number}: not UTF-8 text")
    check_question_style(args.style)
    check_stop(args.stop)
    make_mesh(args.mesh)
    check_output(args.output)
    source, tokenizer = open_model(args.model, args.revision)
    stop, special = tuple(args.stop), True
    texts = prompts
    if args.style != "raw":
        rendered = [
            render(args.style, Example(id=str(i), question=prompt, answer=""), (), tokenizer)
            for i, prompt in enumerate(prompts)
        ]
        texts, special = [p.whole for p in rendered], rendered[0].add_special_tokens
        stop += get_style(args.style).stops
    where = placement(args.mesh, param_shapes(read_config(source)))
    model, params = load_model(source.path, sharding=where)
    results = generate(
        model,
        params,
        tokenizer,
        texts,
        config=sampling,
        samples=args.samples,
        stop=stop,
        seed=args.seed,
        add_special_tokens=special,
    )
    rows = [
        {"prompt": prompt, "sample": i, **dataclasses.asdict(sample)}
        for prompt, samples in zip(prompts, results)
        for i, sample in enumerate(samples)
    ]
    if args.output:
        write_jsonl(args.output, rows)
        print(f"{args.output}: {len(rows)} samples")
        return
    for row in rows:
        print(row["text"].strip() if len(rows) == 1 else f"[{row['prompt']}]\n{row['text']}\n")


def _convert(args: argparse.Namespace) -> None:
    from imm_jax.models.huggingface.saving import save_model
    from imm_jax.models.load import load_model

    check_output(args.output, folder=True)
    source, tokenizer = open_model(args.model, args.revision)
    model, params = load_model(source.path, dtype=args.dtype)
    own = generation_config(source)
    save_model(args.output, model, params, tokenizer=tokenizer, generation_config=own)
    print(args.output)


def _prompt_lines(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}") from error
    return [line for line in lines if line.strip()]


def _keep_compiled_programs() -> None:
    """A second run, or a run taken up again, does not compile the same programs again.

    Nor the small ones that JAX would not keep: they are many, and take longer to make than to read.
    """
    import jax

    from imm_jax.models.sources import default_cache_dir

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "xla"))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


COMMANDS = {
    "run": _run,
    "generate": _generate,
    "evaluate": evaluate,
    "analyze": analyze,
    "merge": merge,
    "convert": _convert,
    "plan": plan,
    "report": report,
}


if __name__ == "__main__":
    sys.exit(main())
