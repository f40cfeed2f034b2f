"""The memory of one block serves the next: it is not given back and paged in again."""

import ctypes
import subprocess
import sys

import pytest

from tests.processes import PATIENCE

FAULTS = """
import resource, sys
import numpy as np
from imm_jax.merge_command import _keep_freed_memory

if sys.argv[1] == "keep":
    _keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(50):
    blocks = [np.ones(1 << 21, np.uint8) for _ in range(8)]
    del blocks
print(faults() - before)
"""


def faults(argument: str) -> int:
    command = [sys.executable, "-c", FAULTS, argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the GNU C library")
def test_freed_memory_is_used_again():
    """Eight blocks of 512 pages, 50 times."""
    assert faults("keep") < 3 * 8 * 512 < faults("leave")
