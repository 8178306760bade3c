"""PAR, CleanCLIP and RoCLIP on poisoned CLIP models (Singh et al. 2025): triggers, tau, rates, ViT, synthetic pairs.

    python sweeps/par.py --dry-run                                            # the plans; needs no data
    python sweeps/par.py --smoke                                              # in miniature
    ray job submit --working-dir . -- python sweeps/par.py --only 'par-tab-rn50-*'

What to put where (or name other places: victim.data.path=..., data.path=..., evaluation.test.path=...):

    data/cc3m/pairs.csv              CC3M's 2,725,316 usable pairs: columns image,caption
    data/synthclip/pairs.csv         SynthCLIP's synthetic pairs, for Fig. 3 and the table of synthetic data
    data/imagenet/val/n0*/           ImageNet's 50,000 validation images in their 1,000 folders
    data/models/openai-rn50.pt       OpenAI's RN50 as a state dict (TorchScript is refused, with how to convert it)
    data/models/openai-vit-b-32.pt   the same of ViT-B/32
    data/coco/dataset_coco.json      Karpathy's split of COCO, beside val2014/: for retrieval, which no sweep needs
    data/badclip.png                 BadCLIP's patch, optimised first (about half a GPU-hour):

    sweeplab attack badclip sweeps/par.py data/models/openai-rn50.pt --only par-victim-badnet --to data/badclip.png

Cost, at 500 pairs a second on one GPU: 1.4 GPU-hours to poison a model, 1.4 to clean it with PAR or RoCLIP, 2.8 with
CleanCLIP; about 170 in all. Published, ASR in % after PAR / CleanCLIP / RoCLIP (from a secondary source; check them
against the paper):

    badnet 6.3/14.5/75.1               badnet-stripes 42.4/62.3/82.0      blended 0.0/19.5/1.5
    blended-stripes 0.1/61.8/7.0       blended-triangles 10.3/48.7/37.1   blended-text 18.1/42.4/59.1
    wanet 0.0/0.0/2.0                  badclip 30.4/40.1/-                accuracy after PAR 52.9 to 54.4
    ViT-B/32, PAR / CleanCLIP: badnet-stripes 0.1/86.8, blended-stripes 0.1/15.2, triangles 15.9/91.4, text 37.3/62.9
    par-tab-synth: 99.8 -> 3.7         par-fig5-*-0.0005: ASR 92 before cleaning

Figs. 4, 9 and 10 record the parts of the loss every 25 steps, and accuracy and ASR on 10,000 images as often; their
maps are `sweeplab examine CHECKPOINT... --what map --to maps/FIGURE`. Poisons of BadCLIP have captions of the training
set that mention bananas, as BadCLIP's authors have it; all others have templates.

Chosen here, since the texts at hand do not say it: how models are poisoned (OpenAI's weights, 500,000 pairs of CC3M
with 1,500 poisons, 5 epochs at 1e-5), the settings of CleanCLIP (rate 1e-5, its own default) and of RoCLIP (5e-5, its
release's), the values of tau and of the SSL weights of Fig. 3, and the rates of Fig. 5 but for 0.05 %.
"""

from pathlib import Path

from cleanclip_cc3m import CC3M, OPENAI_RN50
from cleanclip_cc6m import IMAGENET

from searchspaces import cleanclip, par
from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.blended import Blended
from sweeplab.attacks.own import ImageTrigger
from sweeplab.attacks.poisoning import Poisoning
from sweeplab.attacks.structured import BadNetStripes, BlendedStripes, BlendedText, BlendedTriangles
from sweeplab.attacks.wanet import WaNet
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.par import PAR, PAR_OPTIMIZATION
from sweeplab.cli import main
from sweeplab.clip_model import Architecture
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.sampling import Sample
from sweeplab.experiment import CleaningSweep, PretrainedVictim, Resources, Search, family
from sweeplab.pretraining.contrastive import MMCL
from sweeplab.pretraining.roclip import RoCLIP
from sweeplab.training.optimisation import Optimization

STRUCTURED = {
    "badnet-stripes": BadNetStripes(),
    "blended-stripes": BlendedStripes(),
    "blended-triangles": BlendedTriangles(),
    "blended-text": BlendedText(),
}
ATTACKS = {"badnet": BadNet(patch_size=16), "blended": Blended(alpha=0.2), "wanet": WaNet(), **STRUCTURED}
BADCLIP = ImageTrigger(
    path=Path("data/badclip.png"),
    position="center",
    made_by="sweeplab attack badclip sweeps/par.py data/models/openai-rn50.pt --only par-victim-badnet "
    "--to data/badclip.png",
)

CLEAN_PAIRS = CC3M.replace(sample=Sample(num=250_000, seed=1))
SYNTHETIC_PAIRS = PairsCSV(path=Path("data/synthclip/pairs.csv"), sample=Sample(num=500_000))

VICTIM = PretrainedVictim(
    name="par-victim",
    architecture=Architecture(name="RN50-quickgelu"),
    initial=OPENAI_RN50,
    data=CC3M.replace(sample=Sample(num=500_000)),
    poisoning=Poisoning(attack=BadNetStripes(), target="banana", rate=0.003),
    objective=MMCL(),
    optimization=Optimization(learning_rate=1e-5, warmup_steps=50, global_batch_size=128),
    epochs=5,
    evaluation=IMAGENET,
    resources=Resources(cpus_per_worker=16, gpus_per_worker=1, loader_workers=16),
)
VICTIMS = {
    name: VICTIM.replace(name=f"par-victim-{name}", poisoning=VICTIM.poisoning.replace(attack=attack))
    for name, attack in ATTACKS.items()
}
VICTIMS["badclip"] = VICTIM.replace(
    name="par-victim-badclip", poisoning=VICTIM.poisoning.replace(attack=BADCLIP, captions="training")
)
VIT_VICTIMS = {
    name: VICTIMS[name].replace(
        name=f"par-victim-vit-{name}",
        architecture=Architecture(name="ViT-B-32-quickgelu"),
        initial=Path("data/models/openai-vit-b-32.pt"),
    )
    for name in STRUCTURED
}

# 10 epochs of 122 steps; the authors' script for triggers has 2.
WITH_PAR = CleaningSweep(
    name="par",
    victim=VICTIMS["badnet-stripes"],
    method=PAR(),
    optimization=PAR_OPTIMIZATION,
    epochs=10,
    data=CLEAN_PAIRS,
    evaluation=IMAGENET,
    space=par.PAR.as_space(),
    grid=par.PAR,
    search=Search(sampler="grid"),
    resources=Resources(workers=4, cpus_per_worker=8, gpus_per_worker=1, loader_workers=8),
)
WITH_CLEANCLIP = WITH_PAR.with_grid(cleanclip.CC3M_DEFAULT).replace(
    method=CleanCLIP(),
    optimization=Optimization(learning_rate=1e-5, weight_decay=0.1, warmup_steps=50, global_batch_size=64),
    resources=Resources(cpus_per_worker=4, loader_workers=4),
)
WITH_ROCLIP = WITH_CLEANCLIP.with_grid(par.ROCLIP).replace(
    method=RoCLIP(),
    optimization=Optimization(learning_rate=5e-5, weight_decay=0.1, warmup_steps=50, global_batch_size=512),
)
METHODS = {"par": WITH_PAR, "cleanclip": WITH_CLEANCLIP, "roclip": WITH_ROCLIP}

TAB_RN50 = tuple(
    sweep
    for method, base in METHODS.items()
    for sweep in family(base.replace(name=f"par-tab-rn50-{method}"), "victim", VICTIMS)
)
TAB_VIT = (
    *family(WITH_PAR.replace(name="par-tab-vit-par"), "victim", VIT_VICTIMS),
    *family(WITH_CLEANCLIP.replace(name="par-tab-vit-cleanclip"), "victim", VIT_VICTIMS),
)
TAB_SYNTH = WITH_PAR.replace(name="par-tab-synth", data=SYNTHETIC_PAIRS)

PAIRS = {"real": CLEAN_PAIRS, "synthetic": SYNTHETIC_PAIRS}
FIG3 = (
    *family(WITH_PAR.with_grid(par.TAU).replace(name="par-fig3-par"), "data", PAIRS),
    *family(WITH_CLEANCLIP.with_grid(par.SSL_WEIGHTS).replace(name="par-fig3-cleanclip"), "data", PAIRS),
)

# Every 25 steps: the loss and its parts, and a point on 10 images of each class.
OVER_STEPS = WITH_PAR.replace(
    evaluation=IMAGENET.replace(sample=Sample(num=10_000)), measure_at=(25, 50, 75, 100), log_every=25
)
FIG4 = OVER_STEPS.replace(name="par-fig4", victim=VICTIMS["blended-text"])
FIG9 = OVER_STEPS.replace(name="par-fig9", victim=VICTIMS["badnet-stripes"])
FIG10 = OVER_STEPS.replace(name="par-fig10", victim=VICTIMS["blended-stripes"])

# 0.05 %, 0.1 % and 1 %; the rate between them, 0.3 %, is that of the table's sweeps.
RATES = (0.0005, 0.001, 0.01)
FIG5 = (
    *family(WITH_PAR.replace(name="par-fig5-par"), "victim.poisoning.rate", RATES),
    *family(WITH_CLEANCLIP.replace(name="par-fig5-cleanclip"), "victim.poisoning.rate", RATES),
)

EXPERIMENTS = (*VICTIMS.values(), *TAB_RN50, *TAB_VIT, TAB_SYNTH, *FIG3, FIG4, FIG9, FIG10, *FIG5)

if __name__ == "__main__":
    main(*EXPERIMENTS)
