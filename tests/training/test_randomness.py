"""Named random streams."""

import random

import numpy as np
import torch

from sweeplab.training.randomness import numpy_stream, stream_seed, torch_stream


def test_a_seed_is_the_same_on_every_machine():
    """The first eight bytes of BLAKE2b-64 of "7/order/3", big-endian, halved: `printf 7/order/3 | b2sum -l 64` gives
    42833a20cf940b8a."""
    assert stream_seed(7, "order", 3) == 0x42833A20CF940B8A >> 1


def test_seeds_fit_63_bits():
    assert all(0 <= stream_seed(seed, "x") < 2**63 for seed in range(200))


def test_another_seed_or_name_gives_another_stream():
    seeds = {
        stream_seed(seed, *names)
        for seed in range(10)
        for names in [("order", 1), ("order", 2), ("order", 11), ("view", 1), ("view", 1, 1), ("view",), ()]
    }
    assert len(seeds) == 70


def test_streams_start_anew_each_time():
    assert torch.equal(torch.rand(3, generator=torch_stream(1, "a")), torch.rand(3, generator=torch_stream(1, "a")))
    assert numpy_stream(1, "a").random(3).tolist() == numpy_stream(1, "a").random(3).tolist()


def test_streams_leave_the_global_ones_alone():
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    torch.rand(3, generator=torch_stream(1, "a"))
    numpy_stream(1, "a").random(3)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
