"""Other victims of Verma et al., and their cleaning: CC3M, label-consistent, finetuned, ViT (Table 3, Figs. 3 to 12).

    python sweeps/verma_victims.py --dry-run                                  # the plans; needs no data
    python sweeps/verma_victims.py --smoke                                    # in miniature
    ray job submit --working-dir . -- python sweeps/verma_victims.py --only 'verma-tab3-*' --only 'cc6m-*'
    ray job submit --working-dir . -- python sweeps/verma_victims.py --only 'verma-fig12-*'

Victims run alone: they are trained, measured after every epoch, and tabled (`sweeplab list --victims`); sweeps that
clean them find them there. The two of `cleanclip_cc6m.py` are among them, so that Table 3 is complete. Data, beside
that script's:

    data/cc3m/pairs.csv              CC3M's 2,725,316 usable pairs: columns image,caption
    data/models/openai-rn50.pt       OpenAI's RN50 as a state dict (TorchScript is refused, with how to convert it)

Cost, at 500 pairs a second on one GPU: about 1,460 GPU-hours for the eight victims that are not `cleanclip_cc6m.py`'s,
and 880 for the 402 trials. Expected (Table 3: accuracy / ASR of the victim in %; Table 1 and Sec. 4: change of
accuracy at ASR <= 5 %):

    CC3M MMCL 16.00/99.88, kept (+3 % in the authors' data)     MMCL + SSL 17.04/99.03, about -20 %
    label-consistent MMCL 22.96/88.27, +10 %                    MMCL + SSL 23.09/88.01, -16 %
    finetuned MMCL 60.30/99.20, -17 %                           MMCL + SSL 59.81/90.24, -33 %
    ViT MMCL 24.56/87.03 (plot code), no number                 MMCL + SSL 25.93/74.20 (plot code), a larger drop
    verma-fig11-m: ASR 30 to 50 % at kept accuracy              verma-fig11-s: no state below 90 % ASR

The gain of 10 % and the loss of 16 % may be swapped: the authors' script names the label-consistent checkpoints
crosswise. Chosen here, since the texts do not say it: the ViT (ViT-B/32), its rates, the epochs and pairs that clean
it, and its 64 epochs of pre-training; the rates of SSL alone on CC3M (D.1 and D.2); 64 epochs of finetuning at 5e-7
(the rate is in the authors' file names).
"""

from cleanclip_cc3m import CC3M, OPENAI_RN50
from cleanclip_cc6m import CC6M, MMCL_SSL_SWEEP, MMCL_SSL_VICTIM, MMCL_SWEEP, MMCL_VICTIM
from verma_cc6m import MMCL_ALONE, SSL_ONLY

from searchspaces import verma
from sweeplab.cli import main
from sweeplab.clip_model import Architecture
from sweeplab.data.sampling import Sample
from sweeplab.experiment import ClosestTo, family

# 1,500 of CC3M's pairs, 0.055 %. The authors' checkpoints are called "best".
CC3M_POISON = MMCL_VICTIM.poisoning.replace(count=1500)
CC3M_MMCL = MMCL_VICTIM.replace(name="verma-tab3-cc3m-mmcl", data=CC3M, poisoning=CC3M_POISON, select="most accurate")
CC3M_MMCL_SSL = MMCL_SSL_VICTIM.replace(
    name="verma-tab3-cc3m-mmcl-ssl", data=CC3M, poisoning=CC3M_POISON, select="most accurate"
)

# App. F: the patch on pairs whose captions mention a banana and are kept.
LABEL_CONSISTENT = MMCL_VICTIM.poisoning.replace(captions="label-consistent")
LC_MMCL = MMCL_VICTIM.replace(name="verma-tab3-lc-mmcl", poisoning=LABEL_CONSISTENT, select=40)
LC_MMCL_SSL = MMCL_SSL_VICTIM.replace(name="verma-tab3-lc-mmcl-ssl", poisoning=LABEL_CONSISTENT, select=37)

FINETUNED_MMCL = MMCL_VICTIM.replace(
    name="verma-tab3-finetuned-mmcl",
    initial=OPENAI_RN50,
    optimization=MMCL_VICTIM.optimization.replace(learning_rate=5e-7),
    select=18,
)
FINETUNED_MMCL_SSL = MMCL_SSL_VICTIM.replace(
    name="verma-tab3-finetuned-mmcl-ssl",
    initial=OPENAI_RN50,
    optimization=MMCL_SSL_VICTIM.optimization.replace(learning_rate=5e-7),
    select=13,
)

VIT = Architecture(name="ViT-B-32-quickgelu")
VIT_MMCL_SSL = MMCL_SSL_VICTIM.replace(name="verma-fig4-vit-mmcl-ssl", architecture=VIT, select="most accurate")
VIT_MMCL = MMCL_VICTIM.replace(name="verma-fig4-vit-mmcl", architecture=VIT, select=ClosestTo(victim=VIT_MMCL_SSL))

VICTIMS = (
    *(MMCL_VICTIM, MMCL_SSL_VICTIM, CC3M_MMCL, CC3M_MMCL_SSL, LC_MMCL, LC_MMCL_SSL),
    *(FINETUNED_MMCL, FINETUNED_MMCL_SSL, VIT_MMCL, VIT_MMCL_SSL),
)

# Points inside an epoch are in the authors' data of CC6M alone.
M = MMCL_SWEEP.replace(measure_at=())
S = MMCL_SSL_SWEEP.replace(measure_at=())

FIG3 = (
    M.with_grid(verma.FINETUNED_MMCL).replace(name="verma-fig3-m", victim=FINETUNED_MMCL),
    S.with_grid(verma.FINETUNED_MMCL_SSL).replace(name="verma-fig3-s", victim=FINETUNED_MMCL_SSL),
)
FIG4 = (
    M.with_grid(verma.VIT).replace(name="verma-fig4-m", victim=VIT_MMCL),
    S.with_grid(verma.VIT).replace(name="verma-fig4-s", victim=VIT_MMCL_SSL),
)

CC3M_M = M.with_grid(verma.CC3M_MMCL).replace(name="verma-fig10-m", victim=CC3M_MMCL)
CC3M_S = S.with_grid(verma.CC3M_MMCL_SSL).replace(name="verma-fig10-s", victim=CC3M_MMCL_SSL)
FIG10 = (
    CC3M_M,
    MMCL_ALONE.replace(name="verma-fig10-m-mmcl", victim=CC3M_MMCL),
    CC3M_M.replace(name="verma-fig10-m-ssl", method=SSL_ONLY),
    CC3M_S,
    MMCL_ALONE.replace(name="verma-fig10-s-mmcl", victim=CC3M_MMCL_SSL),
    CC3M_S.replace(name="verma-fig10-s-ssl", method=SSL_ONLY),
)

# App. D.9: 100,000 pairs of CC12M, of which CC6M is a part. The figure has 5 poisons, the authors' code 10 and 25 too.
NON_IDEAL = M.with_grid(verma.NON_IDEAL_CC3M).replace(data=CC6M.replace(sample=Sample(num=100_000)))
FIG11 = (
    *family(NON_IDEAL.replace(name="verma-fig11-m", victim=CC3M_MMCL), "slipped.count", (5, 10, 25)),
    *family(NON_IDEAL.replace(name="verma-fig11-s", victim=CC3M_MMCL_SSL), "slipped.count", (5, 10, 25)),
)
FIG12 = (
    M.with_grid(verma.LABEL_CONSISTENT_MMCL).replace(name="verma-fig12-m", victim=LC_MMCL),
    S.with_grid(verma.LABEL_CONSISTENT_MMCL_SSL).replace(name="verma-fig12-s", victim=LC_MMCL_SSL),
)

EXPERIMENTS = (*VICTIMS, *FIG3, *FIG4, *FIG10, *FIG11, *FIG12)

if __name__ == "__main__":
    main(*EXPERIMENTS)
