"""Every command that a page or a command of the terminal prints is taken by the program, whatever the sweep."""

import html
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricated import SWEEP, Player, open_controller, prepared_folder
from typer.testing import CliRunner

from sweeplab import cli
from sweeplab.cleaning import METHODS
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.cli.running import ranked, write_page
from sweeplab.cli.scripts import load_script
from sweeplab.data.fruit_stall import FruitStallTest
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.experiment import CleaningSweep, smoke_sweep
from sweeplab.records import OWN_CLASSIFIER
from sweeplab.search_space import Grid
from sweeplab.specs import InvalidInput, digest_of
from sweeplab.storage.ownership import home_key, write_signed
from sweeplab.sweep.resume import set_aside
from sweeplab.sweep_folder import SweepFolder
from sweeplab.training.objective import has_classifier


class Taken(BaseException):
    """A command's words were taken: the work for them would begin. Nothing in between catches it."""


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the commands would have begun with; nothing is run, measured or served."""
    found: list[Any] = []

    def begin(what: Any = None, *others: Any, **named: Any) -> None:
        found.append(what)
        raise Taken

    for place in (
        "sweeplab.cli.scripts.start",
        "sweeplab.cli.sweeps.start_one",
        "sweeplab.cli.models.start_one",
        "sweeplab.sweep.run.run_victim",
        "sweeplab.commands.evaluate.evaluate_checkpoint",
        "sweeplab.commands.promote._files_beside",
        "sweeplab.commands.gallery.make_gallery",
        "sweeplab.cli.sweeps.serve",
    ):
        monkeypatch.setattr(place, begin)
    return found


class OwnMethod(CleanCLIP):
    """A class that a script defines."""


def played(home: Path, sweep: CleaningSweep = SWEEP, *, asr_k: int = 1, is_interrupted: bool = False) -> SweepFolder:
    """A sweep whose trials are all alike, with so many hits of 80 after their first epoch."""
    folder = prepared_folder(home / "sweeps", sweep)
    player = Player(open_controller(folder, sweep), rates=lambda params, index: (90 - index, asr_k if index else 79))
    if not is_interrupted:
        player.play_all()
        return folder
    for num_points in (None, 2):
        job = player.controller.next_job()
        assert job is not None
        player.play(job, num_points=num_points)
    return folder


def from_elsewhere(home: Path) -> SweepFolder:
    home.mkdir()
    home_key(home)
    folder = played(home.with_name("another"))
    shutil.copytree(folder.path, home / "sweeps" / folder.name)
    return SweepFolder(home / "sweeps" / folder.name)


def of_older_version(home: Path, sweep: CleaningSweep = SWEEP) -> SweepFolder:
    """Of before CleanCLIP's views were drawn as they are."""
    folder = played(home, sweep)
    older = {"changes": {}, "environment": {"sweeplab": "0.0.9"}}
    write_signed(folder.path / "sweep.json", {**folder.header(), **older}, home)
    return folder


def refused_now(home: Path, sweep: CleaningSweep = SWEEP) -> SweepFolder:
    folder = of_older_version(home, sweep)
    header = folder.header()
    write_signed(folder.path / "sweep.json", {**header, "spec": {**header["spec"], "seed": -1}}, home)
    return folder


def table(home: Path) -> SweepFolder:
    home.mkdir()
    (home / "table.csv").write_text("trial,epoch,accuracy,asr,rate\n0,0,0.9,0.9,1\n0,1,0.8,0.01,1\n")
    assert CliRunner().invoke(cli.app, ["import", str(home / "table.csv"), "--sweep", "table"]).exit_code == 0
    return SweepFolder(home / "sweeps" / "table")


def finished(**changes: Any) -> Callable[[Path], SweepFolder]:
    return lambda home: played(home, SWEEP.replace(**changes))


LABELLED = {
    "method": SupervisedFinetuning(),
    "data": LabelledPairs(images=FruitStallTest(num_images=48, image_size=32, seed=2), per_class=2),
    "space": SWEEP.grid.as_space().replace(dimensions={"learning_rate": SWEEP.space.dimensions["learning_rate"]}),
    "grid": None,
}
ONE = Grid(axes={"learning_rate": (0.012345678901234567,)}, source="given on the command line")

KINDS: dict[str, Callable[[Path], SweepFolder]] = {
    "plain": finished(),
    "renamed": finished(name="of.another_name-" + "n" * 64),
    "a miniature": lambda home: played(home, smoke_sweep(SWEEP)),
    "with seeds": finished(name="made-up-seeds", search=SWEEP.search.replace(seeds_per_configuration=3)),
    "trials that no three seeds divide": finished(search=SWEEP.search.replace(trials=4)),
    "a grid": finished(search=SWEEP.search.replace(sampler="grid")),
    "a single setting": finished(name="made-up-single-4c4e6260", grid=ONE, search=SWEEP.search.replace(sampler="grid")),
    "nothing cleaned": lambda home: played(home, asr_k=40),
    "interrupted": lambda home: played(home, is_interrupted=True),
    "a method of its script's": finished(method=OwnMethod()),
    "a classifier of its own": finished(**LABELLED),
    "set aside": lambda home: SweepFolder(set_aside(finished()(home))),
    "from elsewhere": from_elsewhere,
    "of an older version": of_older_version,
    "refused by this version": refused_now,
    "a miniature that this version refuses": lambda home: refused_now(home, smoke_sweep(SWEEP)),
    "a table": table,
}


ALWAYS = {"leaderboard", "audit"}
VERBS = {
    "plain": {"resume", "run", "clean", "evaluate", "promote", "report"},
    "a miniature": {"resume", "run", "clean", "evaluate", "promote", "report", "pretrain"},
    "interrupted": {"resume", "run", "clean", "evaluate", "promote", "report"},
    "nothing cleaned": {"resume", "run", "report"},
    "a classifier of its own": {"resume", "run", "clean"},
    "set aside": {"run", "clean", "evaluate", "promote", "report"},
    "of an older version": {"run", "clean", "evaluate", "promote", "report"},
    "from elsewhere": {"evaluate", "promote"},
    "a method of its script's": set(),
    "refused by this version": set(),
    "a miniature that this version refuses": set(),
    "a table": set(),
}
"""Of some kinds, the commands that are printed beside those."""


def printed(folder: SweepFolder) -> list[str]:
    """The commands on a sweep's page, and those that `status`, `list` and `leaderboard` print."""
    page = write_page(folder, *ranked(folder)).read_text()
    page = html.unescape(re.sub(r"<span[^>]*>|</span>", "", re.sub("(?s)<(script|style).*?</\\1>", "", page)))
    found = re.findall("<code>((?:sweeplab|python) .*?)</code>", page)
    for words in (["status", folder.name], ["list"], ["leaderboard", folder.name]):
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0, result.output
        found += re.findall(r"(?m)^ *(?:next: )?(sweeplab .*)$|`((?:sweeplab|python) [^`]*)`", result.stdout)
    return list(dict.fromkeys(one if isinstance(one, str) else "".join(one) for one in found))


def run(text: str) -> tuple[int | str, str]:
    """Exit code and output of a command as a shell would read it, or that its work would have begun."""
    program, *words = shlex.split(text)
    assert program == "sweeplab"
    try:
        result = CliRunner().invoke(cli.app, words)
    except Taken:
        return "begun", ""
    return result.exit_code, result.output


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("undrawn")
def test_every_printed_command_is_taken(
    kind: str, begun: list[Any], own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """From any folder, of a sweep whose script lies in one with a blank in its name. What is begun under another name
    is not there yet."""
    monkeypatch.setattr("sys.argv", ["/my sweeps/made up.py"])
    found = printed(KINDS[kind](own_home))
    assert kind not in VERBS or {text.split()[1] for text in found} - {"mlflow"} - ALWAYS == VERBS[kind]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [text for text in found if "SCRIPT" in text or "..." in text] == []
    for text in found:
        begun.clear()
        code, output = run(text)
        assert code in (0, "begun"), f"{text}\n{output}"
        verb = text.split()[1]
        sweeps = begun[0] if verb == "run" and begun else begun
        for sweep in (one for one in sweeps if isinstance(one, CleaningSweep)):
            assert SweepFolder(own_home / "sweeps" / sweep.name).exists() == (verb == "resume"), text


def test_a_method_classifies_by_a_layer_of_its_own_where_the_record_says_so():
    assert {method.model_fields["kind"].default for method in METHODS if has_classifier(method)} == set(OWN_CLASSIFIER)


# --- what the commands take


def test_a_setting_is_taken_from_a_trial_to_the_last_digit(own_home: Path, begun: list[Any]):
    """Its configuration is the trial's; three seeds of it are three trials, though the sweep has four."""
    folder = finished(search=SWEEP.search.replace(trials=4))(own_home)
    assert run("sweeplab clean made-up setting=made-up/2 search.seeds_per_configuration=3")[0] == "begun"
    (single,) = begun
    params, trial = single.grid.points()[0], folder.trial_header(2)
    assert params == trial["params"]
    assert digest_of(single.setting(params).canonical()) == trial["configuration"]
    assert (single.num_trials(), single.search.sampler) == (3, "grid")
    assert re.fullmatch("made-up-single-[0-9a-f]{8}", single.name)


def test_a_parameter_beside_a_setting_counts_where_it_comes_later(own_home: Path, begun: list[Any]):
    folder = finished()(own_home)
    assert run("sweeplab clean made-up setting=made-up/1 ssl_weight=0.5")[0] == "begun"
    rate = folder.trial_header(1)["params"]["learning_rate"]
    assert begun[0].grid.points() == ({"learning_rate": rate, "ssl_weight": 0.5},)


def test_nothing_is_drawn_for_one_setting(own_home: Path, begun: list[Any]):
    finished()(own_home)
    code, output = run("sweeplab clean made-up setting=made-up/1 search.sampler=random")
    assert code == 2
    assert "search.sampler=random draws settings, and `clean` runs one; leave it out" in output.replace("\n", " ")
    assert run("sweeplab clean made-up setting=made-up/1 search.sampler=grid")[0] == "begun"


def test_a_trial_of_a_table_is_a_setting_too(own_home: Path, begun: list[Any]):
    finished()(own_home)
    (own_home / "table.csv").write_text(
        "trial,epoch,accuracy,asr,learning_rate,ssl_weight\n7,0,0.9,0.9,0.1,\n7,1,0.8,0.01,0.1,\n8,0,0.9,0.9,0.2,1\n"
    )
    assert CliRunner().invoke(cli.app, ["import", str(own_home / "table.csv"), "--sweep", "table"]).exit_code == 0
    assert run("sweeplab clean made-up setting=table/7")[0] == "begun"
    assert begun[0].grid.points() == ({"learning_rate": 0.1},)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("made-up/6", "setting=made-up/6: sweep 'made-up' has no trial '6'; it has 0 to 5"),
        ("made-up/x", "has no trial 'x'"),
        ("other/1", "no sweep named 'other'"),
        ("3", "setting=3 is not of the form setting=SWEEP/TRIAL"),
        ("../x/1", "is no sweep's name"),
    ],
)
def test_a_setting_that_is_not_there_is_refused(setting: str, why: str, own_home: Path):
    finished()(own_home)
    code, output = run(f"sweeplab clean made-up setting={setting}")
    assert code == 2
    assert why in output


def test_a_sweep_of_the_home_stands_for_its_script(own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """As it was run, whatever the script has become; a file of that name comes first."""
    sweep = SWEEP.replace(name="other", epochs=3)
    played(own_home, sweep)
    monkeypatch.chdir(tmp_path)
    assert load_script(Path("other")) == (sweep,)
    assert "--dry-run" in CliRunner().invoke(cli.app, ["run", "other", "--help"]).output
    result = CliRunner().invoke(cli.app, ["run", "other", "--dry-run", "epochs=5"])
    assert result.exit_code == 0
    assert result.stdout.startswith("other\n  trials            6, 5 epochs each")
    Path("other").write_text("import fabricated\n\nSWEEP = fabricated.SWEEP\n")
    assert load_script(Path("other")) == (SWEEP,)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("a table", "sweep 'table' was imported from table.csv"),
        ("a method of its script's", "uses OwnMethod, which its script defines"),
        ("from elsewhere", "give its script, or run `sweeplab resume made-up --adopt` first$"),
    ],
)
def test_a_record_that_does_not_say_all_stands_for_no_script(kind: str, why: str, own_home: Path):
    folder = KINDS[kind](own_home)
    with pytest.raises(InvalidInput, match=why):
        load_script(Path(folder.name))
