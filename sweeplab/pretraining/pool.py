"""A pool of past embeddings in which nearest neighbours are looked up (SafeCLIP, RoCLIP)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeplab.losses import Share, nearest_rows
from sweeplab.training import ranks
from sweeplab.training.randomness import torch_stream


class Pool(nn.Module):
    """The last `size` embeddings, oldest replaced first; random unit rows before any came.

    (lightly's bank, which the authors use, drops what of a batch does not fit behind its last row and starts anew at
    its first; here a batch goes on at the first row.)
    """

    rows: Tensor
    """(P, D), rows of unit norm."""
    next: Tensor
    """Where the next row goes."""

    def __init__(self, size: int, width: int, *, seed: int, name: str) -> None:
        super().__init__()
        drawn = torch.randn(size, width, generator=torch_stream(seed, "pool", name))
        self.register_buffer("rows", F.normalize(drawn, dim=1))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def nearest(self, queries: Tensor, share: Share | None) -> Tensor:
        """Each query's nearest row, (B, D); every rank looks up those of its share, and they are gathered."""
        if share is None:
            return nearest_rows(queries, self.rows)
        return ranks.gather_rows(nearest_rows(share.of(queries), self.rows))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Add (B, D) rows; of more than the pool holds, the last stay."""
        size = len(self.rows)
        rows = rows.detach()[-size:].to(self.rows.dtype)
        places = (self.next + torch.arange(len(rows), device=self.rows.device)) % size
        self.rows[places] = rows
        self.next.copy_((self.next + len(rows)) % size)
