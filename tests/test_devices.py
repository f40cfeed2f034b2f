"""Peaks of devices, by the names that jax gives them."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from imm_jax.devices import cores, peak_flops


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("Radeon", None),
    ],
)
def test_a_kind_has_the_peak_of_its_data_sheet(kind, peak):
    assert peak_flops(SimpleNamespace(device_kind=kind)) == peak


def test_a_cpu_has_none():
    assert peak_flops(jax.devices("cpu")[0]) is None


def test_cores_are_those_of_the_process():
    """As ``taskset`` or a container allots them."""
    code = (
        "import os; from imm_jax.devices import cores; before = cores(); "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(before, cores())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(cores()), "1"]
