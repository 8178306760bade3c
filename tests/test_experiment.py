"""An experiment as a value: what is refused before anything starts, digests, overrides, the smoke version."""

import json
import runpy
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn

from searchspaces import cleanclip
from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.blended import Blended
from sweeplab.attacks.poisoning import PLURALS_CHANGE, Poisoning, plurals_with_another_stem
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.par import PAR
from sweeplab.cleaning.start import Start
from sweeplab.clip_model import Architecture, SmallCLIP
from sweeplab.data.augmentation import SimCLRView
from sweeplab.data.eda import CHANGE as CAPTIONS_CHANGE
from sweeplab.data.fruit_stall import FruitStall
from sweeplab.data.pairs import PairsCSV
from sweeplab.experiment import (
    CheckpointVictim,
    CleaningSweep,
    CleanSample,
    PretrainedVictim,
    Resources,
    Search,
    SelectedTrial,
    apply_overrides,
    smoke_sweep,
)
from sweeplab.pretraining.contrastive import MMCL, MMCLWithSSL
from sweeplab.pretraining.roclip import RoCLIP
from sweeplab.pretraining.safeclip import SafeCLIP
from sweeplab.search_space import Choice, Grid, SearchSpace, Uniform
from sweeplab.specs import InvalidInput, Spec, changes_of
from sweeplab.training.objective import EmbeddedBatch, Loss
from sweeplab.training.optimisation import Optimization

SCRIPT = Path(__file__).parents[1] / "sweeps" / "quickstart.py"


@pytest.fixture(scope="module")
def sweep() -> CleaningSweep:
    """The quickstart's sweep, whose script starts nothing under another name than __main__."""
    return runpy.run_path(str(SCRIPT), run_name="quickstart")["SWEEP"]


@pytest.fixture(scope="module")
def victim(sweep: CleaningSweep) -> PretrainedVictim:
    return sweep.victim


CHECKPOINT = CheckpointVictim(
    name="given",
    path=Path("victim.pt"),
    architecture=SmallCLIP().architecture(),
    attack=Blended(),
    target="banana",
)


class OwnMethod(Spec):
    """A method defined in a user's script, with a field that the optimization has too."""

    kind: Literal["own"] = "own"
    learning_rate: float = 1.0
    strength: float = 1.0

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        return Loss(self.strength * batch.images.sum(), {})


def space_of(name: str) -> SearchSpace:
    return SearchSpace(dimensions={name: Uniform(low=0.1, high=1.0)}, source="made for these tests")


# --- what has changed since the first release ------------------------------------------------------------------------

BY_SSL_WEIGHT = SearchSpace(dimensions={"ssl_weight": Uniform(low=0.0, high=4.0)}, source="made for these tests")
NO_SSL = Grid(axes={"ssl_weight": (0.0,), "learning_rate": (1e-3, 1e-2)}, source="made for these tests")


@pytest.mark.parametrize(
    ("fields", "augments"),
    [
        ({}, True),
        ({"epochs": 0}, False),
        ({"method": CleanCLIP(ssl_weight=0.0), "space": space_of("learning_rate")}, False),
        ({"method": CleanCLIP(ssl_weight=0.0), "space": BY_SSL_WEIGHT}, True),
        ({"grid": NO_SSL, "search": Search(sampler="grid")}, False),
        ({"method": PAR(), "space": space_of("tau")}, False),
        ({"method": RoCLIP(), "space": space_of("learning_rate")}, False),
        ({"method": RoCLIP(augmentation=SimCLRView()), "space": space_of("learning_rate")}, True),
    ],
    ids=["views", "a start alone", "no views", "views by search", "no views by grid", "par", "roclip", "roclip+aug"],
)
def test_new_swaps_touch_the_sweeps_that_augment_captions_alone(
    fields: dict[str, object], augments: bool, sweep: CleaningSweep, monkeypatch: pytest.MonkeyPatch
):
    """The quickstart's victim augments none."""
    changed = sweep.replace(grid=None).replace(**fields)
    digest = changed.digest()
    assert changes_of(changed) == ({"CleaningSweep": (CAPTIONS_CHANGE,)} if augments else {})
    monkeypatch.setattr(CleaningSweep, "CHANGES", ())
    assert (changed.digest() != digest) is augments


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({}, ()),
        ({"objective": MMCLWithSSL()}, (CAPTIONS_CHANGE,)),
        ({"objective": SafeCLIP()}, (CAPTIONS_CHANGE,)),
        ({"poisoning": Poisoning(attack=Blended(), target="cherry", count=5, captions="training")}, (PLURALS_CHANGE,)),
        ({"poisoning": Poisoning(attack=Blended(), target="cherry", count=5)}, ()),
        ({"poisoning": Poisoning(attack=Blended(), target="cherry", count=0, captions="training")}, ()),
        ({"poisoning": Poisoning(attack=Blended(), count=5, captions="label-consistent")}, ()),
        ({"poisoning": TargetedImages(images=FruitStall(), classes=("fig", "leaf"))}, (PLURALS_CHANGE,)),
    ],
    ids=["none", "ssl", "safeclip", "cherries", "templates", "no poison", "bananas", "targeted"],
)
def test_what_has_changed_touches_its_victims_alone(
    fields: dict[str, object], changed: tuple[str, ...], victim: PretrainedVictim
):
    assert victim.replace(data=PairsCSV(path=Path("pairs.csv")), **fields).changes() == changed


def test_the_fruit_stall_has_no_plurals(victim: PretrainedVictim):
    cherries = Poisoning(attack=Blended(), target="cherry", count=5, captions="training")
    assert victim.replace(poisoning=cherries).changes() == ()
    assert not any(plurals_with_another_stem(word) for word in ("fig", "boy", "cliff", "cafe", "giraffe"))


# --- a victim that is another sweep's selected trial -----------------------------------------------------------------


def starts_of(sweep: CleaningSweep, **changes: object) -> CleaningSweep:
    fields = {"name": "starts", "epochs": 0, "search": sweep.search.replace(asr_ceiling=0.15)}
    return sweep.replace(**{**fields, **changes})


def test_a_selected_trial_stands_on_the_victim_behind_it(sweep: CleaningSweep):
    inner = SelectedTrial(name="first", sweep=starts_of(sweep))
    middle = starts_of(sweep, name="middle", victim=inner)
    outer = sweep.replace(victim=SelectedTrial(name="second", sweep=middle), data=CleanSample(num_pairs=100))
    assert outer.original_victim() == sweep.victim
    assert outer.trigger() == sweep.trigger()
    assert outer.victim.architecture == sweep.victim.architecture
    assert CleaningSweep.model_validate(outer.to_json()) == outer


def test_the_start_of_a_selected_trial_may_win(sweep: CleaningSweep):
    outer = sweep.replace(victim=SelectedTrial(name="shrunk", sweep=starts_of(sweep)))
    assert outer.start_counts(outer.setting({}))
    assert not sweep.start_counts(sweep.setting({}))
    assert sweep.start_counts(sweep.setting({"shrink_perturb": True, "shrink": 0.5}))
    assert starts_of(sweep).start_counts(sweep.setting({}))


def test_a_selected_trials_name_is_no_part_of_the_digest_and_its_sweep_is(sweep: CleaningSweep):
    one, renamed, other = (
        sweep.replace(victim=SelectedTrial(name=name, sweep=starts_of(sweep, epochs=epochs)))
        for name, epochs in (("a", 0), ("b", 0), ("a", 1))
    )
    assert one.digest() == renamed.digest() != other.digest()


def test_a_selected_trial_is_compared_on_the_same_images(sweep: CleaningSweep):
    starts = starts_of(sweep, evaluation=sweep.evaluation.replace(seed=5))
    with pytest.raises(InvalidInput, match="evaluation and protocol must be those of the sweep 'starts'"):
        sweep.replace(victim=SelectedTrial(name="shrunk", sweep=starts))
    with pytest.raises(InvalidInput, match="is the name of the sweep whose trial is selected too; choose another"):
        sweep.replace(name="starts", victim=SelectedTrial(name="shrunk", sweep=starts_of(sweep)))


def test_the_miniature_of_both_sweeps_of_a_script_fit_together(sweep: CleaningSweep):
    """The starts that the script runs by themselves are those that the other sweep selects from."""
    starts = starts_of(sweep)
    outer = smoke_sweep(sweep.replace(victim=SelectedTrial(name="shrunk", sweep=starts)))
    assert outer.victim.sweep == smoke_sweep(starts)
    assert (outer.epochs, outer.victim.sweep.epochs) == (2, 0)
    assert outer.original_victim().name == f"{sweep.victim.name}-smoke"


def test_a_checkpoint_of_targeted_images_names_no_target(sweep: CleaningSweep):
    targeted = TargetedImages(images=sweep.data, classes=("banana", "lemon"))
    assert CHECKPOINT.replace(attack=targeted, target=None).trigger().aim.startswith("a class of its own")
    for fields in ({"attack": targeted}, {"target": None}):
        with pytest.raises(InvalidInput, match="a trigger needs the class that the attacker wants"):
            CHECKPOINT.replace(**fields)


def test_a_poisoning_without_a_kind_is_one_with_a_trigger(victim: PretrainedVictim):
    """Victims from before there were other kinds are read, and have the same digest."""
    values = victim.to_json()
    del values["poisoning"]["kind"]
    assert PretrainedVictim.model_validate(values) == victim
    assert "kind" not in victim.poisoning.canonical()


# --- what is refused ------------------------------------------------------------------------------------------------


def test_an_unknown_field_lists_the_known_ones(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match=r"epoch: unknown field; known: name, victim, method, .*epochs"):
        sweep.replace(epoch=3)


@pytest.mark.parametrize(
    ("name", "dimension", "value"),
    [
        ("learning_rate", Choice(values=("fast", "slow")), "'fast'"),
        ("learning_rate", Uniform(low=-1.0, high=1.0), "-1.0"),
        ("shrink", Uniform(low=0.5, high=0.9), "0.5"),  # which has no effect without shrink_perturb
    ],
)
def test_values_that_no_trial_can_have_are_refused_with_the_spec(
    sweep: CleaningSweep, name: str, dimension: Any, value: str
):
    space = SearchSpace(dimensions={name: dimension}, source="made up")
    with pytest.raises(InvalidInput, match=f"space: {name} may become {value}, which no trial can have"):
        sweep.replace(space=space, grid=None, search=sweep.search.replace(sampler="random"))


@pytest.mark.parametrize(
    ("axes", "refused"),
    [
        ({"learning_rate": ("a", "b")}, "learning_rate may become 'a'"),
        ({"learning_rate": (1e-3, -1.0)}, "learning_rate may become -1.0"),
        ({"ssl_weight": (1.0,), "beta2": (0.9, 2.0)}, "beta2 may become 2.0"),
        ({"global_batch_size": (64, 0)}, "global_batch_size may become 0"),
    ],
)
def test_values_of_a_grid_that_no_trial_can_have_are_refused_with_the_spec(
    sweep: CleaningSweep, axes: dict[str, Any], refused: str
):
    grid = Grid(axes=axes, source="made up")
    with pytest.raises(InvalidInput, match=f"grid: {refused}, which no trial can have"):
        sweep.replace(grid=grid, search=sweep.search.replace(sampler="grid"))


def test_a_searched_batch_must_split_over_the_workers(sweep: CleaningSweep):
    space = SearchSpace(dimensions={"global_batch_size": Choice(values=(64, 7))}, source="made up")
    with pytest.raises(InvalidInput, match=r"global_batch_size may become 7, .*choose a multiple of 4"):
        sweep.replace(
            space=space,
            grid=None,
            search=sweep.search.replace(sampler="random"),
            optimization=sweep.optimization.replace(global_batch_size=64),
            resources=sweep.resources.replace(workers=4, executor="pool"),
        )


def test_an_unknown_parameter_in_the_space_is_refused(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match=r"unknown parameter 'lr' in the space; .*optimization: learning_rate"):
        sweep.replace(space=space_of("lr"))


def test_an_unknown_parameter_in_the_grid_is_refused(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match="unknown parameter 'lr'"):
        sweep.replace(grid=Grid(axes={"lr": (1.0,)}, source="made for this test"))


def test_a_parameter_that_method_and_optimization_share_is_refused(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match="'learning_rate' is a field of method and of optimization"):
        sweep.replace(method=OwnMethod(), space=space_of("learning_rate"))


def test_a_users_own_method_is_searched_by_its_own_fields(sweep: CleaningSweep):
    own = sweep.replace(method=OwnMethod(), space=space_of("strength"), grid=None)
    assert own.setting({"strength": 0.5}).method == OwnMethod(strength=0.5)


def test_a_batch_that_the_workers_do_not_divide_is_refused(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match=r"global_batch_size=64 does not split over world_size=3; .*multiple of 3"):
        sweep.replace(resources=Resources(workers=3))


def test_chunks_that_do_not_divide_a_workers_batch_are_refused(sweep: CleaningSweep, victim: PretrainedVictim):
    chunked, match = sweep.optimization.replace(num_chunks=3), "num_chunks=3 does not divide the 64 pairs of a rank"
    for spec in (sweep, victim.replace(optimization=victim.optimization.replace(global_batch_size=64))):
        with pytest.raises(InvalidInput, match=match):
            spec.replace(optimization=chunked)


def test_a_smoke_sweep_has_chunks_of_its_own_batch(sweep: CleaningSweep):
    smoke = smoke_sweep(sweep.replace(optimization=sweep.optimization.replace(global_batch_size=120, num_chunks=24)))
    assert (smoke.optimization.global_batch_size, smoke.optimization.num_chunks) == (32, 8)


def test_activation_checkpointing_is_refused_for_image_towers_that_know_none(victim: PretrainedVictim):
    resources = victim.resources.replace(activation_checkpointing=True)
    assert victim.replace(resources=resources).digest() == victim.digest()
    with pytest.raises(InvalidInput, match="convnext_base has another one; leave it out"):
        victim.replace(resources=resources, architecture=Architecture(name="convnext_base"))


def test_compiled_steps_are_no_part_of_a_digest_and_recompute_no_blocks(victim: PretrainedVictim):
    assert victim.replace(resources=victim.resources.replace(compile=True)).digest() == victim.digest()
    with pytest.raises(InvalidInput, match="do not go together; choose one"):
        Resources(compile=True, activation_checkpointing=True)


def test_a_victims_batch_that_its_workers_do_not_divide_is_refused(victim: PretrainedVictim):
    with pytest.raises(InvalidInput, match="multiple of 3"):
        victim.replace(resources=Resources(workers=3))


def test_a_grid_search_without_a_grid_is_refused(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match="needs a `grid`"):
        sweep.replace(grid=None, search=Search(sampler="grid"))


def test_a_clean_sample_of_a_given_checkpoint_is_refused(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match="a checkpoint names none"):
        sweep.replace(victim=CHECKPOINT, data=CleanSample(num_pairs=100))


def test_a_tune_function_cannot_have_two_workers(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match="workers=2; choose 'pool'"):
        sweep.replace(resources=Resources(executor="tune", workers=2))


@pytest.mark.parametrize("select", [0, 11, -1])
def test_a_selected_epoch_outside_the_training_is_refused(victim: PretrainedVictim, select: int):
    with pytest.raises(InvalidInput, match=f"select={select} must be an epoch from 1 to epochs=10"):
        victim.replace(select=select)


def test_weights_of_an_epoch_that_is_never_reached_cannot_be_kept(victim: PretrainedVictim):
    assert victim.replace(keep_epochs=(1, 10)).keep_epochs == (1, 10)
    with pytest.raises(InvalidInput, match=r"keep_epochs=\(1, 11\) must be epochs from 1 to epochs=10"):
        victim.replace(keep_epochs=(1, 11))


@pytest.mark.parametrize("name", ["", "a b", "../up", ".hidden", "a/b", "é", "x" * 81])
def test_a_name_that_is_no_folder_name_is_refused(sweep: CleaningSweep, name: str):
    with pytest.raises(InvalidInput, match="name="):
        sweep.replace(name=name)


def test_an_unknown_method_lists_the_known_ones(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match="unknown cleaning method kind='par2'; known: cleanclip"):
        sweep.replace(method={"kind": "par2"})


def test_all_faults_come_in_one_message(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match=r"(?s)2 faults.*epochs=-1.*seed=-2"):
        sweep.replace(epochs=-1, seed=-2)


def test_no_epochs_are_legal(sweep: CleaningSweep):
    assert sweep.replace(epochs=0).epochs == 0


# --- digests --------------------------------------------------------------------------------------------------------


def test_names_notes_and_machines_do_not_change_the_digest(sweep: CleaningSweep):
    other = sweep.replace(
        name="other",
        notes="on the new machine",
        victim=sweep.victim.replace(name="other-victim"),
        evaluation=sweep.evaluation.replace(batch_size=7),
        resources=Resources(executor="inline", cpus_per_worker=4, concurrent_trials=2, gpus_per_worker=0.5),
    )
    assert other.digest() == sweep.digest()


def test_more_trials_and_hours_do_not_change_the_digest(sweep: CleaningSweep):
    assert sweep.replace(search=sweep.search.replace(trials=99, hours=2.0)).digest() == sweep.digest()


def test_a_moved_checkpoint_and_a_moved_table_do_not_change_the_digest(sweep: CleaningSweep):
    first = sweep.replace(victim=CHECKPOINT, data=PairsCSV(path=Path("here/pairs.csv")))
    moved = sweep.replace(victim=CHECKPOINT.replace(path=Path("there.pt")), data=PairsCSV(path=Path("there/pairs.csv")))
    assert moved.digest() == first.digest()


def test_the_learning_rate_changes_the_digest(sweep: CleaningSweep):
    other = sweep.replace(optimization=sweep.optimization.replace(learning_rate=3e-5))
    assert other.digest() != sweep.digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 5},
        {"seed": 1},
        {"method": CleanCLIP(ssl_weight=2.0)},
        {"start": Start(shrink_perturb=True)},
        {"data": FruitStall(num_pairs=2000, seed=2)},
        {"space": cleanclip.CC6M},
        {"search": Search(asr_ceiling=0.1, startup_trials=6)},
        {"resources": Resources(workers=2)},
        {"victim": CHECKPOINT},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_a_result_changes_the_digest(sweep: CleaningSweep, changes: dict[str, object]):
    assert sweep.replace(**changes).digest() != sweep.digest()


def test_a_field_that_equals_its_default_does_not_change_the_digest(sweep: CleaningSweep):
    spelled = sweep.replace(
        method=CleanCLIP(mmcl_weight=1.0, ssl_weight=1.0),
        start=Start(shrink_perturb=False),
        optimization=sweep.optimization.replace(learning_rate=1e-5, beta1=0.9, precision="float32"),
    )
    assert spelled.digest() == sweep.digest()


def test_the_victims_digest_is_its_own(sweep: CleaningSweep, victim: PretrainedVictim):
    assert victim.replace(name="other").digest() == victim.digest()
    assert victim.replace(objective=MMCLWithSSL()).digest() != victim.digest()
    assert victim.replace(objective=MMCL()).digest() == victim.digest()
    assert sweep.replace(epochs=9).victim.digest() == victim.digest()


# --- JSON and settings ----------------------------------------------------------------------------------------------


def test_a_sweep_goes_through_json_and_back(sweep: CleaningSweep):
    again = CleaningSweep.model_validate(json.loads(json.dumps(sweep.to_json())))
    assert again == sweep
    assert again.digest() == sweep.digest()
    assert again.victim.poisoning.attack == BadNet(patch_size=6, pattern="binary")


def test_a_sweep_of_a_checkpoint_goes_through_json_and_back(sweep: CleaningSweep):
    given = sweep.replace(victim=CHECKPOINT, data=PairsCSV(path=Path("pairs.csv")))
    assert CleaningSweep.model_validate(json.loads(json.dumps(given.to_json()))) == given


def test_a_setting_puts_each_parameter_where_it_belongs(sweep: CleaningSweep):
    params = {"learning_rate": 1e-3, "ssl_weight": 2.5, "shrink_perturb": True, "shrink": 0.9, "perturb": 0.1}
    setting = sweep.setting(params)
    assert setting.optimization == sweep.optimization.replace(learning_rate=1e-3)
    assert setting.method == CleanCLIP(ssl_weight=2.5)
    assert setting.start == Start(shrink_perturb=True, shrink=0.9, perturb=0.1)


def test_a_setting_without_parameters_is_the_sweeps_own(sweep: CleaningSweep):
    setting = sweep.setting({})
    assert (setting.method, setting.start, setting.optimization) == (sweep.method, sweep.start, sweep.optimization)


def test_a_grid_search_has_the_grids_trials_and_parameters(sweep: CleaningSweep):
    grid = sweep.replace(search=Search(sampler="grid", trials=3))
    assert grid.num_trials() == 12
    assert grid.parameters() == ("ssl_weight", "learning_rate")
    assert grid.log_parameters() == ("learning_rate",)


def test_an_optuna_search_has_its_own_trials_and_the_spaces_parameters(sweep: CleaningSweep):
    assert sweep.num_trials() == 12
    assert sweep.parameters() == tuple(cleanclip.FRUIT_STALL.dimensions)
    assert sweep.log_parameters() == ("learning_rate", "weight_decay")


@pytest.mark.parametrize(
    ("resources", "executor"),
    [
        (Resources(), "tune"),
        (Resources(workers=2), "pool"),
        (Resources(executor="pool"), "pool"),
        (Resources(executor="inline"), "inline"),
    ],
)
def test_auto_takes_tune_for_one_worker_and_the_pool_for_more(resources: Resources, executor: str):
    assert resources.resolved_executor() == executor


def test_an_executor_that_only_older_records_name_is_refused_when_it_is_to_run():
    with pytest.raises(InvalidInput, match=r"executor='train' is not there any more.*set resources\.executor=pool"):
        Resources(executor="train").resolved_executor()


# --- overrides ------------------------------------------------------------------------------------------------------


def test_overrides_reach_into_nested_specs(sweep: CleaningSweep):
    other = apply_overrides(
        sweep, ["optimization.learning_rate=1e-3", "search.trials=3", "victim.poisoning.rate=0.1", "name=other"]
    )
    assert other.optimization.learning_rate == 1e-3
    assert other.search.trials == 3
    assert other.victim.poisoning.rate == 0.1
    assert other.name == "other"


@pytest.mark.parametrize("order", [1, -1])
def test_fields_of_one_part_that_stand_side_by_side_change_together(sweep: CleaningSweep, order: int):
    """Neither 16 trials of 3 seeds nor 9 of 2 would be taken: the rule is over both."""
    begun = sweep.replace(search=Search(trials=16, seeds_per_configuration=2))
    changed = apply_overrides(begun, ["search.seeds_per_configuration=3", "search.trials=9"][::order])
    assert changed.search == Search(trials=9, seeds_per_configuration=3)
    with pytest.raises(InvalidInput, match="trials=16 must be a multiple of seeds_per_configuration=3"):
        apply_overrides(begun, ["search.seeds_per_configuration=3", "epochs=2", "search.trials=9"])


def test_of_two_overrides_of_a_field_the_later_counts(sweep: CleaningSweep):
    assert apply_overrides(sweep, ["epochs=3", "epochs=4"]).epochs == 4
    old_and_new = ["resources.decoded_gigabytes=3", "resources.node_cache_gigabytes=4"]
    assert apply_overrides(sweep, old_and_new).resources.node_cache_gigabytes == 4
    assert apply_overrides(sweep, ["search={}", "search.trials=4"]).search == Search(trials=4)


def test_overrides_leave_the_original(sweep: CleaningSweep):
    before = sweep.to_json()
    apply_overrides(sweep, ["epochs=7"])
    assert sweep.to_json() == before


def test_an_override_may_be_null_or_text_with_an_equals_sign(sweep: CleaningSweep):
    assert apply_overrides(sweep, ["grid=null"]).grid is None
    assert apply_overrides(sweep, ["notes=a=b"]).notes == "a=b"


def test_an_override_may_replace_a_member_by_its_kind(sweep: CleaningSweep):
    other = apply_overrides(sweep, ['victim.poisoning.attack={"kind": "blended", "alpha": 0.3}'])
    assert other.victim.poisoning.attack == Blended(alpha=0.3)


def test_no_overrides_change_nothing(sweep: CleaningSweep):
    assert apply_overrides(sweep, []) == sweep


def test_an_unknown_override_lists_the_known_fields(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match=r"'optimization.lr': unknown field 'lr'; known: learning_rate"):
        apply_overrides(sweep, ["optimization.lr=1"])


@pytest.mark.parametrize(
    ("override", "owner"),
    [
        ("epochs.more=1", "epochs"),
        ("space.dimensions.learning_rate.low=1", "space.dimensions"),
        ("grid.axes.x=1", "grid.axes"),
    ],
)
def test_an_override_below_a_value_without_fields_says_what_to_give(sweep: CleaningSweep, override: str, owner: str):
    with pytest.raises(InvalidInput, match=rf"{owner} has no fields of its own; give all of it, as {owner}=JSON"):
        apply_overrides(sweep, [override])


@pytest.mark.parametrize("override", ["epochs", "=3", "epochs 3", "--epochs=3"])
def test_an_override_without_a_path_or_a_value_is_refused(sweep: CleaningSweep, override: str):
    with pytest.raises(InvalidInput, match=r"is not of the form field.subfield=value"):
        apply_overrides(sweep, [override])


def test_an_override_is_checked_like_any_value(sweep: CleaningSweep):
    with pytest.raises(InvalidInput, match="epochs=-1"):
        apply_overrides(sweep, ["epochs=-1"])


# --- the smoke version ----------------------------------------------------------------------------------------------


def test_a_smoke_sweep_is_small_and_keeps_method_space_and_attack(sweep: CleaningSweep):
    smoke = smoke_sweep(sweep)
    assert (smoke.num_trials(), smoke.epochs) == (2, 2)
    assert (smoke.method, smoke.space) == (sweep.method, sweep.space)
    assert smoke.victim.poisoning.attack == sweep.victim.poisoning.attack
    assert smoke.search.asr_ceiling == sweep.search.asr_ceiling
    assert smoke.victim.architecture.image_size == 32


def test_a_smoke_sweep_of_a_grid_has_two_trials(sweep: CleaningSweep):
    smoke = smoke_sweep(sweep.replace(search=Search(sampler="grid")))
    assert smoke.num_trials() == 2
    assert smoke.grid.points() == (
        {"ssl_weight": 1.0, "learning_rate": 1e-4},
        {"ssl_weight": 1.0, "learning_rate": 1e-3},
    )


def test_a_smoke_sweep_of_a_checkpoint_makes_its_own_victim(sweep: CleaningSweep):
    smoke = smoke_sweep(sweep.replace(victim=CHECKPOINT, data=PairsCSV(path=Path("pairs.csv"))))
    assert isinstance(smoke.victim, PretrainedVictim)
    assert smoke.victim.poisoning.attack == Blended()
    assert isinstance(smoke.data, FruitStall)


@pytest.mark.parametrize("length", [1, 74, 75, 79, 80])
def test_a_smoke_sweep_has_a_name_of_its_own(sweep: CleaningSweep, length: int):
    smoke = smoke_sweep(sweep.replace(name="n" * length, victim=sweep.victim.replace(name="v" * length)))
    assert smoke.name.endswith("-smoke")
    assert smoke.victim.name.endswith("-smoke")


def test_a_smoke_sweep_takes_a_target_that_the_fruit_stall_does_not_have(sweep: CleaningSweep):
    given = CHECKPOINT.replace(target="school bus")
    assert smoke_sweep(sweep.replace(victim=given)).victim.poisoning.target == "banana"


@pytest.mark.parametrize("size", [16, 32, 336])
def test_a_smoke_sweeps_trigger_fits_its_images(sweep: CleaningSweep, size: int):
    smoke = smoke_sweep(sweep.replace(victim=CHECKPOINT.replace(attack=BadNet(patch_size=min(size, 32)))))
    smoke.victim.poisoning.attack.check_fits(smoke.victim.architecture.image_size)


def test_a_smoke_sweep_may_run_the_same_optimizer_on_fewer_pairs(sweep: CleaningSweep):
    smoke = smoke_sweep(sweep.replace(optimization=Optimization(learning_rate=0.25, warmup_steps=10_000)))
    assert smoke.optimization.learning_rate == 0.25
    assert smoke.optimization.warmup_steps < smoke.data.num_pairs // smoke.optimization.global_batch_size


def test_the_nodes_budget_has_its_old_name_too(sweep: CleaningSweep):
    """In scripts, in records of 0.1.0, and on the command line; it is no part of any digest."""
    new = Resources(node_cache_gigabytes=7.0)
    assert Resources(decoded_gigabytes=7.0) == new
    assert Resources.model_validate({"workers": 1, "decoded_gigabytes": 7.0}) == new
    assert "decoded_gigabytes" not in new.to_json()
    changed = apply_overrides(sweep, ["resources.decoded_gigabytes=7"])
    assert changed == apply_overrides(sweep, ["resources.node_cache_gigabytes=7"])
    assert (changed.resources.node_cache_gigabytes, changed.digest()) == (7.0, sweep.digest())
