"""Clean the BadNet, the BadNet-Stripes and the MMCL + SSL victim with each method, by small grids.

    python sweeps/every_method.py --only every-method-badnet-par
    python sweeps/every_method.py                         # all 21 sweeps, 86 trials of 4 epochs
    python sweeps/every_method.py --search tpe            # the spaces instead of the grids, 8 trials each
    python benchmarks/method_table.py                     # their best trials as a table

Everything but method, start and space is the quickstart's: 2,000 clean pairs, batch 64, one thread a trial. Only the
supervised method sees something else: as many labelled pictures. PAR has the paper's optimisation, but for the batch.
docs/results.md holds what came out.
"""

from every_attack import VICTIMS as ATTACKED
from quickstart import SWEEP as QUICKSTART
from quickstart import VICTIM as BADNET_VICTIM

from searchspaces import fruit_stall
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.deep_clustering import DeepClustering
from sweeplab.cleaning.par import PAR, PAR_OPTIMIZATION
from sweeplab.cleaning.start import Start
from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.cli import main
from sweeplab.data.fruit_stall import FruitStallTest
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.experiment import Search
from sweeplab.pretraining.contrastive import MMCLWithSSL
from sweeplab.pretraining.roclip import RoCLIP

BASE = QUICKSTART.replace(
    space=fruit_stall.RATE, grid=fruit_stall.COARSE_RATES, search=Search(sampler="grid", trials=8)
)

METHODS = {
    "mmcl": BASE.replace(method=CleanCLIP(ssl_weight=0.0), grid=fruit_stall.FINE_RATES),
    "ssl": BASE.replace(method=CleanCLIP(mmcl_weight=0.0)),
    "cleanclip": BASE.replace(method=CleanCLIP(), space=fruit_stall.CLEANCLIP, grid=fruit_stall.CLEANCLIP_GRID),
    "heavy-decay": BASE.replace(method=CleanCLIP(), space=fruit_stall.HEAVY_DECAY, grid=fruit_stall.HEAVY_DECAY_GRID),
    "shrink-perturb": BASE.replace(
        method=CleanCLIP(),
        start=Start(shrink_perturb=True),
        space=fruit_stall.SHRINK_PERTURB,
        grid=fruit_stall.SHRINK_PERTURB_GRID,
    ),
    "deep-clustering": BASE.replace(
        method=DeepClustering(num_clusters=32),
        space=fruit_stall.DEEP_CLUSTERING,
        grid=fruit_stall.DEEP_CLUSTERING_GRID,
    ),
    # PAR's own batch of 2,048 would be one step an epoch here.
    "par": BASE.replace(
        method=PAR(),
        space=fruit_stall.PAR,
        grid=fruit_stall.PAR_GRID,
        optimization=PAR_OPTIMIZATION.replace(global_batch_size=64),
    ),
    # A pool of half of an epoch's captions: the release's 21,845 rows would stay the random rows that it begins with.
    "roclip": BASE.replace(method=RoCLIP(pool_size=1024), grid=fruit_stall.FINE_RATES),
    "supervised": BASE.replace(
        method=SupervisedFinetuning(), data=LabelledPairs(images=FruitStallTest(num_images=2000, seed=2))
    ),
    "recalibration": BASE.replace(
        method=CleanCLIP(),
        start=Start(recalibrate_batch_norm=True),
        space=fruit_stall.RECALIBRATION,
        grid=fruit_stall.RECALIBRATION_GRID,
        epochs=0,
    ),
}

VICTIMS = {"badnet": BADNET_VICTIM, "badnet-stripes": ATTACKED["badnet-stripes"]}

# The victim that the papers find hard to clean: the in-modal loss took part in its pre-training, which plants the
# trigger more slowly here: ASR is 0.60 after 10 epochs and 0.67 after 16.
MMCL_SSL_VICTIM = BADNET_VICTIM.replace(
    name="fruit-stall-mmcl-ssl", objective=MMCLWithSSL(), epochs=16, text_augmentation="swap+delete"
)

SWEEPS = (
    *(
        sweep.replace(name=f"every-method-{victim}-{method}", victim=VICTIMS[victim])
        for victim in VICTIMS
        for method, sweep in METHODS.items()
    ),
    METHODS["cleanclip"].replace(name="every-method-mmcl-ssl-cleanclip", victim=MMCL_SSL_VICTIM),
)

if __name__ == "__main__":
    main(*SWEEPS)
