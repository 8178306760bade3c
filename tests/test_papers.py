"""The papers' experiments: every script in one process, its sizes beside the papers', and the page that lists them."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from dashboards.against import lines_of
from sweeplab.cli import load_script, resolve, select
from sweeplab.cli.scripts import resolve_all, sets_of
from sweeplab.commands import estimate
from sweeplab.commands.papers import ROWS, PaperRow
from sweeplab.commands.published import published_numbers
from sweeplab.experiment import CleaningSweep, Experiment, PretrainedVictim
from sweeplab.ranking.compared import Compared, Comparison, fields_of

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "sweeps").glob("*.py"))

# (victims alone, trials) of each row, as the papers and their code have them. In brackets what is chosen here.
SIZES = {
    "verma-tab1": (0, 12 + 69 + 44 + 23 + 62 + 71),
    "verma-tab2": (0, 13 + 13 + 12 + 23),
    "verma-tab3": (8, 0),
    "verma-fig2-m": (0, 12 + 4 + 12),  # [12 of SSL alone]
    "verma-fig2-s": (0, 23 + 4 + 23),  # [23 of SSL alone]
    "verma-fig3-m": (0, 69),
    "verma-fig3-s": (0, 62),
    "verma-fig4-m": (0, 24),  # [all]
    "verma-fig4-s": (0, 24),  # [all]
    "verma-fig5a": (0, 12),
    "verma-fig5b": (0, 23),
    "verma-fig6-m": (0, 34),
    "verma-fig6-s": (0, 34),
    "verma-fig7-kmeans": (0, 72),
    "verma-fig7-siglip": (0, 72),
    "verma-heavy-mmcl": (0, 72),
    "verma-heavy-ssl": (0, 72),
    "verma-heavy-both": (0, 72),
    "verma-shrink-starts": (0, 255),
    "verma-shrink": (0, 9),
    "verma-fig10-m": (0, 13 + 4 + 13),  # [13 of SSL alone]
    "verma-fig10-s": (0, 13 + 4 + 13),  # [13 of SSL alone]
    "verma-fig11-m": (0, 3 * 8),
    "verma-fig11-s": (0, 3 * 8),
    "verma-fig12-m": (0, 44),
    "verma-fig12-s": (0, 71),
    "verma-fig13": (0, 14),
    "verma-fig14-50": (0, 13),
    "verma-fig14-100": (0, 13),
    "verma-fig15": (0, 16 + 23),  # weight 1 is D.4's
    "verma-fig17": (1, 0),
    "verma-fig18": (1, 0),
    "verma-fig19": (0, 12),
    "verma-fig20": (0, 23),
    "cleanclip-c1": (4, 0),
    "cleanclip-c2": (0, 5),
    "cleanclip-fig3": (0, 5),  # [all]
    "cleanclip-c5": (0, 12),
    "cleanclip-tab8": (0, 12),
    "cleanclip-fig6": (0, 1),
    "cleanclip-g": (0, 1),
    "cleanclip-h": (4, 0),  # [the attacks]
    "cleanclip-fig7a": (1, 0),
    "cleanclip-fig7b": (1, 0),
    "cleanclip-fig7-1500": (2, 0),
    "cleanclip-fig8a": (1, 0),
    "cleanclip-fig8b": (1, 0),
    "cleanclip-fig8c": (1, 0),
    "cleanclip-i3-blended": (1, 0),
    "cleanclip-i3-wanet": (1, 0),
    "cleanclip-i3-weight": (4, 0),  # [two weights, two attacks]
    "safeclip-fig2a": (1, 0),
    "safeclip-fig2b": (1, 0),
    "safeclip-fig2c": (1, 0),
    "safeclip-tab1-tdpa": (8, 0),
    "safeclip-tab1-ba": (8, 0),
    "safeclip-tab2": (2, 0),
    "safeclip-tab3": (5, 0),
    "safeclip-fig3a": (4, 0),
    "safeclip-fig3b": (4, 0),
    "safeclip-fig3c": (2, 0),
    "safeclip-fig4": (2, 0),
    "safeclip-sec4": (1, 0),
    "par-fig1": (8, 24),
    "par-fig3": (0, 6 + 6 + 5 + 5),  # [all]
    "par-fig4-loss": (0, 1),
    "par-fig4-metrics": (0, 1),
    "par-fig4-map": (0, 2),
    "par-fig5": (0, 2 * 4),  # [four rates]
    "par-fig8": (0, 2),
    "par-fig9": (0, 2),
    "par-fig10": (0, 2),
    "par-tab-rn50": (0, 24),
    "par-tab-vit": (0, 8),
    "par-tab-synth": (0, 1),
    "par-coco": (1, 3),  # [BadNet]
}


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the script that writes the page defines."""
    return runpy.run_path(str(ROOT / "docs" / "make_experiments.py"))


@pytest.fixture(scope="module")
def scripts() -> dict[str, tuple[Experiment, ...]]:
    """Every script's sweeps and victims, all loaded in this process."""
    return {path.name: load_script(path) for path in SCRIPTS}


def test_each_row_has_the_papers_number_of_victims_and_trials(page: dict[str, Any]):
    sizes = {row.id: page["size_of"](row) for row in ROWS if row.runs}
    assert sizes == SIZES


def test_every_sweep_and_victim_of_every_script_is_planned_whole_and_in_miniature(
    scripts: dict[str, tuple[Experiment, ...]],
):
    for name, experiments in scripts.items():
        names = [experiment.name for experiment in experiments]
        assert len(set(names)) == len(names), name
        for smoke in (False, True):
            for experiment in resolve_all(experiments, [], None, smoke):
                assert estimate.plan(experiment)[0] == experiment.name


def test_names_tell_apart_what_is_not_the_same(scripts: dict[str, tuple[Experiment, ...]]):
    """A home has one folder for each name of a sweep, and for each name and digest of a victim."""
    sweeps: dict[str, CleaningSweep] = {}
    victims: dict[str, set[str]] = {}
    for experiments in scripts.values():
        for experiment in experiments:
            if isinstance(experiment, CleaningSweep):
                assert sweeps.setdefault(experiment.name, experiment) == experiment
            victim = experiment if isinstance(experiment, PretrainedVictim) else experiment.original_victim()
            if isinstance(victim, PretrainedVictim):
                victims.setdefault(victim.name, set()).add(victim.digest())
    assert {name: digests for name, digests in victims.items() if len(digests) > 1} == {}


def test_no_victim_is_trained_twice_under_two_names(scripts: dict[str, tuple[Experiment, ...]]):
    """Of the papers' scripts: a victim of CC3M costs a hundred GPU-hours."""
    papers = {f"{run.script}.py" for row in ROWS for run in row.runs}
    by_digest: dict[str, set[str]] = {}
    for name in papers:
        for experiment in scripts[name]:
            victim = experiment if isinstance(experiment, PretrainedVictim) else experiment.original_victim()
            assert isinstance(victim, PretrainedVictim)
            by_digest.setdefault(victim.digest(initial=str(victim.initial)), set()).add(victim.name)
    assert [names for names in by_digest.values() if len(names) > 1] == []


def test_every_sweep_of_the_papers_is_part_of_a_row(page: dict[str, Any], scripts: dict[str, tuple[Experiment, ...]]):
    in_rows: dict[str, set[str]] = {}
    for row in ROWS:
        for run in row.runs:
            in_rows.setdefault(f"{run.script}.py", set()).update(e.name for e in page["experiments_of"](run))
    for script, names in in_rows.items():
        listed = {
            resolve(e, [], "grid", False).name if isinstance(e, CleaningSweep) else e.name for e in scripts[script]
        }
        unlisted = {name for name in listed - names if not name.startswith(("verma-fig4-vit", "cc6m"))}
        assert unlisted == set(), script


def test_every_sweep_that_a_guide_names_is_there(scripts: dict[str, tuple[Experiment, ...]]):
    """`select` refuses a name, or a pattern, that fits nothing."""
    guides = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    commands = {
        (script, only)
        for guide in guides
        for script, words in re.findall(r"sweeps/(\w+\.py)([^`\n]*)", guide.read_text())
        for only in re.findall(r"--only '?([\w*.-]+)", words)
    }
    assert len(commands) > 50
    for script, only in sorted(commands):
        if only not in ("NAME", "VICTIM"):
            assert select(scripts[script], [only]), (script, only)


def test_every_published_number_has_a_place_and_a_run_of_its_row_that_measures_it(page: dict[str, Any]):
    rows = {row.id: {e.name: e for run in row.runs for e in page["experiments_of"](run)} for row in ROWS}
    commands = {row.id: row.then for row in ROWS}
    sweeps, victims = {"victim", "best", "only", "all", "page", ""}, {"victim", "first epoch", ""}
    for number in published_numbers():
        where = (number.row, number.setting, number.quantity)
        assert number.place, where
        assert all(re.fullmatch(r"~?[+-]?\d+(\.\d+)?(e-\d)?", end) for end in number.published.split("..")), where
        assert number.unit in ("%", "points", ""), where
        assert number.run or not number.of, where
        assert number.of or not number.run or commands[number.row], where
        for name in number.runs:
            found = rows[number.row][name]
            assert number.of in (sweeps if isinstance(found, CleaningSweep) else victims), where
            assert number.of != "only" or found.num_trials() == 1, where


def test_published_numbers_stand_in_the_order_of_the_rows_and_once():
    order = [row.id for row in ROWS]
    numbers = published_numbers()
    places = [order.index(number.row) for number in numbers]
    assert places == sorted(places)
    assert len({(n.row, n.setting, n.quantity, n.place) for n in numbers}) == len(numbers)


def test_sweeps_that_existed_before_keep_their_names_and_digests(scripts: dict[str, tuple[Experiment, ...]]):
    """Digests as they were while these four were all that the two scripts had."""
    kept = [*scripts["cleanclip_cc6m.py"], *scripts["shrink_perturb_cc6m.py"]]
    assert [(sweep.name, sweep.digest()) for sweep in kept] == KEPT


KEPT = [
    ("cleanclip-cc6m-mmcl", "506efdfc0619ba51"),
    ("cleanclip-cc6m-mmcl-ssl", "e7435d2c8f51adb2"),
    ("shrink-perturb-cc6m-starts", "e88434e73641b2c5"),
    ("shrink-perturb-cc6m", "ab1a25f4070b78ae"),
]


def test_safeclips_ten_sets_each_have_images_for_the_probe():
    sets = sets_of(ROOT / "sweeps" / "safeclip_cc1m.py")
    assert len(sets) == 10
    assert all(one.probe not in (None, one.test) for one in sets.values())


def test_safeclips_ten_sets_have_the_sizes_of_table_4():
    """Training and test images; another number of files is refused."""
    sets = sets_of(ROOT / "sweeps" / "safeclip_cc1m.py")
    assert {name: (one.probe.num_images, one.test.num_images) for name, one in sets.items()} == {
        "flowers102": (2_040, 6_149),
        "food101": (75_750, 25_250),
        "imagenet": (50_000, 50_000),
        "pets": (3_680, 3_669),
        "cars": (8_144, 8_041),
        "caltech101": (3_060, 6_085),
        "cifar10": (50_000, 10_000),
        "cifar100": (50_000, 10_000),
        "dtd": (3_760, 1_880),
        "fgvc-aircraft": (6_667, 3_333),
    }


def test_the_page_of_experiments_is_up_to_date(page: dict[str, Any]):
    assert (ROOT / "docs" / "experiments.md").read_text() == page["markdown"](), "run `just experiments`"


def compared(page: dict[str, Any], row: PaperRow) -> list[Compared]:
    """What a row's command compares, as far as specs tell it; patterns have to fit."""
    (command,) = re.findall("sweeplab compare (.*)", row.then)
    patterns = [word for word in shlex.split(command.partition(" --")[0]) if not word.startswith("tables")]
    found = [experiment for run in row.runs for experiment in page["experiments_of"](run)]
    chosen = [one for pattern in patterns for one in found if fnmatchcase(one.name, pattern)]
    assert all(any(fnmatchcase(one.name, pattern) for one in found) for pattern in patterns), row.id
    return [
        Compared(
            name=one.name,
            victim=one.victim.name if isinstance(one, CleaningSweep) else one.name,
            fields=dict(fields_of(one.to_json(), "" if isinstance(one, CleaningSweep) else "victim")),
        )
        for one in {one.name: one for one in chosen}.values()
    ]


def test_commands_that_compare_name_what_the_rows_run(page: dict[str, Any]):
    """All of them; of par-fig1 the victims stand in the sweeps."""
    rows = [row for row in ROWS if row.then.startswith("sweeplab compare")]
    assert len(rows) >= 15
    for row in rows:
        names = {item.name for item in compared(page, row)}
        left = {one.name for run in row.runs for one in page["experiments_of"](run)} - names
        assert all(name.startswith("par-victim-") for name in left), row.id


def test_the_series_of_the_papers_are_found_in_their_specs(page: dict[str, Any]):
    rows = {row.id: row for row in ROWS}
    methods = Comparison.of(compared(page, rows["par-fig1"]), "method.kind")
    assert methods.series == ("par", "cleanclip", "roclip")
    assert Comparison.of(compared(page, rows["verma-fig6-m"]), "slipped.count").series == ("count 5", "count 10")
    assert Comparison.of(compared(page, rows["safeclip-fig3c"])).series == (
        "safeclip-fig3c-with",
        "safeclip-fig3c-without",
    )
    rates = Comparison.of(compared(page, rows["par-fig5"]), "rate")
    assert rates.series == ("rate 5e-04", "rate 1e-03", "rate 3e-03", "rate 1e-02")
    assert sorted(Counter(lines_of(rates).values()).items()) == [("cleanclip", 4), ("par", 4)]
    steps = Comparison.of(compared(page, rows["safeclip-fig4"]), "share_step")
    assert len(set(lines_of(steps).values())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_plans_without_data(script: Path, tmp_path: Path):
    home = tmp_path / "home"
    ran = subprocess.run(
        [sys.executable, str(script), "--dry-run"],
        cwd=tmp_path,
        env={**os.environ, "SWEEPLAB_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr, home.exists()) == (0, "", False)
    names = [line for line in ran.stdout.splitlines() if line and not line.startswith(" ")]
    assert names == [experiment.name for experiment in load_script(script)]
