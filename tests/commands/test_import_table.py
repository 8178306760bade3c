"""Tables from elsewhere: read, refused with one message each, and given back as they came."""

import json
from pathlib import Path

import fabricated
import pandas as pd
import pytest

from dashboards.build import render_page
from sweeplab.commands import import_table as import_table_module
from sweeplab.commands.import_table import import_table, read_table
from sweeplab.commands.logs import trial_log
from sweeplab.commands.status import sweep_status
from sweeplab.ranking.costs import Costs
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.ranking.tables import epochs_table, export, trials_table
from sweeplab.specs import InvalidInput, StorageFault
from sweeplab.sweep_folder import SweepFolder

ROWS = [
    {"trial": 3, "epoch": 0, "accuracy": 0.9, "asr": 0.8, "rate": 1e-3, "loss": "both"},
    {"trial": 3, "epoch": 1, "accuracy": 0.85, "asr": 0.04, "rate": 1e-3, "loss": "both"},
    {"trial": 3, "epoch": 2, "accuracy": 0.88, "asr": 0.3, "rate": 1e-3, "loss": "both"},
    {"trial": 5, "epoch": 1, "accuracy": 0.7, "asr": 0.06, "rate": 1e-2, "loss": "ssl"},
    {"trial": 5, "epoch": 2, "accuracy": 0.6, "asr": 0.05, "rate": 1e-2, "loss": "ssl"},
]


def table(path: Path, rows: list[dict[str, object]], suffix: str = ".csv") -> Path:
    file = path / f"table{suffix}"
    frame = pd.DataFrame(rows)
    if suffix == ".csv":
        frame.to_csv(file, index=False)
    elif suffix == ".json":
        frame.to_json(file, orient="records")
    else:
        frame.to_parquet(file, index=False)
    return file


def changed(row: int, **values: object) -> list[dict[str, object]]:
    return [{**old, **values} if index == row else old for index, old in enumerate(ROWS)]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_a_table_becomes_a_ranked_sweep(suffix: str, tmp_path: Path):
    """.85 of .9 at ASR 4 %; trial 5 never gets strictly below 5 %."""
    folder = import_table(table(tmp_path, ROWS, suffix), tmp_path, "elsewhere")
    record = folder.record()
    assert (record.state, record.epochs, record.planned_trials) == ("finished", 2, 2)
    assert record.parameters == ("rate", "loss")
    assert record.log_parameters == ("rate",)
    board = rank_trials(record, folder.outcomes)
    assert [(row.trial, row.feasible, row.epoch) for row in board.rows] == [(3, True, 1.0), (5, False, None)]
    assert board.rows[0].retention == pytest.approx(0.85 / 0.9, abs=1e-15)
    assert board.rows[1].min_asr == 0.05
    assert board.rows[0].params == {"rate": 1e-3, "loss": "both"}


@pytest.mark.parametrize("later", ["both", 'both "', 'both"', '"ssl"'])
def test_a_quote_that_is_not_closed_loses_no_point_in_silence(tmp_path: Path, later: str):
    file = table(tmp_path, ROWS)
    rows = file.read_text().splitlines()
    rows[2], rows[4] = rows[2].replace("both", '"both'), rows[4].replace("ssl", later)
    file.write_text("\n".join(rows) + "\n")
    with pytest.raises(InvalidInput, match=r"row 2, which begins in line 3|cannot be read as csv"):
        read_table(file)


def test_fractions_without_counts_certify_nothing(tmp_path: Path):
    """Zero hits of an unknown number of images may be zero of one."""
    folder = import_table(table(tmp_path, changed(1, asr=0.0)), tmp_path, "elsewhere")
    row = rank_trials(folder.record(), folder.outcomes).rows[0]
    assert (row.certified, row.retention_low, row.retention_high) == (False, None, None)


def test_counts_certify(tmp_path: Path):
    rows = [
        {**row, "accuracy_k": round(row["accuracy"] * 1000), "accuracy_n": 1000,
         "asr_k": round(row["asr"] * 1000), "asr_n": 1000}
        for row in changed(1, asr=0.01)
    ]  # fmt: skip
    folder = import_table(table(tmp_path, rows), tmp_path, "elsewhere")
    row = rank_trials(folder.record(), folder.outcomes).rows[0]
    assert row.certified
    assert row.retention_low < row.retention < row.retention_high


def test_the_victim_may_be_given(tmp_path: Path):
    folder = import_table(table(tmp_path, ROWS[1:]), tmp_path, "elsewhere", victim_accuracy=0.95, victim_asr=0.99)
    victim = folder.record().victim
    assert (victim.accuracy, victim.asr) == (0.95, 0.99)


def test_a_trial_without_a_start_begins_with_the_victim(tmp_path: Path):
    folder = import_table(table(tmp_path, ROWS), tmp_path, "elsewhere")
    start = folder.record().trials[1].points[0]
    assert (start.epoch, start.measurement) == (0.0, folder.record().victim)


def test_an_empty_parameter_does_not_apply(tmp_path: Path):
    folder = import_table(table(tmp_path, [{**row, "shrink": None} for row in ROWS]), tmp_path, "elsewhere")
    assert "shrink" not in folder.record().trials[0].params


def test_export_gives_a_table_back_that_imports_to_the_same(tmp_path: Path):
    home = tmp_path / "home"
    first = import_table(table(tmp_path, ROWS), home, "first")
    export(first.record(), rank_trials(first.record(), first.outcomes), tmp_path / "out")
    for suffix in ("csv", "parquet"):
        again = import_table(tmp_path / "out" / f"epochs.{suffix}", home, f"again-{suffix}")
        assert again.record().parameters == first.record().parameters
        for one, other in zip(first.record().trials, again.record().trials, strict=True):
            assert (one.params, one.configuration, one.seed) == (other.params, other.configuration, other.seed)
            assert [(p.epoch, p.measurement.accuracy, p.measurement.asr) for p in one.points] == [
                (p.epoch, p.measurement.accuracy, p.measurement.asr) for p in other.points
            ]


@pytest.mark.parametrize("seconds", [None, 30.0])
def test_no_time_is_said_that_the_table_does_not_hold(seconds: float | None, tmp_path: Path):
    """Five rows of 30 s, or of no time at all; when they were measured is not known either way."""
    rows = [row if seconds is None else {**row, "seconds": seconds} for row in ROWS]
    folder = import_table(table(tmp_path, rows), tmp_path, "elsewhere")
    status, record = sweep_status(folder), folder.record()
    page = render_page(record, rank_trials(record, folder.outcomes))
    words = "; how long they took is not known" if seconds is None else ", 2 min 30 s in trials"
    cost = f"4 trial-epochs{words}"
    assert Costs(**status["costs"]).in_words(status["seconds"]) == cost
    assert f"<dt>Cost</dt><dd>{cost}</dd>" in page
    assert status["last_ms"] == 0
    assert "Last epoch measured" not in page
    assert ('title="training and evaluation">Time' in page) == (seconds is not None)
    assert not any(text in page for text in (">0\u00a0s<", '<th scope="col">Time'))
    board = rank_trials(record, folder.outcomes)
    told = [status["seconds"], *(row["seconds"] for row in board.to_json()["trials"])]
    assert {value is None for value in told} == {seconds is None}
    assert set(trials_table(board)["seconds"].isna()) == {seconds is None}
    last = trial_log(folder, record.trials[0].number)[-1]
    assert last.endswith("(attempt 1)" if seconds is None else "(attempt 1, 30 s)")
    assert epochs_table(record)["seconds"].isna().sum() == (6 if seconds is None else 1)  # one more row is the victim


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_sweep_of_our_own_round_trips_with_its_counts(suffix: str, tmp_path: Path):
    own = fabricated.finished_sweep(tmp_path / "sweeps")
    board = rank_trials(own.record(), own.outcomes)
    export(own.record(), board, tmp_path / "out")
    again = import_table(tmp_path / "out" / f"epochs.{suffix}", tmp_path, "again")
    back = rank_trials(again.record(), again.outcomes)
    mine = [(row.trial, row.feasible, row.certified, row.retention, row.params, row.seconds) for row in board.rows]
    assert [(r.trial, r.feasible, r.certified, r.retention, r.params, r.seconds) for r in back.rows] == mine
    export(again.record(), back, tmp_path / "out2")
    one, other = (pd.read_csv(tmp_path / out / "epochs.csv") for out in ("out", "out2"))
    pd.testing.assert_frame_equal(one, other)


def test_starts_that_count_are_not_taken_for_the_victim(tmp_path: Path):
    rows = [{**row, "start_counts": False} for row in ROWS]
    rows += [{"trial": 7, "epoch": 0, "accuracy": 0.5, "asr": 0.01, "rate": 1e-3, "loss": "x", "start_counts": True}]
    folder = import_table(table(tmp_path, rows), tmp_path, "elsewhere")
    assert folder.record().victim.accuracy == 0.9
    board = rank_trials(folder.record(), folder.outcomes)
    assert next(row for row in board.rows if row.trial == 7).epoch == 0.0


# --- what is refused

BAD = {
    "a missing column": ([{k: v for k, v in r.items() if k != "asr"} for r in ROWS], "no column asr; it needs"),
    "a rate above 1": (changed(1, accuracy=85.0), r"accuracy=85.0 in row 2 must be a fraction.*divide percentages"),
    "a rate below 0": (changed(3, asr=-0.1), "asr=-0.1 in row 4 must be a fraction"),
    "a rate that is no number": (changed(2, asr=None), "asr=None in row 3 must be a number"),
    "a word for a rate": (changed(2, asr="low"), "asr='low' in row 3 must be a number"),
    "an epoch that is infinite": (changed(2, epoch=float("inf")), "epoch=inf in row 3 must be a number from 0"),
    "a negative epoch": (changed(2, epoch=-1), "epoch=-1 in row 3 must be a number from 0"),
    "a broken trial number": (changed(2, trial=0.5), "trial=0.5 in row 3 must be a whole number"),
    "a point twice": (changed(2, epoch=1), "two rows of trial 3, epoch 1"),
    "no victim": (ROWS[1:], "no row of epoch 0.*--victim-accuracy and --victim-asr"),
    "victims that disagree": ([*ROWS, {**ROWS[0], "trial": 5, "accuracy": 0.91}], "disagree .accuracy 0.9 and"),
    "a victim that knows nothing": (changed(0, accuracy=0.0), "victim's accuracy is 0"),
    "a parameter that changes": (changed(2, rate=2e-3), "rate takes 2 values in trial 3"),
    "counts that contradict": (
        [{**row, "accuracy_k": 1, "accuracy_n": 100, "asr_k": 1, "asr_n": 100} for row in ROWS],
        "accuracy_k=1 of accuracy_n=100 is not accuracy=0.9",
    ),
    "half of the counts": ([{**row, "asr_k": 1} for row in ROWS], "has asr_k and no accuracy_k, accuracy_n, asr_n"),
    "a list for a parameter": (changed(1, rate=[1]), r"rate=\[1\] in row 2 must be a text, a finite number"),
    "an object for a parameter": (changed(1, rate={"a": 1}), "in row 2 must be a text, a finite number"),
    "a parameter that is infinite": (changed(1, rate=float("inf")), "rate=inf in row 2 must be a text, a finite"),
    "a parameter without end": (changed(1, rate=10**400), "in row 2 must be a text, a finite number"),
    "a flag among numbers": (
        [{**row, "flag": row["trial"] == 3 if row["trial"] == 3 else 1} for row in ROWS],
        "flag=True in row 1 must be a text, a finite number, true, false or empty",
    ),
    "a trial number without end": (changed(1, trial=10**400), "in row 2 must be a whole number from 0 to a million"),
    "a step that is infinite": (changed(1, step=float("-inf")), "step=-inf in row 2 must be a whole number"),
    "a word for a loss": (changed(1, train_loss="low"), "train_loss='low' in row 2 must be a number"),
    "a loss that is infinite": (changed(1, train_loss=float("inf")), "train_loss=inf in row 2 must be a finite number"),
    "a list for seconds": (changed(1, seconds=[1]), "seconds=.* in row 2 must be a number"),
    "seconds below 0": (changed(1, seconds=-1.0), "seconds=-1.0 in row 2 must be a number from 0"),
    "a word for a flag": (
        [{**row, "start_counts": "maybe" if i == 2 else False} for i, row in enumerate(ROWS)],
        "start_counts='maybe' in row 3 must be true or false",
    ),
    "a word for a count": (
        [{**row, "accuracy_k": "x", "accuracy_n": 100, "asr_k": 1, "asr_n": 100} for row in ROWS],
        "accuracy_k='x' in row 1 must be a number",
    ),
    "a broken seed": ([{**row, "seed": -1} for row in ROWS], "seed=.*must be a whole number"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_table_gives_one_message_and_leaves_nothing(fault: str, tmp_path: Path):
    rows, message = BAD[fault]
    needs_json = (list, dict, bool)
    is_nested = any(
        isinstance(value, needs_json) or (isinstance(value, int) and value > 2**63)
        for row in rows
        for value in row.values()
    )
    with pytest.raises(InvalidInput, match=message):
        import_table(table(tmp_path, rows, ".json" if is_nested else ".csv"), tmp_path / "home", "elsewhere")
    assert not (tmp_path / "home").exists()


def test_an_import_that_fails_while_it_writes_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object, **named: object) -> None:
        raise StorageFault("no space left")

    monkeypatch.setattr(import_table_module, "write_signed", full)
    with pytest.raises(StorageFault):
        import_table(table(tmp_path, ROWS), tmp_path / "home", "elsewhere")
    assert list((tmp_path / "home" / "sweeps").iterdir()) == []


def test_a_table_without_rows_is_refused(tmp_path: Path):
    (tmp_path / "table.csv").write_text("trial,epoch,accuracy,asr\n")
    with pytest.raises(InvalidInput, match="no rows"):
        read_table(tmp_path / "table.csv")


@pytest.mark.parametrize(("name", "message"), [("absent.csv", "does not exist"), ("table.xls", "ends in .csv, .json")])
def test_files_that_are_no_tables_are_refused(name: str, message: str, tmp_path: Path):
    with pytest.raises(InvalidInput, match=message):
        read_table(tmp_path / name)


def test_a_damaged_file_is_refused(tmp_path: Path):
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(InvalidInput, match="cannot be read as json"):
        read_table(tmp_path / "table.json")


def test_one_half_of_a_victim_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="belong together"):
        read_table(table(tmp_path, ROWS), victim_accuracy=0.9)


def test_a_taken_name_and_a_bad_name_are_refused(tmp_path: Path):
    file = table(tmp_path, ROWS)
    import_table(file, tmp_path, "elsewhere")
    with pytest.raises(InvalidInput, match="'elsewhere' exists"):
        import_table(file, tmp_path, "elsewhere")
    with pytest.raises(InvalidInput, match="must begin with a letter or digit"):
        import_table(file, tmp_path, "../elsewhere")


def test_what_a_killed_import_left_does_not_matter(tmp_path: Path):
    left = SweepFolder(tmp_path / "sweeps" / ".elsewhere.part")
    left.write_trial(99, {}, configuration="", seed=0, start_counts=False)
    folder = import_table(table(tmp_path, ROWS), tmp_path, "elsewhere")
    assert folder.trial_numbers() == [3, 5]
    assert not left.path.exists()


def test_the_header_says_where_the_table_came_from(tmp_path: Path):
    file = table(tmp_path, ROWS)
    header = json.loads((import_table(file, tmp_path, "elsewhere").path / "sweep.json").read_text())
    assert header["imported"]["file"] == "table.csv"
