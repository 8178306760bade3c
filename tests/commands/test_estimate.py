"""Plans: what they show of a sweep's settings, and what they warn of."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from searchspaces import fruit_stall
from sweeplab.attacks.badnet import BadNet
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.par import PAR, PAR_OPTIMIZATION
from sweeplab.clip_model import Architecture, num_parameters
from sweeplab.commands.estimate import plan
from sweeplab.data.fruit_stall import FruitStall
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.sampling import Sample
from sweeplab.experiment import CheckpointVictim, CleaningSweep, Search
from sweeplab.search_space import Choice, SearchSpace
from sweeplab.sweep.resume import warnings_of

SCRIPTS = Path(__file__).parents[2] / "sweeps"
WARNING = (
    "optimization.batch_norm='local': method 'par' was tuned with 'frozen', and its settings mean something else here; "
    "set optimization.batch_norm=frozen"
)


def sweeps_of(script: Path, monkeypatch: pytest.MonkeyPatch) -> list[CleaningSweep]:
    """Of a script, whose siblings it may import, without starting any."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    values = runpy.run_path(str(script), run_name="read").values()
    found = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return [item for item in found if isinstance(item, CleaningSweep)]


@pytest.fixture
def par(monkeypatch: pytest.MonkeyPatch) -> CleaningSweep:
    sweeps = sweeps_of(SCRIPTS / "every_method.py", monkeypatch)
    return next(sweep for sweep in sweeps if sweep.name == "every-method-badnet-par")


def test_every_par_sweep_that_comes_along_states_the_papers_optimisation(monkeypatch: pytest.MonkeyPatch):
    """But for the batch, where data are few."""
    scripts = [script for script in sorted(SCRIPTS.glob("*.py")) if "PAR(" in script.read_text()]
    sweeps = [sweep for script in scripts for sweep in sweeps_of(script, monkeypatch)]
    stated = [sweep for sweep in sweeps if isinstance(sweep.method, PAR)]
    assert len(stated) >= 2
    for sweep in stated:
        assert sweep.optimization.replace(global_batch_size=2048) == PAR_OPTIMIZATION
        assert sweep.method == PAR()
        assert not warnings_of(sweep)


@pytest.mark.parametrize(("num_pairs", "shown"), [(2000, ""), (40_000, ", and 0.3 GB of decoded images")])
def test_a_plan_speaks_of_decoded_images_from_a_tenth_of_a_gigabyte_on(par: CleaningSweep, num_pairs: int, shown: str):
    """2,000 pairs of 48 pixels are 14 MB, 40,000 are 276; the test images 28, with their triggers."""
    victim = CheckpointVictim(
        name="given", path="given.pt", architecture=par.victim.architecture, attack=BadNet(), target="banana"
    )
    sweep = par.replace(victim=victim, data=FruitStall(num_pairs=num_pairs))
    (disk,) = [line for line in plan(sweep) if line.startswith("  disk")]
    assert disk.partition(" of checkpoints")[2].startswith(shown)
    assert ("decoded" in disk) == bool(shown)


def test_a_plan_shows_what_was_set(par: CleaningSweep):
    lines = plan(par)
    fields = "par: tau searched, perturbation_weight 1.0, learns_temperature False, augmentation par"
    assert lines[4] == f"  method            {fields}"
    assert lines[5].startswith("  optimization      learning_rate searched, schedule fall-cosine, weight_decay 0.0001,")
    assert "global_batch_size 64" in lines[5]
    assert "batch_norm frozen" in lines[5]
    assert not any("warning" in line for line in lines)


def test_a_plan_counts_the_pairs_of_a_sample(par: CleaningSweep):
    """64 a batch: 6,400 pairs are 100 steps."""
    data = PairsCSV(path=Path("pairs.csv"), num_pairs=1_000_000, sample=Sample(num=6_400))
    lines = plan(par.replace(data=data, epochs=3))
    assert lines[6] == "  steps per trial   300"


def test_a_plan_says_whose_statistics_batch_norm_takes_where_a_batch_has_chunks(par: CleaningSweep):
    """64 a batch: 32 on each of two workers, 8 in each of four chunks."""
    changes = {"resources": par.resources.replace(workers=2)}
    frozen = par.replace(optimization=par.optimization.replace(num_chunks=4), **changes)
    local = par.replace(optimization=par.optimization.replace(num_chunks=4, batch_norm="local"), **changes)
    words = "  a step            4 chunks of 8 pairs on each of 2 workers"
    assert plan(frozen)[7] == words
    assert plan(local)[7] == f"{words}, of which BatchNorm takes its statistics"
    assert not any("chunk" in line for line in plan(par)[6:])


def test_a_plan_warns_of_par_without_frozen_batchnorm(par: CleaningSweep):
    local = par.replace(optimization=par.optimization.replace(batch_norm="local"))
    assert plan(local)[-1] == f"  warning           {WARNING}"


def test_no_warning_where_the_mode_is_meant_or_plays_no_part(par: CleaningSweep):
    local = par.replace(
        optimization=par.optimization.replace(batch_norm="local"), search=par.search.replace(sampler="random")
    )
    rate, modes = local.space.dimensions["learning_rate"], Choice(values=("local", "frozen"))
    changes: list[dict[str, Any]] = [
        {"protocol": "authors"},
        {"space": SearchSpace(dimensions={"learning_rate": rate, "batch_norm": modes}, source="made for this test")},
        {"victim": local.victim.replace(architecture=Architecture(name="ViT-B-32-quickgelu"))},
        {"epochs": 0},
        {"method": CleanCLIP(), "space": fruit_stall.RATE, "grid": None},
    ]
    assert warnings_of(local) == [WARNING]
    assert [warnings_of(local.replace(**change)) for change in changes] == [[]] * len(changes)
    assert "batch_norm frozen" in plan(local.replace(protocol="authors"))[5]


def test_the_cc6m_sweeps_measure_where_the_published_points_lie(monkeypatch: pytest.MonkeyPatch):
    """Step 1,500 of 1,562 steps of 64 pairs of 100,000; the starts, which are not trained, have no steps."""
    mmcl, ssl = (
        sweep for sweep in sweeps_of(SCRIPTS / "cleanclip_cc6m.py", monkeypatch) if sweep.name.startswith("cleanclip")
    )
    assert mmcl.measure_at == ssl.measure_at == (1500,)
    assert mmcl.data.num_pairs // mmcl.optimization.global_batch_size == 1562
    starts, cleaning = {s.name: s for s in sweeps_of(SCRIPTS / "shrink_perturb_cc6m.py", monkeypatch)}, (1500,)
    assert starts["shrink-perturb-cc6m-starts"].measure_at == ()
    assert starts["shrink-perturb-cc6m"].measure_at == cleaning


def disk_of(sweep: CleaningSweep) -> str:
    """What a plan says of checkpoints, in GB."""
    (line,) = [line for line in plan(sweep) if line.startswith("  disk")]
    return line.partition("about ")[2].partition(" GB of checkpoints")[0]


def gigabytes(sweep: CleaningSweep, whole: int, stripped: int) -> str:
    """Of so many checkpoints: weights of 4 bytes a parameter, and as much for each of the optimizer's two moments."""
    return f"{(whole * 12 + stripped * 4) * num_parameters(sweep.victim.architecture) / 1e9:,.1f}"


@pytest.mark.parametrize(
    ("protocol", "storage", "is_stripped"),
    [("paper", None, True), ("paper", "/shared", True), ("paper", "s3://bucket", False), ("authors", None, False)],
)
def test_kept_weights_need_a_third_where_they_are_stripped(
    protocol: str, storage: str | None, is_stripped: bool, par: CleaningSweep
):
    """Of 4,000 trials one runs, with three checkpoints beside the victim's, and 3,000 of the others keep one each."""
    changes = {"resources": par.resources.replace(keep_checkpoints=3000, concurrent_trials=1, storage=storage)}
    many = par.replace(protocol=protocol, search=Search(sampler="random", trials=4000), **changes)
    wanted = gigabytes(par, 4, 3000) if is_stripped else gigabytes(par, 3004, 0)
    assert disk_of(many) == wanted


@pytest.mark.parametrize(
    ("trials", "keep", "concurrent", "whole", "stripped"),
    [
        (1000, 500, 1, 1 + 3, 500),
        (301, 500, 1, 1 + 3, 300),  # no more than there are
        (301, 500, None, 1 + 3, 300),  # as many as the cluster holds: not known here
        (1, 500, 1, 1 + 3, 0),
        (1000, 5, 200, 1 + 600, 5),
        (300, 500, 200, 1 + 600, 100),
        (100, 500, 200, 1 + 300, 0),  # no more run at a time than there are
    ],
)
def test_the_disk_that_checkpoints_take_depends_on_how_many_trials_run_and_are_over(
    trials: int, keep: int, concurrent: int | None, whole: int, stripped: int, par: CleaningSweep
):
    """The victim's one, three of every trial that runs, and one of every other that is kept."""
    resources = par.resources.replace(keep_checkpoints=keep, concurrent_trials=concurrent)
    many = par.replace(search=Search(sampler="random", trials=trials), resources=resources)
    wide = many.replace(victim=many.victim.replace(architecture=Architecture(name="RN50-quickgelu")))
    assert disk_of(wide) == gigabytes(wide, whole, stripped)


def test_the_disk_counts_a_victims_kept_epochs_and_the_points_of_short_trials(par: CleaningSweep, tmp_path: Path):
    """Of RN50's 1.2 GB each: a victim's ten epochs, two of them, or none of a given one; a trial of one epoch has its
    start and its end, one of none the start alone."""
    architecture = Architecture(name="RN50-quickgelu")
    victim = par.victim.replace(architecture=architecture, epochs=10, select="last")
    given = {"attack": BadNet(patch_size=4), "target": "banana", "path": tmp_path / "model.pt"}
    short = par.replace(victim=victim, epochs=1, search=Search(sampler="random", trials=1))
    for changes, whole in (
        ({"victim": victim.replace(keep_epochs="all")}, 10 + 2),
        ({"victim": victim.replace(keep_epochs=(3, 5))}, 3 + 2),
        ({"victim": CheckpointVictim(name="given", architecture=architecture, **given)}, 2),
        ({"epochs": 0}, 1 + 1),
        ({"epochs": 9}, 1 + 3),
    ):
        sweep = short.replace(**changes)
        assert disk_of(sweep) == gigabytes(sweep, whole, 0)


def test_a_plan_says_why_it_gives_no_hours(par: CleaningSweep, tmp_path: Path):
    """The rate that hours are taken from was measured on the papers' models, and needs a number of pairs."""
    known = par.replace(victim=par.victim.replace(architecture=Architecture(name="RN50-quickgelu")))
    for sweep, why in ((par, "own architecture"), (known, "num_pairs is not declared")):
        given = CheckpointVictim(
            name="given",
            path=tmp_path / "model.pt",
            architecture=sweep.victim.architecture,
            attack=BadNet(patch_size=4),
            target="banana",
        )
        lines = plan(sweep.replace(victim=given, data=PairsCSV(path=tmp_path / "pairs.csv")))
        assert f"  hours             known after the first trial ({why})" in lines
