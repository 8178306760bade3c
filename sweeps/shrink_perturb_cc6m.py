"""Shrink and perturb the CC6M MMCL + SSL victim, then clean the best start (Verma et al., Sec. 5, App. D.13).

    ray job submit --working-dir . -- python sweeps/shrink_perturb_cc6m.py    # 255 starts, then 9 trials
    python sweeps/shrink_perturb_cc6m.py --dry-run                            # the plan; needs no data
    python sweeps/shrink_perturb_cc6m.py --smoke                              # in miniature, minutes on 2 cores

Two steps. 255 starts, lambda x weights + p x fresh initialisation, are only evaluated; the most accurate one with an
ASR below 15 % is then cleaned with CleanCLIP at nine learning rates, 20 epochs each. Retention is relative to the
victim before it was shrunk. The data are those of `cleanclip_cc6m.py`.

Cost: one evaluation of ImageNet, clean and triggered, for each start (about a minute on one GPU: 4 to 5 hours), then 9
runs of 20 epochs on 100,000 pairs, about 20 GPU-hours at 500 pairs a second; the victim's 240 come first where it is
not there yet. The paper shows the result as a scatter (Fig. 8 or 9; the text gives Fig. 9 for this and for heavy
regularisation) and gives no number; CleanCLIP alone loses about 45 % of this victim's accuracy.

Both run their lists of App. D.13, which hold more than Sec. 5 says. `--search tpe` does not draw from these lists, but
from the continuous space of `cleanclip_cc6m.py`: rate, SSL weight, decay, and whether and how to shrink and perturb.
"""

from cleanclip_cc6m import MMCL_SSL_SWEEP

from searchspaces import verma
from sweeplab.cli import main
from sweeplab.experiment import Search, SelectedTrial

STARTS = MMCL_SSL_SWEEP.replace(
    name="shrink-perturb-cc6m-starts",
    epochs=0,
    measure_at=(),
    grid=verma.SHRINK_PERTURB_STARTS,
    search=Search(sampler="grid", asr_ceiling=0.15),
)

CLEANING = MMCL_SSL_SWEEP.replace(
    name="shrink-perturb-cc6m",
    victim=SelectedTrial(name="cc6m-mmcl-ssl-shrunk", sweep=STARTS),
    grid=verma.SHRINK_PERTURB_RATES,
    search=Search(sampler="grid"),
)

SWEEPS = (STARTS, CLEANING)

if __name__ == "__main__":
    main(*SWEEPS)
