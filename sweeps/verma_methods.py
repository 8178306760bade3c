"""What Verma et al. tried instead of CleanCLIP: deep clustering and heavy regularisation (Sec. 5, Figs. 7 to 9).

    python sweeps/verma_methods.py --dry-run                                  # the plans; needs no data
    python sweeps/verma_methods.py --smoke                                    # in miniature
    ray job submit --working-dir . -- python sweeps/verma_methods.py --only 'verma-heavy-*'
    sweeplab data label sweeps/verma_methods.py --only verma-fig7-siglip --model MODEL --to data/cc6m/siglip.npy

The last command comes before `verma-fig7-siglip`: MODEL is the folder of `timm/ViT-SO400M-14-SigLIP-384`, the model of
the authors' code, from Hugging Face (the text says ViT-L/14, 83.08 % on ImageNet); docs/models.md tells more.
All of them clean the MMCL + SSL victim of `cleanclip_cc6m.py`, 72 trials each; the third method of Sec. 5, shrink and
perturb, is `shrink_perturb_cc6m.py`. Cost, at 500 pairs a second on one GPU: about 700 GPU-hours for the 360 trials,
without the victim. Expected: none of them has a cleaned state that keeps useful accuracy; the paper gives no number.

App. D.11 and D.12 have 20 epochs, which run here; Sec. 5 says 10. The authors' code loads the victim's optimizer,
whose decay of 0.1 takes the place of the chosen one, so that their points of heavy regularisation may be plain
cleaning; here the decay applies. The names of the three objectives of heavy regularisation are lost in the text at
hand: MMCL, SSL and both are chosen.
"""

from pathlib import Path

from cleanclip_cc6m import MMCL_SSL_SWEEP

from searchspaces import verma
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.deep_clustering import DeepClustering
from sweeplab.cli import main
from sweeplab.experiment import family

BASE = MMCL_SSL_SWEEP.replace(measure_at=())

KMEANS = BASE.replace(name="verma-fig7-kmeans", method=DeepClustering()).with_grid(verma.DEEP_CLUSTERING)
SIGLIP = KMEANS.replace(name="verma-fig7-siglip", method=DeepClustering(pseudo_labels=Path("data/cc6m/siglip.npy")))

HEAVY = family(
    BASE.replace(name="verma-heavy").with_grid(verma.HEAVY_REGULARISATION),
    "method",
    {"mmcl": CleanCLIP(ssl_weight=0.0), "ssl": CleanCLIP(mmcl_weight=0.0), "both": CleanCLIP()},
)

EXPERIMENTS = (KMEANS, SIGLIP, *HEAVY)

if __name__ == "__main__":
    main(*EXPERIMENTS)
