"""The merge methods by name: one table, from which documents, help and readers are made."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax import Array

from imm_jax.errors import InputError, nearest
from imm_jax.merging import methods, selective, spherical
from imm_jax.merging.leaf_weights import require_sum
from imm_jax.merging.merge import merge_params
from imm_jax.merging.protocol import Chain, Transform
from imm_jax.merging.ram import ram, ramplus_tl
from imm_jax.merging.spectral import iso_c, tsv
from imm_jax.merging.weights import Weight, plus

PyTree = Any


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table of methods.

    Attributes:
      build: makes the transform from the method's parameters (mergekit's names; ``lambda`` is
        written ``lambda_``).
      summary: one line for tables and help.
      parameters: their names and defaults.
      base: ``"required"``; ``"unused"``: the models alone are merged; or ``"optional"``.
      models: the least and most models besides the base (None: any number).
      weight: what mergekit calls the weight: ``"weight"``, ``"t"``, ``"alpha"``, or None where the
        method has none.
      default_weight: where it is not given; None: it must be.
    """

    build: Callable[..., Transform | Chain]
    summary: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    base: str = "required"
    models: tuple[int, int | None] = (1, None)
    weight: str | None = "weight"
    default_weight: Any = 1.0


TASK = {"normalize": False, "lambda": 1.0}
DARE = {"density": 0.8, "rescale": True, **TASK}
DELLA = {"density": 0.5, "epsilon": 0.15, "rescale": True, **TASK}
CRUMBS = {"density": 0.9, "gamma": 0.01, "rescale": False, **TASK}
PAIR = (1, 1)

METHODS: dict[str, Method] = {
    "linear": Method(
        build=methods.linear,
        summary="weighted mean of models",
        parameters={"normalize": True},
        base="unused",
    ),
    "task_arithmetic": Method(
        build=methods.task_arithmetic, summary="base plus weighted task vectors", parameters=TASK
    ),
    "ties": Method(
        build=methods.ties,
        summary="trim small changes, elect signs, merge what agrees",
        parameters={"density": 0.2, "scope": "tensor", "rescale": False, **TASK, "normalize": True},
    ),
    "dare_linear": Method(
        build=methods.dare_linear,
        summary="drop at random and rescale, then add up",
        parameters=DARE,
    ),
    "dare_ties": Method(
        build=methods.dare_ties,
        summary="drop at random and rescale, then elect signs",
        parameters=DARE,
    ),
    "della": Method(
        build=methods.della,
        summary="drop at random, small changes more often, then elect signs",
        parameters={**DELLA, "normalize": True},
    ),
    "della_linear": Method(
        build=methods.della_linear,
        summary="drop at random, small changes more often, then add up",
        parameters=DELLA,
    ),
    "breadcrumbs": Method(
        build=methods.breadcrumbs,
        summary="drop largest and smallest changes, then add up",
        parameters=CRUMBS,
    ),
    "breadcrumbs_ties": Method(
        build=methods.breadcrumbs_ties,
        summary="drop largest and smallest changes, then elect signs",
        parameters=CRUMBS,
    ),
    "slerp": Method(
        build=spherical.slerp,
        summary="along the arc from the base to a model",
        models=PAIR,
        weight="t",
        default_weight=None,
    ),
    "nuslerp": Method(
        build=spherical.nuslerp,
        summary="along the arc between two models, or two task vectors",
        parameters={"nuslerp_flatten": True, "nuslerp_row_wise": False},
        base="optional",
        models=(2, 2),
    ),
    "multislerp": Method(
        build=spherical.multislerp,
        summary="weighted mean on the sphere, in one tangent space",
        parameters={"normalize_weights": True, "eps": spherical.TINY},
        base="optional",
    ),
    "karcher": Method(
        build=spherical.karcher,
        summary="Karcher mean on the sphere",
        parameters={"max_iter": 10, "tol": 1e-5},
        base="unused",
    ),
    "model_stock": Method(
        build=spherical.model_stock,
        summary="towards the models' mean as far as their angle justifies",
        parameters={"filter_wise": False},
        models=(2, None),
        weight=None,
    ),
    "sce": Method(
        build=selective.sce,
        summary="select by variance, weigh by energy, erase minority signs",
        parameters={"select_topk": 1.0},
        weight=None,
    ),
    "nearswap": Method(
        build=methods.nearswap,
        summary="towards a model, each element by at most t",
        parameters={"t": 0.001},
        models=PAIR,
        weight=None,
    ),
    "arcee_fusion": Method(
        build=selective.arcee_fusion,
        summary="take over the elements of a model that stand out",
        models=PAIR,
        weight=None,
    ),
    "passthrough": Method(
        build=methods.passthrough,
        summary="one model, scaled",
        base="unused",
        models=PAIR,
        weight="scale",
    ),
    "wise_ft": Method(
        build=methods.wise_ft,
        summary="interpolation from the base to a model",
        models=PAIR,
        weight="alpha",
        default_weight=0.5,
    ),
    "expo": Method(
        build=methods.expo,
        summary="extrapolation past a model, away from the base",
        models=PAIR,
        weight="alpha",
        default_weight=0.3,
    ),
    "ram": Method(
        build=ram,
        summary="mean, for each element, of the models that changed it",
        parameters={"epsilon": 1e-5},
        weight=None,
    ),
    "ramplus_tl": Method(
        build=ramplus_tl,
        summary="as ram, but amplify what one model alone changed",
        parameters={"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
        weight=None,
    ),
    "tsv": Method(
        build=tsv,
        summary="leading singular components of each model, made orthogonal (TSV-M)",
        parameters={"lambda": 1.0},
    ),
    "iso_c": Method(
        build=iso_c,
        summary="sum of task vectors with all singular values equal",
        parameters={"lambda": 1.0},
    ),
    "fisher": Method(
        build=methods.fisher,
        summary="mean weighted by diagonal Fisher information (weight: Fisher trees)",
        base="unused",
        default_weight=None,
    ),
}


def merge_models(
    method: str,
    models: Sequence[PyTree],
    *,
    base: PyTree | None = None,
    weight: Weight | None = None,
    key: Array | None = None,
    stacked: Callable[[str], bool] | None = None,
    **parameters: Any,
) -> PyTree:
    """Merges models by a method's name, with mergekit's parameters.

    Args:
      method: a key of :data:`METHODS`.
      models: the models' trees, the base apart.
      base: the base model, for methods that have one.
      weight: as in :func:`merge_params`, where ``models`` is a sequence: a list gives each model
        its own. The method's own name for it (``t``, ``alpha``, ``scale``) is accepted as well.
      key: for methods that draw random numbers.
      stacked: as in :func:`merge_params`.
      **parameters: the method's parameters (``density=0.2``, ``**{"lambda": 0.7}``). A density of 1
        keeps every change, one of 0 none, as in recipes: what is left is the base.

    Returns:
      A tree like the base, or like the first model where there is none.

    Raises:
      InputError: unknown method or parameter, a base missing or too much, too few or too many
        models, weights of a linear merge that sum to 0. Traced ones cannot be looked at; where they
        sum to 0 there is no mean, and the result has no meaning.
    """
    if method not in METHODS:
        raise InputError(f"unknown merge method {method!r}{nearest(method, METHODS)}")
    row = METHODS[method]
    models = list(models)
    _check_models(method, row, len(models), base)
    arguments = {"lambda" if k == "lambda_" else k: v for k, v in parameters.items()}
    if row.weight in arguments:
        weight = arguments.pop(row.weight)
    for name in arguments:
        if name not in row.parameters:
            raise InputError(f"{method} has no parameter {name!r}{nearest(name, row.parameters)}")
    weight = _check_weight(method, row, weight)
    if method == "linear" and arguments.get("normalize", True):
        require_sum(models[0], weight, len(models), stacked)
    if "lambda" in arguments:
        arguments["lambda_"] = arguments.pop("lambda")
    if row.base == "optional":
        arguments["about_base"] = base is not None
    origin = models[0] if base is None else base
    made = row.build(**arguments)
    return merge_params(origin, models, weight=weight, transform=made, key=key, stacked=stacked)


def _check_models(method: str, row: Method, count: int, base: PyTree | None) -> None:
    least, most = row.models
    if count < least or (most is not None and count > most):
        wanted = f"{least}" if least == most else f"at least {least}"
        raise InputError(f"{method} merges {wanted} models besides the base, got {count}")
    if row.base == "required" and base is None:
        raise InputError(f"{method} needs a base model: pass base=")
    if row.base == "unused" and base is not None:
        raise InputError(f"{method} merges models without a base: pass it as one of the models")


def _check_weight(method: str, row: Method, weight: Weight | None) -> Weight:
    if weight is not None and row.weight is None:
        raise InputError(f"{method} has no weight, got {weight!r:.60}")
    if weight is None and row.default_weight is None:
        raise InputError(f"{method} needs {row.weight}=")
    weight = row.default_weight if weight is None else weight
    return plus(weight, 1) if method == "expo" else weight


def methods_table() -> str:
    """The methods as a Markdown table, for documents."""

    def shown(row: Method) -> dict[str, Any]:
        weight = {} if row.weight is None else {row.weight: row.default_weight}
        return weight | dict(row.parameters)

    return table_rows((name, row.summary, shown(row)) for name, row in METHODS.items())


def table_rows(methods: Iterable[tuple[str, str, Mapping[str, Any]]]) -> str:
    """A Markdown table of names, summaries, and parameters with their defaults (None: none)."""
    rows = ["| method | merges | parameters and defaults |", "|---|---|---|"]
    for name, summary, parameters in methods:
        listed = ", ".join(k if v is None else f"{k} {_plain(v)}" for k, v in parameters.items())
        rows.append(f"| `{name}` | {summary} | {listed} |")
    return "\n".join(rows)


def _plain(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
