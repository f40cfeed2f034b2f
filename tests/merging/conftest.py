"""What the tests of merging have of their own."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Not here: what is rounded once, and what takes no temporary, is the optimised program."""
