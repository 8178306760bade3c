"""MLflow sync: MLflow may be slow, broken or gone, and neither the sweep nor its end waits for it."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sweeplab.records import TrialRecord
from sweeplab.sweep import mlflow_sync
from sweeplab.sweep.mlflow_sync import MLflowSync


def record(number: int, attempts: int = 1) -> TrialRecord:
    return TrialRecord(number, "running", {"learning_rate": 0.1}, "c", 0, attempts, ())


class Store:
    """Stands in for the tracker: takes records in, or raises."""

    def __init__(self, failures: int = 0, before: Callable[[], Any] = lambda: None) -> None:
        self.failures, self.before = failures, before
        self.tries = 0
        self.is_closed = False
        self.taken: list[tuple[TrialRecord, Mapping[str, Any]]] = []

    def bring(self, trial: TrialRecord, setting: Mapping[str, Any]) -> None:
        self.tries += 1
        self.before()
        if self.tries <= self.failures:
            raise OSError("database is locked\nmore of it")
        self.taken.append((trial, setting))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An impatient sync."""
    monkeypatch.setattr(mlflow_sync, "PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(mlflow_sync, "REST_SECONDS", 0.02)


def sync_of(store: Store) -> MLflowSync:
    return MLflowSync(store, lambda params: {"all": params})  # type: ignore[arg-type]


def test_what_is_noted_reaches_the_store_with_its_setting():
    store = Store()
    sync = sync_of(store)
    sync.hear(record(3))
    assert sync.close(60)
    assert store.taken == [(record(3), {"all": {"learning_rate": 0.1}})]
    assert store.is_closed


def test_of_a_trial_only_its_newest_record_is_brought():
    gate = threading.Event()
    store = Store(before=lambda: gate.wait(60))
    sync = sync_of(store)
    sync.hear(record(0))
    while not store.tries:
        time.sleep(0.001)
    for attempts in (2, 3):
        sync.hear(record(1, attempts))
    sync.hear(record(1, 4))
    gate.set()
    assert sync.close(60)
    assert [(trial.number, trial.attempts) for trial, _ in store.taken] == [(0, 1), (1, 4)]


def test_a_store_that_fails_for_a_moment_is_tried_again_in_silence(news: Callable[[], list[str]]):
    store = Store(failures=2)
    sync = sync_of(store)
    sync.hear(record(0))
    while not store.taken:
        time.sleep(0.001)
    assert sync.close(60)
    assert news() == []
    assert sync.trouble is None


def test_a_store_that_fails_for_longer_is_told_of_once_and_catches_up(news: Callable[[], list[str]]):
    """Four tries a round: it answers in the third."""
    store = Store(failures=9)
    sync = sync_of(store)
    sync.hear(record(0))
    while not store.taken:
        time.sleep(0.001)
    assert sync.close(60)
    assert news() == [
        "note: MLflow takes nothing in (OSError: database is locked); the sweep goes on, and MLflow catches up later",
        "MLflow answers again and catches up",
    ]
    assert [trial.number for trial, _ in store.taken] == [0]


def test_a_store_that_fails_for_a_moment_at_the_very_end_is_tried_again():
    """The last record meets it while the sync is closed already."""
    store = Store(failures=2, before=lambda: time.sleep(0.05))
    sync = sync_of(store)
    sync.hear(record(0))
    assert sync.close(60)
    assert [trial.number for trial, _ in store.taken] == [0]


def test_a_store_that_never_works_is_left_behind_and_says_why():
    store = Store(failures=10**9)
    sync = sync_of(store)
    sync.hear(record(0))
    while sync.trouble is None:
        time.sleep(0.001)
    began = time.monotonic()
    assert not sync.close(60)
    assert time.monotonic() - began < 30
    assert sync.trouble == "OSError: database is locked"


def test_closing_does_not_wait_for_a_store_that_hangs():
    gate = threading.Event()
    sync = sync_of(Store(before=lambda: gate.wait(60)))
    sync.hear(record(0))
    began = time.monotonic()
    assert not sync.close(0.1)
    assert time.monotonic() - began < 30
    gate.set()


def test_closing_brings_what_is_still_noted():
    store = Store(before=lambda: time.sleep(0.01))
    sync = sync_of(store)
    for number in range(10):
        sync.hear(record(number))
    assert sync.close(60)
    assert sorted(trial.number for trial, _ in store.taken) == list(range(10))
