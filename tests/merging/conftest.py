"""What the tests of merging have of their own."""

import pytest

from tests.compiling import optimisations


@pytest.fixture(scope="module", autouse=True)
def slow_compilation():
    """Here what is rounded once, and what takes no temporary, is the optimised program."""
    with optimisations(True):
        yield
