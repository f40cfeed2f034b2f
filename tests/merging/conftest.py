"""What the tests of merging have of their own."""

import pytest

from tests.compiling import optimisations

# Against formulas with a tolerance, which hold of a program however it was compiled.
QUICK = "adamerging arcee_fusion merge_methods own_transforms ram regmean search soup spectral"
QUICK += " spectral_gradients"


@pytest.fixture(scope="module", autouse=True)
def slow_compilation(request):
    """Elsewhere what is rounded once, and what takes no temporary, is the optimised program."""
    with optimisations(request.path.stem.removeprefix("test_") not in QUICK.split()):
        yield
