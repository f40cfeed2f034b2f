"""Methods that ask the models questions: what a recipe tells them.

They look at more than tensors, so they merge whole models, in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from imm_jax.errors import InputError
from imm_jax.merging.table import METHODS, Method, table_rows
from imm_jax.recipes.parameters import ELSEWHERE, MERGEKIT, REQUIRED, Parameter, parameters_of
from imm_jax.recipes.types import Recipe


@dataclass(frozen=True, kw_only=True)
class Asking:
    """A method that asks.

    Attributes:
      summary, base, models: as in :class:`~imm_jax.merging.Method`.
      parameters: in a recipe, the questions' first; those that are ``each`` may differ by model.
    """

    summary: str
    parameters: Mapping[str, Parameter]
    base: str = "unused"
    models: tuple[int, int | None] = (1, None)


def _whole(**parameters: Parameter) -> dict[str, Parameter]:
    return {name: parameter._replace(whole=True) for name, parameter in parameters.items()}


COUNT = Parameter(int, 0, low=1)
QUESTIONS = _whole(  # each model's own task; prompts as a fine-tune has them
    task=Parameter(str, REQUIRED, each=True),
    questions=COUNT._replace(default=64),
    split=Parameter(str, "train", among=("train", "test")),
    style=Parameter(str, "plain"),
    shots=Parameter(int, 0, low=0),
    seed=Parameter(int, 0, low=0, high=2**31 - 1),
)
BATCHES = _whole(batch_size=COUNT._replace(default=8))
ANSWERS = _whole(max_new_tokens=COUNT._replace(default=256))

ASKING = {
    "regmean": Asking(
        summary="least squares on the inputs of each layer, read from prompts",
        parameters=QUESTIONS
        | BATCHES
        | _whole(alpha=Parameter(float, 0.9, low=0, high=1), ridge=Parameter(float, 1e-6, low=0)),
        models=(2, None),
    ),
    "adamerging": Asking(
        summary="task arithmetic with the weights that make predictions on prompts surest",
        parameters=QUESTIONS
        | BATCHES
        | _whole(
            steps=COUNT._replace(default=REQUIRED),
            learning_rate=Parameter(float, 1e-3, low=0, above=True),
            init=Parameter(float, 0.3, low=0, high=1),
            per_layer=Parameter(bool, True),
        ),
        base="required",
    ),
    "greedy_soup": Asking(
        summary="mean of those models that do not lower the accuracy on a task",
        # As imm-jax evaluate asks.
        parameters=QUESTIONS
        | _whole(
            task=Parameter(str, REQUIRED),
            style=Parameter(str, "few_shot"),
            shots=Parameter(int, 8, low=0),
            batch_size=COUNT._replace(default=64),
        )
        | ANSWERS,
        models=(2, None),
    ),
    "fisher": Asking(
        summary="mean weighted by diagonal Fisher information, estimated on a task",
        parameters=QUESTIONS
        | _whole(labels=Parameter(str, "solutions", among=("solutions", "samples")))
        | ANSWERS,
    ),
}


def row_of(method: str) -> Method | Asking:
    """The method's summary, whether it has a base, and how many models it takes."""
    return METHODS[method] if method in METHODS else ASKING[method]


def known_parameters(method: str) -> dict[str, Parameter]:
    """Everything that a recipe may tell the method, whether it asks or takes files.

    Methods of mergekit also take what only others of them have, as unused.
    """
    own = dict(ASKING[method].parameters) if method in ASKING else {}
    elsewhere = ELSEWHERE if method in MERGEKIT else {}
    return elsewhere | (parameters_of(method) if method in METHODS else {}) | own


def used_parameters(recipe: Recipe) -> dict[str, Parameter]:
    """What the method takes in this recipe, which asks or does not."""
    method = recipe.merge_method
    return dict(ASKING[method].parameters) if asks(recipe) else parameters_of(method)


def names_set(recipe: Recipe) -> list[str]:
    """The parameters that the recipe sets anywhere."""
    sets = [recipe.parameters]
    for part in recipe.slices:
        sets += [part.parameters, *(source.parameters for source in part.sources)]
    return list(dict.fromkeys(name for settings in sets for name in settings))


def asks(recipe: Recipe) -> bool:
    """Whether the models are asked; ``fisher`` asks where it has no files but a task."""
    method = recipe.merge_method
    if method in ASKING and method in METHODS:
        return any(name in ASKING[method].parameters for name in names_set(recipe))
    return method in ASKING


def check_asking(recipe: Recipe) -> None:
    """Refuses what a merge of whole models cannot do.

    Raises:
      InputError: slices, a tokenizer that is not the models' own, or Fisher information twice.
    """
    if not asks(recipe):
        return
    method, names = recipe.merge_method, names_set(recipe)
    if "fisher" in names:
        beside = next(name for name in names if name in ASKING[method].parameters)
        raise InputError(
            f"{recipe.path}: parameters.fisher: found beside {beside}, expected files of Fisher "
            "information or a task"
        )
    labels = recipe.parameters.get("labels")
    if method == "fisher" and "max_new_tokens" in names and not (
        labels and labels[0].value == "samples"
    ):  # fmt: skip
        raise InputError(
            f"{recipe.path}: parameters.max_new_tokens: of the answers that labels: samples draws, "
            "expected none without it"
        )
    whole = f"{method} merges whole models"
    if any(source.layer_range is not None for source in recipe.slices[0].sources):
        raise InputError(f"{recipe.path}: slices: {whole}, expected models")
    if recipe.tokenizer is not None:
        raise InputError(
            f"{recipe.path}: tokenizer: {whole} that have one vocabulary, expected no tokenizer "
            "and no tokenizer_source"
        )


def asking_table() -> str:
    """The methods as a Markdown table, for documents."""
    rows = (
        (name, row.summary, {n: None if p.default is REQUIRED else p.default
                             for n, p in row.parameters.items()})
        for name, row in ASKING.items()
    )  # fmt: skip
    return table_rows(rows)
