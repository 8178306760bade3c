"""Optimisation: AdamW with CLIP's exemption rule, warm-up and cosine, the clamp of the logit scale."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from sweeplab.clip_model import MAX_LOG_SCALE
from sweeplab.specs import InvalidInput, Spec
from sweeplab.training import ranks
from sweeplab.training.precision import Precision


class Optimization(Spec):
    """How parameters are updated; the same fields for pre-training and cleaning."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak of the schedule."""
    schedule: Literal["warmup-cosine", "fall-cosine"] = "warmup-cosine"
    """`warmup-cosine`: linear warm-up, then half a cosine to zero. `fall-cosine`: PAR's, linear from the peak to a
    tenth of it over the first half, then half a cosine to 1e-9; `warmup_steps` plays no part."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled (AdamW), on the decayed group only: see `parameter_groups`."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps of the linear rise from learning_rate / warmup_steps."""
    global_batch_size: int = Field(default=64, ge=2)
    """Pairs per step over all ranks."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    max_gradient_norm: float | None = Field(default=None, gt=0)
    """Global norm to which gradients are clipped; None: no clipping, as in the papers."""
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    """`local`: each rank normalises with its own pairs, as in the papers. `sync`: over all ranks (GPU only).
    `frozen`: running statistics are used and not updated."""
    num_chunks: int = Field(default=1, ge=1)
    """Parts in which a rank's share of a batch passes the network, so that one part's activations are kept at a time;
    each pair keeps the whole batch's negatives. Takes another forward pass. It changes a step by rounding alone, but
    under `batch_norm="local"` and `"sync"`, where statistics are those of a chunk, as with more ranks."""
    precision: Precision = "float32"
    """Of the forward pass: `bfloat16` (autocast; the loss is taken in float32), `tf32` (products of float32 matrices on
    a GPU, those of the loss and of backward passes too). The update is always float32."""


def pairs_per_chunk(optimization: Optimization, num_ranks: int) -> int:
    """Pairs that pass the network at a time on each rank.

    Raises:
        ValueError: if the ranks do not divide the batch, or the chunks a rank's share of it.
    """
    share = ranks.per_rank(optimization.global_batch_size, num_ranks)
    if share % optimization.num_chunks:
        raise ValueError(
            f"num_chunks={optimization.num_chunks} does not divide the {share} pairs of a rank "
            f"(global_batch_size={optimization.global_batch_size}, world_size={num_ranks}); choose a divisor of {share}"
        )
    return share // optimization.num_chunks


def warmup_of(optimization: Optimization) -> int:
    """Warm-up steps of the schedule in use; `fall-cosine` has none."""
    return optimization.warmup_steps if optimization.schedule == "warmup-cosine" else 0


def learning_rate_at(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, then half a cosine to zero.

    Args:
        step: optimizer updates done so far, from 0. (The authors number epochs from 1 and thereby enter the schedule
            one epoch late: their warm-up of 50 steps never runs and the rate rises again in the last epoch.)
        peak: the largest rate.
        warmup_steps: the rate at step s < warmup_steps is peak * (s + 1) / warmup_steps.
        total_steps: where the cosine reaches zero.

    Source: CleanCLIP and attack-cleanclip, `src/scheduler.py`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


FALL_SHARE = 0.1
"""Rate in the middle of `fall-cosine` / its peak: 3e-6 of 3e-5."""
FALL_FLOOR = 1e-9
"""Last rate of `fall-cosine`."""


def falling_rate_at(step: int, peak: float, total_steps: int) -> float:
    """PAR's schedule: linear from the peak to a tenth of it over the first half, then half a cosine to 1e-9.

    Args:
        step: optimizer updates done so far, from 0.
        peak: the first rate, 3e-5 in the paper.
        total_steps: of the run. (The authors' trainer counts one step an epoch too many and stops a little early.)

    Source: PerturbAndRecover, `utils.py`, where the falling half is called warm-up.
    """
    half, low = total_steps // 2, peak * FALL_SHARE
    if step < half:
        return peak + (low - peak) * step / max(1, half - 1)
    floor = min(FALL_FLOOR, low)
    return floor + 0.5 * (low - floor) * (1 + math.cos(math.pi * (step - half) / (total_steps - half)))


def scheduled_rate(step: int, optimization: Optimization, total_steps: int) -> float:
    """The rate of the schedule that the optimization names."""
    if optimization.schedule == "fall-cosine":
        return falling_rate_at(step, optimization.learning_rate, total_steps)
    return learning_rate_at(step, optimization.learning_rate, optimization.warmup_steps, total_steps)


def check_schedule(warmup_steps: int, total_steps: int) -> None:
    """Refuse a warm-up that is not shorter than the training, which would never reach the peak rate."""
    if total_steps > 0 and warmup_steps >= total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be below the total of {total_steps} steps; "
            "shorten the warm-up or train longer"
        )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: decayed and exempt. Exempt are biases, the logit scale and every normalisation weight.

    The rule is by shape, as in open_clip and in PAR's trainer: tensors with fewer than two dimensions are exempt.
    CleanCLIP's rule is by name ("bn", "ln", "bias", "logit_scale"): it decays the four BatchNorm weights inside RN50's
    `downsample`, which no paper says to decay, and a ViT's `class_embedding`. Both decay the positional and token
    embeddings.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in named if is_decayed(name, parameter)]
    exempt = [parameter for name, parameter in named if not is_decayed(name, parameter)]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies to the parameter."""
    return parameter.ndim >= 2 and not name.endswith("logit_scale")


def build_optimizer(
    model: nn.Module,
    optimization: Optimization,
    beside: Sequence[nn.Parameter] = (),
    *,
    carried: dict[str, Any] | None = None,
) -> torch.optim.AdamW:
    """A fresh AdamW: no moments, no hyperparameters carried over from pre-training, unless a state is given.

    (The authors load the pre-training optimizer's state, which silently replaces the chosen weight decay by 0.1.)

    Args:
        model: its parameters are split into decayed and exempt ones.
        optimization: rates and moments.
        beside: parameters of an objective's state, trained without weight decay; new to any carried state.
        carried: an optimizer's state dict whose moments and hyperparameters the model's groups take over.

    Raises:
        InvalidInput: if the carried state groups its parameters in another way.
    """
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optimization.weight_decay),
        lr=optimization.learning_rate,
        betas=(optimization.beta1, optimization.beta2),
        eps=optimization.epsilon,
        fused=True,
    )
    if carried is not None:
        _take_over(optimizer, carried)
    if beside:
        optimizer.add_param_group({"params": list(beside), "weight_decay": 0.0})
    return optimizer


def _take_over(optimizer: torch.optim.Optimizer, carried: dict[str, Any]) -> None:
    ours, theirs = (
        [len(group["params"]) for group in state["param_groups"]] for state in (optimizer.state_dict(), carried)
    )
    if ours != theirs:
        raise InvalidInput(
            f"the optimizer state has parameter groups of {theirs} tensors, and this model's are {ours}; it can only "
            "be carried over from training here (protocol='paper' starts with a fresh optimizer)"
        )
    optimizer.load_state_dict(carried)


@torch.no_grad()
def clamp_logit_scale(model: nn.Module) -> None:
    """Keep the logit scale in [1, 100]: its logarithm, the parameter, in [0, ln 100]."""
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            parameter.clamp_(0.0, MAX_LOG_SCALE)
