"""Precision: float32 at least; float64 where a device has it, and on the CPU where it has not (Apple's MPS).

The way to MPS has not been run on such a machine: tests send CPU tensors along it.
"""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices without float64."""


def exact_device(device: torch.device) -> torch.device:
    """Where numbers of this device are computed in float64: the device itself, or the CPU if it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def is_half(x: Tensor) -> bool:
    """Whether a tensor has half precision."""
    return x.dtype in (torch.bfloat16, torch.float16)


def full(x: Tensor) -> Tensor:
    """x in float32 at least: half precision has no room for a log-probability, nor for a ratio near 1."""
    return x.float() if x.dtype.itemsize < 4 else x


def wide(x: Tensor) -> Tensor:
    """x in float64, with its graph, for what float32 would lose; on `exact_device` of its device."""
    return x.to(exact_device(x.device)).double()


def back(x: Tensor, device: torch.device) -> Tensor:
    """x on a device; float64 becomes float32 if the device has no float64."""
    if x.dtype == torch.float64 and device.type in WITHOUT_FLOAT64:
        x = x.float()
    return x.to(device)
