"""GGUF files that hold a tokenizer alone, and texts to cut."""

import json
from pathlib import Path

import gguf
import pytest

from imm_jax.errors import InputError
from imm_jax.models.tokenizer import load_tokenizer

TEXTS = list(json.loads((Path(__file__).parent / "golden" / "smollm2_ids.json").read_text()))
TRAINING = (
    "Tom has 12 apples and buys 7 more; he'll have 12 + 7 = 19. The answer is 19.",
    "def add(a, b):\n    return a + b  # the sum\n\n\nclass Thing:\n\tpass\n",
    "It's what they've said: don't   leave   spaces.  Über-naïve café, 東京と北京 😀😀",
    "QUESTION: how many? ANSWER: 1,234,567 or 42%",
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def write(path, **fields):
    """A GGUF file of metadata only; ``fields`` are below ``tokenizer.ggml.`` or full keys."""
    writer = gguf.GGUFWriter(path, fields.pop("arch", "llama"))
    writer.add_context_length(128)
    kinds = {bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
    for key, value in fields.items():
        if value is not None:
            full = key if key.startswith("tokenizer.") else f"tokenizer.ggml.{key}"
            kinds.get(type(value), writer.add_string)(full, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Path(path)


def refused(path) -> str:
    """The one line that says why a tokenizer cannot be read; it begins with the path."""
    with pytest.raises(InputError) as caught:
        load_tokenizer(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text
