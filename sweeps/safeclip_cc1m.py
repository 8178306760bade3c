"""SafeCLIP (Yang et al. 2024): which pre-training learns a poison, on one million pairs of CC3M; victims alone.

    python sweeps/safeclip_cc1m.py --dry-run                                  # the plans; needs no data
    python sweeps/safeclip_cc1m.py --smoke                                    # in miniature
    ray job submit --working-dir . -- python sweeps/safeclip_cc1m.py --only 'safeclip-tab1-*'
    sweeplab evaluate CHECKPOINT --sets sweeps/safeclip_cc1m.py               # Table 2: ten sets, zero-shot and probe
    sweeplab examine VICTIM_FOLDER --script sweeps/safeclip_cc1m.py --only safeclip-tab3-5-1 --to tables/5-1

What to put where (or name other places: victim.data.path=..., victim.poisoning.mentioned_in.path=...,
victim.evaluation.test.path=...):

    data/cc3m/pairs.csv              CC3M's 2,725,316 usable pairs, of which a million are drawn: columns image,caption
    data/cc3m/validation.csv         CC3M's validation pairs, of which the 16 target images are drawn
    data/imagenet/val/n0*/           ImageNet's 50,000 validation images in their 1,000 folders

and for Table 2 alone

    data/imagenet/train50000/n0*/    50 training images of each class
    data/torchvision/                Flowers, Food, Pets, CIFAR-10 and -100, DTD, Aircraft, as torchvision keeps them
    data/clip_benchmark/             wds_cars and wds_vtab-caltech101, as Hugging Face's clip-benchmark has them

Cost, at 500 pairs a second on one GPU: 18 GPU-hours for MMCL or RoCLIP over 32 epochs, 36 with augmented views
(SafeCLIP, MMCL + SSL); about 510 for all 30. Expected (Table 1, in %; PSR of 16 target images at 100 / 500 poisons a
target, BSR at 200 / 500 poisons):

    clip         PSR 93.75 / 93.75     BSR 54.33 / 100
    safeclip     PSR 0 / 6.25          BSR 0 / 0
    roclip       PSR 93.75 / 75        BSR 0.33 / 2.33
    cleanclip    PSR 87.5 / 93.75      BSR 66.67 / 63.33      (MMCL + SSL as a pre-training objective)

    tab2     Flowers, Food, ImageNet, Pets, Cars, Caltech-101, CIFAR-10, CIFAR-100, DTD, Aircraft:
        clip, zero-shot       1.0   7.1   9.6   3.4   0.8  34.9  34.9   7.3   3.7   0.8
        clip, probe          99.5  44.9  22.2  48.2  12.9  70.4  70.5  45.8  48.2  24.9
        safeclip, zero-shot   0.62  6.29  9.87  5.51  0.75 40.69 39.7  10.41  3.14  0.48
        safeclip, probe      99.38 45.58 24.53 51.02 15.35 74.4  71.9  47.32 56.01 27.63
    tab3     share of the poisons in the 30 % of pairs of highest cosine after the warm-up: 0.8 % for 5-1, 7.8 for 1-1,
             0.7 for 10-1, 27.5 for 5-0, 6.8 for 5-2 (`recall_highest@0.3` in dynamics.csv)
    fig3a    7.3 points fewer with neighbours at 500 poisons, similar at 100 (where tab3-5-1 is the one with)
    fig3b    0.9 and 3.3 points fewer at the low rate (tab3-5-1 and fig3a-with-500) than at the high one
    fig3c    12.5 points less PSR with the loss on risky pairs
    fig4     37.5 points more PSR with the larger step

The safe set's size and its poisons stand in every point (Fig. 2c). SafeCLIP is the paper's here (eq. 4); its first
share of 15 %, step of 0.01 and scoring in every epoch are the released code's, since the paper's are lost in the text
at hand. The code's own form, a mixture of two Gaussians and alternating passes, is `SafeCLIP()`; RoCLIP is that of its
release (`victim.objective.lookups=both` for what SafeCLIP's paper describes). Poisons have captions of the training
set, as the paper states (RoCLIP's script has OpenAI's templates), so a target image's class is drawn among those that
its captions mention. ASR is measured over all of ImageNet's validation images. Chosen here, since the values are lost:
the high rate of Fig. 3b (5e-4), the larger step of Fig. 4 (0.05). On 100,000 pairs the stated warm-up of 10,000 steps
is most of the 12,500 that there are.
"""

from pathlib import Path

from cleanclip_cc3m import CC3M
from cleanclip_cc6m import IMAGENET

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.poisoning import Poisoning
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.cli import main
from sweeplab.clip_model import Architecture
from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.labelled_shards import LabelledShards
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.sampling import Sample
from sweeplab.data.torchvision_sets import TorchvisionSet
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import PretrainedVictim, Resources, family
from sweeplab.pretraining.contrastive import MMCL, MMCLWithSSL
from sweeplab.pretraining.roclip import RoCLIP
from sweeplab.pretraining.safeclip import SafeCLIP
from sweeplab.training.optimisation import Optimization

CC1M = CC3M.replace(sample=Sample(num=1_000_000))
CC100K = CC3M.replace(sample=Sample(num=100_000))

TARGETED = TargetedImages(
    images=PairsCSV(path=Path("data/cc3m/validation.csv")),
    num_targets=16,
    poisons_per_target=100,
    captions="training",
    mentioned_in=CC1M,
)
BACKDOOR = Poisoning(attack=BadNet(patch_size=16), target="mushroom", placement="add", captions="training", count=200)
# As the paper states it: both losses in one step (eq. 4), the top share of the cosines as safe.
PAPERS = SafeCLIP(safe_rule="top-share", mixing="sum")
OBJECTIVES = {"clip": MMCL(), "safeclip": PAPERS, "roclip": RoCLIP(), "cleanclip": MMCLWithSSL()}

VICTIM = PretrainedVictim(
    name="safeclip",
    architecture=Architecture(name="RN50-quickgelu"),
    data=CC1M,
    poisoning=TARGETED,
    objective=MMCL(),
    optimization=Optimization(learning_rate=5e-4, warmup_steps=10_000, global_batch_size=256),
    epochs=32,
    evaluation=IMAGENET,
    resources=Resources(cpus_per_worker=16, gpus_per_worker=1, loader_workers=16),
)

TAB1 = tuple(
    victim
    for objective in family(VICTIM.replace(name="safeclip-tab1-tdpa"), "objective", OBJECTIVES)
    for victim in family(objective, "poisoning.poisons_per_target", (100, 500))
) + tuple(
    victim
    for objective in family(VICTIM.replace(name="safeclip-tab1-ba", poisoning=BACKDOOR), "objective", OBJECTIVES)
    for victim in family(objective, "poisoning.count", (200, 500))
)

# After one epoch of MMCL, and after SafeCLIP's own warm-up, which is `safeclip-tab3-5-1`.
FIG2A = VICTIM.replace(name="safeclip-fig2a", select=1)

# (epochs of the unimodal loss, epochs of slow MMCL); training ends with the warm-up.
TAB3 = tuple(
    VICTIM.replace(
        name=f"safeclip-tab3-{warmup}-{slow}",
        objective=PAPERS.replace(warmup_epochs=warmup, slow_epochs=slow),
        select=warmup + slow,
    )
    for warmup, slow in ((5, 1), (1, 1), (10, 1), (5, 0), (5, 2))
)

# Of each ablation at 100 poisons a target one half is `safeclip-tab3-5-1`, and at 500 `safeclip-fig3a-with-500`.
WARMED_UP = VICTIM.replace(objective=PAPERS, select=6)
MANY = WARMED_UP.replace(poisoning=TARGETED.replace(poisons_per_target=500))
WITHOUT_NEIGHBOURS, AT_THE_HIGH_RATE = PAPERS.replace(nearest_neighbours=False), PAPERS.replace(slow_learning_rate=5e-4)
FIG3 = (
    WARMED_UP.replace(name="safeclip-fig3a-without-100", objective=WITHOUT_NEIGHBOURS),
    MANY.replace(name="safeclip-fig3a-with-500"),
    MANY.replace(name="safeclip-fig3a-without-500", objective=WITHOUT_NEIGHBOURS),
    WARMED_UP.replace(name="safeclip-fig3b-high-100", objective=AT_THE_HIGH_RATE),
    MANY.replace(name="safeclip-fig3b-high-500", objective=AT_THE_HIGH_RATE),
)

# 100,000 pairs and 30 poisons a target. Of Fig. 4 the smaller step, 0.01, is `safeclip-fig3c-with`.
SMALL = VICTIM.replace(
    data=CC100K, poisoning=TARGETED.replace(poisons_per_target=30, mentioned_in=CC100K), objective=PAPERS
)
FIG3C_AND_4 = (
    SMALL.replace(name="safeclip-fig3c-with"),
    SMALL.replace(name="safeclip-fig3c-without", objective=PAPERS.replace(unimodal_on_risky=False)),
    SMALL.replace(name="safeclip-fig4-0.05", objective=PAPERS.replace(share_step=0.05)),
)

EXPERIMENTS = (*TAB1, FIG2A, *TAB3, *FIG3, *FIG3C_AND_4)

# Table 2's ten sets. Caltech-101 and Cars have splits in CLIP_benchmark's tars alone. Sizes are those of Table 4.
TORCHVISION, TARS = Path("data/torchvision"), Path("data/clip_benchmark")
SETS = {
    **{
        name: Evaluation(
            test=TorchvisionSet(dataset=name, path=TORCHVISION, num_images=num_test),
            probe=TorchvisionSet(dataset=name, path=TORCHVISION, split="train", num_images=num_train),
            templates="dataset",
        )
        for name, num_train, num_test in (
            ("flowers102", 2_040, 6_149),
            ("food101", 75_750, 25_250),
            ("pets", 3_680, 3_669),
            ("cifar10", 50_000, 10_000),
            ("cifar100", 50_000, 10_000),
            ("dtd", 3_760, 1_880),
            ("fgvc-aircraft", 6_667, 3_333),
        )
    },
    **{
        name: Evaluation(
            test=LabelledShards(path=TARS / folder, num_images=num_test),
            probe=LabelledShards(path=TARS / folder, split="train", num_images=num_train),
            templates="dataset",
        )
        for name, folder, num_train, num_test in (
            ("cars", "wds_cars", 8_144, 8_041),
            ("caltech101", "wds_vtab-caltech101", 3_060, 6_085),
        )
    },
    "imagenet": IMAGENET.replace(
        probe=ClassFolders(path=Path("data/imagenet/train50000"), class_names="imagenet", num_images=50_000)
    ),
}

if __name__ == "__main__":
    main(*EXPERIMENTS)
