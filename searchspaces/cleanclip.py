"""Spaces and grids of CleanCLIP sweeps."""

from sweeplab.search_space import Choice, Grid, LogUniform, SearchSpace, Uniform

# Verma et al., App. D.3: 12 learning rates, 20 epochs, 50 warm-up steps, weight decay 0.1, SSL weight 1.
CC6M_MMCL_GRID = Grid(
    axes={
        "learning_rate": (1e-9, 5e-9, 1e-8, 5e-8, 1e-7, 3e-7, 7e-7, 1e-6, 3e-6, 7e-6, 1e-5, 3e-5),
    },
    source="Verma et al., App. D.3",
)

# Verma et al., App. D.4: 23 learning rates. The published results hold 16 of them, with 3e-5 in place of some.
CC6M_MMCL_SSL_GRID = Grid(
    axes={
        "learning_rate": (
            *(1e-9, 5e-9, 1e-8, 5e-8, 1e-7, 3e-7, 7e-7, 1e-6, 3e-6, 7e-6, 1e-5),
            *(4e-5, 5e-5, 6e-5, 7e-5, 9e-5, 1e-4, 3e-4, 4e-4, 5e-4, 6e-4, 1e-3, 3e-3),
        ),
    },
    source="Verma et al., App. D.4",
)

# One space for both victims: the papers searched the MMCL victim up to 3e-5 only and the MMCL + SSL victim up to
# 3e-3, so that their best rates were not found under equal terms.
CC6M = SearchSpace(
    dimensions={
        "learning_rate": LogUniform(low=1e-7, high=3e-3),
        "ssl_weight": Uniform(low=0.0, high=8.0),
        "weight_decay": LogUniform(low=1e-2, high=100.0),
        "shrink_perturb": Choice(values=(False, True)),
        "shrink": Uniform(low=0.1, high=1.0, when={"shrink_perturb": True}),
        "perturb": LogUniform(low=1e-5, high=1.0, when={"shrink_perturb": True}),
    },
    source="ranges of Verma et al., App. D.4 (learning rate), D.12 (decay), D.13 (shrink, perturb), D.16 (SSL weight)",
)

# Bansal et al., App. C.2: one setting, rate 1e-5 with weights 1 and 1.
CC3M_DEFAULT = Grid(axes={"learning_rate": (1e-5,)}, source="Bansal et al., App. C.2")

# C.4: accuracy and ASR against the SSL weight at rate 1e-5; 5 weights, chosen here, since the text states none: those
# of C.5, and half of the smallest.
CC3M_SSL_WEIGHTS = Grid(
    axes={"ssl_weight": (0.5, 1.0, 2.0, 4.0, 8.0)}, source="chosen here, around Bansal et al., App. C.5"
)

# C.5: 3 rates x 4 SSL weights on pairs of another source.
OTHER_PAIRS = Grid(
    axes={"learning_rate": (1e-4, 5e-4, 1e-5), "ssl_weight": (1.0, 2.0, 4.0, 8.0)},
    source="Bansal et al., App. C.5",
)

# C.3: one setting of supervised finetuning, rate 1e-4 after 500 warm-up steps.
SUPERVISED = Grid(axes={"learning_rate": (1e-4,)}, source="Bansal et al., App. C.3")

# The window in which a 4.6 M parameter victim is cleaned in four epochs lies above its pre-training rate of 2e-3.
FRUIT_STALL = SearchSpace(
    dimensions={
        "learning_rate": LogUniform(low=1e-6, high=3e-2),
        "ssl_weight": Uniform(low=0.0, high=4.0),
        "weight_decay": LogUniform(low=1e-2, high=1.0),
        "shrink_perturb": Choice(values=(False, True)),
        "shrink": Uniform(low=0.7, high=1.0, when={"shrink_perturb": True}),
        "perturb": Uniform(low=0.0, high=0.3, when={"shrink_perturb": True}),
    },
    source="chosen for the embedded data: about half of what is drawn cleans",
)

# 6 x 2 settings over the same window.
FRUIT_STALL_GRID = Grid(
    axes={"ssl_weight": (1.0, 4.0), "learning_rate": (1e-4, 1e-3, 3e-3, 6e-3, 1e-2, 3e-2)},
    source="chosen for the embedded data",
)
