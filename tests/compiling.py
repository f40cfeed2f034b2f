"""How carefully XLA compiles what tests run, and how long it is kept."""

from contextlib import contextmanager
from pathlib import Path

import jax
import pytest


@contextmanager
def optimisations(on: bool):
    """Inside, XLA's optimisations are on or off, in processes that tests start too.

    Where that changes, programs are compiled anew: JAX does not know how one that it has was.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    free = jax.clear_caches if before == on else lambda: None
    free()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "0" if on else "1")
        jax.config.update(name, not on)
        try:
            yield
        finally:
            jax.config.update(name, before)
            free()


def memory_maps() -> int:
    """Of this process, which holds some for every program; zero where they cannot be counted."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0
