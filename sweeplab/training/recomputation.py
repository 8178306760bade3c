"""Recomputation: what is computed twice so that less is kept in memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sweeplab.clip_model import blocks


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """BatchNorm's running statistics stay as they are, whatever passes the model: copies take what comes."""
    layers = [
        module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    held = [dict(layer._buffers) for layer in layers]
    for layer, buffers in zip(layers, held, strict=True):
        layer._buffers.update((name, None if each is None else each.clone()) for name, each in buffers.items())
    try:
        yield
    finally:
        for layer, buffers in zip(layers, held, strict=True):
            layer._buffers.update(buffers)


def recompute_blocks(model: nn.Module) -> None:
    """Keep the inputs of the towers' blocks alone from now on, and compute each block once more when its gradient is
    taken. Gradients and BatchNorm's running statistics are those of a model that keeps all."""
    for block in blocks(model):
        block.forward = partial(_recomputed, block)  # an attribute, so that no parameter gets another name


def _recomputed(block: nn.Module, *inputs: Any, **named: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), statistics_kept(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


class Chunks:
    """A batch that passes the encoder in chunks, and whose loss is taken over all of it: every pair keeps the negatives
    of the whole batch, and activations are kept for one chunk alone.

    1. Each chunk is embedded without a graph, and the random state before it is noted.
    2. The loss is taken over all embeddings (`outputs`), and its gradient goes back to them.
    3. `backward` embeds each chunk once more, under the same random state, and sends their gradient on.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache).
    """

    def __init__(self, encoder: nn.Module, passes: list[Callable[[nn.Module], tuple[Tensor, ...]]]) -> None:
        """Take the first pass.

        Args:
            encoder: what passes are given; where it is DistributedDataParallel, ranks meet in the last one alone.
            passes: embeds a chunk each: (b, D) tensors, and behind them the logit scale, which all chunks share.
        """
        self.encoder, self.passes = encoder, passes
        self.device = next(encoder.parameters()).device
        self.random: list[tuple[Tensor, Tensor | None]] = []
        found = []
        bare = encoder.module if isinstance(encoder, DistributedDataParallel) else encoder
        with torch.no_grad(), statistics_kept(encoder):
            for run in passes:
                self.random.append(self._random_state())
                found.append(run(bare))
        *rows, scales = zip(*found, strict=True)
        self.outputs = tuple(tensor.requires_grad_() for tensor in (*map(torch.cat, rows), scales[0].clone()))
        """All chunks' tensors, whose gradients `backward` sends on."""

    def backward(self) -> None:
        """Take the second pass."""
        *rows, scale = (output.grad for output in self.outputs)
        count = len(self.passes)
        parts = [[None] * count if each is None else each.chunk(count) for each in rows]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            for index, (run, random) in enumerate(zip(self.passes, self.random, strict=True)):
                is_last = index == count - 1
                self._set_random_state(random)
                with nullcontext() if is_last else self._alone():
                    gradients = [*(part[index] for part in parts), scale if is_last else None]
                    reached = [
                        (output, gradient)
                        for output, gradient in zip(run(self.encoder), gradients, strict=True)
                        if gradient is not None  # of what the loss does not depend on
                    ]
                    torch.autograd.backward([each for each, _ in reached], [each for _, each in reached])

    def _alone(self) -> AbstractContextManager[None]:
        """Gradients add up on this rank."""
        return self.encoder.no_sync() if isinstance(self.encoder, DistributedDataParallel) else nullcontext()

    def _random_state(self) -> tuple[Tensor, Tensor | None]:
        """Of the CPU and of the GPU."""
        on_gpu = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return torch.random.get_rng_state(), on_gpu

    def _set_random_state(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.random.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], self.device)
