"""Settings as frozen dataclasses, from plain data and back; mistakes are one line with the key."""

import dataclasses
import json
import re
import typing
from typing import Any

from imm_jax.errors import InputError, nearest


def to_dict(config: Any) -> dict:
    """A configuration as plain dicts, lists and scalars."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(old: dict, new: dict, path: str = "") -> list[str]:
    """The keys at which two plain configurations differ, each with both values."""
    found = []
    for key in dict.fromkeys([*old, *new]):
        where, before, after = f"{path}{key}", old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{where}.")
        elif before != after or (key in old) != (key in new):
            found.append(f"{where} ({before!r} there, {after!r} now)")
    return found


# What the settings of other trainers are called here: for those who type them out of habit.
ELSEWHERE = {
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "micro_batch_size",
    "max_seq_length": "max_length",
    "optim": "optimizer",
    "gradient_checkpointing": "remat",
    "save_steps": "save_every_steps",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "r": "rank",
}


def build(cls: type, data: dict, source: str) -> Any:
    """Makes the frozen dataclass ``cls`` from plain ``data``; pydantic converts and checks types.

    Raises:
      InputError: an unknown key (with the nearest valid one), a missing key, a value of a wrong
        type or out of range; ``source`` says where it stands.
    """
    import pydantic

    if not isinstance(data, dict):
        raise InputError(f"{source}: expected a mapping of keys, found {type(data).__name__}")
    _check_keys(cls, data, source, "")
    try:
        return pydantic.TypeAdapter(cls).validate_python(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            message = str(cause)
            inside = key and not message.startswith((key, key.split(".")[0] + "."))
            raise InputError(f"{source}: {key + '.' if inside else ''}{message}") from error
        if first["type"] == "missing":
            raise InputError(f"{source}: {key}: missing, expected a value") from error
        message = first["msg"].lower()
        for pattern, plain in PLAIN.items():
            message = re.sub(pattern, plain, message)
        raise InputError(f"{source}: {key}: {first['input']!r} is not valid: {message}") from error


NO_SWITCH = "input should not be true or false"
# pydantic speaks of Python's types; who writes YAML knows others.
PLAIN = {r"a dictionary or an instance of \w+": "a mapping of keys", "valid (tuple|list)": "list"}


def _check_keys(cls: type, data: Any, source: str, path: str) -> None:
    """Refuses unknown keys at any depth."""
    cls = next((c for c in typing.get_args(cls) if dataclasses.is_dataclass(c)), cls)  # ... | None
    if not dataclasses.is_dataclass(cls) or not isinstance(data, dict):
        return
    hints = typing.get_type_hints(cls)
    for key, value in data.items():
        if key not in hints:
            meant = ELSEWHERE.get(key) if ELSEWHERE.get(key) in hints else key
            raise InputError(f"{source}: unknown key {path}{key}{nearest(meant, hints)}")
        hint = hints[key]
        if isinstance(value, bool) and bool not in (hint, *typing.get_args(hint)):
            # Without this, true would count as 1.
            raise InputError(f"{source}: {path}{key}: {value} is not valid: {NO_SWITCH}")
        if typing.get_origin(hint) is dict and isinstance(value, dict):
            for name, entry in value.items():
                _check_keys(typing.get_args(hint)[1], entry, source, f"{path}{key}.{name}.")
        else:
            _check_keys(hint, value, source, f"{path}{key}.")
