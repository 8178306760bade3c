"""Named random streams: every draw has its own, so that adding one moves no other."""

import hashlib

import numpy as np
import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream of that name under the experiment's seed.

    The same arguments always give the same seed, on every machine; any other name gives an unrelated one.
    """
    text = "/".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator at the start of the named stream."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator at the start of the named stream."""
    return np.random.default_rng(stream_seed(seed, *names))
