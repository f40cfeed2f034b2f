"""Safetensors files read by several threads."""

import builtins
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from safetensors.numpy import save_file

from imm_jax.models.huggingface import tensor_files


def test_threads_share_an_open_file(tmp_path, monkeypatch):
    """Were it opened twice, the first one would be closed while a thread reads from it."""
    x = np.arange(1000, dtype=np.float32)
    save_file({"x": x}, tmp_path / "x.safetensors")
    reader = tensor_files.TensorReader(tensor_files.read_header(tmp_path / "x.safetensors"))
    opened = []

    def slow_open(*args, **kwargs):
        opened.append(args)
        time.sleep(0.02)
        return builtins.open(*args, **kwargs)

    monkeypatch.setattr(tensor_files, "open", slow_open, raising=False)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: reader.read("x", 10 * i, 10 * i + 10), range(100)))
    np.testing.assert_array_equal(np.concatenate(parts), x)
    assert len(opened) == 1
