"""Against numbers and pixels that the papers' authors' own functions produced.

The vectors are not part of the repository: they are read from `shared/reference/vectors` beside it, and all tests
here are skipped where that folder is absent. Its README says how each file was made.
"""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from searchspaces import cleanclip
from searchspaces.verma import APPENDIX_D
from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.blended import Blended
from sweeplab.attacks.pixels import mix, quantise
from sweeplab.attacks.sig import SIG
from sweeplab.attacks.structured import BadNetStripes, BlendedTriangles, triangles
from sweeplab.attacks.wanet import displacement_field, warp
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.deep_clustering import DeepClustering
from sweeplab.cleaning.par import perturb_and_recover
from sweeplab.cleaning.start import shrink_and_perturb
from sweeplab.clip_model import IMAGE_MEAN, IMAGE_STD, Architecture, build, num_parameters, tokenizer
from sweeplab.data import eda
from sweeplab.data.tables import LabelledImages
from sweeplab.evaluation.measure import Trigger, triggered_rows
from sweeplab.evaluation.zero_shot import class_weights_from, predict, zero_shot_classifier
from sweeplab.pretraining.abl import unlearning_loss
from sweeplab.pretraining.roclip import RoCLIP
from sweeplab.pretraining.safeclip import SafeCLIP
from sweeplab.training import ranks
from sweeplab.training.objective import EmbeddedBatch, TrainingFacts
from sweeplab.training.optimisation import (
    Optimization,
    build_optimizer,
    falling_rate_at,
    is_decayed,
    learning_rate_at,
    parameter_groups,
)

VECTORS = Path(__file__).parents[1].parent / "shared" / "reference" / "vectors"
if not VECTORS.is_dir():
    pytest.skip("shared/reference/vectors is not beside the repository", allow_module_level=True)

RN50 = Architecture(name="RN50-quickgelu")


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(VECTORS / name) as file:
        return dict(file)


def values(name: str):
    return json.loads((VECTORS / name).read_text())


# --- losses ---------------------------------------------------------------------------------------------------------


def cleanclip_batch(vectors: dict[str, np.ndarray], log_scale: Tensor) -> tuple[EmbeddedBatch, dict[str, Tensor]]:
    rows = {
        name: torch.tensor(vectors[f"norm_{name}"], requires_grad=True) for name in ("img", "txt", "img_aug", "txt_aug")
    }
    batch = EmbeddedBatch(rows["img"], rows["txt"], log_scale.exp(), rows["img_aug"], rows["txt_aug"])
    return batch, rows


@pytest.mark.parametrize("case", range(18))
def test_cleanclip_loss_and_its_temperature_gradient_are_the_authors(case: int):
    vectors = arrays("mmcl_cleanclip_loss.npz")
    in_modal, clip_weight, in_modal_weight, log_scale, total, gradient = vectors["cases"][case]
    method = CleanCLIP(mmcl_weight=clip_weight, ssl_weight=in_modal_weight if in_modal else 0.0)
    log_scale = torch.tensor(log_scale, requires_grad=True)
    batch, _ = cleanclip_batch(vectors, log_scale)
    loss = method.loss(None, batch).total
    loss.backward()
    assert float(loss.detach()) == pytest.approx(total, rel=1e-9, abs=1e-13)
    assert float(log_scale.grad) == pytest.approx(gradient, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize(("case", "weights"), enumerate([(1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]))
def test_cleanclip_embedding_gradients_are_the_authors(case: int, weights: tuple[float, float]):
    vectors = arrays("mmcl_cleanclip_loss.npz")
    batch, rows = cleanclip_batch(vectors, torch.tensor(vectors["cases"][0, 3]))
    CleanCLIP(mmcl_weight=weights[0], ssl_weight=weights[1]).loss(None, batch).total.backward()
    for name, row in rows.items():
        expected = torch.tensor(vectors[f"grad_case{case}_{name}"])
        gradient = torch.zeros_like(expected) if row.grad is None else row.grad
        assert torch.allclose(gradient, expected, rtol=1e-9, atol=1e-13), name


@pytest.mark.parametrize("case", range(12))
def test_par_agrees(case: int):
    """Four scenarios of near and far references, three values of tau."""
    vectors = arrays("par_loss.npz")
    scenario, tau, together, images, texts, total = vectors["cases"][case]
    which = [("near", "near"), ("far", "far"), ("far", "near"), ("near", "far")][int(scenario)]
    current = [F.normalize(torch.tensor(vectors[f"cur_{name}"]), dim=1) for name in ("img", "txt")]
    victim = [
        F.normalize(torch.tensor(vectors[f"ref_{name}_{place}"]), dim=1)
        for name, place in zip(("img", "txt"), which, strict=True)
    ]
    scale = torch.tensor(float(vectors["logit_scale_exp"]), dtype=torch.float64)
    loss = perturb_and_recover((current[0], current[1]), (victim[0], victim[1]), scale, tau=tau, weight=1.0)
    found = [loss.parts["mmcl"], loss.parts["perturbation_images"], loss.parts["perturbation_texts"], loss.total]
    assert_close(torch.stack(found), torch.tensor([together, images, texts, total]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", [0, 2])
def test_par_gradients_agree(case: int):
    """Cases of the gradients are scenarios."""
    vectors = arrays("par_loss.npz")
    which = [("near", "near"), ("far", "far"), ("far", "near"), ("near", "far")][case]
    raw = [torch.tensor(vectors[f"cur_{name}"], requires_grad=True) for name in ("img", "txt")]
    victim = [
        F.normalize(torch.tensor(vectors[f"ref_{name}_{place}"]), dim=1)
        for name, place in zip(("img", "txt"), which, strict=True)
    ]
    scale = torch.tensor(float(vectors["logit_scale_exp"]), dtype=torch.float64)
    rows = [F.normalize(values, dim=1) for values in raw]
    perturb_and_recover((rows[0], rows[1]), (victim[0], victim[1]), scale, tau=2.15, weight=1.0).total.backward()
    for tensor, name in zip(raw, ("img", "txt"), strict=True):
        assert_close(tensor.grad, torch.tensor(vectors[f"grad_{name}_case{case}"]), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("case", range(6))
def test_abl_agrees(case: int):
    vectors = arrays("abl_loss.npz")
    target, weight, total, scale_gradient, constraint = vectors["cases"][case]
    log_scale = torch.tensor(float(vectors["logit_scale"]), dtype=torch.float64, requires_grad=True)
    batch = EmbeddedBatch(torch.tensor(vectors["norm_img"]), torch.tensor(vectors["norm_txt"]), log_scale.exp())
    loss = unlearning_loss(batch, torch.tensor(vectors["mask"]), weight=weight, target=target)
    loss.total.backward()
    found = torch.stack([loss.total.detach(), log_scale.grad, loss.parts["unlearning"]])
    assert_close(found, torch.tensor([total, scale_gradient, constraint]), rtol=1e-9, atol=1e-12)


def unimodal_batch(vectors: dict[str, np.ndarray], stage: str) -> EmbeddedBatch:
    i1, i2, t1, t2 = (torch.tensor(vectors[name]) for name in ("i1", "i2", "t1", "t2"))
    scale = torch.tensor(float(vectors["logit_scale"]), dtype=torch.float64).exp()
    return EmbeddedBatch(i1, t1, scale, i2, t2, stage=stage)


FACTS = TrainingFacts(num_pairs=6, steps_per_epoch=1, epochs=1, global_batch_size=6, embed_dim=8, seed=0)


@pytest.mark.parametrize(
    ("stage", "neighbours", "name"),
    [
        ("unimodal", True, "loss_inmodal_nn"),
        ("unimodal", False, "loss_inmodal_plain"),
        ("clip", True, "loss_cross_aug"),
    ],
)
def test_safeclip_agrees(stage: str, neighbours: bool, name: str):
    vectors = arrays("safeclip_losses.npz")
    method = SafeCLIP(pool_size=10, nearest_neighbours=neighbours)
    state = method.init_state(nn.Identity(), FACTS).double()
    state.images.rows.copy_(torch.tensor(vectors["bank_image"]))
    state.texts.rows.copy_(torch.tensor(vectors["bank_text"]))
    loss = method.loss(state, unimodal_batch(vectors, stage)).total
    assert_close(loss, torch.tensor(float(vectors[name]), dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("epoch", "name"), [(1, "loss_epoch1"), (2, "loss_epoch2")])
def test_roclip_agrees(epoch: int, name: str):
    vectors = arrays("roclip_loss.npz")
    method = RoCLIP(pool_size=10)
    state = method.init_state(nn.Identity(), FACTS).double()
    state.texts.rows.copy_(torch.tensor(vectors["bank_text"]))
    state.breaks.fill_(epoch % 2 == 0)
    loss = method.loss(state, unimodal_batch(vectors, "")).total
    assert_close(loss, torch.tensor(float(vectors[name]), dtype=torch.float64), rtol=1e-9, atol=0)


def test_deep_clustering_agrees():
    vectors = arrays("deep_clustering.npz")
    method = DeepClustering(num_clusters=5, mmcl_weight=0.0, ssl_weight=0.0)
    state = method.init_state(nn.Identity(), FACTS).double()
    state.head.weight.data.copy_(torch.tensor(vectors["head_W"]))
    state.labels.copy_(torch.tensor(vectors["pseudo_label"]))
    rows = torch.tensor(vectors["z"])
    batch = EmbeddedBatch(rows, rows, torch.tensor(1.0, dtype=torch.float64), find_rows=lambda: torch.arange(6))
    expected = torch.tensor(float(vectors["loss"]), dtype=torch.float64)
    assert_close(method.loss(state, batch).parts["clustering"].detach(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("name", "epochs"), [("epochs10", 10), ("epochs2", 2)])
def test_pars_schedule_agrees(name: str, epochs: int):
    """Their table has 123 steps an epoch."""
    table = values("lr_schedules.json")["par"][name]
    found = [falling_rate_at(step, 3e-5, 123 * epochs) for step in table["idx"]]
    assert found == pytest.approx(table["lr"], rel=1e-9)


# --- two ranks ------------------------------------------------------------------------------------------------------


def linear_towers(vectors: dict[str, np.ndarray], share: slice) -> tuple[list[Tensor], dict[str, Tensor]]:
    """This rank's four embeddings, gathered; and the two weights and the temperature as leaves."""
    weights = {name: torch.tensor(vectors[name], requires_grad=True) for name in ("W", "V")}
    rows = []
    for name, weight in (("xi", "W"), ("xi_aug", "W"), ("xt", "V"), ("xt_aug", "V")):
        embedded = F.normalize(torch.tensor(vectors[name][share]) @ weights[weight], dim=1)
        rows.append(ranks.gather_rows(embedded))
    return rows, weights


def cleanclip_gradients(vectors: dict[str, np.ndarray], share: slice) -> dict[str, Tensor]:
    rows, weights = linear_towers(vectors, share)
    log_scale = torch.tensor(float(np.log(1 / 0.07)), dtype=torch.float64, requires_grad=True)
    images, image_views, texts, text_views = rows
    own = ranks.own_share(share.stop - share.start)
    batch = EmbeddedBatch(images, texts, log_scale.exp(), image_views, text_views, share=own)
    loss = CleanCLIP().loss(None, batch).total
    loss.backward()
    return {"loss": loss.detach(), "W": weights["W"].grad, "V": weights["V"].grad, "logit_scale": log_scale.grad}


def par_gradients(vectors: dict[str, np.ndarray], share: slice) -> dict[str, Tensor]:
    """PAR's loss on gathered rows; its temperature is frozen."""
    (images, _, texts, _), weights = linear_towers(vectors, share)
    victim = []
    for name, weight in (("xi", "W"), ("xt", "V")):
        aug = torch.tensor(vectors[f"{name}_aug"])[:, :12]
        victim.append(F.normalize(torch.tensor(vectors[name] @ vectors[weight]) + 1.5 * aug, dim=1))
    scale = torch.tensor(14.2857, dtype=torch.float64)
    own = ranks.own_share(share.stop - share.start)
    total = perturb_and_recover((images, texts), (victim[0], victim[1]), scale, tau=2.15, weight=1.0, share=own).total
    total.backward()
    return {"loss": total.detach(), "W": weights["W"].grad, "V": weights["V"].grad}


def save_two_rank_gradients(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    share = slice(4 * rank, 4 * rank + 4)
    vectors = arrays("two_rank_gradients.npz")
    found = {"cc": cleanclip_gradients(vectors, share), "par": par_gradients(vectors, share)}
    for gradients in found.values():
        for tensor in gradients.values():
            dist.all_reduce(tensor)
            tensor /= 2  # as DistributedDataParallel does
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_rank_gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("two-ranks")
    torch.multiprocessing.spawn(save_two_rank_gradients, args=(str(folder),), nprocs=2)
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("loss", ["cc", "par"])
def test_one_rank_has_the_authors_gradients(loss: str):
    vectors = arrays("two_rank_gradients.npz")
    found = {"cc": cleanclip_gradients, "par": par_gradients}[loss](vectors, slice(0, 8))
    check_one_rank_gradients(found, vectors, loss)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cc", "par"])
def test_two_ranks_have_the_gradients_of_one(loss: str, two_rank_gradients: dict[str, dict[str, Tensor]]):
    check_one_rank_gradients(two_rank_gradients[loss], arrays("two_rank_gradients.npz"), loss)


@pytest.mark.slow
def test_the_authors_own_gather_halves_the_encoder_gradients_and_ours_does_not(
    two_rank_gradients: dict[str, dict[str, Tensor]],
):
    vectors = arrays("two_rank_gradients.npz")
    theirs = torch.tensor(vectors["cc_ws2_avggrad_W_img"])
    assert_close(two_rank_gradients["cc"]["W"], 2 * theirs, rtol=1e-7, atol=1e-10)


def check_one_rank_gradients(found: dict[str, Tensor], vectors: dict[str, np.ndarray], loss: str) -> None:
    # The authors' multiplier is a float32 number, hence 1e-7 and not 1e-9.
    assert float(found["loss"]) == pytest.approx(float(vectors[f"{loss}_loss"][0]), rel=1e-7)
    assert_close(found["W"], torch.tensor(vectors[f"{loss}_ws1_grad_W_img"]), rtol=1e-6, atol=1e-8)
    assert_close(found["V"], torch.tensor(vectors[f"{loss}_ws1_grad_V_txt"]), rtol=1e-6, atol=1e-8)
    if "logit_scale" in found:
        assert float(found["logit_scale"]) == pytest.approx(float(vectors[f"{loss}_ws1_grad_logit_scale"]), rel=1e-6)


# --- triggers -------------------------------------------------------------------------------------------------------

TRIGGERS = values("triggers_cleanclip.json")


def formula_image(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: the input that the vectors' file describes."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((7 * y + 13 * x + 29 * c + (y * x) // 5) % 256).astype(np.uint8)


def input_of(name: str) -> Tensor:
    """(3, 224, 224) uint8: as it is, or squashed from 300 x 200 as the authors' pipeline does."""
    if name in ("resize_300x200_to_224_default_filter", "badnet_random_seed3"):
        image = Image.fromarray(formula_image(200, 300)).resize((224, 224))
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    return torch.from_numpy(formula_image(224, 224)).permute(2, 0, 1)


def sha256_of(image: Tensor) -> str:
    return hashlib.sha256(image.permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["identity_224", "resize_300x200_to_224_default_filter"])
def test_the_input_is_the_authors(name: str):
    assert sha256_of(input_of(name)) == TRIGGERS[name]["sha256"]


def test_badnet_patch_wraps_like_the_authors():
    vectors = arrays("triggers_cleanclip.npz")
    patch = BadNet(overflow="wrap").draw_patch(input_of("identity_224"), torch.Generator().manual_seed(0))
    assert_close(patch.permute(1, 2, 0), torch.tensor(vectors["badnet_patch_uint8"]))


def test_badnet_patch_that_is_clipped_is_the_same_patch_with_its_overflow_cut():
    scaled = torch.tensor(arrays("triggers_cleanclip.npz")["badnet_patch_pre_cast"])
    patch = BadNet(overflow="clip").draw_patch(input_of("identity_224"), torch.Generator().manual_seed(0))
    assert_close(patch, scaled.clamp(0, 255).to(torch.uint8))


@pytest.mark.parametrize("name", ["badnet_random_seed0", "badnet_random_seed3"])
def test_badnet_images_are_the_authors(name: str):
    """The noise comes from torch's stream; row and column from Python's, row first, 0 .. 223 - 16."""
    case, image = TRIGGERS[name], input_of(name)
    patch = BadNet(overflow="wrap").draw_patch(image, torch.Generator().manual_seed(case["seed"]))
    draw = random.Random(case["seed"])
    top, left = draw.randint(0, 223 - 16), draw.randint(0, 223 - 16)
    assert [top, left] == case["loc_hw"]
    stamped = image.clone()
    stamped[:, top : top + 16, left : left + 16] = patch
    assert sha256_of(stamped) == case["sha256"]


def test_blended_image_is_the_authors():
    """Float rounding may move about 1e-5 of the pixels by one grey level, so the digest is not compared."""
    case = TRIGGERS["blended_seed5"]
    noise = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(case["seed"]))
    for y, x, *rgb in case["noise_pixels_yx_rgb"]:
        assert noise[:, y, x].tolist() == pytest.approx(rgb, abs=1e-7)
    blended = Blended().blend(input_of("blended_seed5"), noise)
    for y, x, *rgb in case["pixels_yx_rgb"]:
        assert blended[:, y, x].tolist() == pytest.approx(rgb, abs=1)
    assert blended.float().mean(dim=(1, 2)).tolist() == pytest.approx(case["mean_rgb"], abs=1e-4)


def test_blended_stamp_draws_the_noise_that_the_authors_draw():
    image = input_of("blended_seed5")
    noise = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(5))
    assert_close(Blended().stamp(image[None], [5])[0], Blended().blend(image, noise))


# --- the other triggers ---


@pytest.mark.parametrize("points", [8, 4])
def test_wanet_displacements_are_those_of_the_formula(points: int):
    vectors = arrays("wanet_mini.npz")
    field = displacement_field(torch.tensor(vectors[f"ins_k{points}"]), 8)
    assert_close(field, torch.tensor(vectors[f"noise_grid_k{points}"]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("points", [8, 4])
@pytest.mark.parametrize("strength", [0.5, 0.6, 1.0])
def test_wanet_warps_as_the_formula_does(points: int, strength: float):
    vectors = arrays("wanet_mini.npz")
    field = torch.tensor(vectors[f"noise_grid_k{points}"])
    warped = warp(torch.tensor(vectors["image"])[None], field, strength)[0]
    assert_close(warped, torch.tensor(vectors[f"out_k{points}_s{strength}"]), rtol=1e-9, atol=1e-12)


def test_wanet_moves_pixels_as_the_authors_grid_does():
    """Of their cached 224 x 224 grid a few displacements are known, and a pixel depends on its own alone."""
    case = TRIGGERS["wanet_s1_repo_grid"]
    field = torch.zeros(1, 224, 224, 2)
    for row, column, *displacement in case["grid_samples_yx_gxgy"]:
        field[0, row, column] = torch.tensor(displacement)
    warped = quantise(warp(input_of("wanet_s1_repo_grid")[None].float() / 255, field, 1.0))[0]
    known = {(row, column): colour for row, column, *colour in case["pixels_yx_rgb"]}
    for row, column, *_ in case["grid_samples_yx_gxgy"]:
        assert warped[:, row, column].tolist() == known[row, column]


def test_four_yellow_corners_are_the_authors():
    image = input_of("four_corners_yellow")
    stamped = BadNet(pattern="yellow", location="four-corners").stamp(image[None], [0])[0]
    assert sha256_of(stamped) == TRIGGERS["four_corners_yellow"]["sha256"]


def assert_pixels(image: Tensor, entry: dict, tolerance: int) -> None:
    """The listed pixels of a (3, 224, 224) uint8 image, and its channel means."""
    for row, column, *colour in entry["pixels_yx_rgb"]:
        assert (image[:, row, column].int() - torch.tensor(colour)).abs().max() <= tolerance
    means = image.double().mean(dim=(1, 2))
    assert_close(means, torch.tensor(entry["mean_rgb"], dtype=torch.float64), rtol=0, atol=0.02)


def test_sig_image_is_the_authors():
    image = input_of("identity_224")
    assert_pixels(SIG(alpha=0.2).stamp(image[None], [0])[0], values("triggers_cleanclip.json")["sig_blended"], 1)


def test_triangle_pattern_is_the_authors_bit_for_bit():
    pattern = triangles(224, 224, 14).expand(3, 224, 224).contiguous().numpy().astype(np.float32)
    digest = hashlib.sha256(pattern.tobytes()).hexdigest()
    assert digest == values("triggers_par.json")["triangle_pattern_sha256_float32_CHW"]


def test_blended_triangles_image_is_the_authors():
    image = input_of("identity_224")
    entry = values("triggers_par.json")["blended_triangles_nc0.15"]
    assert_pixels(BlendedTriangles().stamp(image[None], [0])[0], entry, 1)


def test_badnet_stripes_patch_is_the_authors_but_for_black_that_they_store_as_one():
    vectors = arrays("triggers_par.npz")
    patch = BadNetStripes().patch(torch.tensor(vectors["badnet_stripes_row_sign_3x16"]).float())
    assert torch.equal(patch[:, 0].T == 255, torch.tensor(vectors["badnet_stripes_patch_uint8_row0"]) == 255)


def test_blended_stripes_image_is_the_authors():
    signs = torch.tensor(arrays("triggers_par.npz")["blended_stripes_col_sign_3x224"]).float()[:, None, :]
    image = mix(input_of("identity_224"), signs, 0.03)
    assert_pixels(image, values("triggers_par.json")["blended_stripes_nc0.03_seed2"], 1)


# --- optimisation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rn50() -> nn.Module:
    with torch.device("meta"):
        return build(RN50, seed=0)


def test_rn50_has_the_papers_size(rn50: nn.Module):
    facts = values("param_groups_rn50.json")
    assert len(list(rn50.parameters())) == facts["n_tensors"]
    assert num_parameters(RN50) == facts["n_params"]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in rn50.modules()) == facts["bn_layers"]


def test_weight_decay_differs_from_cleanclip_by_the_four_downsample_norms_alone(rn50: nn.Module):
    """CleanCLIP exempts by name, and `downsample.1.weight` has neither "bn" nor "ln" in it."""
    facts = values("param_groups_rn50.json")
    named = dict(rn50.named_parameters())
    theirs = {name for name in named if not any(word in name for word in ("bn", "ln", "bias", "logit_scale"))}
    ours = {name for name, parameter in named.items() if is_decayed(name, parameter)}
    assert (len(theirs), len(named) - len(theirs)) == (facts["n_decay"], facts["n_no_decay"])
    assert sum(named[name].numel() for name in theirs) == facts["numel_decay"]
    assert theirs - ours == set(facts["cleanclip_decayed_although_norm_weight"])
    assert ours - theirs == set(facts["par_missing_no_decay_vs_cleanclip"])
    assert ours >= set(facts["cleanclip_decayed_embeddings"])


def test_parameter_groups_hold_every_tensor_once(rn50: nn.Module):
    facts = values("param_groups_rn50.json")
    decayed, exempt = parameter_groups(rn50, 0.1)
    norms = len(facts["cleanclip_decayed_although_norm_weight"])
    assert len(decayed["params"]) == facts["n_decay"] - norms
    assert len(exempt["params"]) == facts["n_no_decay"] + norms
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("name", values("lr_schedules.json")["schedules"])
def test_learning_rates_are_the_intended_ones(name: str):
    schedule = values("lr_schedules.json")["schedules"][name]
    peak, warmup, total = schedule["base_lr"], schedule["warmup_steps"], schedule["total_steps"]
    for row in schedule["rows"]:
        assert learning_rate_at(row["zero_based_step"], peak, warmup, total) == row["intended_lr"]


@pytest.mark.parametrize("name", values("lr_schedules.json")["schedules"])
def test_learning_rates_at_the_authors_step_are_the_authors(name: str):
    schedule = values("lr_schedules.json")["schedules"][name]
    peak, warmup, total = schedule["base_lr"], schedule["warmup_steps"], schedule["total_steps"]
    for row in schedule["rows"]:
        assert learning_rate_at(row["authors_step"], peak, warmup, total) == row["authors_lr"]


def test_a_carried_optimizer_overrides_the_chosen_decay_as_the_authors_does(tiny: Architecture):
    """Their groups stand the other way round: exempt first."""
    facts = values("optimizer_override.json")
    model = build(tiny, seed=0)
    before = build_optimizer(model, Optimization(weight_decay=facts["checkpoint_weight_decay"]))
    model.logit_scale.grad = torch.zeros(())
    before.step()
    chosen = Optimization(weight_decay=facts["cli_weight_decay"])
    after = build_optimizer(model, chosen, carried=before.state_dict())
    assert sorted(group["weight_decay"] for group in after.param_groups) == facts["effective_after_load_state_dict"]
    assert float(after.state[model.logit_scale]["step"]) == facts["adam_step_counter_carried_over"][0]


def test_shrink_and_perturb_gives_the_authors_weights():
    vectors = arrays("shrink_perturb.npz")
    names = [key.removeprefix("out|") for key in vectors if key.startswith("out|")]
    model, fresh = (
        nn.ParameterList(torch.tensor(vectors[f"{origin}|{name}"]) for name in names) for origin in ("ckpt", "init")
    )
    shrink, perturb = vectors["lambda_perturb"].tolist()
    shrink_and_perturb(model, fresh, shrink=shrink, perturb=perturb)
    assert len(names) == 8
    for name, parameter in zip(names, model, strict=True):
        assert_close(parameter.data, torch.tensor(vectors[f"out|{name}"]), rtol=1e-6, atol=1e-8)


# --- evaluation and texts -------------------------------------------------------------------------------------------


class Lookup(nn.Module):
    """Embeds image i, whose pixels all have the value i, as row i of a table."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)

    def encode_image(self, pixels: Tensor) -> Tensor:
        numbers = (pixels[:, 0, 0, 0] * IMAGE_STD[0] + IMAGE_MEAN[0]) * 255
        return self.rows[numbers.round().long()]


def numbered_images(rows: np.ndarray) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 1, 1)


def test_zero_shot_class_weights_are_the_authors():
    vectors = arrays("zeroshot.npz")
    weights = class_weights_from(torch.tensor(vectors["text_template_embeddings"]))
    assert_close(weights.T, torch.tensor(vectors["class_weights_DxC"]), rtol=1e-9, atol=1e-12)


def test_zero_shot_accuracy_and_asr_are_the_authors():
    vectors = arrays("zeroshot.npz")
    weights = torch.tensor(vectors["class_weights_DxC"].T).float()
    labels, target = vectors["labels"], int(vectors["target_index"])
    names = tuple(f"class {number}" for number in range(12))
    files = pa.array([f"{number}.png" for number in range(len(labels))], pa.large_string())
    images = LabelledImages.of("", files, sizes=np.ones(len(labels), np.int64), labels=labels, class_names=names)
    device = torch.device("cpu")

    def predictions(embeddings: str, rows: np.ndarray) -> np.ndarray:
        batches = iter(numbered_images(rows).split(7))
        return predict(Lookup(vectors[embeddings]), batches, zero_shot_classifier(weights), device=device).numpy()

    everything = np.arange(len(labels))
    assert np.mean(predictions("image_embeddings_clean", everything) == labels) == vectors["acc_top1_5_10"][0]
    rows = triggered_rows(images, Trigger(BadNet(), names[target]))
    hits = predictions("image_embeddings_triggered", rows) == target
    assert np.mean(hits) == pytest.approx(vectors["asr_top1_5_10_excluding_target"][0], rel=1e-12)
    assert len(rows) < len(labels)


TEXTS = ("a photo of a banana.", "", "a banana " * 60, " ".join(["word"] * 75), " ".join(["word"] * 76))


@pytest.mark.parametrize("case", range(len(TEXTS)))
def test_an_overlong_text_keeps_its_end_token(case: int):
    facts = values("tokenizer_truncation.json")[case]
    tokens = tokenizer(RN50)([TEXTS[case]])[0]
    assert tokens.shape == (77,)
    assert tokens[: len(facts["first_ids"])].tolist() == facts["first_ids"]
    assert int(tokens.argmax()) == facts["open_clip_pooled_position"]
    assert int(tokens[tokens.nonzero().flatten()[-1]]) == facts["open_clip_last_nonzero_id"]


@pytest.mark.parametrize("case", range(7))
def test_eda_normalises_as_the_authors_do_but_for_the_blanks_at_the_ends(case: int):
    facts = values("eda_get_only_chars.json")[case]
    assert eda.normalise(facts["in"]) == facts["out"].strip()


# --- grids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "grid", "count"),
    [("D.3", cleanclip.CC6M_MMCL_GRID, 12), ("D.4", cleanclip.CC6M_MMCL_SSL_GRID, 23)],
)
def test_grids_are_those_of_appendix_d(section: str, grid, count: int):
    facts = values("grids_appendix_D.json")[section]
    assert grid.grid_size() == facts["learning_rates_listed"] == count
    assert sorted(grid.axes["learning_rate"]) == facts["learning_rates"]


def test_the_grids_of_appendix_d_are_the_papers_lists():
    lists = json.loads((VECTORS / "grids_appendix_D.json").read_text())
    names = {
        "learning_rates": "learning_rate",
        "deep_clustering_weight": "clustering_weight",
        "weight_decay": "weight_decay",
        "shrink_lambda": "shrink",
        "perturb_p": "perturb",
        "ssl_weight": "ssl_weight",
    }
    for section, grids in APPENDIX_D.items():
        axes = {name: values for grid in grids for name, values in grid.axes.items() if name != "shrink_perturb"}
        assert axes == {names[key]: tuple(values) for key, values in lists[section].items() if key in names}
