"""Compilation: whether torch.compile finds here what it needs."""

import importlib.util
import os
import shutil

from sweeplab.specs import InvalidInput


def check_compiler(*, for_gpu: bool) -> None:
    """Refuse a compiled step where it could not be made.

    Args:
        for_gpu: whether it runs on one; its kernels are Triton's, and the C compiler makes what starts them.

    Raises:
        InvalidInput: naming what is missing.
    """
    variable, usual = ("CC", ("gcc", "clang")) if for_gpu else ("CXX", ("g++",))
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(map(shutil.which, names)):
        raise InvalidInput(
            f"resources.compile=true needs a compiler, and {' or '.join(names)} is not on the PATH; install one, name "
            f"it in {variable}, or leave the field out"
        )
    if for_gpu and importlib.util.find_spec("triton") is None:
        raise InvalidInput("resources.compile=true needs triton on a GPU; install it, or leave the field out")
