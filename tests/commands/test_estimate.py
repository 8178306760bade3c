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
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.sampling import Sample
from sweeplab.experiment import CheckpointVictim, CleaningSweep
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


@pytest.mark.parametrize(
    ("protocol", "storage", "kept"),
    [("paper", None, 1), ("paper", "/shared", 1), ("paper", "s3://bucket", 3), ("authors", None, 3)],
)
def test_kept_weights_need_a_third_where_they_are_stripped(
    protocol: str, storage: str | None, kept: int, par: CleaningSweep
):
    """Of P parameters 4 P bytes each, 3,000 times; the checkpoints of one running trial and the victim: 5 x 12 P."""
    resources = par.resources.replace(keep_checkpoints=3000, concurrent_trials=1, storage=storage)
    parameters = num_parameters(par.victim.architecture)
    wanted = (3000 * kept * 4 + 5 * 12) * parameters / 1e9
    (line,) = [line for line in plan(par.replace(protocol=protocol, resources=resources)) if "  disk" in line]
    assert f"about {wanted:,.1f} GB of checkpoints" in line


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
