"""Page-locked memory, from which a GPU copies while it computes; ordinary memory where no more can be locked."""

import logging
from functools import cache

from torch import Tensor

from sweeplab.specs import first_line

logger = logging.getLogger("sweeplab")


def pinned(tensor: Tensor) -> Tensor:
    """A copy in page-locked memory; the tensor itself where no more can be locked."""
    try:
        return tensor.pin_memory()
    except RuntimeError as error:  # torch speaks of it as if it were the GPU's memory
        say_not_locked(first_line(error))
        return tensor


@cache
def say_not_locked(reason: str) -> None:
    """Warn, once a process and reason."""
    logger.warning(
        "this node's memory could not be page-locked (%s): copies to and from the GPU take longer, results stay",
        reason,
    )
