"""Spaces of every cleaning method on the embedded data: one axis of rates, and the one or two fields that matter.

The victims of 4.6 M parameters are cleaned in four epochs at rates near their pre-training rate of 2e-3: below 5e-4 the
backdoor stays, above 1e-2 accuracy goes (sweeps/LOG.md). The papers' rates are those of models a hundred times larger.
"""

from sweeplab.search_space import Choice, Grid, LogUniform, SearchSpace, Uniform

SOURCE = "chosen for the embedded data, around the window that sweeps/LOG.md reports"

RATES = LogUniform(low=7e-4, high=1e-2)

# MMCL alone, SSL alone, RoCLIP, supervised finetuning: nothing but the rate.
RATE = SearchSpace(dimensions={"learning_rate": RATES}, source=SOURCE)
RATE_GRID = Grid(axes={"learning_rate": (1e-3, 2e-3, 3e-3, 4.5e-3, 6e-3, 9e-3)}, source=SOURCE)

CLEANCLIP = SearchSpace(
    dimensions={"learning_rate": RATES, "ssl_weight": LogUniform(low=0.1, high=4.0)},
    source=SOURCE + "; weights: Verma et al., App. D.16 has 1 to 8 and more",
)

# Decoupled decay takes rate x decay off the weights in each of 124 steps. Verma et al. (App. D.12) go up to 100, at
# rates a thousand times smaller.
HEAVY_DECAY = SearchSpace(
    dimensions={"learning_rate": RATES, "weight_decay": LogUniform(low=1.0, high=30.0)},
    source=SOURCE + "; decay: Verma et al., App. D.12, up to 100",
)

SHRINK_PERTURB = SearchSpace(
    dimensions={
        "learning_rate": RATES,
        "shrink": Uniform(low=0.5, high=0.95),
        "perturb": Uniform(low=0.0, high=0.3),
    },
    source=SOURCE + "; shrink and perturb: Verma et al., App. D.13",
)

# 2,000 pairs of 16 classes; the paper has 1,000 clusters for 100,000 pairs of 1,000 classes.
DEEP_CLUSTERING = SearchSpace(
    dimensions={
        "learning_rate": RATES,
        "clustering_weight": LogUniform(low=0.1, high=10.0),
        "num_clusters": Choice(values=(16, 32, 64)),
    },
    source=SOURCE + "; weight: Verma et al., App. D.11, 0.1 to 50",
)

PAR = SearchSpace(
    dimensions={"learning_rate": RATES, "tau": Uniform(low=0.5, high=2.5)},
    source=SOURCE + "; tau: PAR, 2.15",
)

# No training: the statistics are taken anew, and that is all.
RECALIBRATION = SearchSpace(
    dimensions={"recalibrate_batch_norm": Choice(values=(True,))}, source="one setting: the statistics taken anew"
)
