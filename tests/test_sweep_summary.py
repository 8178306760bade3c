"""The summary beside the ledger: it says what the ledger says, and is not believed where a file has changed since."""

import dataclasses
import json
import os
import pickle
import shutil
from zipfile import ZipFile

import numpy as np
import pytest

from sweeplab.commands.import_table import import_table
from sweeplab.commands.status import sweep_status
from sweeplab.evaluation.retention import best_of_trials
from sweeplab.ranking.kept_weights import kept_points
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.ranking.summary import summarize
from sweeplab.records import Measurement, Outcomes, Point, PointColumns, TrialRecord
from sweeplab.specs import InvalidInput
from sweeplab.storage import summary_file
from sweeplab.storage.ownership import home_key
from sweeplab.storage.summary_file import COARSE_NS, TICK_NS, is_settled, part_of, record_of
from sweeplab.sweep_folder import SweepFolder

TRIALS, EPOCHS = 12, 3


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A sweep of 12 trials; trial t has accuracy (500 - 10 t) / 1000 and falls to t/12 of its ASR at each epoch."""
    monkeypatch.setattr(summary_file, "TICK_NS", 0)  # what was written just now counts as settled
    lines = ["trial,epoch,accuracy_k,accuracy_n,asr_k,asr_n,accuracy,asr,learning_rate"]
    for trial in range(TRIALS):
        for epoch in range(EPOCHS + 1):
            correct = 500 - 10 * trial if epoch else 500
            hits = int(990 * (trial / TRIALS) ** epoch)
            counts = f"{correct},1000,{hits},1000,{correct / 1000},{hits / 1000}"
            lines.append(f"{trial},{epoch},{counts},{10.0 ** -(trial + 1)}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines))
    return import_table(table, tmp_path / "home", "toy")


def nothing(trial, index):
    return None


def read_anew(folder):
    """The record without any summary."""
    aside = folder.path / "summary.aside"
    summary = folder.path / "summary.npz"
    if summary.exists():
        summary.rename(aside)
    record = folder.record()
    if aside.exists():
        aside.rename(summary)
    return record


def assert_same(record, other):
    assert record == other  # the points of every trial among it
    assert rank_trials(record, nothing) == rank_trials(other, nothing)
    for field in dataclasses.fields(PointColumns):
        np.testing.assert_array_equal(getattr(record.columns(), field.name), getattr(other.columns(), field.name))


def test_a_record_from_the_summary_is_that_of_the_ledger(folder):
    first = folder.record(keep_summary=True)
    assert (folder.path / "summary.npz").exists()
    again = folder.record()
    assert all(trial.summary is not None for trial in again.trials)
    assert_same(first, read_anew(folder))
    assert_same(again, read_anew(folder))


def test_no_history_is_read_where_nothing_has_changed(folder, monkeypatch):
    folder.record(keep_summary=True)
    victim = folder.victim_point()
    monkeypatch.setattr(SweepFolder, "victim_point", lambda self: victim)
    monkeypatch.setattr("sweeplab.storage.run_folder.read_lines", lambda path: pytest.fail(f"{path} was read"))
    record = folder.record()
    board = rank_trials(record, nothing)
    assert board.rows[0].trial == 0
    assert len(record.columns().trial) == TRIALS * (EPOCHS + 1)
    with pytest.raises(pytest.fail.Exception, match=r"0003/history\.jsonl was read"):
        list(record.trials[3].points)


def test_a_record_can_be_handed_to_another_process(folder):
    record = folder.record(keep_summary=True)
    assert_same(pickle.loads(pickle.dumps(folder.record())), record)


def changed_history(folder, trial):
    """The trial's last point is far better, in as many bytes, under the old time of change."""
    path = folder.trial(trial).path / "history.jsonl"
    before = path.stat()
    text = path.read_text()
    old = f'"accuracy_k": {500 - 10 * trial}'
    place = text.rindex(old)
    path.write_text(text[:place] + '"accuracy_k": 999' + text[place + len(old) :])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    return path


def test_a_changed_history_is_read_even_where_its_size_and_time_are_the_old_ones(folder):
    folder.record(keep_summary=True)
    changed_history(folder, 2)
    record = folder.record()
    assert [trial.number for trial in record.trials if trial.summary is None] == [2]
    assert rank_trials(record, nothing).rows[0].accuracy == 0.999
    assert_same(record, read_anew(folder))
    assert_same(folder.record(keep_summary=True), read_anew(folder))
    assert all(trial.summary for trial in folder.record().trials)


def test_trials_may_go_and_come(folder):
    folder.record(keep_summary=True)
    shutil.move(folder.trial(4).path, folder.path / "aside")
    shutil.copytree(folder.trial(5).path, folder.trial(TRIALS).path)
    header = json.loads((folder.trial(TRIALS).path / "trial.json").read_text())
    (folder.trial(TRIALS).path / "trial.json").write_text(json.dumps({**header, "number": TRIALS}))
    record = folder.record(keep_summary=True)
    assert [trial.number for trial in record.trials] == [0, 1, 2, 3, *range(5, TRIALS + 1)]
    assert_same(record, read_anew(folder))
    assert_same(folder.record(), read_anew(folder))


def test_a_result_that_is_removed_is_missed(folder):
    folder.record(keep_summary=True)
    (folder.trial(1).path / "result.json").unlink()
    assert folder.record().trials[1].state == "waiting"


def status_of(folder):
    """The same at any time of day."""
    return sweep_status(folder) | {"seconds_left": None}


def status_anew(folder):
    """What every trial's files give, without any summary."""
    summary, aside = folder.path / "summary.npz", folder.path / "summary.aside"
    summary.rename(aside)
    values = status_of(folder)
    aside.rename(summary)
    return values


def forget_end(folder, trial):
    (folder.trial(trial).path / "result.json").unlink()


def fail(folder, trial):
    path = folder.trial(trial).path / "result.json"
    path.write_text(json.dumps({"state": "failed", "reason": "out of memory", "points": EPOCHS + 1}))


def remove(folder, trial):
    shutil.rmtree(folder.trial(trial).path)


@pytest.mark.parametrize("change", [lambda *_: None, changed_history, forget_end, fail, remove])
@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "changed since"])
@pytest.mark.parametrize("trial", [0, 5])
def test_status_from_the_summary_is_that_of_the_ledger(folder, change, is_stored, trial):
    """Trial 0 is the best one, trial 5 is not; both lose a result, fail, go, or get the best point of all."""
    if not is_stored:
        folder.record(keep_summary=True)
    change(folder, trial)
    if is_stored:
        folder.record(keep_summary=True)
    values = status_of(folder)
    assert values == status_anew(folder)
    known = {
        trial.number: trial.summary for trial in folder.record(keep_summary=True).trials if trial.state != "failed"
    }
    number, best = best_of_trials({trial: summary.best for trial, summary in known.items() if summary.best is not None})
    assert (values["best"]["trial"], values["best"]["epoch"]) == (number, best.epoch)
    assert values["min_asr"] == min(summary.lowest_asr for summary in known.values())


def test_status_makes_no_record_of_a_trial_where_nothing_has_changed(folder, monkeypatch):
    folder.record(keep_summary=True)
    monkeypatch.setattr("sweeplab.sweep_folder.record_of", lambda number, *_, **__: pytest.fail(f"trial {number}"))
    assert sweep_status(folder)["trials"]["finished"] == TRIALS


def test_a_trial_that_is_not_over_runs_only_while_a_driver_is_at_work(folder):
    forget_end(folder, 3)
    folder.record(keep_summary=True)
    for is_driven, state in ((True, "running"), (False, "waiting")):
        trials = folder.trials(is_driven=is_driven)
        assert trials.columns(0.05).state.tolist() == [record.state for record in trials.records]
        assert trials.columns(0.05).state[3] == state


@pytest.mark.parametrize("name", ["parts", "PointColumns.accuracy_k"])
def test_a_summary_with_one_damaged_byte_says_nothing_wrong(folder, name):
    """The byte lies in the middle of what is stored under a name; the archive's checksum of it no longer holds."""
    record = folder.record(keep_summary=True)
    path = folder.path / "summary.npz"
    content = bytearray(path.read_bytes())
    with ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    content[member.header_offset + member.file_size - 20] ^= 1
    path.write_bytes(content)
    assert_same(folder.record(), record)


@pytest.mark.parametrize("name", ["head", "PointColumns.accuracy_k"])
@pytest.mark.parametrize(("byte", "value"), [(8, 1), (8, 32), (10, 1), (10, 8), (10, 12), (10, 14)])
def test_a_summary_whose_list_of_parts_is_damaged_says_nothing_wrong(folder, name, byte, value):
    """Flags (byte 8 of an entry: encrypted, patched) and method (byte 10) say what zipfile cannot read, or reads wrong:
    shrunk, deflated, bzip2, LZMA."""
    record = folder.record(keep_summary=True)
    path = folder.path / "summary.npz"
    content = bytearray(path.read_bytes())
    entry = content.rindex(f"{name}.npy".encode()) - 46  # the entry of the central directory ends in the name
    assert content[entry : entry + 4] == b"PK\x01\x02"
    content[entry + byte] ^= value
    path.write_bytes(content)
    assert_same(folder.record(), record)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(40)])
def test_a_damaged_summary_is_worked_out_anew(folder, content):
    folder.record(keep_summary=True)
    (folder.path / "summary.npz").write_bytes(content)
    record = folder.record(keep_summary=True)
    assert_same(record, read_anew(folder))
    assert all(trial.summary for trial in folder.record().trials)


def test_a_copy_brings_no_summary_along(folder, tmp_path):
    """Whoever hands over a sweep could else hand over better numbers than its ledger holds."""
    folder.record(keep_summary=True)
    other = tmp_path / "other" / "sweeps" / "toy"
    shutil.copytree(folder.path, other)
    assert all(trial.summary is None for trial in SweepFolder(other).record().trials)


def test_another_ceiling_is_another_summary(folder):
    folder.record(keep_summary=True)
    path = folder.path / "sweep.json"
    header = json.loads(path.read_text())
    header["spec"]["search"]["asr_ceiling"] = 0.2
    path.write_text(json.dumps(header))
    assert all(trial.summary is None for trial in folder.record().trials)


def test_commands_that_read_write_no_summary(folder, capsys):
    folder.record()
    folder.trials(is_driven=False)
    assert not (folder.path / "summary.npz").exists()


def test_what_came_from_elsewhere_gets_no_summary(folder, tmp_path):
    home = tmp_path / "other"
    home.mkdir()
    home_key(home)  # what lies in a home without a key becomes its own
    shutil.copytree(folder.path, home / "sweeps" / "toy")
    record = SweepFolder(home / "sweeps" / "toy").record(keep_summary=True)
    assert all(trial.summary for trial in record.trials)
    assert not (home / "sweeps" / "toy" / "summary.npz").exists()


def test_a_damaged_history_is_named_every_time(folder):
    path = folder.trial(3).path / "history.jsonl"
    path.write_text(path.read_text()[:-200])
    for _ in range(2):
        assert any("is damaged" in note for note in folder.record(keep_summary=True).notes)
    path = folder.trial(6).path / "trial.json"
    path.write_text("{")
    with pytest.raises(InvalidInput, match="is damaged"):
        folder.record()


def test_files_are_settled_once_their_times_cannot_hide_a_change():
    now = 10**18 + 3 * TICK_NS + 7
    marks = np.zeros((4, 5, 4), dtype=np.int64)
    marks[1, :, 1:3] = now - TICK_NS - 1
    marks[2, 3, 2] = now - TICK_NS + 1  # one file changed a moment ago
    marks[3, 1, 1:3] = 10**18 - 10**9  # whole seconds, less than two ago
    assert is_settled(marks, now).tolist() == [True, True, False, False]
    assert is_settled(marks[3:], now + COARSE_NS).tolist() == [True]


def measured(number, *rates, **more):
    points = tuple(
        Point(
            index,
            float(index),
            10 * index,
            1,
            Measurement(correct, 100, hit, 90, "e"),
            train_seconds=1.5,
            timestamp_ms=1000 + index,
            checkpoint=f"{index}.pt",
            curve=({"step": 1, "loss": 0.5},) if index else (),
        )
        for index, (correct, hit) in enumerate(rates)
    )
    return TrialRecord(number, "finished", {"learning_rate": 0.1}, "c", 1, 1, points, **more)


OUTCOMES = {index: Outcomes.of(np.arange(100) % (index + 2) > 0, np.arange(90) < 4 * index) for index in range(1, 4)}


@pytest.mark.parametrize(
    "trial",
    [
        measured(0, (90, 88), (80, 3), (85, 4), (70, 0)),
        measured(1, (90, 88), (80, 40), (85, 8), (70, 5)),
        measured(2, (90, 88)),
        measured(3),
        measured(4, (60, 2), start_counts=True),
    ],
    ids=["cleaned", "close", "start alone", "nothing", "start counts"],
)
def test_a_stored_part_is_the_summary_that_went_in(trial):
    chooses = np.arange(100) % 2 == 0
    summary = summarize(trial, 0.05, lambda number, index: OUTCOMES.get(index), chooses)
    summarized = dataclasses.replace(trial, summary=summary)
    back = record_of(trial.number, json.loads(json.dumps(part_of(summarized))), trial.points, is_driven=False)
    assert (back, back.summary) == (summarized, summary)
    for name in ("last_epoch", "last_ms", "seconds", "has_curve"):
        assert getattr(back, name) == getattr(trial, name)
    assert [kept.point.index for kept in kept_points([back], 0.05, 3)] == [
        kept.point.index for kept in kept_points([trial], 0.05, 3)
    ]
