"""Clean the BadNet, the BadNet-Stripes and the MMCL + SSL victim with each method, six trials of four epochs each.

    python sweeps/every_method.py --only every-method-badnet-par
    python sweeps/every_method.py                         # all 21 sweeps, about 40 minutes on 2 cores
    python benchmarks/method_table.py                     # their best trials as a table

Everything but method, start and space is the quickstart's: 2,000 clean pairs, batch 64, one thread a trial. Only the
supervised method sees something else: as many labelled pictures. docs/results.md holds what came out.
"""

from every_attack import VICTIMS as ATTACKED
from quickstart import SWEEP as QUICKSTART
from quickstart import VICTIM as BADNET_VICTIM

from searchspaces import fruit_stall
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.deep_clustering import DeepClustering
from sweeplab.cleaning.par import PAR
from sweeplab.cleaning.start import Start
from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.cli import main
from sweeplab.data.fruit_stall import FruitStallTest
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.experiment import Search
from sweeplab.pretraining.contrastive import MMCLWithSSL
from sweeplab.pretraining.roclip import RoCLIP

RATES = QUICKSTART.replace(space=fruit_stall.RATE, grid=fruit_stall.RATE_GRID, search=Search(sampler="grid"))
BASE = RATES.replace(grid=None, search=Search(trials=6, startup_trials=4))

CLEANCLIP = BASE.replace(method=CleanCLIP(), space=fruit_stall.CLEANCLIP)

METHODS = {
    "mmcl": RATES.replace(method=CleanCLIP(ssl_weight=0.0)),
    "ssl": RATES.replace(method=CleanCLIP(mmcl_weight=0.0)),
    "cleanclip": CLEANCLIP,
    "heavy-decay": BASE.replace(method=CleanCLIP(), space=fruit_stall.HEAVY_DECAY),
    "shrink-perturb": BASE.replace(
        method=CleanCLIP(), start=Start(shrink_perturb=True), space=fruit_stall.SHRINK_PERTURB
    ),
    "deep-clustering": BASE.replace(method=DeepClustering(num_clusters=32), space=fruit_stall.DEEP_CLUSTERING),
    # PAR's schedule and decay (App.); its batch of 2,048 would be one step an epoch here.
    "par": BASE.replace(
        method=PAR(),
        space=fruit_stall.PAR,
        optimization=BASE.optimization.replace(schedule="fall-cosine", weight_decay=1e-4),
    ),
    # A pool of half of an epoch's captions: the release's 21,845 rows would stay the random rows that it begins with.
    "roclip": RATES.replace(method=RoCLIP(pool_size=1024)),
    "supervised": RATES.replace(
        method=SupervisedFinetuning(), data=LabelledPairs(images=FruitStallTest(num_images=2000, seed=2))
    ),
    "recalibration": BASE.replace(
        method=CleanCLIP(),
        start=Start(recalibrate_batch_norm=True),
        space=fruit_stall.RECALIBRATION,
        epochs=0,
        search=Search(trials=1, startup_trials=1),
    ),
}

VICTIMS = {"badnet": BADNET_VICTIM, "badnet-stripes": ATTACKED["badnet-stripes"]}

# The victim that the papers find hard to clean: the in-modal loss took part in its pre-training.
MMCL_SSL_VICTIM = BADNET_VICTIM.replace(
    name="fruit-stall-mmcl-ssl", objective=MMCLWithSSL(), text_augmentation="swap+delete"
)

SWEEPS = (
    *(
        sweep.replace(name=f"every-method-{victim}-{method}", victim=VICTIMS[victim])
        for victim in VICTIMS
        for method, sweep in METHODS.items()
    ),
    CLEANCLIP.replace(
        name="every-method-mmcl-ssl-cleanclip", victim=MMCL_SSL_VICTIM, search=Search(trials=8, startup_trials=4)
    ),
)

if __name__ == "__main__":
    main(*SWEEPS)
