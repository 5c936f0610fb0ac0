"""Numbers of the GPUs that runs are planned for and measured against."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Hardware:
    """One device: dense bf16 FLOP/s of the data sheet, memory in bytes, and a usual rent in US dollars an hour."""

    flops: float
    memory: int
    rent: float


# by a part of the name that CUDA gives, in lower case
HARDWARE = {
    "h200": Hardware(989e12, 141 * 10**9, 3.5),
    "h100": Hardware(989e12, 80 * 10**9, 2.5),
    "a100": Hardware(312e12, 80 * 10**9, 1.5),
    "l40s": Hardware(362e12, 48 * 10**9, 1.0),
    "rtx4090": Hardware(165e12, 24 * 10**9, 0.4),
}


def peak_flops(devices: int) -> float | None:
    """The peak of `devices` GPUs of this machine's kind; None on a CPU, or if the kind is unknown."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().lower().replace(" ", "")
    return next((device.flops * devices for known, device in HARDWARE.items() if known in name), None)
