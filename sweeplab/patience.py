"""Patience: writes that a busy or hiccuping file system refused are tried again."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PASSING_ERRORS = (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.EINTR, errno.ENOLCK)
"""Faults of network file systems that often pass by themselves."""
PATIENCE_SECONDS = (0.1, 0.5, 2.0, 5.0, 10.0)
"""Pauses before a write that met one of them is tried again."""


def patiently(write: Callable[[], T]) -> T:
    """Try a write again, after growing pauses, where the fault may pass by itself."""
    for pause in PATIENCE_SECONDS:
        try:
            return write()
        except OSError as error:
            if error.errno not in PASSING_ERRORS:
                raise
        time.sleep(pause)
    return write()
