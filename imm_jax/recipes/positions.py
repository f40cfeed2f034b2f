"""How models encode positions (RoPE), in one spelling whichever their configurations use."""

from collections.abc import Iterable, Mapping
from typing import Any

from imm_jax.errors import InputError
from imm_jax.models.huggingface.family_tables import FAMILIES
from imm_jax.models.huggingface.window_config import FULL, SLIDING
from imm_jax.recipes.checkpoint import Checkpoint

THETA, LOCAL, SCALING = "rope_theta", "rope_local_base_freq", "rope_scaling"


def position_notes(donor: Checkpoint, checkpoints: Iterable[Checkpoint]) -> tuple[str, ...]:
    """A line to tell the user for each model that encodes positions otherwise than ``donor``.

    Such models are merged, as mergekit does: one that was tuned for longer texts has tensors of the
    same meaning. The merged model has the donor's encoding, since its ``config.json`` is copied.

    Raises:
      InputError: a configuration contradicts itself.
    """
    found = []
    mine = rope_of(donor)
    for other in checkpoints:
        for key, theirs in rope_of(other).items():
            # A base that neither the file nor our table of families gives is not known.
            unknown = key != SCALING and (mine[key] is None or theirs is None)
            if theirs != mine[key] and not unknown:
                found.append(
                    f"{other.folder}/config.json: {key} is {theirs!r}, but {mine[key]!r} in "
                    f"{donor.folder}, which the merged model has"
                )
    return tuple(found)


def rope_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The bases and the scaling, by transformers 4's keys; of 5's ``rope_parameters`` too.

    Raises:
      InputError: both are there and differ.
    """
    text = checkpoint.text
    family, length = FAMILIES.get(str(text.get("model_type"))), text.get("max_position_embeddings")
    given = _object(text, "rope_parameters")
    full, sliding = _object(given, FULL) or given, _object(given, SLIDING)
    older = {key: text.get(key) for key in (THETA, LOCAL)}
    older[SCALING] = _scaling(_object(text, SCALING), length)
    newer = {THETA: full.get(THETA), LOCAL: sliding.get(THETA), SCALING: _scaling(full, length)}
    values = {THETA: family and family.rope_theta, LOCAL: family and family.rope_local}
    for key, new in newer.items():
        old = older[key]
        if old is not None and new is not None and old != new:
            raise InputError(
                f"{checkpoint.folder}/config.json: rope_parameters is {given!r}, but {key} is "
                f"{old!r}: they contradict each other"
            )
        values[key] = next((x for x in (old, new) if x is not None), values.get(key))
    return values


def _object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _scaling(given: Mapping[str, Any], length: Any) -> Mapping[str, Any] | None:
    """What an object says besides the base; None: no scaling."""
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return None
    own = {k: v for k, v in given.items() if k not in ("type", THETA) and v is not None}
    if kind in ("llama3", "yarn"):  # as in transformers
        own.setdefault("original_max_position_embeddings", length)
    if own.get("partial_rotary_factor") == 1:
        del own["partial_rotary_factor"]
    return own | {"rope_type": kind}
