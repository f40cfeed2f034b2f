"""What each method takes in a recipe, and values that differ by tensor and by depth."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pydantic

from imm_jax.errors import InputError, nearest
from imm_jax.merging.table import METHODS

REQUIRED = object()  # the default of a parameter that has none


class Parameter(NamedTuple):
    """One parameter of a method.

    Attributes:
      kind: ``float``, ``int``, ``bool`` or ``str``.
      default: where nothing sets it; :data:`REQUIRED`: something must.
      each: every model has its own value; else one value holds for all.
      low: the least value.
      high: the largest.
      above: whether ``low`` itself is excluded.
      use: ``"passed"`` to the method; ``"unused"``: accepted because mergekit does, without any
        effect, as there.
      among: the words it may be; empty: any.
      whole: one value holds for the whole model: no gradient over layers, no filter.
    """

    kind: type
    default: Any
    each: bool = False
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    use: Literal["passed", "unused"] = "passed"
    among: tuple[str, ...] = ()
    whole: bool = False


WEIGHT = Parameter(float, REQUIRED, each=True)
DENSITY = Parameter(float, 1.0, each=True, low=0, high=1)
EPSILON = Parameter(float, 0.15, each=True, low=0, high=1)
GAMMA = Parameter(float, 0.01, each=True, low=0, high=1)
THRESHOLD = Parameter(float, 1e-5, low=0)  # of ram
ON, OFF = Parameter(bool, True), Parameter(bool, False)
UNUSED = {"int8_mask": OFF._replace(use="unused")}  # mergekit's masks in int8 save memory only
TASK = {"weight": WEIGHT, "density": DENSITY, "lambda": Parameter(float, 1.0), "normalize": OFF}
DARE = TASK | {"rescale": ON}
DELLA = TASK | {"epsilon": EPSILON, "rescale": ON}
CRUMBS = TASK | {"gamma": GAMMA, "rescale": OFF}

# Names and defaults of mergekit 0.1.5, which hold in a recipe. METHODS has its own: the papers'
# densities, which make a method do something where nothing is given, and a weight of 1.
MERGEKIT: dict[str, dict[str, Parameter]] = {
    "linear": {"weight": WEIGHT, "normalize": ON},
    # mergekit lists density and rescale here too, and sparsifies nothing.
    "task_arithmetic": TASK
    | {"density": DENSITY._replace(use="unused"), "rescale": OFF._replace(use="unused")},
    # scope is our own: "model" trims over the whole model, as the paper's code does.
    "ties": TASK | {"normalize": ON, "rescale": OFF, "scope": Parameter(str, "tensor")},
    "dare_linear": DARE,
    "dare_ties": DARE,
    "della": DELLA | {"normalize": ON},
    "della_linear": DELLA,
    "breadcrumbs": CRUMBS,
    "breadcrumbs_ties": CRUMBS,
    "slerp": {"t": Parameter(float, REQUIRED)},
    "nuslerp": {"weight": WEIGHT, "nuslerp_flatten": ON, "nuslerp_row_wise": OFF},
    "multislerp": {
        "weight": WEIGHT,
        "normalize_weights": ON,
        "eps": Parameter(float, 1e-8, low=0),
    },
    "karcher": {"max_iter": Parameter(int, 10, low=0), "tol": Parameter(float, 1e-5, low=0)},
    "model_stock": {"filter_wise": OFF},
    "sce": {"select_topk": Parameter(float, 1.0, low=0, high=1)},
    "nearswap": {"t": Parameter(float, REQUIRED, low=0)},
    "arcee_fusion": {},
    "passthrough": {"scale": Parameter(float, 1.0, each=True)},
    "ram": {"epsilon": THRESHOLD},
    "ramplus_tl": {
        "epsilon": THRESHOLD,
        "r": Parameter(float, 0.1),
        "alpha": Parameter(float, 0.2, low=0),
    },
}
# What some method of mergekit has, or had in older versions; it takes these names with any method,
# without any effect.
ELSEWHERE = {"embed_slerp": OFF._replace(use="unused")} | {
    name: parameter._replace(use="unused")
    for parameters in MERGEKIT.values()
    for name, parameter in parameters.items()
}
# Methods of our own whose weight is a file of statistics, one for each model.
FILES = {"fisher": "fisher"}


def parameters_of(method: str) -> dict[str, Parameter]:
    """The parameters that ``method`` takes in a recipe, by name.

    mergekit's methods have :data:`MERGEKIT`'s; the others what :data:`~imm_jax.merging.METHODS`
    says, where the weight is each model's own.
    """
    if method in MERGEKIT:
        return UNUSED | MERGEKIT[method]
    row = METHODS[method]
    found = {
        name: Parameter(type(default), default)
        for name, default in row.parameters.items()
        if isinstance(default, (float, int, bool, str))
    }
    if method in FILES:
        found[FILES[method]] = Parameter(str, REQUIRED, each=True)
    elif row.weight:
        default = REQUIRED if row.default_weight is None else row.default_weight
        found[row.weight] = Parameter(float, default, each=True)
    return UNUSED | found


class Condition(NamedTuple):
    """A value for the tensors whose name holds ``filter`` (None: all of them).

    ``value`` is a scalar, or a tuple: a gradient over the layers. ``where`` is the filter's place
    in the file.
    """

    filter: str | None
    value: Any
    where: str = ""

    def matches(self, tensor: str) -> bool:
        """Whether the value is meant for ``tensor``."""
        return self.filter is None or self.filter in tensor


Settings = Mapping[str, tuple[Condition, ...]]


def read_setting(raw: Any, parameter: Parameter, where: str) -> tuple[Condition, ...]:
    """Reads what a YAML file sets a parameter to.

    Args:
      raw: a scalar, a list of scalars (a gradient), a mapping ``{filter, value}``, or a list of
        such mappings, of which the first whose filter is part of the tensor's name decides.
      parameter: the kind and range its values must have.
      where: begins the message of an error.

    Raises:
      InputError: it is none of these, or a value is of the wrong kind or out of range.
    """
    if parameter.whole and isinstance(raw, (list, dict)):
        raise InputError(
            f"{where}: {raw!r:.80}, expected {WORDS[parameter.kind]} for the whole model"
        )
    listed = raw if isinstance(raw, list) else [raw]
    if not listed or not any(isinstance(entry, dict) for entry in listed):
        return (Condition(None, _read_value(raw, parameter, where)),)
    conditions = []
    for i, entry in enumerate(listed):
        at = f"{where}[{i}]" if isinstance(raw, list) else where
        if not isinstance(entry, dict) or not {"value"} <= entry.keys() <= {"filter", "value"}:
            raise InputError(f"{at}: {entry!r:.80} is not valid: expected {{filter, value}}")
        chosen = entry.get("filter")
        if not isinstance(chosen, str | None):
            raise InputError(f"{at}.filter: {chosen!r:.80}, expected a part of tensors' names")
        value = _read_value(entry["value"], parameter, f"{at}.value")
        conditions.append(Condition(None if chosen == "*" else chosen, value, f"{at}.filter"))
    return tuple(conditions)


def _read_value(raw: Any, parameter: Parameter, where: str) -> Any:
    if isinstance(raw, list):
        if not raw:
            raise InputError(f"{where}: an empty list, expected at least one value")
        values = [_read_scalar(v, parameter, f"{where}[{i}]") for i, v in enumerate(raw)]
        return tuple(values)
    return _read_scalar(raw, parameter, where)


WORDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a word or a file's path",
}


def _read_scalar(raw: Any, parameter: Parameter, where: str) -> Any:
    """A value of the parameter's kind; "1e-3", a string in YAML 1.1, is a number as well.

    So is true, which is 1 to mergekit, but not of those who only ask whole models.
    """
    kind = parameter.kind
    expected = InputError(f"{where}: {raw!r:.80}, expected {WORDS[kind]}")
    if isinstance(raw, bool) and kind is not bool and parameter.whole:
        raise expected
    try:
        value = pydantic.TypeAdapter(kind).validate_python(raw)
    except pydantic.ValidationError:
        raise expected from None
    if kind is str and not value.strip():
        raise expected
    if parameter.among and value not in parameter.among:
        raise InputError(
            f"{where}: {raw!r:.80}, expected {' or '.join(parameter.among)}"
            f"{nearest(value, parameter.among)}"
        )
    if kind is float and not math.isfinite(value):
        raise InputError(f"{where}: {raw!r:.80}, expected a finite number")
    if kind in (float, int):
        _check_range(value, parameter, where)
    return value


def _check_range(value: float, parameter: Parameter, where: str) -> None:
    low, high = parameter.low, parameter.high
    if not low <= value <= high or (parameter.above and value == low):
        least = f"{'above' if parameter.above else 'at least'} {low:g}"
        most = f" and at most {high:g}" if math.isfinite(high) else ""
        raise InputError(f"{where}: {value:g}, expected {least}{most}")


def look_up(
    name: str, parameter: Parameter, scopes: Iterable[Settings], tensor: str, t: float
) -> Any:
    """The value of a parameter for one tensor at the depth ``t``, from 0 to 1.

    The first scope with a condition that matches decides, and in it the first such condition;
    without any it is the default.
    """
    conditions = (c for settings in scopes for c in settings.get(name, ()))
    value = next((c.value for c in conditions if c.matches(tensor)), parameter.default)
    if not isinstance(value, tuple):
        return value
    value = _at_depth(value, parameter.kind in (float, int), t)
    if parameter.kind is int and int(value) != value:
        raise InputError(f"{name}: {value:g} for {tensor}, expected a whole number")
    return parameter.kind(value)


def _at_depth(points: Sequence[Any], numbers: bool, t: float) -> Any:
    """Numbers are interpolated between points at equal distances; others are picked."""
    position = t * (len(points) - 1)
    low = int(position)
    if not numbers:
        return points[low]
    share, high = position - low, min(low + 1, len(points) - 1)
    return (1 - share) * points[low] + share * points[high]
