"""Victims that a script runs for their own sake: trained, resumed, planned, listed; and families of specs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_cli import command, one_message

from sweeplab import cli
from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.poisoning import Poisoning, PoisonPlan
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.cli import running
from sweeplab.clip_model import SmallCLIP
from sweeplab.data.fruit_stall import CLASS_NAMES, ZERO_SHOT_TEMPLATES, FruitStall, FruitStallTest
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.sampling import Sample
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import (
    CleaningSweep,
    CleanSample,
    ClosestTo,
    PretrainedVictim,
    family,
    measured_alone,
    smoke_victim,
)
from sweeplab.pretraining.abl import ABL
from sweeplab.pretraining.contrastive import MMCL, MMCLWithSSL
from sweeplab.ranking.victims import read_victim, victims_of
from sweeplab.search_space import Choice, Grid, SearchSpace
from sweeplab.specs import InvalidInput
from sweeplab.storage.locks import victim_work
from sweeplab.sweep import pretraining
from sweeplab.training.optimisation import Optimization

VICTIM = PretrainedVictim(
    name="alone",
    architecture=SmallCLIP(image_size=32).architecture(),
    data=FruitStall(num_pairs=64, image_size=32),
    poisoning=Poisoning(attack=BadNet(patch_size=4), target="banana", count=8),
    objective=ABL(detect_at=2, num_flagged=16),
    optimization=Optimization(learning_rate=1e-3, global_batch_size=32, warmup_steps=1),
    epochs=2,
    evaluation=Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES),
)
ROOT = Path(__file__).parents[1]
RunScript = Callable[..., int]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Of two victims, of which one stands in no tuple."""
    path = tmp_path / "alone.py"
    path.write_text(
        "from sweeplab.cli import main\nfrom sweeplab.experiment import PretrainedVictim\n"
        f"VICTIM = PretrainedVictim.model_validate_json({VICTIM.model_dump_json()!r})\n"
        "if __name__ == '__main__':\n    main(VICTIM, VICTIM.replace(name='other'))\n"
    )
    return path


def test_a_victim_alone_is_trained_tabled_and_found_again(
    script: Path, run_script: RunScript, own_home: Path, capsys: pytest.CaptureFixture[str]
):
    """Sixteen of 64 pairs are flagged in epoch 2; how many of the eight poisons are among them says the table."""
    assert run_script(["--inline"], VICTIM) == 0
    shown = capsys.readouterr().out
    assert [folder.name for folder in (own_home / "victims").glob("[!.]*")] == [
        f"alone-{read_rows(own_home)[0].digest}"
    ]
    row = read_rows(own_home)[0]
    assert (row.state, row.epoch, row.trained_epochs, row.measures) == ("finished", 2.0, 2.0, "ASR")
    weights = next((row.folder / "checkpoints").glob("*.pt"))
    flagged = torch.load(weights)["state"]["flagged"]
    poisons = json.loads((row.folder / "poison.json").read_text())["indices"]
    assert row.found == {"flagged_pairs": 16.0, "flagged_poisons": float(flagged[poisons].sum())}
    assert f"{row.found['flagged_poisons']:.0f} poisons among 16 flagged pairs" in " ".join(shown.split())
    # The same command goes on: there is nothing to train, and the table is the same.
    assert run_script(["--inline", "--resume"], VICTIM) == 0
    again = capsys.readouterr().out
    assert "victim alone is there already" in again
    assert shown.splitlines()[-3:] == again.splitlines()[-3:]
    code, out, _ = command("compare", "al*", "--json")
    (training,) = {item["line"] for item in json.loads(out)["training"]}
    flagged = [item for item in json.loads(out)["training"] if item["quantity"] == "flagged poisons"]
    assert (code, training, flagged[-1]["value"]) == (0, "alone", row.found["flagged_poisons"])
    assert run_script(["--plan"], VICTIM) == 0
    assert "victim alone: is there and is reused" in capsys.readouterr().out
    assert "a victim that no sweep names" not in command("gc", "--victims", "--dry-run")[1]
    # Other commands know it by its name and by its folder's, and commands on a sweep take it from its script.
    code, listed, _ = command("list", "--victims", "--json")
    assert (code, json.loads(listed)) == (0, [row.to_json()])
    assert command("list")[1] == "no sweeps; 1 victim: sweeplab list --victims\n"
    assert json.loads(command("status", row.folder.name, "--json")[1]) == [row.to_json()]
    assert "finished" in command("status", "alone")[1]
    code, measured, _ = command("evaluate", str(weights), "--script", str(script), "--only", "alone", "--json")
    assert json.loads(measured)["counts"] == row.to_json()["counts"]


def test_the_training_of_a_victim_is_stopped_by_its_name(
    run_script: RunScript, own_home: Path, capsys: pytest.CaptureFixture[str]
):
    """Whoever supervises its command learns of it, and the next start forgets it."""
    assert run_script(["--inline"], VICTIM) == 0
    capsys.readouterr()
    trained = read_rows(own_home)[0].folder
    code, stdout, _ = command("stop", "alone")
    assert (code, stdout) == (0, f"victim {trained.name!r} is not running; nothing to stop\n")
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(trained)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert read_victim(trained).state == "running"
    code, stdout, stderr = command("stop", "alone")
    assert code == 0, stderr
    assert f"victim {trained.name!r} stopped; everything so far is kept, and the same command goes on" in stdout
    assert process.wait(timeout=60) == 75
    assert running._stop_marks(own_home, [VICTIM]) == [victim_work(trained).stop_mark]
    with victim_work(trained).held_by_this_process():  # the next start
        assert running._stop_marks(own_home, [VICTIM]) == []


TRAINER = """
import signal, sys, time
from pathlib import Path
from sweeplab.storage.locks import exclusively, victim_work
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
folder = Path(sys.argv[1])
with exclusively(folder, "it"), victim_work(folder).held_by_this_process():
    print("ready", flush=True)
    time.sleep(600)
"""


def read_rows(home: Path) -> list:
    rows, damaged = victims_of(home)
    assert not damaged
    return rows


def test_of_damaged_victims_the_list_says_what_is_wrong(own_home: Path):
    (own_home / "victims" / "v-1").mkdir(parents=True)
    (own_home / "victims" / "v-1" / "victim.json").write_text('{"spec": {"name": "v"}, "digest": "1"}')
    with pytest.raises(InvalidInput, match=r"victim\.json is damaged"):
        read_victim(own_home / "victims" / "v-1")
    code, _, stderr = command("list", "--victims")
    assert (code, stderr.startswith("note: v-1 is left out: ")) == (0, True)


def test_targeted_victims_are_measured_by_psr(own_home: Path):
    folder = own_home / "victims" / "tdpa-1"
    folder.mkdir(parents=True)
    poisoning = TargetedImages(images=FruitStall(num_pairs=64, seed=7), classes=CLASS_NAMES)
    record = {"spec": VICTIM.replace(name="tdpa", poisoning=poisoning).to_json(), "digest": "1"}
    (folder / "victim.json").write_text(json.dumps(record))
    row = read_victim(folder)
    assert (row.measures, row.state, row.measurement, row.trained_epochs) == ("PSR", "interrupted", None, 0.0)
    shown = command("status", "tdpa")[1].splitlines()[1].split()
    assert shown == ["tdpa", "interrupted", "–", "–", "(PSR)", "0", "of", "2"]


@pytest.mark.parametrize("flags", [["--dry-run"], ["--dry-run", "--smoke"]])
def test_a_victims_plan_needs_neither_data_nor_home(
    flags: list[str], run_script: RunScript, own_home: Path, capsys: pytest.CaptureFixture[str]
):
    victim = VICTIM.replace(data=PairsCSV(path=Path("nowhere.csv"), num_pairs=1000), select=1)
    assert run_script(flags, victim) == 0
    shown = capsys.readouterr().out
    steps = {1: "31", 2: "160"}[len(flags)]  # 1000 // 32 in one epoch; 1280 // 32 in four
    assert f"  steps             {steps}\n" in shown
    assert not own_home.exists()


def test_what_a_victim_lacks_is_named_by_the_field_that_an_override_has(
    run_script: RunScript, own_home: Path, capsys: pytest.CaptureFixture[str]
):
    code = run_script(["--inline"], VICTIM.replace(data=PairsCSV(path=Path("nowhere.csv"))))
    message = one_message(code, capsys.readouterr().err)
    assert "nowhere.csv: a CSV file" in message
    assert "field `victim.data.path` of alone" in message


def test_a_victim_that_is_not_there_is_not_resumed(
    run_script: RunScript, own_home: Path, capsys: pytest.CaptureFixture[str]
):
    code = run_script(["--inline", "--resume"], VICTIM)
    assert one_message(code, capsys.readouterr().err).startswith("--resume: there is no victim ")


def test_overrides_name_a_victims_fields_as_those_of_a_sweeps_victim(sweep: CleaningSweep):
    words = ["victim.seed=3", "epochs=1"]
    mixed = [sweep.replace(victim=VICTIM), VICTIM]
    of_sweep, alone = cli.scripts.resolve_all(mixed, words, "grid", False)
    assert isinstance(of_sweep, CleaningSweep)
    assert isinstance(alone, PretrainedVictim)
    assert (of_sweep.epochs, of_sweep.victim.seed, of_sweep.search.sampler) == (1, 3, "grid")
    assert alone == VICTIM.replace(seed=3)
    with pytest.raises(InvalidInput, match="override 'epochs=1': alone is a victim, whose fields are written victim"):
        cli.scripts.resolve_all([VICTIM], words, None, False)


def test_only_takes_patterns(sweep: CleaningSweep):
    found = [sweep.replace(name=name) for name in ("fig6-m-5", "fig6-m-10", "fig6-s-5")] + [VICTIM]
    assert [e.name for e in cli.select(found, ["fig6-m-*", "alone"])] == ["fig6-m-5", "fig6-m-10", "alone"]
    assert cli.select(found, []) == found
    with pytest.raises(InvalidInput, match=r"--only fig7-\*: the script has no such"):
        cli.select(found, ["fig6-*", "fig7-*"])


def test_a_scripts_experiments_are_what_its_tuple_or_main_names(script: Path, tmp_path: Path):
    assert [found.name for found in cli.load_script(script)] == ["alone", "other"]
    named = tmp_path / "named.py"
    named.write_text(script.read_text() + "EXPERIMENTS = (VICTIM.replace(name='one'),)\n")
    assert [found.name for found in cli.load_script(named)] == ["one"]


def test_a_victim_alone_cannot_be_cleaned(script: Path):
    code, _, stderr = command("clean", str(script), "--only", "alone", "--inline")
    assert "runs a victim alone, and names nothing to clean it with" in one_message(code, stderr)


def test_a_victim_measured_alone_is_the_same_victim():
    sweep = measured_alone(VICTIM)
    assert sweep.victim is VICTIM
    assert (sweep.num_trials(), sweep.epochs) == (1, 0)
    assert CleaningSweep.model_validate(sweep.to_json()) == sweep


def test_a_miniature_selects_among_miniatures():
    """A victim that is as accurate as another one would else train the other one whole."""
    big = VICTIM.replace(data=PairsCSV(path=Path("nowhere.csv")), epochs=64, keep_epochs="all")
    small = smoke_victim(big.replace(name="follower", select=ClosestTo(victim=big)))
    assert small.reference() == smoke_victim(big)
    assert (small.epochs, small.keep_epochs, small.name) == (4, "all", "follower-smoke")


def test_a_victim_that_selects_another_is_the_one_that_is_trained_alone():
    """How captions are augmented is part of its identity: two answers would train it twice."""
    first = VICTIM.replace(name="first", objective=MMCLWithSSL())
    following = VICTIM.replace(name="following", select=ClosestTo(victim=first))
    follows, alone = (measured_alone(victim).with_text_augmentation_resolved().victim for victim in (following, first))
    assert isinstance(follows, PretrainedVictim)
    assert follows.reference() == alone


# --- families


@pytest.fixture
def base(sweep: CleaningSweep) -> CleaningSweep:
    return sweep.replace(name="verma-fig6-m", victim=VICTIM, data=CleanSample(num_pairs=40))


def test_a_family_of_sweeps_is_what_one_writes_by_hand(base: CleaningSweep):
    made = family(base, "data.num_poisons", (5, 10, 25))
    by_hand = [
        base.replace(name=f"verma-fig6-m-{count}", data=CleanSample(num_pairs=40, num_poisons=count))
        for count in (5, 10, 25)
    ]
    assert list(made) == by_hand
    assert [sweep.digest() for sweep in made] == [sweep.digest() for sweep in by_hand]
    assert len({sweep.digest() for sweep in made}) == 3


def test_a_family_over_epochs_of_a_sweep_keeps_the_victims_name(base: CleaningSweep):
    fifty, hundred = family(base.replace(name="verma-fig14"), "epochs", (50, 100))
    assert (fifty.name, fifty.epochs, hundred.name, hundred.epochs) == ("verma-fig14-50", 50, "verma-fig14-100", 100)
    assert fifty.victim == hundred.victim == base.victim


def test_a_family_within_a_victim_gives_each_victim_a_name_too(base: CleaningSweep):
    """Else two folders of victims would differ by their digest alone."""
    low, high = family(base, "victim.poisoning.count", (1, 2))
    assert (low.name, low.victim.name, high.victim.name) == ("verma-fig6-m-1", "alone-1", "alone-2")
    by_hand = VICTIM.replace(name="alone-2", poisoning=VICTIM.poisoning.replace(count=2))
    assert high.victim == by_hand
    assert high.digest() == base.replace(victim=by_hand).digest()


def test_a_family_over_victims_takes_their_names(base: CleaningSweep):
    others = tuple(VICTIM.replace(name=name, seed=seed) for seed, name in enumerate(("badnet", "blended")))
    assert [(s.name, s.victim) for s in family(base, "victim", others)] == [
        ("verma-fig6-m-badnet", others[0]),
        ("verma-fig6-m-blended", others[1]),
    ]


def test_a_family_of_victims(base: CleaningSweep):
    rates = family(
        VICTIM.replace(poisoning=VICTIM.poisoning.replace(count=None, rate=0.1)), "poisoning.rate", (1e-4, 0.5)
    )
    assert [(v.name, v.poisoning.rate) for v in rates] == [("alone-0.0001", 1e-4), ("alone-0.5", 0.5)]


def test_values_without_a_name_are_given_by_words():
    with pytest.raises(InvalidInput, match="makes no name; give the values by the words"):
        family(VICTIM, "data.sample", (Sample(num=8), None))
    part, whole = family(VICTIM, "objective", {"plain": MMCL(), "abl": ABL(detect_at=1)})
    assert (part.name, part.objective, whole.name) == ("alone-plain", MMCL(), "alone-abl")


def test_a_family_of_equal_names_or_of_an_unknown_field_is_refused():
    with pytest.raises(InvalidInput, match="give names that are the same"):
        family(VICTIM, "seed", (1, 1))
    with pytest.raises(InvalidInput, match=r"^family over 'data.speed': unknown field 'speed'; known: "):
        family(VICTIM, "data.speed", (1, 2))


def test_a_family_without_members_or_without_names_is_refused(base: CleaningSweep):
    with pytest.raises(InvalidInput, match=r"^family over 'epochs': an empty word makes no name; give each value one"):
        family(VICTIM, "epochs", {"": 1, "two": 2})
    for spec, field in ((VICTIM, "name"), (base, "victim.name")):
        with pytest.raises(InvalidInput, match=rf"^family over '{field}': a family names its members itself"):
            family(spec, field, ("one", "other"))


@pytest.mark.parametrize("values", [5, "adam", (), {}])
def test_a_family_over_one_value_is_refused(values: object):
    with pytest.raises(InvalidInput, match=r"^family over 'epochs': values=.* must be a sequence"):
        family(VICTIM, "epochs", values)  # type: ignore[arg-type]


def test_a_family_over_what_every_trial_has_from_the_search_is_refused(base: CleaningSweep):
    """Else two names would run the same search; a dimension under a condition leaves trials with the sweep's own."""
    weight = Choice(values=(2.0, 4.0))
    searched = base.replace(space=SearchSpace(dimensions={"ssl_weight": weight}, source="made up"))
    with pytest.raises(InvalidInput, match=r"sets ssl_weight in every trial, .* \(1.0, 8.0\); fix ssl_weight"):
        family(searched, "method.ssl_weight", (1.0, 8.0))
    with pytest.raises(InvalidInput, match="the search sets ssl_weight"):
        family(searched.with_grid(Grid(axes={"ssl_weight": (2.0,)}, source="")), "method.ssl_weight", (1.0, 8.0))
    conditional = {"mmcl_weight": Choice(values=(0.5, 1.0)), "ssl_weight": weight.replace(when={"mmcl_weight": 1.0})}
    other = searched.replace(space=SearchSpace(dimensions=conditional, source="made up"))
    for sweep in (other, searched.with_grid(Grid(axes={"mmcl_weight": (1.0,)}, source=""))):
        made = family(sweep, "method.ssl_weight", (1.0, 8.0))
        assert [member.method.ssl_weight for member in made] == [1.0, 8.0]


@pytest.mark.parametrize(
    ("count", "num_pairs", "words"),
    [(64, 1280, "64 of 1,280 pairs poisoned (5 %)"), (1500, 2_880_000, "1,500 of 2,880,000 pairs poisoned (0.052 %)")],
)
def test_the_poison_of_a_victim_is_told_as_papers_write_it(count: int, num_pairs: int, words: str):
    """1,500 / 2,880,000 = 0.0520833 %."""
    plan = PoisonPlan(BadNet(), "banana", tuple(range(count)), ("",) * count, 0, num_pairs, "")
    assert pretraining._poison_text(plan) == f"{words} towards {plan.aim}"
