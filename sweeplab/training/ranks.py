"""Ranks: what distributed training needs, each the identity where there is one process."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sweeplab.losses import Share


def is_distributed() -> bool:
    """Whether there are several ranks. A group of one computes as a process without one does, to the last bit."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Index of this process, 0 .. world_size - 1."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes of this training run."""
    return dist.get_world_size() if is_distributed() else 1


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums the gradients of all ranks for the local rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A copy: autograd may hand the same tensor to others, as it does where two gathered tensors are added.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = rank() * ctx.rows
        return total[start : start + ctx.rows]


def own_share(rows_per_rank: int) -> Share | None:
    """This rank's rows of a gathered batch; None in one process, which has all."""
    if not is_distributed():
        return None
    start = rank() * rows_per_rank
    return Share(start, start + rows_per_rank, world_size())


def means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars averaged over the ranks, in one message; every rank has the same names."""
    if not is_distributed() or not values:
        return dict(values)
    first = next(iter(values.values()))
    together = torch.stack([value.to(first) for value in values.values()])
    dist.all_reduce(together)
    return dict(zip(values, together / world_size(), strict=True))


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average gradients over the ranks, in one message, of what DistributedDataParallel does not wrap. Without a
    gradient on some ranks it is zero there; without one on all it stays so.

    Args:
        parameters: the same on every rank, all on one device.
    """
    if not is_distributed() or not parameters:
        return
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    has_one = gradients[0].new_tensor([each.grad is not None for each in parameters])
    together = torch.cat([*(each.flatten() for each in gradients), has_one])
    dist.all_reduce(together)
    *means, has_one = (together / world_size()).split([*(each.numel() for each in parameters), len(parameters)])
    for parameter, mean, somewhere in zip(parameters, means, has_one, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(mean.view_as(parameter))
        elif somewhere:  # which a GPU is asked, and waited for, by the ranks alone that lack a gradient
            parameter.grad = mean.view_as(parameter).to(parameter, copy=True)


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with exact gradients.

    The mean of the ranks' losses is the global loss, whether each takes all of it or its `own_share`. The gradient for
    the local rows comes back summed over ranks, and DistributedDataParallel averages over ranks: together the exact
    gradient of the global loss, for the encoders and for the temperature alike. (CleanCLIP's gather has no gradient:
    encoder gradients come out 1 / world_size too small beside the temperature's.)

    Args:
        rows: (b, ...), the same b on every rank.

    Returns:
        (world_size * b, ...).
    """
    return _Gather.apply(rows) if is_distributed() else rows


def gather_objects(value: Any) -> list[Any]:
    """One picklable value of every rank, in rank order."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_computed(compute: Callable[[], Any]) -> list[Any]:
    """One picklable value that every rank computes, in rank order.

    Raises:
        FloatingPointError: on every rank where one of them raises it: the others would wait for it for ever.
    """
    if not is_distributed():
        return [compute()]
    error = ""
    try:
        value = compute()
    except FloatingPointError as found:
        value, error = None, str(found)
    values, errors = zip(*gather_objects((value, error)), strict=True)
    if any(errors):
        raise FloatingPointError(next(filter(None, errors)))
    return list(values)


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's buffers (BatchNorm's running statistics), before an evaluation or a checkpoint."""
    if is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Wait until every rank is here."""
    if is_distributed():
        dist.barrier()


def per_rank(global_batch_size: int, num_ranks: int) -> int:
    """Pairs per rank and step.

    Raises:
        ValueError: if the ranks do not divide the batch.
    """
    if global_batch_size % num_ranks:
        raise ValueError(
            f"global_batch_size={global_batch_size} does not split over world_size={num_ranks}; "
            f"choose a multiple of {num_ranks}"
        )
    return global_batch_size // num_ranks
