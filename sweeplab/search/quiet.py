"""Optuna without its log lines."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's log lines and its notes on experimental arguments."""
    before = optuna.logging.get_verbosity()
    if before >= logging.ERROR:  # quiet already; setting it again would empty the caches of every logger
        yield
        return
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
