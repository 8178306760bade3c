"""One table of cleaning sweeps: the best trial of each. Prints markdown; trains nothing.

    python sweeps/every_method.py && python benchmarks/method_table.py
    python benchmarks/method_table.py every-method-badnet-par quickstart      # some sweeps of the home, by name

One row a sweep: how many trials have an epoch below the ASR ceiling, and of the best one its retention, accuracy and
ASR (over all test images, and on the half of the images that did not choose the epoch) and its parameters. A sweep
without such a trial shows its point of lowest ASR and no retention. Sweeps that the home lacks, or that are not
finished, are named below the table, and so are the notes of those that have some.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sweeplab.cli import guarded, load_script, say
from sweeplab.evaluation.retention import counted
from sweeplab.ranking.leaderboard import LeaderboardRow, rank_trials, short_value
from sweeplab.records import Point, SweepRecord
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder
from sweeplab.sweep_folder import SweepFolder

HEADER = (
    "| sweep | trials cleaned | retention | accuracy | ASR | other half: accuracy, ASR | epoch | parameters |",
    "|---|---|---|---|---|---|---|---|",
)


def markdown(folders: Sequence[SweepFolder]) -> str:
    """The table of the finished sweeps, and a line that names the others."""
    lines, missing, notes = list(HEADER), [], []
    for folder in folders:
        record = folder.record() if folder.exists() and folder.victim_point() else None
        if record is None or record.state != "finished":
            missing.append(folder.name)
            continue
        board = rank_trials(record, folder.outcomes)
        lines.append(table_row(record, board.rows))
        notes += [f"{record.name}: {note}" for note in record.notes]
    if len(lines) == len(HEADER):
        raise InvalidInput(f"none of {', '.join(missing)} is finished in this home; run sweeps/every_method.py first")
    for note in notes:
        lines += ["", note]
    if missing:
        lines += ["", f"Not finished: {', '.join(missing)}"]
    return "\n".join(lines)


def table_row(record: SweepRecord, rows: Sequence[LeaderboardRow]) -> str:
    """One sweep's line."""
    best, feasible = rows[0], sum(row.feasible for row in rows)
    point = shown_point(record, best)
    measured = point.measurement
    cells = (
        record.name,
        f"{feasible} of {len(rows)}",
        f"{best.retention:.3f}" if best.retention is not None else "none",
        f"{measured.accuracy:.3f} ({measured.accuracy_k}/{measured.accuracy_n})",
        f"{measured.asr:.3f} ({measured.asr_k}/{measured.asr_n})",
        f"{best.accuracy_report:.3f}, {best.asr_report:.3f}"
        if best.accuracy_report is not None and best.asr_report is not None
        else "none",
        f"{point.epoch:g}",
        ", ".join(f"{name} {short_value(value)}" for name, value in best.params.items()),
    )
    return f"| {' | '.join(cells)} |"


def shown_point(record: SweepRecord, row: LeaderboardRow) -> Point:
    """The best cleaned point of a trial, else its point of lowest ASR."""
    trial = next(trial for trial in record.trials if trial.number == row.trial)
    if row.feasible:
        return next(point for point in trial.points if point.epoch == row.epoch)
    points = counted(trial.points, start_counts=trial.start_counts)
    if not points:
        raise InvalidInput(f"{record.name}: no trial was measured; see `sweeplab status {record.name}`")
    return min(points, key=lambda point: (point.measurement.asr or 0.0, point.index))


def main() -> int:
    """The command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="*", help="names; those of sweeps/every_method.py if left out")
    names = parser.parse_args().sweeps

    def work() -> None:
        wanted = names or [sweep.name for sweep in load_script(Path("sweeps/every_method.py"))]
        say(markdown([SweepFolder(home_folder() / "sweeps" / name) for name in wanted]))

    return guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
