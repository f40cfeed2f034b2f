"""The figures of an analysis in one JSON file, each kept as soon as it is made."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imm_jax.errors import InputError
from imm_jax.files import atomic_write

SETTINGS = "settings"


class Record:
    """``analysis.json``: for each section its settings and, by name, its results.

    A result that is there is taken from the file, unless its section was made with other settings,
    so that an analysis that was cut off goes on and one that asks for more adds to it.

    Args:
      path: the file; read if it is there.

    Raises:
      InputError: it is not such a file.
    """

    def __init__(self, path: Path):
        self.path, self.sections = path, {}
        if path.exists():
            try:
                self.sections = json.loads(path.read_bytes())
                whole = all(SETTINGS in section for section in self.sections.values())
            except (ValueError, AttributeError, TypeError, OSError):
                whole = False
            if not whole:
                raise InputError(f"{path}: not an analysis, remove it to make a new one")

    def begin(self, section: str, settings: Mapping[str, Any]) -> None:
        """Starts a section, or takes up one that has the same settings."""
        settings = plain(settings)
        if self.sections.get(section, {}).get(SETTINGS) != settings:
            self.sections[section] = {SETTINGS: settings}

    def take(self, section: str, name: str, make: Callable[[], Any]) -> Any:
        """The result ``name``, from the file or made now and written, as JSON gives it back."""
        results = self.sections[section]
        if name not in results:
            results[name] = plain(make())
            self.write()
        return results[name]

    def put(self, section: str, results: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Replaces a whole section."""
        self.sections[section] = {SETTINGS: plain(settings), **plain(results)}
        self.write()

    def write(self) -> None:
        atomic_write(self.path, json.dumps(self.sections, indent=1) + "\n")


def plain(value: Any) -> Any:
    """Dataclasses, named tuples and arrays as JSON has them; NaN and infinities become None."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
