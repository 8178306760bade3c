"""Spaces and grids of every cleaning method on the embedded data: the rate, and the one or two fields that matter.

The victims of 4.6 M parameters are cleaned in four epochs at rates near their pre-training rate of 2e-3: below 1e-3 the
backdoor stays, above 1e-2 accuracy goes (sweeps/LOG.md). The papers' rates are those of models a hundred times larger.
Each space has a small grid beside it, which is what sweeps/every_method.py runs.
"""

from sweeplab.search_space import Choice, Grid, LogUniform, SearchSpace, Uniform

SOURCE = "chosen for the embedded data, around the window that sweeps/LOG.md reports"

RATES = LogUniform(low=7e-4, high=1e-2)

# MMCL alone and RoCLIP: nothing but the rate, finely.
RATE = SearchSpace(dimensions={"learning_rate": RATES}, source=SOURCE)
FINE_RATES = Grid(axes={"learning_rate": (1e-3, 2e-3, 3e-3, 4.5e-3, 6e-3, 9e-3)}, source=SOURCE)

# SSL alone, supervised finetuning: the same window, a factor of two apart.
COARSE_RATES = Grid(axes={"learning_rate": (1e-3, 2e-3, 4e-3, 8e-3)}, source=SOURCE)

CLEANCLIP_SOURCE = SOURCE + "; weights: Verma et al., App. D.16, has 1 to 8 and more"
CLEANCLIP = SearchSpace(
    dimensions={"learning_rate": RATES, "ssl_weight": LogUniform(low=0.1, high=4.0)}, source=CLEANCLIP_SOURCE
)
CLEANCLIP_GRID = Grid(axes={"ssl_weight": (0.25, 1.0), "learning_rate": (3e-3, 6e-3)}, source=CLEANCLIP_SOURCE)
MMCL_AND_CLEANCLIP = Grid(axes={"ssl_weight": (0.0, 1.0), "learning_rate": (3e-3, 6e-3)}, source=CLEANCLIP_SOURCE)

# Decoupled decay takes rate x decay off the weights in each of 124 steps. Verma et al. (App. D.12) go up to 100, at
# rates a thousand times smaller.
DECAY_SOURCE = SOURCE + "; decay: Verma et al., App. D.12, up to 100"
HEAVY_DECAY = SearchSpace(
    dimensions={"learning_rate": RATES, "weight_decay": LogUniform(low=1.0, high=30.0)}, source=DECAY_SOURCE
)
HEAVY_DECAY_GRID = Grid(axes={"weight_decay": (3.0, 10.0), "learning_rate": (2e-3, 4e-3)}, source=DECAY_SOURCE)

SHRINK_SOURCE = SOURCE + "; shrink and perturb: Verma et al., App. D.13"
SHRINK_PERTURB = SearchSpace(
    dimensions={
        "learning_rate": RATES,
        "shrink": Uniform(low=0.5, high=0.95),
        "perturb": Uniform(low=0.0, high=0.3),
    },
    source=SHRINK_SOURCE,
)
SHRINK_PERTURB_GRID = Grid(
    axes={"perturb": (0.1,), "shrink": (0.6, 0.9), "learning_rate": (2e-3, 4e-3)}, source=SHRINK_SOURCE
)

# 2,000 pairs of 16 classes; the paper has 1,000 clusters for 100,000 pairs of 1,000 classes.
CLUSTERING_SOURCE = SOURCE + "; weight: Verma et al., App. D.11, 0.1 to 50"
DEEP_CLUSTERING = SearchSpace(
    dimensions={
        "learning_rate": RATES,
        "clustering_weight": LogUniform(low=0.1, high=10.0),
        "num_clusters": Choice(values=(16, 32, 64)),
    },
    source=CLUSTERING_SOURCE,
)
DEEP_CLUSTERING_GRID = Grid(
    axes={"clustering_weight": (0.3, 3.0), "learning_rate": (3e-3, 6e-3)}, source=CLUSTERING_SOURCE
)

PAR_SOURCE = SOURCE + "; tau: PAR, 2.15"
PAR = SearchSpace(dimensions={"learning_rate": RATES, "tau": Uniform(low=0.5, high=2.5)}, source=PAR_SOURCE)
PAR_GRID = Grid(axes={"tau": (1.0, 2.15), "learning_rate": (2e-3, 5e-3)}, source=PAR_SOURCE)

# No training: the statistics are taken anew, and that is all.
RECALIBRATION = SearchSpace(
    dimensions={"recalibrate_batch_norm": Choice(values=(True,))}, source="one setting: the statistics taken anew"
)
RECALIBRATION_GRID = Grid(axes={"recalibrate_batch_norm": (True,)}, source="the same")
