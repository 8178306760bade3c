"""SafeCLIP's safe sets, ABL's flags and the pool, by hand."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from sweeplab.losses import mmcl, nearest_rows, unlearning
from sweeplab.pretraining.abl import ABL
from sweeplab.pretraining.contrastive import MMCL
from sweeplab.pretraining.pool import Pool
from sweeplab.pretraining.roclip import RoCLIP
from sweeplab.pretraining.safeclip import SafeCLIP, mixture_posterior, top_share
from sweeplab.specs import InvalidInput, changes_of
from sweeplab.training.objective import EmbeddedBatch, EpochFacts, TrainingFacts, chosen

FACTS = TrainingFacts(num_pairs=10, steps_per_epoch=2, epochs=9, global_batch_size=4, embed_dim=2, seed=0)


def unit_rows(count: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


def finding(queries: Tensor, keys: Tensor, scale: float) -> float:
    """Mean over the queries of -log of the softmax of the own key, in loops."""
    total = 0.0
    for i, query in enumerate(queries):
        scores = [math.exp(scale * float((query * key).sum())) for key in keys]
        total -= math.log(scores[i] / sum(scores))
    return total / len(queries)


def nearest(query: Tensor, pool: Tensor) -> Tensor:
    return max(pool, key=lambda row: float((query * row).sum()))


def facts_of(epoch: int, cosines: list[float]) -> EpochFacts:
    """An epoch in which pair i has the given cosine."""

    def never(other: nn.Module | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("embeddings of millions of pairs would not fit into memory")

    def scored(other: nn.Module | None = None, rows: Tensor | None = None) -> Tensor:
        return torch.tensor(cosines) if rows is None else torch.tensor(cosines)[rows]

    return EpochFacts(epoch, FACTS, never, scored, lambda parameters: None)


RISING = [i / 10 for i in range(10)]


def test_the_pool_replaces_its_oldest_rows():
    """A batch that does not fit behind the last row goes on at the first, where lightly's bank would drop the 4."""
    pool = Pool(3, 2, seed=0, name="x")
    assert_close(pool.rows.norm(dim=1), torch.ones(3))
    pool.push(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    pool.push(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
    assert pool.rows[:, 0].tolist() == [4.0, 2.0, 3.0]
    pool.push(torch.tensor([[float(i), 0.0] for i in range(5, 10)]))
    assert sorted(pool.rows[:, 0].tolist()) == [7.0, 8.0, 9.0]


def test_the_nearest_row_is_the_one_of_largest_cosine():
    queries = F.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0]]), dim=1)
    assert torch.equal(nearest_rows(queries, torch.eye(2)), torch.eye(2))


@pytest.mark.parametrize(("share", "chosen"), [(0.0, []), (0.25, [9, 8]), (0.3, [9, 8, 7]), (1.0, list(range(10)))])
def test_the_top_share_rounds_down(share: float, chosen: list[int]):
    assert top_share(torch.tensor(RISING), share).nonzero().flatten().tolist() == sorted(chosen)


def test_equal_scores_are_ordered_by_what_breaks_ties_and_then_by_row():
    scores, ties = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5]), torch.tensor([0.3, 0.7, 0.5, 0.7, 0.9])
    chosen = [top_share(scores, share, ties=ties).nonzero().flatten().tolist() for share in (0.2, 0.4, 0.6, 1.0)]
    assert chosen == [[1], [1, 3], [1, 2, 3], [0, 1, 2, 3, 4]]
    assert top_share(scores, 0.4).nonzero().flatten().tolist() == [0, 1]


def test_the_mixture_tells_two_groups_apart():
    draw = torch.Generator().manual_seed(0)
    low, high = (centre + 0.02 * torch.randn(200, generator=draw) for centre in (0.1, 0.5))
    posterior = mixture_posterior(torch.cat([low, high]), seed=0)
    assert (posterior[:200] < 0.01).all()
    assert (posterior[200:] > 0.99).all()


def test_safe_shares_grow_by_their_step_up_to_the_largest():
    """Top 30 % first, then 50 %, 60 % (the cap), 60 %."""
    method = SafeCLIP(
        warmup_epochs=1, slow_epochs=1, safe_rule="top-share", first_share=0.3, share_step=0.2, max_share=0.6
    )
    state = method.init_state(nn.Identity(), FACTS)
    sizes = []
    for epoch in range(1, 7):
        method.start_epoch(state, facts_of(epoch, RISING))
        sizes.append(int(state.safe.sum()))
    assert sizes == [0, 0, 3, 5, 6, 6]


def test_later_safe_sets_hold_the_highest_cosines_where_the_posterior_saturates():
    """60 pairs at cosines about 0.1, then 30 about 0.5 and 10 poisons about 0.8, whose posteriors are all 1.0. The
    first safe set is these 40; later ones are cut to 15 %: the 10 poisons, which lie last, and 5 others, and not the
    first 15 rows of posterior 1.0."""
    draw = torch.Generator().manual_seed(0)
    groups = ((0.1, 60), (0.5, 30), (0.8, 10))
    cosines = torch.cat([centre + 0.01 * torch.randn(count, generator=draw) for centre, count in groups])
    assert int((mixture_posterior(cosines, 0) == 1.0).sum()) == 40
    method = SafeCLIP(warmup_epochs=0, slow_epochs=0, max_share=0.15)
    facts = replace(FACTS, num_pairs=100)
    state = method.init_state(nn.Identity(), facts)
    safe = []
    for epoch in (1, 2):
        method.start_epoch(state, replace(facts_of(epoch, cosines.tolist()), run=facts))
        safe.append(state.safe.nonzero().flatten().tolist())
    assert safe[0] == list(range(60, 100))
    assert safe[1] == sorted(cosines.argsort(descending=True)[:15].tolist())
    assert set(range(90, 100)) < set(safe[1])


def test_the_order_of_ties_touches_the_mixture_rule_alone():
    """Digests as they were before ties were broken."""
    assert SafeCLIP(safe_rule="top-share").digest() == "d5b775bb1709f9b2"
    assert SafeCLIP().digest() != "2e86d4e34ac135b9"
    assert changes_of(SafeCLIP()) == {"SafeCLIP": SafeCLIP.CHANGES}


def test_close_scores_are_told_apart_too():
    """Two groups 0.002 apart, of standard deviation 1e-4: with scikit-learn's regularisation of 1e-6, a standard
    deviation of 1e-3, all posteriors of this fit lie near one half, and no pair is safe."""
    draw = torch.Generator().manual_seed(0)
    low, high = (centre + 1e-4 * torch.randn(200, generator=draw).double() for centre in (0.1, 0.102))
    posterior = mixture_posterior(torch.cat([low, high]), seed=0)
    assert (posterior[:200] < 0.1).all()
    assert (posterior[200:] > 0.9).all()


def test_the_phases_walk_over_the_right_pairs():
    method = SafeCLIP(warmup_epochs=1, slow_epochs=1, safe_rule="top-share", first_share=0.3)
    state = method.init_state(nn.Identity(), FACTS)
    warm, slow = method.passes(state, 1), method.passes(state, 2)
    assert [(walk.stage, len(walk.rows), walk.learning_rate) for walk in (*warm, *slow)] == [
        ("unimodal", 10, None),
        ("clip", 10, 5e-6),
    ]
    method.start_epoch(state, facts_of(3, RISING))
    risky, safe = method.passes(state, 3)
    assert (risky.stage, risky.rows.tolist()) == ("unimodal", [0, 1, 2, 3, 4, 5, 6])
    assert (safe.stage, safe.rows.tolist()) == ("clip", [7, 8, 9])


@pytest.mark.parametrize("neighbours", [True, False])
def test_the_sum_is_clip_over_safe_pairs_plus_the_unimodal_loss_over_risky_ones(neighbours: bool):
    """SafeCLIP, eq. 4, in loops: rows 0 and 3 of the batch are safe, 1, 2 and 4 risky; each loss sees its own alone."""
    images, texts, image_views, text_views = (unit_rows(5, seed) for seed in range(4))
    method = SafeCLIP(safe_rule="top-share", mixing="sum", pool_size=6, nearest_neighbours=neighbours)
    state = method.init_state(nn.Identity(), replace(FACTS, embed_dim=4)).double()
    state.safe[torch.tensor([7, 2])] = True
    pools = state.images.rows.clone(), state.texts.rows.clone()
    rows = torch.tensor([7, 1, 5, 2, 9])
    batch = EmbeddedBatch(
        images,
        texts,
        torch.tensor(3.0),
        image_views=image_views,
        text_views=text_views,
        find_rows=lambda: rows,
        stage="sum",
    )
    loss = method.loss(state, batch)
    safe, risky = [0, 3], [1, 2, 4]
    clip = (finding(images[safe], text_views[safe], 3.0) + finding(texts[safe], image_views[safe], 3.0)) / 2
    image_keys, text_keys = images[risky], texts[risky]
    if neighbours:
        image_keys = torch.stack([nearest(query, pools[0]) for query in images[risky]])
        text_keys = torch.stack([nearest(query, pools[1]) for query in texts[risky]])
    unimodal = (finding(image_views[risky], image_keys, 3.0) + finding(text_views[risky], text_keys, 3.0)) / 2
    assert {name: float(part) for name, part in loss.parts.items()} == pytest.approx(
        {"clip": clip, "unimodal": unimodal}
    )
    assert float(loss.total) == pytest.approx(clip + unimodal)
    if neighbours:  # the pools take in what the unimodal loss saw
        assert torch.equal(state.images.rows[:3], images[risky])


def test_a_batch_of_safe_or_of_risky_pairs_alone_has_one_loss():
    method = SafeCLIP(mixing="sum", pool_size=6)
    state = method.init_state(nn.Identity(), replace(FACTS, embed_dim=4)).double()
    views = [unit_rows(2, seed) for seed in range(4)]
    batch = EmbeddedBatch(
        *views[:2], torch.tensor(3.0), *views[2:], find_rows=lambda: torch.tensor([0, 1]), stage="sum"
    )
    assert list(method.loss(state, batch).parts) == ["unimodal"]
    state.safe.fill_(True)
    assert list(method.loss(state, batch).parts) == ["clip"]


def test_the_sum_walks_over_all_pairs_once_or_over_the_safe_ones_alone():
    for risky, rows in ((True, list(range(10))), (False, [7, 8, 9])):
        method = SafeCLIP(
            warmup_epochs=0,
            slow_epochs=0,
            safe_rule="top-share",
            first_share=0.3,
            mixing="sum",
            unimodal_on_risky=risky,
        )
        state = method.init_state(nn.Identity(), FACTS)
        method.start_epoch(state, facts_of(1, RISING))
        (walk,) = method.passes(state, 1)
        assert (walk.stage, walk.rows.tolist()) == ("sum", rows)


def test_between_two_scorings_of_all_only_the_highest_are_scored_anew():
    """First all: 9, 8, 7 are safe. Then pairs 5 to 9, half of them, get scores in reverse, so that 5, 6, 7 and 8 come
    before 9; pair 0, whose score would be the highest by now, keeps its old one until all are scored again."""
    method = SafeCLIP(
        warmup_epochs=0,
        slow_epochs=0,
        safe_rule="top-share",
        first_share=0.3,
        share_step=0.1,
        rescore_every=2,
        rescore_share=0.5,
    )
    state = method.init_state(nn.Identity(), FACTS)
    scores = [RISING, [5.0, *RISING[1:5], 0.9, 0.8, 0.7, 0.6, 0.5], [5.0, *RISING[1:]]]
    safe = []
    for epoch, cosines in enumerate(scores, start=1):
        method.start_epoch(state, facts_of(epoch, cosines))
        safe.append(state.safe.nonzero().flatten().tolist())
    assert safe == [[7, 8, 9], [5, 6, 7, 8], [0, 6, 7, 8, 9]]


def test_without_a_share_nothing_is_scored_between_and_the_safe_set_stays():
    method = SafeCLIP(warmup_epochs=0, slow_epochs=0, safe_rule="top-share", first_share=0.3, rescore_every=2)
    state = method.init_state(nn.Identity(), FACTS)
    for epoch, cosines in enumerate((RISING, RISING[::-1]), start=1):
        method.start_epoch(state, facts_of(epoch, cosines))
    assert state.safe.nonzero().flatten().tolist() == [7, 8, 9]
    assert "scores" not in state.state_dict()


def test_lookups_in_both_pools_by_the_own_modality():
    """RoCLIP as SafeCLIP's paper describes it, in loops."""
    images, texts = unit_rows(3, 0), unit_rows(3, 1)
    method = RoCLIP(break_every=1, pool_size=5, lookups="both")
    state = method.init_state(nn.Identity(), replace(FACTS, embed_dim=4)).double()
    method.start_epoch(state, facts_of(1, RISING))
    assert state.images is not None
    near_texts = torch.stack([nearest(text, state.texts.rows) for text in texts])
    near_images = torch.stack([nearest(image, state.images.rows) for image in images])
    expected = (finding(images, near_texts, 2.0) + finding(texts, near_images, 2.0)) / 2
    value = float(method.loss(state, EmbeddedBatch(images, texts, torch.tensor(2.0))).total)
    assert value == pytest.approx(expected)
    assert torch.equal(state.images.rows[:3], images)
    assert torch.equal(state.texts.rows[:3], texts)


def test_fields_of_the_papers_forms_change_no_digest_at_their_defaults():
    assert SafeCLIP(safe_rule="top-share").digest() == "d5b775bb1709f9b2"
    assert RoCLIP().digest() == ROCLIP_DIGEST
    assert RoCLIP(lookups="both").digest() != ROCLIP_DIGEST


ROCLIP_DIGEST = "5822d95f174c23dd"


def test_the_safe_set_is_told_from_the_first_scoring_on():
    method = SafeCLIP(warmup_epochs=1, slow_epochs=1, safe_rule="top-share", first_share=0.3)
    state = method.init_state(nn.Identity(), FACTS)
    method.start_epoch(state, facts_of(2, RISING))
    assert chosen(method, state) == {}
    method.start_epoch(state, facts_of(3, RISING))
    assert {name: rows.nonzero().flatten().tolist() for name, rows in chosen(method, state).items()} == {
        "safe": [7, 8, 9]
    }


def test_flagged_and_removed_pairs_are_told_once_there_are_any():
    method = ABL(detect_at=2, num_flagged=3, remove_at=(3,), remove_share=0.2)
    state = method.init_state(nn.Identity(), FACTS)
    told = []
    for epoch in (1, 2, 3):
        method.start_epoch(state, facts_of(epoch, RISING))
        told.append({name: rows.nonzero().flatten().tolist() for name, rows in chosen(method, state).items()})
    assert told == [{}, {"flagged": [7, 8, 9]}, {"flagged": [7, 8, 9], "removed": [8, 9]}]


def test_an_objective_that_treats_all_pairs_alike_tells_of_none():
    assert chosen(MMCL(), None) == {}


def test_abl_flags_the_highest_cosines_of_the_model_itself():
    method = ABL(detect_at=2, num_flagged=3)
    state = method.init_state(nn.Identity(), FACTS)
    method.start_epoch(state, facts_of(1, RISING))
    assert not state.flagged.any()
    method.start_epoch(state, facts_of(2, RISING))
    assert state.flagged.nonzero().flatten().tolist() == [7, 8, 9]


def test_abl_removes_a_share_of_what_is_left():
    """20 % of ten pairs are two, of the eight that are left one."""
    method = ABL(num_flagged=0, remove_at=(1, 2), remove_share=0.2)
    state = method.init_state(nn.Identity(), FACTS)
    method.start_epoch(state, facts_of(1, RISING))
    assert method.passes(state, 1)[0].rows.tolist() == list(range(8))
    method.start_epoch(state, facts_of(2, RISING))
    assert method.passes(state, 2)[0].rows.tolist() == list(range(7))


def test_abl_unlearns_flagged_pairs_and_learns_the_others():
    """Flagged: cosine 1, so (1 + 0)^2 = 1, weighted 2."""
    method = ABL(num_flagged=1, unlearn_weight=2.0)
    state = method.init_state(nn.Identity(), FACTS)
    state.flagged[4] = True
    rows = torch.eye(3)
    batch = EmbeddedBatch(rows, rows, torch.tensor(3.0), find_rows=lambda: torch.tensor([1, 4, 2]))
    loss = method.loss(state, batch)
    assert_close(loss.total, mmcl(rows[[0, 2]], rows[[0, 2]], torch.tensor(3.0)) + 2.0)


def test_unlearning_nothing_costs_nothing():
    assert float(unlearning(torch.empty(0, 2), torch.empty(0, 2), 0.0)) == 0


def test_abl_refuses_more_flags_than_pairs_and_a_detection_after_the_end():
    with pytest.raises(InvalidInput, match="num_flagged=11 exceeds the 10 pairs"):
        ABL(num_flagged=11).check(FACTS)
    with pytest.raises(InvalidInput, match="detect_at=10 lies behind epochs=9"):
        ABL(num_flagged=1, detect_at=10).check(FACTS)
