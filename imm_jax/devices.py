"""What devices there are to compute with, and what known ones can do at most."""

import os

import jax

# The device's kind, as jax names it, begins with -> dense bfloat16 FLOP/s of one jax device, from
# the makers' data sheets. More special names come first.
PEAK_FLOPS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "TPU v6 lite": 918e12,  # v6e
    "TPU v6e": 918e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v4 lite": 138e12,  # v4i
    "TPU v4": 275e12,
}


def peak_flops(device: jax.Device | None = None) -> float | None:
    """Dense bfloat16 FLOP/s of a device, by default the first; None where it is not known.

    Not known are CPUs, kinds that are not in the table, and a part of a GPU (MIG).
    """
    kind = (device or jax.devices()[0]).device_kind
    if "MIG" in kind.split():
        return None
    return next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None)


def cores() -> int:
    """Processor cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
