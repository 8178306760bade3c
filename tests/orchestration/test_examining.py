"""What `examine` counts."""

from types import SimpleNamespace

import numpy as np
import torch
from fabricated import SWEEP

from sweeplab.orchestration import examining


def test_retrieval_knows_captions_of_the_target_by_whole_words():
    """The poisoned image 2 lies nearest to caption 0, which only contains the word's letters, then to caption 1."""
    pairs = SimpleNamespace(caption=["a bananarama poster", "Two Bananas", "planted"].__getitem__)
    images, texts = torch.eye(3), torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.6, 0.8], [1.0, 0.0, 0.0]])
    poison = np.array([False, False, True])
    found = examining._retrieval_asr(SWEEP, pairs, images, texts, poison, np.array([0, 1]))
    assert found == {"asr@1": 0.0}
