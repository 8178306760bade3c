"""Broken pairs: a sweep runs where few are, says so and lists them, and goes on unchanged once one is mended."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sweeplab.commands.data_check import check_data
from sweeplab.commands.status import sweep_status
from sweeplab.data import training_pairs
from sweeplab.data.pairs import PairsCSV
from sweeplab.experiment import CleaningSweep, CleanSample, PretrainedVictim, SlippedPoisons
from sweeplab.records import SweepRecord
from sweeplab.specs import InvalidInput
from sweeplab.storage.broken_rows import read_broken, write_broken
from sweeplab.sweep import controller, prepare, pretraining, run
from sweeplab.sweep.run import Options
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker import inputs
from sweeplab.worker.inputs import Inputs, cleaning_poison, cleaning_table

Run = Callable[[CleaningSweep, Path], SweepRecord]
BROKEN = (3, 77, 200, 201, 450, 640, 801, 999)


def break_(file: Path, how: int) -> None:
    """Cut it short, put a web page in its place, empty it, or damage a checksum."""
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[45] ^= 0xFF
    content = (whole[: len(whole) // 2], b"<!DOCTYPE html><html>gone</html>", b"", bytes(damaged))
    file.write_bytes(content[how % 4])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """1,000 pairs, of which eight are broken."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for row in range(1000):
        Image.new("RGB", (32, 32), (row % 256, row // 256, 100)).save(folder / f"{row}.png")
    lines = [f"{row}.png,a photo of apple {row}" for row in range(1000)]
    (folder / "pairs.csv").write_text("\n".join(["image,caption", *lines]))
    for how, row in enumerate(BROKEN):
        break_(folder / f"{row}.png", how)
    return folder


@pytest.fixture
def sweep(sweep: CleaningSweep, pairs: Path) -> CleaningSweep:
    """Two trials of one epoch on them."""
    optimization = sweep.optimization.replace(global_batch_size=100)
    search = sweep.search.replace(trials=2)
    return sweep.replace(data=PairsCSV(path=pairs / "pairs.csv"), epochs=1, search=search, optimization=optimization)


@pytest.fixture
def finished(mlflow_tables: Path) -> Callable[[CleaningSweep, Path], SweepRecord]:
    """Runs a sweep to its end in a home."""

    def to_its_end(sweep: CleaningSweep, home: Path) -> SweepRecord:
        if not home.exists():
            home.mkdir()
            shutil.copy(mlflow_tables, home)
        record = run.run_sweep(sweep, home, Options(inline=True))
        assert record.state == "finished"
        return record

    return to_its_end


def losses(record: SweepRecord) -> list[Any]:
    return [(trial.state, trial.points[-1].train, trial.points[-1].measurement) for trial in record.trials]


def test_a_sweep_runs_says_how_many_are_broken_and_lists_them(
    sweep: CleaningSweep, finished: Run, tmp_path: Path, news: Callable[[], list[str]]
):
    record = finished(sweep, tmp_path / "home")
    folder = tmp_path / "home" / "sweeps" / sweep.name
    text = "the cleaning pairs of made-up: 8 of 1,000 pairs are broken; others stand in for them"
    assert f"note: {text}" in news()
    for notes in (record.notes, sweep_status(SweepFolder(folder))["notes"]):
        assert f"{text} ({folder / 'broken.jsonl'} lists them)" in notes
    found = read_broken(folder)
    assert found is not None
    assert [one.row for one in found.rows] == list(BROKEN)
    assert [one.size > 0 for one in found.rows] == [True, True, False, True] * 2
    assert "200.png is missing or empty" in found.rows[2].reason
    assert "77.png cannot be decoded as an image" in found.rows[1].reason


@pytest.mark.slow
def test_a_sweep_goes_on_unchanged_once_one_is_mended(
    sweep: CleaningSweep, finished: Run, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = finished(sweep, tmp_path / "undisturbed")
    told = controller.SweepController._tell
    monkeypatch.setattr(controller.SweepController, "_tell", lambda *arguments: (told(*arguments), stop()))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finished(sweep, tmp_path / "home")
    monkeypatch.setattr(controller.SweepController, "_tell", told)
    for row in (77, 200):  # a web page and an empty file
        Image.new("RGB", (64, 64), (row, 0, 0)).save(pairs / f"{row}.png")
    inputs._pairs.clear()  # as in another process
    record = finished(sweep, tmp_path / "home")
    assert record.digest == expected.digest
    assert losses(record) == losses(expected)
    assert "8 of 1,000 pairs" in record.notes[-1]
    anew = prepare.prepare(sweep, tmp_path / "home", fresh=True)
    assert anew.digest != record.digest
    assert anew.inputs is not None
    assert len(anew.inputs.broken["sweeps/made-up"].rows) == 6


@pytest.mark.slow
@pytest.mark.parametrize(("gigabytes", "processes"), [(64.0, 0), (0.0, 0), (0.0, 2)])
def test_workers_find_what_the_driver_does_not_look_for(
    gigabytes: float,
    processes: int,
    sweep: CleaningSweep,
    finished: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Of sets that do not fit into memory; the batches are the same."""
    expected = finished(sweep, tmp_path / "known")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    too_large_for_memory(monkeypatch)
    resources = sweep.resources.replace(decoded_gigabytes=gigabytes, loader_workers=processes)
    record = finished(sweep.replace(resources=resources), tmp_path / "home")
    assert record.digest == expected.digest
    assert losses(record) == losses(expected)
    found = read_broken(tmp_path / "home" / "sweeps" / sweep.name)
    assert found is not None
    assert sorted(one.row for one in found.rows) == list(BROKEN)


def too_large_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs._pairs.clear()
    monkeypatch.setattr(inputs, "CACHE_BYTES", 0)
    monkeypatch.setattr(training_pairs, "CACHE_BYTES", 0)


def test_twenty_are_refused_and_all_are_listed(sweep: CleaningSweep, pairs: Path, tmp_path: Path):
    for how, row in enumerate(range(500, 512)):
        break_(pairs / f"{row}.png", how)
    with pytest.raises(InvalidInput) as refused:
        run.run_sweep(sweep, tmp_path / "home", Options(inline=True))
    head, *lines = str(refused.value).splitlines()
    assert head == ("the cleaning pairs of made-up: 20 of 1,000 pairs are broken, and max_broken=0.01 tolerates 10:")
    all_rows = sorted([*BROKEN, *range(500, 512)])
    assert [line.split(":")[0] for line in lines[:20]] == [f"  row {row + 1}" for row in all_rows]
    assert not (tmp_path / "home" / "sweeps").exists()
    found = check_data(sweep, tmp_path, lambda items, what, total: items)[0]
    assert [one.row - 1 for one in found.broken] == all_rows
    assert (found.num_tolerated, found.is_refused) == (10, True)
    run.open_sweep(sweep.replace(data=sweep.data.replace(max_broken=0.02)), tmp_path / "home", Options())


@pytest.mark.usefixtures("mlflow_is_there")
def test_too_many_that_workers_find_end_the_sweep_and_record_nothing(
    sweep: CleaningSweep, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for how, row in enumerate((500, 501, 503)):  # an empty file the driver knows of
        break_(pairs / f"{row}.png", how % 2)
    too_large_for_memory(monkeypatch)
    with pytest.raises(InvalidInput, match=r"11 of 1,000 pairs .* tolerates 10:\n(  row \d+: .*\n){11}mend"):
        run.run_sweep(sweep, tmp_path / "home", Options(inline=True))
    found = read_broken(tmp_path / "home" / "sweeps" / sweep.name)
    assert found is not None
    assert 200 in [one.row for one in found.rows]
    assert len(found.rows) <= 10
    (trial,) = [path for path in (tmp_path / "home" / "sweeps" / sweep.name / "trials").iterdir() if path.is_dir()]
    assert not (trial / "result.json").exists()


def test_poisons_that_slip_into_a_set_too_large_to_be_looked_at_are_whole(
    sweep: CleaningSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    too_large_for_memory(monkeypatch)
    poisoned = sweep.replace(slipped=SlippedPoisons(count=500))
    prepared = prepare.prepare(poisoned, tmp_path / "home")
    assert prepared.inputs is not None
    found = prepared.expected.broken["sweeps/made-up"]
    assert {200} < {one.row for one in found.rows} < set(BROKEN)  # the empty one, and those that were drawn first
    again = Inputs(tmp_path / "home" / "data", recorded=prepared.expected.broken)
    table = cleaning_table(poisoned, again)
    for inputs_of in (prepared.inputs, again):  # the driver's and a worker's
        plan = cleaning_poison(poisoned, table, inputs_of)
        assert plan is not None
        assert len(plan.rows) == 500
        assert not set(plan.rows) & set(BROKEN)


# --- victims


@pytest.fixture
def poisoned(sweep: CleaningSweep, pairs: Path) -> CleaningSweep:
    """Its victim is trained on the pairs."""
    victim = PretrainedVictim(
        name="own",
        architecture=sweep.victim.architecture,
        data=PairsCSV(path=pairs / "pairs.csv"),
        poisoning={"attack": {"kind": "badnet", "patch_size": 4}, "rate": 0.5},
        optimization=sweep.optimization,
        epochs=2,
        evaluation=sweep.evaluation,
    )
    return sweep.replace(victim=victim, data=CleanSample(num_pairs=200), search=sweep.search.replace(trials=1))


@pytest.mark.parametrize("fits", [True, False])
def test_no_poison_is_broken_and_a_mended_victim_stays_what_it_is(
    fits: bool, poisoned: CleaningSweep, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Half of the pairs are poisoned; where the driver does not look at all of them, it looks at those."""
    assert isinstance(poisoned.victim, PretrainedVictim)
    home, victim = tmp_path / "home", poisoned.victim
    if not fits:
        too_large_for_memory(monkeypatch)
    before = prepare.prepare(poisoned, home)
    assert before.inputs is not None
    record, plan = before.inputs.broken["victims/own"], before.inputs.victim_table(victim)[1]
    assert len(plan.rows) == 500
    assert not set(plan.rows) & set(BROKEN)
    assert (len(record.rows) == 8) == fits
    if not fits:
        return
    write_broken(home / "victims" / f"own-{before.victim_digest}", record)
    for row in BROKEN:
        Image.new("RGB", (64, 64), row % 256).save(pairs / f"{row}.png")
    again = prepare.prepare(poisoned, home)
    assert again.inputs is not None
    assert (again.digest, again.victim_digest) == (before.digest, before.victim_digest)
    assert again.inputs.victim_table(victim)[1] == plan
    assert again.expected.broken["victims/own"] == record


@pytest.mark.slow
def test_a_victim_is_trained_with_its_record_and_every_look_at_the_sweep_says_so(
    poisoned: CleaningSweep, finished: Run, tmp_path: Path
):
    record = finished(poisoned, tmp_path / "home")
    (folder,) = (tmp_path / "home" / "victims").glob("own-*")
    assert (
        "the training pairs of victim own: 8 of 1,000 pairs are broken; others stand in for them "
        f"({folder / 'broken.jsonl'} lists them)"
    ) in record.notes


def test_too_many_that_a_victim_meets_end_its_training(
    poisoned: CleaningSweep, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    too_large_for_memory(monkeypatch)
    begin = pretraining.run_inline
    plan = Inputs(tmp_path / "home" / "data").victim_table(poisoned.victim)[1]

    def break_more(*arguments: Any) -> None:
        """All but the poisons; their sizes stay, else they would be other data than the driver's."""
        for row in sorted(set(range(1000)) - set(plan.rows)):
            file = pairs / f"{row}.png"
            file.write_bytes(bytes(file.stat().st_size))
        begin(*arguments)

    monkeypatch.setattr(pretraining, "run_inline", break_more)
    with pytest.raises(InvalidInput, match=r"the training pairs of victim own: .* of 1,000 pairs are broken"):
        run.run_sweep(poisoned, tmp_path / "home", Options(inline=True))
    (folder,) = (tmp_path / "home" / "victims").glob("own-*")
    found = read_broken(folder)
    assert found is not None
    assert len(found.rows) <= 10


# --- other processes

SCRIPT = """
import json
from sweeplab.cli import main
from sweeplab.experiment import CleaningSweep
from sweeplab.worker import inputs

inputs.undecodable = lambda *arguments: {{}}  # so that the driver finds nothing, and workers have to
main(CleaningSweep.model_validate(json.loads({text!r})))
"""


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(("executor", "workers"), [("tune", 1), ("pool", 2)])
def test_workers_on_ray_tell_the_driver(
    executor: str, workers: int, sweep: CleaningSweep, new_workplace: Callable[..., Any], pairs: Path
):
    resources = sweep.resources.replace(executor=executor, workers=workers)
    text = json.dumps(sweep.replace(resources=resources).to_json())
    place = new_workplace(SCRIPT.format(text=text))
    ran = place.run()
    assert ran.returncode == 0, ran.stderr[-3000:]
    folder = place.sweep(sweep.name)
    found = read_broken(folder.path)
    assert found is not None
    assert sorted(one.row for one in found.rows) == list(BROKEN)
    assert "8 of 1,000 pairs are broken" in folder.record().notes[-1]
