"""A sweep's folder: its spec, its lock, its trials, and the record that ranking, tracking and dashboards read."""

import contextlib
import dataclasses
import itertools
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from filelock import Timeout

from sweeplab.evaluation.retention import missing_backdoor, num_choices
from sweeplab.ranking.costs import last_sign_of_life
from sweeplab.ranking.intervals import most_certified_hits
from sweeplab.ranking.summary import VERSION as SUMMARY_VERSION
from sweeplab.ranking.summary import even_images, summarize
from sweeplab.records import (
    OVER,
    MeasuredImages,
    Measurement,
    Origin,
    Outcomes,
    Point,
    PointColumns,
    SweepRecord,
    SweepState,
    TrialColumns,
    TrialRecord,
    Victim,
    now_ms,
)
from sweeplab.specs import SCHEMA_VERSION, InvalidInput, StorageFault, digest_of, own_code
from sweeplab.storage.broken_rows import FILE, in_words, read_broken, sweep_owner, victim_owner
from sweeplab.storage.files import append_line, make_private, read_object, write_json
from sweeplab.storage.locks import Work, file_lock
from sweeplab.storage.ownership import check_no_links, is_signed, storages_in_words, write_signed
from sweeplab.storage.run_folder import RunFolder, StoredPoints
from sweeplab.storage.summary_file import (
    DAMAGED,
    LAYOUT,
    SummaryFile,
    is_settled,
    marks_of,
    now_ns,
    num_points,
    record_of,
    uncollected,
)
from sweeplab.storage.sweep_records import original_victim, read_events, read_header, section
from sweeplab.versions import commit_of, environment, made_by_older_version, num_changes, started_script, version_of

if TYPE_CHECKING:
    from sweeplab.experiment import CleaningSweep

logger = logging.getLogger("sweeplab")

TRIAL_FORMAT = "{:04d}"

TRIAL_NAME = re.compile(r"[0-9]{4}|[1-9][0-9]{4,}")

HEARTBEAT_SECONDS = 10.0
"""Between two heartbeats of a driver."""

SET_ASIDE = r"\.\d{8}-\d{6}\.\d+"
"""What `--fresh` adds to a sweep's name, as a pattern."""


@dataclass
class SweepTrials:
    """A sweep's trials: those of its summary that have not changed since, and the others, read from their files."""

    folder: str
    """Of the trials' own ones."""
    rows: dict[int, int]
    """By number, ascending: each one's row of the summary; -1 where it has none."""
    others: dict[int, TrialRecord]
    """By number, ascending, those without a row."""
    damaged: dict[int, list[str]]
    """By number, sentences on every damaged history."""
    stored: SummaryFile
    """Of no trial, and without a key where nothing can be summarized: the victim is not measured yet, or has no ASR."""
    marks: np.ndarray
    """Of the trials' files, see `marks_of`."""
    taken_ns: int
    """When the marks were taken, nanoseconds since 1970."""
    is_driven: bool
    """Whether a driver is at work on the sweep."""

    @property
    def losses(self) -> list[str]:
        """A sentence on every damaged history."""
        return [sentence for sentences in self.damaged.values() for sentence in sentences]

    @property
    def is_new(self) -> bool:
        """Whether what is known of them differs from what is stored."""
        return bool(self.others) or len(self.stored.numbers) > len(self.rows)

    def record(self, number: int) -> TrialRecord:
        """Of one trial."""
        if (row := self.rows[number]) < 0:
            return self.others[number]
        part = self.stored.parts[row]
        points = StoredPoints(f"{self.folder}/{TRIAL_FORMAT.format(number)}", num_points(part))
        return record_of(number, part, points, is_driven=self.is_driven)

    @cached_property
    def records(self) -> tuple[TrialRecord, ...]:
        """Of all trials."""
        with uncollected():
            return tuple(map(self.record, self.rows))

    def columns(self, asr_ceiling: float) -> TrialColumns:
        """Of all trials, in order; few records are made for them where few have changed."""
        others = [
            dataclasses.replace(trial, summary=summarize(trial, asr_ceiling, lambda *_: None, None))
            for trial in self.others.values()
        ]
        found = self.stored.trials_of(list(self.rows.values()), others)
        state = np.where(np.isin(found.state, OVER), found.state, "running" if self.is_driven else "waiting")
        return dataclasses.replace(found, state=state)

    def points(self) -> PointColumns:
        """Columns of their points, in order."""
        try:
            return self.stored.points_of(list(self.rows.values()), list(self.others.values()))
        except DAMAGED:
            return PointColumns.of(self.records)

    def renewed(self, victim: Measurement, asr_ceiling: float) -> SummaryFile:
        """What is to be stored of them, once all are summarized."""
        hits = {}
        choices = num_choices(self.records)
        if victim.is_counted and choices:  # none where no trial has come past its start
            hits = {(victim.asr_n, choices): most_certified_hits(victim.asr_n, choices, asr_ceiling)}
        keep = is_settled(self.marks, self.taken_ns) & [number not in self.damaged for number in self.rows]
        return self.stored.replaced(self.marks, self.records, keep, hits)


class SweepFolder:
    """Files of one sweep, under `HOME/sweeps/NAME`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.journal = path / "study.journal"
        self.page = path / "report.html"
        self.gallery = path / "gallery.json"

    @classmethod
    def of(cls, home: Path, name: str) -> "SweepFolder":
        """A home's sweep by the name that a command was given.

        Raises:
            InvalidInput: if it is no name of a folder, but a path, which would lead out of the home.
        """
        if not name or name.startswith(".") or "/" in name or not name.isprintable() or len(name.encode()) > 255:
            raise InvalidInput(
                f"sweep {name!r} is no sweep's name: it has at most 255 bytes, does not begin with '.' and holds "
                "neither '/' nor control characters; `sweeplab list` shows the names"
            )
        return cls(home / "sweeps" / name)

    @property
    def home(self) -> Path:
        """Where it lies."""
        return self.path.parent.parent

    def is_own(self, *, to_read: bool = False) -> bool:
        """Whether this home made the sweep, or has adopted it, and the folder is no copy under another name.

        Args:
            to_read: as in `is_signed`.
        """
        is_original = self.name == self.header()["name"] or is_set_aside(self)
        return is_original and is_signed(self.path / "sweep.json", self.home, to_read=to_read)

    def check_own(self) -> None:
        """Refuse to go on with what came from elsewhere: nothing that it names may be written or removed.

        Raises:
            InvalidInput: if this home did not make the folder; it says what else would be written to.
        """
        if not self.exists():
            if (self.path / "trials").exists():
                raise InvalidInput(
                    f"{self.path} holds trials and no sweep.json; restore that file or remove the folder"
                )
        elif not self.is_own():
            raise InvalidInput(
                f"sweep {self.name!r} came from elsewhere: {self.path} was not made by this home. It can be listed, "
                f"ranked, reported and exported as it is; to go on with it, give --adopt{storages_in_words(self.path)}"
            )
        else:
            check_no_links(self.path)

    def exists(self) -> bool:
        """Whether a sweep of this name was begun."""
        return (self.path / "sweep.json").exists()

    def header(self) -> dict[str, Any]:
        """What sweep.json says.

        Raises:
            InvalidInput: if there is no such sweep; the message lists the known ones.
        """
        if not self.exists():
            known = ", ".join(folder.name for folder in sweeps_of(self.home)[0])
            raise InvalidInput(f"no sweep named {self.name!r} in {self.path.parent}; known: {known or 'none yet'}")
        return read_header(self.path / "sweep.json")

    def write_header(
        self, sweep: "CleaningSweep", digest: str, contents: dict[str, str], images: MeasuredImages | None = None
    ) -> None:
        """Write sweep.json: the resolved spec, its digest, the data's digests, the test images and the environment;
        and the folder in which relative paths of the spec were found.

        `identity` tells the sweep from one of the same spec that was set aside; it stays when a resume writes anew.
        """
        before = self.header() if self.exists() else {}
        script = started_script()
        known = dataclasses.asdict(images) if images is not None else before.get("images")
        write_signed(
            self.path / "sweep.json",
            {
                "schema": SCHEMA_VERSION,
                "name": sweep.name,
                "identity": before.get("identity") or uuid4().hex[:8],
                "digest": digest,
                "contents": contents,
                "protocol": sweep.protocol,
                "spec": sweep.to_json(),
                "planned_trials": self.num_planned(sweep),
                "parameters": list(sweep.parameters()),
                "log_parameters": list(sweep.log_parameters()),
                "working_folder": os.getcwd(),
                "target": sweep.victim.trigger().aim,
                "victim_name": sweep.victim.name,
                "own_code": own_code(sweep),
                "changes": num_changes(sweep),
                "environment": environment(),
                "script": script or before.get("script", ""),
                "commit": commit_of(script) if script else before.get("commit", ""),
                **({"images": known} if known else {}),
                **({"reruns": before["reruns"]} if before.get("reruns") else {}),
            },
            self.home,
        )

    def older(self) -> str | None:
        """By which older version the sweep was made and what has changed since: it is shown, and never continued.

        None where nothing has changed that touches it. Of a sweep whose script defines classes of its own nothing can
        be said from here; the script's next start says it.
        """
        return self._judged()[0]

    def _judged(self) -> tuple[str | None, bool]:
        """What `older` says, and whether this version reads the spec."""
        header = self.header()
        if "imported" in header or header.get("own_code"):
            return None, True
        try:
            return made_by_older_version(header, "CleaningSweep"), True
        except InvalidInput as error:
            return f"made by an older version ({version_of(header)}), and this one refuses it: {error}", False

    def check_is_continued(self) -> None:
        """Raise InvalidInput where the sweep was made by an older version whose recipe is not this one's."""
        if (older := self.older()) is not None:
            raise InvalidInput(
                f"sweep {self.name!r} was {older}\n"
                "it is shown, and not continued; run its script with --fresh to set it aside, or under another name"
            )

    def num_planned(self, sweep: "CleaningSweep") -> int:
        """Trials that the sweep will have: what was begun stays where fewer are asked for now; reruns are added."""
        return max(sweep.num_trials(), len(self.trial_numbers()) - len(self.begun_reruns())) + len(self.reruns())

    def reruns(self) -> list[int]:
        """The trials that were asked to be tried once more, in order."""
        return list(self.header().get("reruns", ())) if self.exists() else []

    def begun_reruns(self) -> dict[int, int]:
        """The trial that each rerun so far repeats, by the rerun's number."""
        if not self.reruns():
            return {}
        headers = ((number, self.trial_header(number)) for number in self.trial_numbers())
        return {number: header["rerun_of"] for number, header in headers if "rerun_of" in header}

    @contextmanager
    def lock(self, *, to_adopt: bool = False) -> Iterator[None]:
        """Hold the sweep alone; the kernel frees the lock when its process dies, however it dies.

        Args:
            to_adopt: take a sweep that came from elsewhere too, because it is about to become the home's own.

        Raises:
            InvalidInput: if another process holds it; the message says who and since when. If it came from elsewhere.
        """
        if not to_adopt:
            self.check_own()
        try:
            make_private(self.path)
        except OSError as error:
            raise InvalidInput(
                f"cannot write {self.path} ({error.strerror}); mend permissions or set SWEEPLAB_HOME"
            ) from error
        lock = file_lock(self.work.lock)
        try:
            lock.acquire(timeout=1)  # `is_held` holds it for a moment
        except Timeout:
            who = self.work.holder() or {}
            raise InvalidInput(
                f"sweep {self.name!r} is being run by process {who.get('process', '?')} on {who.get('host', '?')} "
                f"since {who.get('since', '?')}; wait for it, or `sweeplab stop {self.name}`"
            ) from None
        try:
            with self.work.held_by_this_process():
                yield
        finally:
            lock.release()

    @property
    def work(self) -> Work:
        """Its lock, and who holds it."""
        return Work(f"sweep {self.name!r}", self.path / "lock", self.path / "holder.json", self.path / "stop")

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Write the time now and then, so that the next driver knows how long this one ran, should it be killed."""
        is_over = threading.Event()

        def write_on() -> None:
            while not is_over.wait(HEARTBEAT_SECONDS):
                with contextlib.suppress(StorageFault):  # a disk that is full is noticed where something is lost
                    write_json(self._heartbeat, {"time_ms": now_ms()}, durable=False)

        threading.Thread(target=write_on, name="heartbeats", daemon=True).start()
        try:
            yield
        finally:
            is_over.set()

    def last_heartbeat(self) -> int:
        """When the last driver is known to have lived, in milliseconds since 1970; 0 where there was none."""
        try:
            return int(read_object(self._heartbeat, time_ms=int)["time_ms"])
        except (FileNotFoundError, InvalidInput):
            return 0

    def lived_until(self, events: Sequence[dict[str, Any]], *, is_driven: bool) -> int:
        """The end of attempts that no event ends, milliseconds since 1970: now where a driver is at work; else when the
        driver, which was killed, is last known to have lived.

        Args:
            events: of the sweep.
            is_driven: whether a driver is at work on it.
        """
        return now_ms() if is_driven else max(last_sign_of_life(events), self.last_heartbeat())

    @property
    def _heartbeat(self) -> Path:
        return self.path / "alive.json"

    def is_locked(self) -> bool:
        """Whether a driver is at work on the sweep now; of a folder that may only be read, as far as can be seen."""
        return self.work.is_locked()

    def trial(self, number: int) -> RunFolder:
        """The folder of one trial."""
        return RunFolder(self.path / "trials" / TRIAL_FORMAT.format(number))

    def trial_numbers(self) -> list[int]:
        """Trials whose parameters are on the disk, ascending."""
        trials = f"{self.path}/trials"
        return [int(name) for name in self._trial_names() if _size(f"{trials}/{name}/trial.json")]

    def _trial_names(self) -> list[str]:
        """Names of the trials' folders, by number."""
        try:
            names = os.listdir(self.path / "trials")
        except FileNotFoundError:
            return []
        return sorted(filter(TRIAL_NAME.fullmatch, names), key=int)

    def write_trial(
        self,
        number: int,
        params: dict[str, Any],
        *,
        configuration: str,
        seed: int,
        start_counts: bool,
        storage: str | None = None,
        rerun_of: int | None = None,
    ) -> None:
        """Write a trial's parameters; the journal holds them too, so that the disk is not awaited."""
        write_json(
            self.trial(number).path / "trial.json",
            {
                "number": number,
                "params": params,
                "configuration": configuration,
                "seed": seed,
                "start_counts": start_counts,
                "attempts": 1,
                **({"storage": storage} if storage else {}),
                **({"rerun_of": rerun_of} if rerun_of is not None else {}),
            },
            durable=False,
        )

    def trial_header(self, number: int) -> dict[str, Any]:
        """A trial's number, params, configuration and seed."""
        return read_object(self.trial(number).path / "trial.json", **TRIAL_FIELDS)

    def victim_point(self) -> tuple[Measurement, Outcomes] | None:
        """The victim's measurement under this sweep's evaluation; None before it was made."""
        folder = self.victim_run()
        points, outcomes = folder.points(), folder.outcomes(0)
        return (points[0].measurement, outcomes) if points and outcomes else None

    def commit_victim(self, victim: Victim, **metadata: Any) -> None:
        """Store where the victim came from, further facts, and its measurement: the point that all retention is
        relative to."""
        values = dataclasses.asdict(victim) | metadata
        del values["outcomes"]  # which lie beside its point
        write_json(self.victim_run().path / "victim.json", values)
        point = Point(0, victim.epoch, 0, 1, victim.measurement, timestamp_ms=now_ms())
        self.victim_run().commit(point, victim.outcomes)

    def victim_run(self) -> RunFolder:
        """Where the victim's measurement lies."""
        return RunFolder(self.path / "victim")

    def pretraining_points(self) -> list[Point]:
        """The points of the victim's own training, where this home holds it; else none."""
        header = self.header()
        digest = header["contents"].get("victim")
        run = self.home / "victims" / f"{header['victim_name']}-{digest}"
        return RunFolder(run).points() if digest and run.is_dir() else []

    def outcomes(self, trial: int, index: int) -> Outcomes | None:
        """Outcomes per image of one point; None where there are none, or they are damaged, which is said."""
        try:
            return self.trial(trial).outcomes(index)
        except InvalidInput as error:
            logger.info(f"note: {error}")
            return None

    def event(self, kind: str, /, *, durable: bool = False, **fields: Any) -> None:
        """Append to events.jsonl; with `durable` it survives a power failure too."""
        append_line(self.path / "events.jsonl", {"time_ms": now_ms(), "event": kind, **fields}, durable=durable)

    def events(self) -> list[dict[str, Any]]:
        """All lines of events.jsonl, in order."""
        return read_events(self.path / "events.jsonl")

    def record(self, *, keep_summary: bool = False) -> SweepRecord:
        """Everything the ledger holds: of trials whose files have not changed since they were summarized, the summary
        and, where somebody asks for them, the points.

        Args:
            keep_summary: summarize what has changed, and write it beside the ledger where the sweep is this home's own.

        Raises:
            InvalidInput: if there is no such sweep, or its victim has not been measured yet.
        """
        header = self.header()
        victim = self.victim_point()
        if victim is None:
            raise InvalidInput(
                f"sweep {self.name!r} has no measured victim ({self.victim_run().path}/history.jsonl holds no point); "
                "it is still being prepared, or was interrupted or damaged: the sweep's command goes on"
            )
        images = measured_images(header, victim[0])
        locked = self.is_locked()
        found = self._trials(header, victim[0], is_driven=locked, summarizes=keep_summary)
        trials, losses, summary = found.records, found.losses, found.stored
        if keep_summary and found.is_new and summary.key:
            summary = found.renewed(victim[0], header["spec"]["search"]["asr_ceiling"])
            if self.is_own():
                summary.write(self._summary, found.points())
        finished = sum(trial.state in OVER for trial in trials)
        state: SweepState = "finished" if finished >= header["planned_trials"] else "interrupted"
        return SweepRecord(
            name=self.name,
            digest=header["digest"],
            state="running" if locked else state,
            asr_ceiling=header["spec"]["search"]["asr_ceiling"],
            epochs=header["spec"]["epochs"],
            protocol=header["protocol"],
            method=header["spec"]["method"]["kind"],
            victim_name=header["victim_name"],
            victim=victim[0],
            victim_epoch=read_object(self.path / "victim" / "victim.json", epoch=float)["epoch"],
            target=header["target"],
            trials=trials,
            planned_trials=header["planned_trials"],
            parameters=tuple(header["parameters"]),
            log_parameters=tuple(header["log_parameters"]),
            ends=searched_ends(header),
            images=images,
            planted_target=self.planted_target(),
            notes=(*self.notes(), *losses),
            keep_checkpoints=header["spec"].get("resources", {}).get("keep_checkpoints", 0),
            origin=self._origin(header),
            read_columns=found.points,
            certified_hits=summary.certified_hits,
        )

    def _origin(self, header: dict[str, Any]) -> Origin:
        """What the record says that the sweep was made of, and what may be done with it here."""
        origin, (older, is_read) = origin_of(header), self._judged()
        return dataclasses.replace(
            origin,
            has_spec=origin.has_spec and is_read,
            is_closed=header["name"] != self.name or older is not None,
            is_foreign=not self.is_own(to_read=True),
        )

    def notes(self) -> tuple[str, ...]:
        """What every look at the sweep says beside its numbers: which older version made it, what its victim lacks, how
        many pairs others stand in for."""
        older = self.older()
        return (*(() if older is None else (older,)), *self.victim_notes(), *self.broken_notes())

    def broken_notes(self) -> tuple[str, ...]:
        """How many cleaning pairs are broken, and training pairs of the victim, and which files list them."""
        header = self.header()
        trained = self.home / "victims" / f"{header['victim_name']}-{header.get('contents', {}).get('victim', '')}"
        notes = []
        for folder, owner in ((trained, victim_owner(header["victim_name"])), (self.path, sweep_owner(self.name))):
            if (found := read_broken(folder)) is not None and found.rows:
                notes.append(f"{in_words(owner)}: {found.summary()} ({folder / FILE} lists them)")
        return tuple(notes)

    def planted_target(self) -> str | None:
        """The class towards which the victim's weights say that they were poisoned; None where they say nothing."""
        path = self.path / "victim" / "victim.json"
        planted: str | None = read_object(path).get("planted_target") if path.exists() else None
        return planted

    def victim_notes(self) -> tuple[str, ...]:
        """What is wrong with the sweep's victim, or not known of the images it was measured on."""
        header, point = self.header(), self.victim_point()
        notes: list[str] = []
        if point is None:
            return ()
        victim, images = point[0], measured_images(header, point[0])
        planted = self.planted_target()
        if planted is not None and planted != header["target"]:
            notes.append(
                f"the victim's weights say that they were poisoned towards {planted!r}; the ASR is measured towards "
                f"{header['target']!r}"
            )
        num_classes = images.num_classes if images else None
        if fault := missing_backdoor(victim, header["spec"]["search"]["asr_ceiling"], num_classes):
            notes.append(fault)
        if images is None and "imported" not in header:
            notes.append(
                "accuracy_report and asr_report are left out: an older version ran it and did not write down which "
                "test images the triggered ones were made of; where it may be continued, its command mends that"
            )
        return tuple(notes)

    def trials(self, *, is_driven: bool) -> SweepTrials:
        """All trials.

        Args:
            is_driven: whether a driver is at work on the sweep.
        """
        victim = self.victim_point()
        return self._trials(self.header(), victim[0] if victim else None, is_driven=is_driven)

    @property
    def _summary(self) -> Path:
        return self.path / "summary.npz"

    @uncollected()
    def _trials(
        self, header: dict[str, Any], victim: Measurement | None, *, is_driven: bool, summarizes: bool = False
    ) -> SweepTrials:
        """All trials, those from the summary that have not changed since, the others from their files.

        Args:
            header: of the sweep.
            victim: its measurement; None: not yet.
            is_driven: whether a driver is at work on the sweep.
            summarizes: give a summary to the others too, where something can be summarized.
        """
        taken, base, names = now_ns(), f"{self.path}/trials", self._trial_names()
        marks = marks_of(base, names)
        is_begun = marks[:, 0, 0] > 0  # trial.json holds something
        marks, numbers = marks[is_begun], [int(name) for name in itertools.compress(names, is_begun)]
        ceiling, stored, chooses = header["spec"]["search"]["asr_ceiling"], SummaryFile.empty(""), None
        if victim is not None and victim.asr is not None:
            key = digest_of([SUMMARY_VERSION, LAYOUT, ceiling, dataclasses.astuple(victim), header.get("images")])
            stored = SummaryFile.read(self._summary, key) or SummaryFile.empty(key)
            if summarizes and (images := measured_images(header, victim)):
                chooses = even_images(images, victim.accuracy_n)
        rows = dict(zip(numbers, stored.rows_of(numbers, marks), strict=True))
        others: dict[int, TrialRecord] = {}
        damaged: dict[int, list[str]] = {}
        for number in (number for number, row in rows.items() if row < 0):
            run = self.trial(number)
            trial = self.trial_record(number, is_driven=is_driven, run=run)
            if summarizes and stored.key:
                trial = dataclasses.replace(trial, summary=summarize(trial, ceiling, self.outcomes, chooses))
            others[number] = trial
            if losses := run.losses():
                damaged[number] = losses
        return SweepTrials(base, rows, others, damaged, stored, marks, taken, is_driven)

    def trial_record(self, number: int, *, is_driven: bool, run: RunFolder | None = None) -> TrialRecord:
        """One trial; without a result it runs where a driver is at work on it, else it waits.

        Args:
            number: the trial.
            is_driven: whether a driver is at work on it.
            run: its folder where it has been opened already.
        """
        folder = run or self.trial(number)
        header = self.trial_header(number)
        result = folder.result() or {"state": "running" if is_driven else "waiting"}
        return TrialRecord(
            number=number,
            state=result["state"],
            params=header["params"],
            configuration=header["configuration"],
            seed=header["seed"],
            attempts=folder.attempts(),
            points=tuple(folder.points()),
            reason=result.get("reason"),
            start_counts=header["start_counts"],
            rerun_of=header.get("rerun_of"),
            storage=header.get("storage") or str(folder.checkpoints),
        )


def measured_images(header: dict[str, Any], victim: Measurement) -> MeasuredImages | None:
    """What a header says of the test images; None: an older version, or a table from elsewhere, does not say it.

    Of older sweeps it is known where no test image is of the target class: under targeted poisoning, and where there
    are as many triggered images as clean ones.
    """
    if "images" in header:
        return MeasuredImages(tuple(header["images"]["target_rows"]), header["images"]["num_classes"])
    if "imported" in header:
        return None
    trained = original_victim(header["spec"]["victim"])
    is_targeted = (trained.get("attack") or trained["poisoning"]).get("kind") == "targeted-images"
    return MeasuredImages(()) if is_targeted or victim.asr_n == victim.accuracy_n else None


def origin_of(header: dict[str, Any]) -> Origin:
    """What a header says of the sweep's victim, its attack, its script and the versions that made it."""
    if "imported" in header:
        versions = (("sweeplab", version_of(header)),)
        return Origin(script=f"imported from {header['imported']['file']}", versions=versions, has_spec=False)
    spec = header["spec"]
    victim = original_victim(spec.get("victim"))
    poisoning = section(victim, "poisoning")
    rate, seed, script = poisoning.get("rate"), spec.get("seed"), header.get("script")
    search = section(spec, "search")
    pairs, poisons = _cleaning_pairs(spec)
    return Origin(
        attack=_in_words(section(victim, "attack") or section(poisoning, "attack") or poisoning),
        poison_rate=rate if isinstance(rate, (int, float)) else None,
        objective=str(section(victim, "objective").get("kind", "")),
        script=script if isinstance(script, str) else "",
        seed=seed if isinstance(seed, int) else None,
        sampler=str(search.get("sampler", "")),
        asked_trials=_whole(search.get("trials")) or 0,
        seeds=_whole(search.get("seeds_per_configuration")) or 1,
        cleaning_pairs=pairs,
        cleaning_poisons=poisons,
        has_own_code=bool(header.get("own_code")),
        versions=tuple((name, str(version)) for name, version in section(header, "environment").items()),
    )


def searched_ends(header: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Between which values a sweep searched, by parameter; see `SweepRecord.ends`."""
    spec = section(header, "spec")
    if section(spec, "search").get("sampler") == "grid":
        axes = section(section(spec, "grid"), "axes")
        return {name: (min(axis), max(axis)) for name, axis in axes.items() if axis and all(map(_is_number, axis))}
    dimensions = section(section(spec, "space"), "dimensions").items()
    return {name: (one["low"], one["high"]) for name, one in dimensions if _is_number(one.get("low"))}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cleaning_pairs(spec: dict[str, Any]) -> tuple[str, int | None]:
    """What a sweep cleans with, such as `2,000 (fruit-stall)`, as far as its record says it, and the poisons in it."""
    data, slipped = section(spec, "data"), section(spec, "slipped").get("count")
    num = section(data, "sample").get("num", data.get("num_pairs"))
    kind = str(data.get("kind", ""))
    pairs = f"{num:,} ({kind})" if _whole(num) is not None else kind
    return pairs, _whole(data.get("num_poisons") or slipped)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


USUAL = {"noise": "per-image", "noise_seed": 0, "grid_seed": 0, "overflow": "clip"}
"""Fields of attacks of which only another value is worth a word: their defaults."""


def _in_words(part: dict[str, Any]) -> str:
    """A spec's kind and its plain fields, without what is usual: `badnet (patch_size 6, pattern binary)`."""
    plain = (
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in part.items()
        if name != "kind" and isinstance(value, (str, int, float)) and not isinstance(value, bool)
        if USUAL.get(name) != value
    )
    fields = ", ".join(plain)
    return str(part.get("kind", "")) + (f" ({fields})" if fields else "")


def _size(path: str) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


TRIAL_FIELDS = {"params": dict, "configuration": str, "seed": int, "start_counts": bool}
"""What every look at a trial needs of its trial.json."""


def sweeps_of(home: Path) -> tuple[list[SweepFolder], dict[SweepFolder, str]]:
    """All sweeps of a home, by name: those whose sweep.json can be read, and the damaged ones with what is wrong."""
    sound, damaged = [], {}
    for path in sorted((home / "sweeps").glob("[!.]*/sweep.json")):
        folder = SweepFolder(path.parent)
        try:
            folder.header()
        except InvalidInput as error:
            damaged[folder] = str(error)
        else:
            sound.append(folder)
    return sound, damaged


def is_set_aside(folder: SweepFolder) -> bool:
    """Whether `--fresh` renamed the sweep: its folder's name has a time behind the sweep's own."""
    return re.fullmatch(re.escape(str(folder.header()["name"])) + SET_ASIDE, folder.name) is not None
