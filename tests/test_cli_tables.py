"""The commands over tables: import, replay, audit, the leaderboard by configuration."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import fabricated
import pytest
from fabricated import SWEEP
from PIL import Image
from test_cli import command, refused

from sweeplab.cli import sweeps
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.ranking.stopping import BackdoorStays, Pruning
from sweeplab.records import Measurement, Point, SweepRecord, TrialRecord, percent
from sweeplab.sweep_folder import SweepFolder

POINTS = tuple(Point(index, float(index), index, 1, Measurement(9, 10, 9 - 4 * index, 10, "e")) for index in range(2))
TRIAL = TrialRecord(0, "running", {}, "c", 1, 1, POINTS)
RECORD = SweepRecord(
    name="toy",
    digest="",
    state="running",
    asr_ceiling=0.05,
    epochs=1,
    protocol="paper",
    method="cleanclip",
    victim_name="victim",
    victim=Measurement(9, 10, 9, 10, "e"),
    victim_epoch=1,
    target="banana",
    trials=(),
    planned_trials=1,
    parameters=(),
)


@pytest.fixture
def home(own_home: Path) -> Path:
    return own_home


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three rates, two epochs: only the middle one is cleaned, and keeps 8/9."""
    path = tmp_path / "table.csv"
    rates = {1e-4: [(0.9, 0.8), (0.9, 0.8)], 1e-3: [(0.85, 0.3), (0.8, 0.01)], 1e-2: [(0.5, 0.3), (0.2, 0.2)]}
    lines = ["trial,epoch,accuracy,asr,rate"]
    for trial, (rate, points) in enumerate(rates.items()):
        lines.append(f"{trial},0,0.9,0.8,{rate}")
        lines += [f"{trial},{epoch},{accuracy},{asr},{rate}" for epoch, (accuracy, asr) in enumerate(points, 1)]
    path.write_text("\n".join(lines))
    return path


def json_of(*words: str) -> Any:
    code, stdout, _ = command(*words, "--json")
    assert code == 0
    return json.loads(stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_an_imported_table_serves_every_reading_command(home: Path, table: Path, tmp_path: Path):
    """Epoch 0 of its 9 rows is the victim, and counts nowhere."""
    code, stdout, _ = command("import", str(table), "--sweep", "elsewhere")
    assert code == 0
    assert "3 trials, 6 points, parameters rate" in stdout
    assert "for all 6 points together" in " ".join(command("leaderboard", "elsewhere")[1].split())
    best = json_of("leaderboard", "elsewhere")["trials"][0]
    assert (best["trial"], best["retention"], best["certified"]) == (1, pytest.approx(0.8 / 0.9), False)
    status = json_of("status", "elsewhere")
    assert (status["state"], status["trial_epochs"], status["trials"]["finished"]) == ("finished", 6, 3)
    assert [row["sweep"] for row in json_of("list")] == ["elsewhere"]
    code, stdout, _ = command("report", "elsewhere")
    assert code == 0
    assert Path(stdout.strip()).stat().st_size > 10_000
    assert command("export", "elsewhere", "--to", str(tmp_path / "out"))[0] == 0


def test_an_imported_sweep_cannot_be_resumed(home: Path, table: Path):
    command("import", str(table), "--sweep", "elsewhere")
    assert "was imported from table.csv; it cannot be continued" in refused("resume", "elsewhere")


def test_a_bad_table_is_one_message(home: Path, table: Path):
    table.write_text(table.read_text().replace("0.85", "85"))
    assert "accuracy=85.0 in row 5 must be a fraction in [0, 1]" in refused("import", str(table), "--sweep", "x")


def test_replay_compares_with_random_search_and_plain_tpe(home: Path, table: Path):
    command("import", str(table), "--sweep", "elsewhere")
    found = json_of("replay", "elsewhere", "--sampler", "qmc", "--sampler", "grid", "--seeds", "3")
    samplers = ["qmc", "grid", "shuffled-grid", "random", "tpe-unconstrained"]
    assert [row["sampler"] for row in found["results"]] == samplers
    assert found["table"] == {
        "configurations": 3,
        "trial_epochs": 6.0,
        "best_retention": pytest.approx(0.8 / 0.9),
        "lowest_asr": 0.01,
    }
    grid = found["results"][1]
    assert (grid["seeds"], grid["arrived"], grid["trial_epochs"]["median"]) == (1, 1, 4.0)
    code, stdout, _ = command("replay", "elsewhere", "--sampler", "random", "--seeds", "3")
    assert code == 0
    assert re.search(r"random +4 +[\d.]+ to [\d.]+ +67 % +3 of 3", stdout)


def test_replay_names_the_rules_and_the_start_up_that_were_in_use(home: Path, table: Path):
    """A grid is never pruned and has no start-up; the shuffled one is pruned; of three configurations of one parameter
    TPE draws one at random."""
    command("import", str(table), "--sweep", "elsewhere")
    words = ("replay", "elsewhere", "--sampler", "tpe", "--sampler", "grid", "--pruning", "default", "--seeds", "2")
    rows = {row["sampler"]: row for row in json_of(*words)["results"]}
    assert {name: row["pruning"] is not None for name, row in rows.items()} == {
        "tpe": True,
        "grid": False,
        "shuffled-grid": True,
        "random": False,
        "tpe-unconstrained": False,
    }
    assert {name: row["startup_trials"] for name, row in rows.items()} == {
        "tpe": 1,
        "grid": None,
        "shuffled-grid": None,
        "random": None,
        "tpe-unconstrained": 1,
    }
    stdout = command(*words)[1]
    assert re.search("^grid  ", stdout, re.MULTILINE)
    assert "grid + pruning" not in stdout.replace("shuffled-grid + pruning", "")


def test_audit_reports_what_was_lost_and_saved(home: Path, table: Path):
    command("import", str(table), "--sweep", "elsewhere")
    rules = json.dumps({"rules": [{"kind": "backdoor-stays", "after_epochs": 1}]})
    found = json_of("audit", "elsewhere", "--pruning", rules)
    assert (found["pruned"], found["would_have_been_feasible"], found["trial_epochs_saved"]) == (1, 0, 1.0)
    code, stdout, _ = command("audit", "elsewhere", "--pruning", rules)
    assert code == 0
    assert "1 of 3 trials would have been stopped early" in stdout


def test_a_pruned_sweeps_own_decisions_are_audited_once_its_stopped_trials_were_run_to_their_end(home: Path):
    rules = Pruning(rules=(BackdoorStays(after_epochs=1, share=0.7),))
    sweep = SWEEP.replace(search=SWEEP.search.replace(sampler="random", trials=8, pruning=rules))
    folder = fabricated.prepared_folder(home / "sweeps", sweep)
    fabricated.Player(fabricated.open_controller(folder, sweep)).play_all()
    before = command("audit", sweep.name)[1]
    assert "1 of 8 trials stopped early, 1 trial-epoch saved" in before
    assert f"`sweeplab rerun {sweep.name} --pruned` runs them to their end" in before
    assert "leave the flag out" in refused("audit", sweep.name, "--pruning", "{}")
    assert "give either" in refused("rerun", sweep.name)
    assert "give either" in refused("rerun", sweep.name, "0", "--pruned")
    assert "will run again as new trials" in command("rerun", sweep.name, "--pruned")[1]
    assert "not run to its end since" in command("rerun", sweep.name, "--pruned")[1]
    fabricated.Player(fabricated.open_controller(folder, sweep)).play_all()
    after = command("audit", sweep.name)[1]
    assert "is unknown: `sweeplab rerun" not in after
    assert "were run to their end since" in after
    found = json_of("audit", sweep.name)
    assert found["run_to_their_end"] == found["pruned"] > 0


def test_rules_that_are_no_rules_are_one_message(home: Path, table: Path):
    command("import", str(table), "--sweep", "elsewhere")
    assert "neither `default` nor JSON" in refused("audit", "elsewhere", "--pruning", "often")
    assert "known: backdoor-stays" in refused("audit", "elsewhere", "--pruning", '{"rules": [{"kind": "median"}]}')


def test_an_unknown_sampler_is_one_message(home: Path, table: Path):
    command("import", str(table), "--sweep", "elsewhere")
    assert "'cmaes' is unknown; known: tpe" in refused("replay", "elsewhere", "--sampler", "cmaes")


def test_the_leaderboard_groups_seeds(home: Path):
    sweep = SWEEP.replace(search=SWEEP.search.replace(seeds_per_configuration=2))
    fabricated.finished_sweep(home / "sweeps", sweep)
    groups = json_of("leaderboard", "made-up")["configurations"]
    assert [(group["seeds"], len(group["trials"])) for group in groups] == [([0, 1], 2)] * 3
    code, stdout, _ = command("leaderboard", "made-up", "--by", "configuration")
    assert code == 0
    assert "3 configurations, over their seeds" in stdout
    assert "--by='seed' is unknown; known: trial, configuration" in refused("leaderboard", "made-up", "--by", "seed")
    cut = command("leaderboard", "made-up", "--by", "configuration", "--limit", "2")[1]
    assert "made-up: the first 2 of 3 configurations, over their seeds" in cut


@pytest.mark.parametrize("limit", ["0", "-3"])
def test_a_leaderboard_has_one_row_at_least(limit: str, home: Path):
    assert "should be greater than or equal to 1" in refused("leaderboard", "made-up", "--limit", limit)


def test_where_there_is_nothing_to_show_one_line_says_so(home: Path, table: Path):
    nothing = f"no sweeps in {home}; `sweeplab run SCRIPT` runs those of a script\n"
    assert command("list") == (0, nothing, "")
    assert command("list", "--victims") == (0, f"no victims in {home}\n", "")
    assert json_of("list") == json_of("list", "--victims") == []
    command("import", str(table), "--sweep", "elsewhere")
    assert command("logs", "elsewhere") == (0, "no events: it was imported\n", "")
    fabricated.prepared_folder(home / "sweeps")
    assert command("logs", "made-up") == (0, "no events: no trial has begun yet\n", "")


def test_a_script_that_never_calls_main_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    (tmp_path / "idle.py").write_text("print('here')\n")
    assert "idle.py calls no `main`, so nothing was run" in refused("run", str(tmp_path / "idle.py"))


@pytest.mark.parametrize("words", [["logs", "made-up", "--follow"], ["report", "made-up", "--watch"]])
def test_ctrl_c_ends_what_only_watches_without_a_word(words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch):
    folder = fabricated.finished_sweep(home / "sweeps")

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps.time, "sleep", interrupt)
    with folder.lock():
        code, shown, said = command(*words)
    assert (code, said) == (0, "")
    assert shown.endswith("report.html\n" if "report" in words else "\n")
    assert "interrupted" not in shown


def test_status_and_page_show_pruned_trials(home: Path):
    sweep = SWEEP.replace(
        epochs=3, search=SWEEP.search.replace(pruning=Pruning(rules=(BackdoorStays(after_epochs=1, share=0.1),)))
    )
    controller = fabricated.open_controller(fabricated.prepared_folder(home / "sweeps", sweep), sweep)
    while (job := controller.next_job()) is not None:
        for made in fabricated.Player(controller, rates=lambda params, index: (90, 70)).points(job):
            controller.point(job.number, made, fabricated.outcomes(made.measurement))
            if controller.should_stop(job.number):
                break
        controller.finished(job.number)
    status = json_of("status", "made-up")
    assert (status["state"], status["trials"]["pruned"], status["trial_epochs"]) == ("finished", 6, 6)
    code, stdout, _ = command("report", "made-up")
    assert code == 0
    assert "6 pruned" in Path(stdout.strip()).read_text()


def test_report_opens_the_page(home: Path, table: Path, monkeypatch: pytest.MonkeyPatch):
    command("import", str(table), "--sweep", "elsewhere")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert command("report", "elsewhere", "--open")[0] == 0
    assert opened == [(home / "sweeps" / "elsewhere" / "report.html").as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    code, _, stderr = command("report", "elsewhere", "--open")
    assert code == 0
    assert "no browser was found" in stderr


def test_a_picture_needs_a_browser(home: Path, table: Path, monkeypatch: pytest.MonkeyPatch):
    command("import", str(table), "--sweep", "elsewhere")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "--png needs a browser, one of chromium" in refused("report", "elsewhere", "--png")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_picture_shows_the_whole_page(home: Path, table: Path):
    command("import", str(table), "--sweep", "elsewhere")
    code, stdout, _ = command("report", "elsewhere", "--png")
    assert code == 0
    with Image.open(stdout.split()[-1]) as picture:
        width, height = picture.size
        assert width == 1440
        assert 2_000 < height < 12_000


def test_a_watched_page_is_written_when_something_has_changed_until_the_sweep_ends(monkeypatch: pytest.MonkeyPatch):
    """Begun with one point; nothing new; a second point; the end."""
    one, two = (dataclasses.replace(TRIAL, points=POINTS[:count]) for count in (1, 2))
    looks = [
        dataclasses.replace(RECORD, state=state, trials=(trial,))
        for state, trial in (("running", one), ("running", one), ("running", two), ("finished", two))
    ]
    boards = iter([(look, rank_trials(look, lambda trial, index: None)) for look in looks[1:]])
    written: list[str] = []
    monkeypatch.setattr(sweeps, "ranked", lambda folder, keep_summary: next(boards))
    monkeypatch.setattr(sweeps, "write_page", lambda folder, record, board: written.append(record.state))
    assert list(sweeps.watched(SweepFolder(Path("toy")), looks[0], seconds=0)) == [1, 1]
    assert written == ["running", "finished"]


def test_a_number_is_the_same_to_the_last_digit_wherever_it_stands(home: Path, table: Path):
    made = json_of("import", str(table), "--sweep", "elsewhere")
    assert (made["trials"], made["points"], made["parameters"]) == (3, 6, ["rate"])
    best = json_of("leaderboard", "elsewhere")["trials"][0]
    kept, asr = percent(best["retention"]), percent(best["asr"])
    assert (kept, asr) == ("88.9 %", "1.0 %")
    assert kept.removesuffix(" %") in command("leaderboard", "elsewhere")[1]
    page = Path(command("report", "elsewhere")[1].strip()).read_text().replace("\u00a0", " ")
    lead = re.search(r'<p class="lead">(.*?)</p>', page)
    assert lead is not None
    assert f"keeps {kept}" in lead[1]
    assert f"at {asr} ASR" in lead[1]
    assert f"<dt>Best retention</dt><dd>{kept}</dd>" in page
    assert f"<strong>{kept.removesuffix(' %')}</strong>" in page


def test_sweeps_are_compared_in_a_table_and_a_page(home: Path, table: Path, tmp_path: Path):
    other = tmp_path / "other.csv"
    other.write_text(table.read_text().replace("2,0.8,0.01", "2,0.7,0.01"))
    for name, file in (("first", table), ("second", other)):
        assert command("import", str(file), "--sweep", name)[0] == 0
    code, stdout, _ = command("compare", "f*", "second", "--to", str(tmp_path / "page.html"))
    assert code == 0
    assert re.search(r"first +1 +2 +80\.0 +1\.0 +88\.9", stdout)
    assert str(tmp_path / "page.html") in stdout
    assert "accuracy against ASR" in (tmp_path / "page.html").read_text().replace("Accuracy", "accuracy")
    found = json_of("compare", "first", "second", "--by", "rate", "--marks", "line")
    assert found["by"] == "rate"
    assert [row["x"] for row in found["against"] if row["line"] == "second"] == [1e-4, 1e-3, 1e-2]
    assert not (home / "compare.html").exists()
    assert "named 'third'" in refused("compare", "first", "third")
    (tmp_path / "empty").mkdir()
    assert "empty holds no dynamics.csv" in refused("compare", "first", str(tmp_path / "empty"))
    assert "page.html is no table: its name ends in none" in refused("compare", str(tmp_path / "page.html"))
    assert refused("compare", "first", "--marks", "lines") == "--marks lines is unknown; known: points, frontier, line"


@pytest.mark.parametrize("words", [("compare", "nothing"), ("reproduce", "verma", "tab1")])
def test_a_page_that_cannot_be_written_is_refused_first(home: Path, tmp_path: Path, words: tuple[str, ...]):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()
    for name, why in (
        ("page.pdf", "must be a file that ends in .html"),
        ("folder.html", "is a folder; name a file in it"),
        ("file/page.html", "is no folder; name another place"),
        ("file/deeper/page.html", "is no folder; name another place"),
    ):
        assert refused(*words, "--to", str(tmp_path / name)).endswith(why)


def test_a_pattern_leaves_out_miniatures_and_other_searches_of_a_sweep_unless_it_names_them(home: Path, table: Path):
    """`ablation-random` is no other search: there is no sweep `ablation`. One setting of a miniature is one too."""
    single = "fig-5-smoke-single-4c4e6260"
    for name in ("fig-5", "fig-5-tpe", "fig-5-smoke", single, "fig-5-single-4c4e6260", "fig-10", "ablation-random"):
        assert command("import", str(table), "--sweep", name)[0] == 0

    def names(*patterns: str) -> list[str]:
        found = json_of("compare", *patterns)
        return [row["name"] for row in found["results"] if row["series"] != "victim"]

    assert names("fig-*") == ["fig-5", "fig-5-single-4c4e6260", "fig-10"]
    left_out = f"'fig-*' leaves out fig-5-smoke, {single}, fig-5-tpe: a pattern takes"
    assert json_of("compare", "fig-*")["notes"][0].startswith(left_out)
    assert "fig-* leaves out" in command("compare", "fig-*")[2].replace("'", "")
    assert names("fig-*-tpe", "fig-*-smoke") == ["fig-5-tpe", "fig-5-smoke"]
    assert names("fig-5-smoke") == ["fig-5-smoke"]
    assert names("fig-*-smoke*") == ["fig-5-smoke", single]
    assert names(single) == [single]
    assert names("ablation-*") == ["ablation-random"]
    alone = f"'*smok[e]*' fits fig-5-smoke, {single} alone: a pattern takes miniatures only if it says `-smoke`"
    assert refused("compare", "*smok[e]*").startswith(alone)
    for name in ("cold-smoke-1", "smoke-test-1", "smoke-test-1-smoke"):
        assert command("import", str(table), "--sweep", name)[0] == 0
    assert names("cold-*", "smoke-test-*") == ["cold-smoke-1", "smoke-test-1"]


def test_sweeps_that_were_measured_on_other_images_are_refused(home: Path):
    for name, images in (("first", "one"), ("second", "other")):
        sweep = SWEEP.replace(name=name)
        folder = fabricated.finished_sweep(home / "sweeps", sweep)
        folder.write_header(sweep, sweep.digest(), {"test": images}, fabricated.IMAGES)
    message = refused("compare", "first", "second")
    assert (
        "these do not compare, since they were measured on other test images:\n  first: one\n  second: other" in message
    )
    assert json_of("compare", "first")["results"][0]["series"] == "victim"


def test_tables_on_other_numbers_of_images_are_refused(home: Path, table: Path, tmp_path: Path):
    """The same rates of 1000 and of 100 images; without counts a note says that nothing is known."""
    for name, n in (("few", 100), ("many", 1000), ("more", 1000)):
        file = tmp_path / f"{name}.csv"
        rows = [f"0,{epoch},0.5,{rate},{n // 2},{n},{round(rate * n)},{n}" for epoch, rate in enumerate((0.9, 0.01))]
        file.write_text("\n".join(["trial,epoch,accuracy,asr,accuracy_k,accuracy_n,asr_k,asr_n", *rows]))
        command("import", str(file), "--sweep", name)
    command("import", str(table), "--sweep", "uncounted")
    assert "other numbers of test images:\n  few: 100\n  many: 1,000" in refused("compare", "few", "many")
    found = json_of("compare", "m*", "uncounted")
    groups = [row["group"] for row in found["results"] if row["series"] == "victim"]
    assert groups == ["victim of many", "victim of uncounted"]
    assert found["notes"] == ["uncounted: the table has no counts, so it may be measured on another number of images"]
    assert json_of("compare", "uncounted")["notes"] == []


def test_compared_trials_have_to_be_there_and_names_are_in_the_order_of_their_numbers(home: Path, table: Path):
    for name in ("s-10", "s-5", "s-0.5", "s-0.05"):
        command("import", str(table), "--sweep", name)
    assert refused("compare", "s-5", "--trial", "1", "--trial", "7") == (
        "--trial 7: no trial of that number has begun; known: 0 to 2"
    )
    found = json_of("compare", "s-*", "--trial", "2")
    assert {row["trial"] for row in found["panels"]} == {2}
    assert [row["name"] for row in found["results"]][1:] == ["s-0.05", "s-0.5", "s-5", "s-10"]


def test_tables_over_checkpoints_are_drawn_by_their_folder(home: Path, tmp_path: Path):
    """Their victim, whose fields tell them apart, is the one in whose folder the checkpoints lie."""
    victim = home / "victims" / "v-0"
    victim.mkdir(parents=True)
    (victim / "victim.json").write_text(json.dumps({"spec": {"name": "v", "poisoning": {"rate": 0.1}}}))
    (tmp_path / "scores").mkdir()
    head, checkpoint = "epoch,checkpoint,clean_score,poisoned_score,recall_highest@0.1", victim / "checkpoints" / "1.pt"
    rows = f"1,{checkpoint},0.2,0.1,0.3\n2,{checkpoint},0.3,0.5,0.8\n"
    (tmp_path / "scores" / "dynamics.csv").write_text(f"{head}\n{rows}")
    found = json_of("compare", str(tmp_path / "scores"), "--by", "rate")
    assert [(row["series"], row["value"]) for row in found["results"]] == [("rate 0.1", 80.0)]
    lines = [(row["line"], row["part"], row["x"], row["value"]) for row in found["training"]]
    assert ("scores", "poisoned", 2.0, 0.5) in lines
    (tmp_path / "scores" / "dynamics.csv").write_text("checkpoint\n1\n")
    assert "has no column epoch" in refused("compare", str(tmp_path / "scores"))
