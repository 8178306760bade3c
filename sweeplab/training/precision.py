"""Precision of forward passes and of products of float32 matrices."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]
"""`float32`: as torch does it by default, convolutions on GPUs in TF32. `tf32`: matrix products too, on GPUs that have
it. `bfloat16`: autocast."""


def forward_pass(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context of a forward pass."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """Take products of float32 matrices in this precision, backward passes included, and afterwards as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
