"""Logs of a sweep and its trials; stop a sweep or a victim's training, ask for a trial again."""

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from sweeplab.adoption import adopt_sweep
from sweeplab.ranking.leaderboard import short_value
from sweeplab.records import duration, percent
from sweeplab.specs import InvalidInput
from sweeplab.storage.locks import Work, process_facts
from sweeplab.storage.ownership import write_signed
from sweeplab.sweep.progress import outcome
from sweeplab.sweep_folder import SweepFolder
from sweeplab.terminal import printable

STOP_SECONDS = 60.0
"""So long `stop` waits for the driver to let go."""

SETTLE_SECONDS = 0.2
"""Between two looks at the lock, so that nothing is stopped but the process that holds it for good."""


def stop(work: Work, *, wait_seconds: float = STOP_SECONDS) -> bool:
    """Ask the command that works on a sweep, or trains a victim, to end, as SIGTERM does, and wait until it has let go
    of the lock.

    Returns:
        False where no command is at work on it.

    Raises:
        InvalidInput: if its process is on another host, the one that the record names is another one by now, or it does
            not end in time.
    """
    for _ in range(2):  # `status` holds the lock for a moment too, and the holder's file may be a killed process's
        if not work.is_locked():
            return False
        time.sleep(SETTLE_SECONDS)
    holder = work.holder()
    if holder is None:
        raise InvalidInput(f"{work.what} is only just being begun or ended; try again in a moment")
    # A process number means nothing on another host.
    if holder["host"] != socket.gethostname():
        raise InvalidInput(
            f"{work.what} is run by process {holder['process']} on {holder['host']}; run this command there, "
            "or `ray job stop` its job"
        )
    _end_process(work, holder)
    # The lock tells the end, not the process: its number may be another's by now.
    deadline = time.monotonic() + wait_seconds
    while work.is_locked():
        if time.monotonic() > deadline:
            raise InvalidInput(
                f"process {holder['process']} did not end within {wait_seconds:g} s; `kill -9 {holder['process']}` "
                "loses no more than the epochs that run"
            )
        time.sleep(0.2)
    return True


def _end_process(work: Work, holder: dict[str, Any]) -> None:
    """Signal the process that a record names, if it is the very one that wrote it: a file may name any process."""
    process = holder["process"]
    refusal = InvalidInput(
        f"process {process!r} is not the process that started {work.what} "
        f"({work.holder_file} names its start and command line); find the one that runs it and end it"
    )
    if type(process) is not int or process <= 1 or "started" not in holder:
        raise refusal
    try:
        # Signal 0 only asks whether the process is there and ours.
        os.kill(process, 0)
        if process_facts(process) != {name: holder.get(name) for name in ("started", "command")}:
            raise refusal
        work.stop_mark.touch()  # who supervises the command does not start it again
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        return  # it has just ended
    except PermissionError:
        raise refusal from None


LOOK_SECONDS = 0.5
"""Between two looks at a log that is followed."""


def log(
    folder: SweepFolder, trial: int | None = None, *, tail: int | None = None, follow: bool = False
) -> Iterator[str]:
    """The lines of a sweep's log, or of one of its trials.

    Args:
        folder: the sweep's.
        trial: number of the trial; None: the sweep's events.
        tail: begin with so many lines from the end; None: with all that are there.
        follow: wait for new lines as long as a command runs the sweep.

    Raises:
        InvalidInput: if there is no such sweep or trial.
    """
    # A trial's new points stand before its output, so that new lines are told by what they say, not by their place.
    seen: Counter[str] = Counter()
    num_events = 0
    is_first = True
    while True:
        runs = follow and folder.is_locked()  # asked first: what a command writes at its end is shown too
        if trial is None:
            outcome_of, events = _outcomes(folder), folder.events()
            new = events[num_events:]
            if is_first and not events:
                yield "no events: " + ("it was imported" if "imported" in folder.header() else "no trial has begun yet")
            if is_first and tail is not None:
                new = new[max(0, len(new) - tail) :]
            num_events = len(events)
            yield from (event_line(event, outcome_of(event)) for event in new)
        else:
            lines, before = trial_log(folder, trial), seen.copy()
            seen = Counter(lines)
            if is_first and tail is not None:
                lines = lines[max(0, len(lines) - tail) :]
            for line in lines:
                before[line] -= 1
                if before[line] < 0:
                    yield line
        if not runs:
            return
        is_first = False
        time.sleep(LOOK_SECONDS)


INTERNAL = ("time_ms", "event", "digest", "before_until_ms", "made_up_for", "finished", "rule", "saw")
"""Fields of events that say nothing to a reader, or nothing new."""

USUAL = {"attempt": 1, "points": 0, "workers": 1, "gpus_per_worker": 0.0}
"""Values that go without saying."""


def event_line(event: dict[str, Any], outcome: str | None = None) -> str:
    """When, what, and the facts, in one line; of a trial that ended its outcome."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time_ms"] / 1000))
    facts = f"trial {event['trial']}: {outcome}" if outcome is not None else ", ".join(_facts(event))
    return printable(f"{when}  {event['event']:16s} {facts}", keep="").rstrip()


def _facts(event: dict[str, Any]) -> Iterator[str]:
    """What an event says beyond its name and time."""
    for name, value in event.items():
        if name in INTERNAL or USUAL.get(name) == value:
            continue
        words = name.replace("_", " ")
        yield str(value) if name == "reason" else words if value is True else f"{words} {value}"


def _outcomes(folder: SweepFolder) -> Callable[[dict[str, Any]], str | None]:
    """Gives what came of the trial whose end an event tells of; None for other events, and where its records are gone.

    What all trials share is read here, once for a whole log.
    """
    ceiling = folder.header()["spec"]["search"]["asr_ceiling"]
    victim, numbers = folder.victim_point(), frozenset(folder.trial_numbers())

    def outcome_of(event: dict[str, Any]) -> str | None:
        if victim is None or event["event"] != "trial ended" or event["trial"] not in numbers:
            return None
        record = folder.trial_record(event["trial"], is_driven=False)
        return outcome(record, victim[0].accuracy, ceiling) if record.points else None

    return outcome_of


def trial_log(folder: SweepFolder, number: int) -> list[str]:
    """A trial's events, its points and what its failed attempts printed.

    Raises:
        InvalidInput: if there is no such trial.
    """
    _check_trial(folder, number)
    record = folder.trial_record(number, is_driven=folder.is_locked())
    lines = [f"trial {number}: {record.state}" + (f" ({printable(record.reason, keep='')})" if record.reason else "")]
    lines += [printable(f"  {name} = {short_value(value)}", keep="") for name, value in record.params.items()]
    outcome_of = _outcomes(folder)
    lines += [event_line(event, outcome_of(event)) for event in folder.events() if event.get("trial") == number]
    ceiling = folder.header()["spec"]["search"]["asr_ceiling"]
    for point in record.points:
        asr = point.measurement.asr
        loss, seconds = point.train.get("loss"), point.train_seconds + point.evaluate_seconds
        lines.append(
            f"epoch {point.epoch:g}: accuracy {percent(point.measurement.accuracy)}"
            + (f", ASR {percent(asr, ceiling=ceiling)}" if asr is not None else "")
            + (f", loss {loss:.4f}" if loss is not None else "")
            + f" (attempt {point.attempt}{f', {duration(seconds)}' if seconds else ''})"
        )
    return lines + _printed(folder, number)


def _printed(folder: SweepFolder, number: int) -> list[str]:
    """The lines that a trial's failed attempts printed."""
    log = folder.trial(number).path / "log.txt"
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def log_values(folder: SweepFolder, number: int | None = None) -> dict[str, Any]:
    """What `logs --json` prints: the sweep's events, or those of one trial, its points, its setting to the last digit,
    and what its failed attempts printed.

    Raises:
        InvalidInput: if there is no such sweep or trial.
    """
    folder.header()
    if number is None:
        return {"sweep": folder.name, "events": folder.events()}
    _check_trial(folder, number)
    record = folder.trial_record(number, is_driven=folder.is_locked())
    return {
        "sweep": folder.name,
        "trial": number,
        "state": record.state,
        "reason": record.reason,
        "params": record.params,
        "events": [event for event in folder.events() if event.get("trial") == number],
        "points": [
            {**point.to_json(), "accuracy": point.measurement.accuracy, "asr": point.measurement.asr}
            for point in record.points
        ],
        "log": _printed(folder, number),
    }


def request_reruns(folder: SweepFolder, numbers: list[int], *, adopt: bool = False) -> None:
    """Have the next start of the sweep try trials' settings once more, as trials of their own; the old ones stay.

    Args:
        folder: the sweep's.
        numbers: of the trials.
        adopt: take the sweep over where it came from elsewhere.

    Raises:
        InvalidInput: if a trial does not exist or is not over, a driver is at work, or the sweep came from elsewhere;
            then none is asked for.
    """
    if "imported" in folder.header():
        raise InvalidInput(f"sweep {folder.name!r} was imported; its trials cannot be run here")
    folder.check_is_continued()
    for number in numbers:
        _check_trial(folder, number)
        run = folder.trial(number)
        if run.result() is None:
            why = "; ".join(["resuming the sweep goes on with it", *run.losses()])
            raise InvalidInput(f"trial {number} is not over yet; {why}")
    if adopt:
        adopt_sweep(folder)
    with folder.lock():
        header = folder.header()
        asked = [*header.get("reruns", []), *numbers]
        more = {"reruns": asked, "planned_trials": header["planned_trials"] + len(numbers)}
        write_signed(folder.path / "sweep.json", {**header, **more}, folder.home)
        for number in numbers:
            folder.event("rerun asked", durable=True, trial=number)


def pruned_trials(folder: SweepFolder) -> list[int]:
    """Trials that a rule has stopped and that have not been asked for again, or whose reruns have failed."""
    asked = Counter(folder.reruns())
    results = {number: folder.trial(number).result() or {} for number in folder.trial_numbers()}
    for number, result in results.items():
        if result.get("state") == "failed" and (again := folder.trial_header(number).get("rerun_of")) is not None:
            asked[again] -= 1
    return [n for n, result in results.items() if result.get("state") == "pruned" and asked[n] <= 0]


def _check_trial(folder: SweepFolder, number: int) -> None:
    folder.header()
    known = folder.trial_numbers()
    if number not in known:
        shown = f"0 to {known[-1]}" if known else "none yet"
        raise InvalidInput(f"sweep {folder.name!r} has no trial {number}; known: {shown}")
