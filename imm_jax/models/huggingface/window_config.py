"""Which layers slide: the ways in which ``config.json`` says it, read and written."""

from collections.abc import Mapping
from typing import Any

from imm_jax.models.config import ModelConfig
from imm_jax.models.huggingface.config_values import take

FULL, SLIDING = "full_attention", "sliding_attention"

UNUSED = 4096  # a window that no layer has

# How a family's layers come to slide: the keys that say so.
WINDOW_KEYS: dict[str, tuple[str, ...]] = {
    "none": (),
    "all": ("sliding_window",),  # every layer, where a window is set
    "upper": ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    "pattern": (  # every n-th layer attends to everything
        "sliding_window",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "layer_types",
    ),
}


def read_windows(
    data: Mapping[str, Any], style: str, default: int | None, layers: int, source: str
) -> dict[str, Any]:
    """``sliding_window`` and ``layer_types`` of a :class:`ModelConfig`; both empty if none slides.

    Args:
      data: the ``config.json``.
      style: a key of ``WINDOW_KEYS``.
      default: the family's window where the key is absent.
      layers: the number of layers.
      source: what messages call the file.
    """
    if style == "none":
        return {}
    window = take(data, "sliding_window", "positive integer or null", source, default)
    if style == "upper":
        used = take(data, "use_sliding_window", "true or false", source, False)
        window = window if used else None
    types = None
    if style != "all":
        types = take(data, "layer_types", "list of layer types or null", source, None)
    if types is None:
        full = _full_layers(data, style, layers, window, source)
        types = [FULL if i in full else SLIDING for i in range(layers)]
    if types == [FULL] * layers:
        return {"sliding_window": None, "layer_types": ()}
    return {"sliding_window": window, "layer_types": tuple(types)}


def _full_layers(
    data: Mapping[str, Any], style: str, layers: int, window: int | None, source: str
) -> range:
    if window is None:
        return range(layers)
    if style == "all":
        return range(0)
    if style == "upper":
        return range(take(data, "max_window_layers", "integer from 0", source, 28))
    every = take(data, "_sliding_window_pattern", "positive integer", source, 6)
    every = take(data, "sliding_window_pattern", "positive integer", source, every)
    return range(every - 1, layers, every)


def write_windows(config: ModelConfig, style: str) -> dict[str, Any]:
    """The windows in every spelling of ``style`` that can express them."""
    sliding = [window is not None for window in config.windows]
    window = config.sliding_window if any(sliding) else None
    types = [SLIDING if s else FULL for s in sliding]
    if style == "none":
        return {}
    if style == "all":
        return {"sliding_window": window}
    if style == "upper":
        return {
            "sliding_window": window,
            "use_sliding_window": any(sliding),
            "max_window_layers": sliding.index(True) if any(sliding) else len(sliding),
            "layer_types": types,
        }
    every = sliding.index(False) + 1 if False in sliding else len(sliding) + 1
    regular = sliding == [bool((i + 1) % every) for i in range(len(sliding))]
    return {
        # Where none slides too: transformers makes the mask of layers that would.
        "sliding_window": window or UNUSED,
        "layer_types": types,
        **({"sliding_window_pattern": every} if regular else {}),
    }
