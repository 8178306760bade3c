"""Papers' rows beside what a home holds: their states, our numbers beside the published ones, what is a miniature."""

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

import fabricated
import pandas as pd
import pytest
from test_cli import command, refused

from sweeplab.cli.papers import experiments_in
from sweeplab.commands.import_table import import_table
from sweeplab.commands.papers import ROWS
from sweeplab.data.pairs import PairsCSV
from sweeplab.experiment import PretrainedVictim, smoke_victim
from sweeplab.ranking.intervals import wilson
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.ranking.reproduction import Ours, Run, Sizes, of_sweep, of_victim, state_of
from sweeplab.ranking.victims import VictimRow
from sweeplab.records import Measurement
from sweeplab.storage.files import write_json
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep_folder import SweepFolder

ROOT = Path(__file__).parents[2]

COUNTS = ("accuracy_k", "accuracy_n", "asr_k", "asr_n")
POINTS = [  # trial, epoch, correct of 100, hits of 80
    (0, 0, 50, 79),
    (0, 1, 45, 3),
    (0, 2, 48, 8),
    (1, 1, 40, 0),
    (1, 2, 30, 2),
]


def imported(
    home: Path, name: str, *, counted: bool = True, points: list[tuple[int, int, int, int]] = POINTS
) -> SweepFolder:
    """A sweep of a table: the victim has 50 of 100 correct; trial 0 is best with 45 at 3 of 80."""
    rows = [
        {
            **{"trial": trial, "epoch": epoch, "accuracy": correct / 100, "asr": hits / 80, "rate": 0.1 * (1 + trial)},
            **(dict(zip(COUNTS, (correct, 100, hits, 80), strict=True)) if counted else {}),
        }
        for trial, epoch, correct, hits in points
    ]
    home.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(home / "table.csv", index=False)
    return import_table(home / "table.csv", home, name)


@pytest.fixture
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


# --- numbers


def measured(folder: SweepFolder, quantity: str, of: str) -> Ours | str:
    record = folder.record()
    return of_sweep(record, rank_trials(record, folder.outcomes), quantity, of)


def share(k: int, n: int) -> Ours:
    low, high = wilson(k, n)
    return Ours(100 * k / n, 100 * low, 100 * high)


def test_a_sweeps_numbers_are_those_of_its_best_trial_of_its_victim_and_of_all_trials(tmp_path: Path):
    """Of the two trials the one with 45 of the victim's 50 wins: -10 %; the lowest ASR is that of the other."""
    folder = imported(tmp_path, "made-up")
    assert measured(folder, "accuracy", "victim") == share(50, 100)
    assert measured(folder, "ASR", "victim") == share(79, 80)
    assert measured(folder, "accuracy", "best") == share(45, 100)
    assert measured(folder, "ASR", "best") == share(3, 80)
    assert measured(folder, "lowest ASR", "all") == share(0, 80)
    assert measured(folder, "rate", "best") == Ours(0.1)
    low, high = (100 * (2 * end - 1) for end in wilson(45, 100))
    change = measured(folder, "change", "best")
    assert isinstance(change, Ours)
    assert (change.value, change.low, change.high) == pytest.approx((-10.0, low, high), abs=1e-9)


def test_of_the_only_trial_the_last_epoch_counts_cleaned_or_not(tmp_path: Path):
    folder = imported(tmp_path, "made-up", points=POINTS[:3])
    assert measured(folder, "accuracy", "only") == share(48, 100)
    assert measured(folder, "ASR", "only") == share(8, 80)


def test_where_nothing_is_cleaned_the_lowest_asr_is_said_instead(tmp_path: Path):
    folder = imported(tmp_path, "made-up", points=[POINTS[0], (0, 1, 45, 8)])
    assert measured(folder, "change", "best") == "none below 5 % ASR, lowest 10.0 %"


def test_fractions_without_counts_have_no_interval(tmp_path: Path):
    folder = imported(tmp_path, "made-up", counted=False)
    assert measured(folder, "accuracy", "best") == Ours(pytest.approx(45.0))
    assert measured(folder, "lowest ASR", "all") == Ours(0.0)


def test_a_victims_numbers_are_those_of_the_selected_or_the_first_epoch():
    points = tuple(fabricated.point(index, 20 * index, 40 + 10 * index) for index in range(3))
    found = {"flagged_pairs": 16.0, "flagged_poisons": 5.0}
    row = VictimRow("v", "1", "finished", 2, 2, 2, points[2].measurement, "ASR", found, 1.0, points, Path("v-1"))
    assert of_victim(row, "accuracy", "victim") == share(40, 100)
    assert of_victim(row, "ASR", "victim") == share(60, 80)
    assert of_victim(row, "accuracy", "first epoch") == share(20, 100)
    assert of_victim(row, "flagged poisons", "victim") == Ours(5.0)


# --- states


def run(name: str, over: int, planned: int, **fields: object) -> Run:
    state = "finished" if over == planned else "interrupted" if over else "not run"
    fields = {"num_in_script": planned, **fields}
    return Run(
        **{"name": name, "found": name, "is_victim": False, "state": state, **fields},
        num_over=over,
        num_planned=planned,
    )


@pytest.mark.parametrize(
    ("runs", "state"),
    [
        ([run("a", 0, 3), run("b", 0, 2)], "not run"),
        ([run("a", 3, 3), run("b", 0, 2)], "3 of 5 trials"),
        ([run("a", 3, 3), run("b", 1, 2, state="running")], "running, 4 of 5 trials"),
        ([run("a", 3, 3, num_failed=1), run("b", 2, 2)], "done, 1 failed"),
        ([run("a", 1, 1, is_victim=True), run("b", 0, 1, is_victim=True)], "1 of 2 victims"),
        ([run("a", 1, 1, is_victim=True), run("b", 0, 4)], "1 of 1 victim, 0 of 4 trials"),
        ([run("a", 2, 2, is_miniature=True)], "done, in miniature"),
        ([run("a", 2, 2, is_miniature=True), run("b", 1, 4)], "1 of 6 trials"),
        ([run("a", 2, 2, is_miniature=True, num_in_script=9), run("b", 4, 4)], "4 of 13 trials"),
        ([run("a", 2, 2, is_miniature=True, num_in_script=9), run("b", 0, 4)], "2 of 13 trials, in miniature"),
        ([run("a", 2, 2, is_imported=True)], "done, imported"),
        ([run("a", 2, 2, is_imported=True, num_in_script=69)], "2 of 69 trials, imported"),
        ([run("a", 80, 80, num_in_script=69), run("b", 0, 4)], "69 of 73 trials"),
        ([run("a", 2, 2, changed=("seed: 0 -> 3",)), run("b", 4, 4)], "6 of 6 trials, 1 differing"),
        ([run("a", 0, 4, state="damaged"), run("b", 2, 2)], "2 of 6 trials, 1 damaged"),
    ],
)
def test_a_rows_state_counts_what_is_over_and_miniatures_only_where_there_is_nothing_else(runs: list[Run], state: str):
    assert state_of(runs) == state


def test_a_run_is_a_miniature_where_any_of_its_sizes_is_less_than_half():
    whole = Sizes(6_000_000, 100_000, 1000, 50_000)
    assert not Sizes(3_000_000, None, 1000, 25_000).is_miniature_of(whole)
    assert Sizes(2_999_999, None, 1000, 50_000).is_miniature_of(whole)
    assert Sizes(test_images=24_999).is_miniature_of(whole)
    assert not Sizes().is_miniature_of(whole)
    assert Sizes(1280, 320, 16, 160).in_words() == "1,280 pairs, 320 to clean with, 16 classes, 160 test images"


# --- the command

LABEL = "imported, miniature: 100 test images"


def test_a_small_table_never_stands_beside_a_published_number_without_the_word(own_home: Path, in_repository: None):
    imported(own_home, "verma-fig3-m")
    code, shown, _ = command("reproduce", "verma", "fig3-m", "verma-tab1", "--json")
    found = json.loads(shown)
    assert code == 0
    assert [(row["id"], row["state"]) for row in found["rows"]] == [
        ("verma-tab1", "2 of 281 trials, imported, in miniature"),
        ("verma-fig3-m", "2 of 69 trials, imported, in miniature"),
    ]
    ours = [number for row in found["rows"] for number in row["numbers"] if number["ours"]]
    assert [(number["run"], number["published"], number["label"]) for number in ours] == [
        ("verma-fig3-m", published, LABEL) for published in ("-17", "60.30", "99.20", "-17")
    ]
    for form in ([], ["--markdown"]):
        code, shown, _ = command("reproduce", "verma", "fig3-m", *form)
        text = " ".join(shown.split())
        assert code == 0
        assert text.count(LABEL) == 4  # three numbers and the run
        assert "50.00 % (40.38 to 59.62)" in text
        assert "python sweeps/verma_victims.py --only verma-fig3-m" in text


def test_the_page_has_every_row_its_numbers_and_the_word_and_no_script(own_home: Path, in_repository: None):
    imported(own_home, "verma-fig3-m")
    page = own_home / "pages" / "verma.html"
    assert command("reproduce", "verma", "--to", str(page)) == (0, f"{page}\n", "")
    text = page.read_text()
    assert text.count(f'<span class="mark">{LABEL}</span>') == 4 + 2  # four numbers, and the run in two rows
    assert "<strong>50.00 %</strong><small>40.38 to 59.62</small>" in text
    assert "<script" not in text
    assert "script-src 'none'" in text
    for place in re.findall('href="#(.*?)"', text):
        assert text.count(f'id="{place}"') == 1, place
    assert all(f">{row.id}</a>" in text for row in ROWS if row.paper == "verma")
    assert "python sweeps/verma_methods.py --only verma-fig7-kmeans" in text
    assert refused("reproduce", "verma", "--to", "verma.pdf").endswith("must be a file that ends in .html")


def test_a_smoke_run_is_found_under_its_own_name_and_a_whole_one_goes_before_it(own_home: Path, in_repository: None):
    imported(own_home, "verma-fig12-m-smoke")
    row = json.loads(command("reproduce", "verma", "fig12-m", "--json")[1])["rows"][0]
    assert (row["state"], row["runs"][0]["found"]) == ("2 of 44 trials, imported, in miniature", "verma-fig12-m-smoke")
    imported(own_home, "verma-fig12-m", counted=False)
    row = json.loads(command("reproduce", "verma", "fig12-m", "--json")[1])["rows"][0]
    assert (row["state"], row["runs"][0]["found"]) == ("2 of 44 trials, imported", "verma-fig12-m")
    assert {number["label"] for number in row["numbers"]} == {"imported: sizes not known"}
    drawn = "sweeplab compare 'verma-fig12-*'"
    assert row["commands"] == ["python sweeps/verma_victims.py --only verma-fig12-m", drawn]
    imported(own_home, "verma-fig12-s", counted=False, points=[(i, e, 40, 2) for i in range(71) for e in (0, 1)])
    row = json.loads(command("reproduce", "verma", "fig12-s", "--json")[1])["rows"][0]
    assert (row["state"], row["commands"]) == ("done, imported", [drawn])


def victim_in(
    home: Path, victim: PretrainedVictim, num_images: int, *, is_over: bool, digest: str = "0", num_epochs: int = 2
) -> None:
    """A victim with half of the images right, whose 16 target images are all hit."""
    folder = RunFolder(home / "victims" / f"{victim.name}-{digest}")
    folder.path.mkdir(parents=True)
    write_json(folder.path / "victim.json", {"spec": victim.to_json(), "digest": digest})
    found = Measurement(num_images // 2, num_images, 16, 16, "evaluation")
    points = [dataclasses.replace(fabricated.point(i, 0, 0), measurement=found) for i in range(num_epochs + 1)]
    folder.write_points(points)
    if is_over:
        folder.finish({"state": "finished", "selected_epoch": float(num_epochs)})


def test_a_pattern_of_compare_leaves_out_victims_in_miniature(own_home: Path, in_repository: None):
    row = next(row for row in ROWS if row.id == "safeclip-fig3c")
    with_, without = experiments_in(Path("sweeps"))(row.runs[0])
    for victim, num_images in ((with_, 50_000), (without, 50_000), (smoke_victim(with_), 160)):
        victim_in(own_home, victim, num_images, is_over=True)
    code, _, notes = command("compare", "safeclip-fig3c-*")
    assert (code, "'safeclip-fig3c-*' leaves out safeclip-fig3c-with-smoke: " in notes) == (0, True)
    for named in ("safeclip-fig3c-*-smoke", "safeclip-fig3c-with-smoke-0"):  # the name, or the folder's
        assert command("compare", named)[2] == ""


def test_runs_say_how_they_differ_from_their_script(own_home: Path, in_repository: None):
    """A victim in full size but for some fields, which goes on, and one in miniature: the first alone is counted."""
    row = next(row for row in ROWS if row.id == "safeclip-fig3c")
    with_, without = experiments_in(Path("sweeps"))(row.runs[0])
    fewer = with_.data.replace(num_pairs=2_000_000)
    victim_in(own_home, with_.replace(epochs=16, seed=3, data=fewer), 49_000, is_over=False)
    victim_in(own_home, smoke_victim(without), 160, is_over=True)
    found = json.loads(command("reproduce", "safeclip", "fig3c", "--json")[1])["rows"][0]
    first, second = found["runs"]
    assert found["state"] == "0 of 2 victims, 1 differing"
    assert (first["state"], first["is_miniature"]) == ("interrupted", False)
    assert first["changed"] == [
        "49,000 test images instead of 50,000",
        "epochs of pre-training 16 instead of 32",
        "seed: 0 -> 3",
    ]
    assert (second["found"], second["is_miniature"]) == ("safeclip-fig3c-without-smoke", True)
    assert second["changed"] == [
        "1,280 pairs instead of 100,000",
        "16 classes instead of 1,000",
        "160 test images instead of 50,000",
        "model of its own, 32 pixels instead of RN50-quickgelu",
        "epochs of pre-training 4 instead of 32",
    ]
    number = found["numbers"][0]
    assert (number["published"], number["ours"]["value"], number["is_preliminary"]) == ("-12.5", 0.0, True)
    assert number["label"] == (
        "differs: 49,000 test images instead of 50,000 and 2 more; miniature: 1,280 pairs, 16 classes, 160 test images"
    )


def badnet_of_c1() -> PretrainedVictim:
    row = next(row for row in ROWS if row.id == "cleanclip-c1")
    script = experiments_in(Path("sweeps"))(row.runs[0])[0]
    assert isinstance(script, PretrainedVictim)
    assert script.name == "cleanclip-c1-badnet"
    return script


def test_a_finished_run_with_other_fields_says_so_beside_each_number_and_makes_no_row_done(
    own_home: Path, in_repository: None
):
    script = badnet_of_c1()
    victim_in(
        own_home, script.replace(epochs=1, keep_epochs=(1,), protocol="authors"), 50_000, is_over=True, num_epochs=1
    )
    (found,) = json.loads(command("reproduce", "cleanclip", "c1", "--json")[1])["rows"]
    assert found["state"] == f"1 of {len(found['runs'])} victims, 1 differing"
    assert {number["label"] for number in found["numbers"]} == {
        "differs: epochs of pre-training 1 instead of 64 and 1 more"
    }
    assert found["commands"][0].startswith("python sweeps/")
    shown = " ".join(command("reproduce", "cleanclip", "c1")[1].split())
    assert "0 rows done of 1 that has runs" in shown
    assert "ours: protocol authors; the published numbers come from the authors' code" in shown


def test_of_victims_of_one_name_the_scripts_own_is_shown_then_the_one_of_most_epochs(
    own_home: Path, in_repository: None
):
    script = badnet_of_c1()

    def shown() -> dict[str, Any]:
        (found,) = json.loads(command("reproduce", "cleanclip", "c1", "--json")[1])["rows"]
        run: dict[str, Any] = found["runs"][0]
        return run

    victim_in(own_home, script.replace(epochs=1, keep_epochs=(1,)), 50_000, is_over=True, digest="a", num_epochs=1)
    victim_in(own_home, script.replace(seed=3), 50_000, is_over=False, digest="b", num_epochs=6)
    assert (shown()["state"], shown()["changed"]) == ("interrupted", ["seed: 0 -> 3"])
    victim_in(own_home, script, 50_000, is_over=False, digest="c", num_epochs=3)
    assert (shown()["state"], shown()["changed"]) == ("interrupted", [])


def test_pairs_that_a_spec_does_not_declare_are_counted_by_the_steps_of_an_epoch(own_home: Path, in_repository: None):
    """Points of fabricated epochs are 4 steps apart; of 256 pairs each that makes 1,024 pairs."""
    row = next(row for row in ROWS if row.id == "safeclip-fig2a")
    (victim,) = experiments_in(Path("sweeps"))(row.runs[0])
    victim_in(own_home, victim.replace(data=PairsCSV(path=Path("small.csv"))), 50_000, is_over=True)
    (found,) = json.loads(command("reproduce", "safeclip", "fig2a", "--json")[1])["rows"]
    assert found["state"] == "done, in miniature"
    assert found["runs"][0]["sizes"]["pairs"] == 1024


def test_damaged_records_hide_no_other_row(own_home: Path, in_repository: None):
    imported(own_home, "verma-fig13", counted=False)
    for folder, file in (("sweeps/verma-fig3-m", "sweep.json"), ("victims/cc6m-mmcl-0", "victim.json")):
        (own_home / folder).mkdir(parents=True)
        (own_home / folder / file).write_text("{}")
    rows = json.loads(command("reproduce", "verma", "tab3", "fig3-m", "fig13", "--json")[1])["rows"]
    assert [row["state"] for row in rows] == [
        "0 of 8 victims, 1 damaged",
        "0 of 69 trials, 1 damaged",
        "2 of 14 trials, imported",
    ]
    assert "victim.json" in rows[0]["runs"][0]["notes"][0]


def test_an_unknown_paper_or_row_is_refused_with_the_known_ones(own_home: Path, in_repository: None):
    assert refused("reproduce", "vemra") == "paper 'vemra' is unknown; known: verma, cleanclip, safeclip, par"
    message = refused("reproduce", "par", "tab-rn50", "tab9")
    assert message.startswith("paper 'par' has no row 'tab9'; it has par-fig1, par-fig2, ")
    assert "exclude each other" in refused("reproduce", "par", "--json", "--markdown")


def test_outside_the_repository_it_says_where_to_go(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert refused("reproduce", "par").endswith("the papers' scripts lie in a repository; go to its root")


def test_of_an_empty_home_nothing_is_made(own_home: Path, in_repository: None):
    code, shown, _ = command("reproduce", "par")
    assert (code, own_home.exists()) == (0, False)
    num = sum(bool(row.runs) for row in ROWS if row.paper == "par")
    assert f"0 rows done of {num} that have runs, 0 begun, 0 in miniature alone, {num} not run (and " in shown


def test_what_is_measured_elsewhere_says_so_only_once_its_run_is_there(own_home: Path, in_repository: None):
    """The lowest ASR of any state is that of a destroyed model, and no number of the victim's accuracy."""
    imported(own_home, "verma-fig6-m-5", points=[(0, 0, 50, 79), (0, 1, 1, 0)])
    (row,) = json.loads(command("reproduce", "verma", "fig6-m", "--json")[1])["rows"]
    assert [(number["run"], number["missing"]) for number in row["numbers"]] == [
        ("verma-fig6-m-5", "at the victim's accuracy: read it off the page"),
        ("verma-fig6-m-5", ""),
        ("verma-fig6-m-10", "not run"),
        ("verma-fig6-m-10", "not run"),
    ]
    rows = json.loads(command("reproduce", "safeclip", "tab2", "tab3", "fig3a", "fig3b", "--json")[1])["rows"]
    assert {number["missing"] for row in rows for number in row["numbers"]} == {"not run"}
    assert all(number["is_printed"] for row in rows[2:] for number in row["numbers"])


def test_numbers_that_are_not_read_back_are_counted_first(own_home: Path, in_repository: None):
    head = "3 of 3 published numbers, of safeclip-fig3a, safeclip-fig3b: ours is printed by the row's last command"
    assert head in command("reproduce", "safeclip", "fig3a", "fig3b")[1]
    assert f"\n{head}" in command("reproduce", "safeclip", "fig3a", "fig3b", "--markdown")[1]
    command("reproduce", "safeclip", "--to", str(own_home / "page.html"))
    page = html.unescape((own_home / "page.html").read_text())
    assert page.index("published numbers, of safeclip-tab2, safeclip-tab3,") < page.index("Rows done")
    assert "read back" not in command("reproduce", "verma")[1]
