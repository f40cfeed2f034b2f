"""How carefully XLA compiles what tests run."""

from contextlib import contextmanager

import jax
import pytest


@contextmanager
def optimisations(on: bool):
    """Inside, XLA's optimisations are on or off, in processes that tests start too."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "0" if on else "1")
        jax.config.update(name, not on)
        try:
            yield
        finally:
            jax.config.update(name, before)
