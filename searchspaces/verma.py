"""The grids of Verma et al., App. D: learning rates and what else was tried, each with its section and its count.

Where nothing else is said: 20 epochs, 100,000 cleaning pairs, 50 warm-up steps, weight decay 0.1, weights 1 and 1. What
is no search parameter (cleaning pairs, poisons among them, epochs) is a field of the sweep and named in the comment. A
value that the paper repeats is listed once. D.3 and D.4 are in `searchspaces.cleanclip`.
"""

from searchspaces.cleanclip import CC6M_MMCL_GRID, CC6M_MMCL_SSL_GRID
from sweeplab.search_space import Grid

# D.1: the CC3M MMCL victim, 13 rates.
CC3M_MMCL = Grid(
    axes={
        "learning_rate": (
            *(1e-5, 4e-5, 8e-5, 1e-4, 1.5e-4, 2e-4, 2.5e-4, 3e-4, 3.5e-4),
            *(4e-4, 8e-4, 1e-3, 4e-3),
        ),
    },
    source="Verma et al., App. D.1",
)

# D.2: the CC3M MMCL + SSL victim, the same 13 rates.
CC3M_MMCL_SSL = Grid(
    axes={
        "learning_rate": (
            *(1e-5, 4e-5, 8e-5, 1e-4, 1.5e-4, 2e-4, 2.5e-4, 3e-4, 3.5e-4),
            *(4e-4, 8e-4, 1e-3, 4e-3),
        ),
    },
    source="Verma et al., App. D.2",
)

# Not in App. D: MMCL alone ("MMCL cleaning" of Figs. 2 and 10), 4 rates of the authors' scripts, batch 128.
MMCL_ALONE = Grid(
    axes={"learning_rate": (1e-4, 5e-4, 1e-3, 5e-3)},
    source="attack-cleanclip's scripts for MMCL cleaning; not in Verma et al., App. D",
)

# Not in App. D: Fig. 4's ViT victims. Chosen here: the 24 rates of D.3 and D.4 together, the same for both victims.
VIT = Grid(
    axes={
        "learning_rate": (
            *(1e-9, 5e-9, 1e-8, 5e-8, 1e-7, 3e-7, 7e-7, 1e-6, 3e-6, 7e-6, 1e-5, 3e-5),
            *(4e-5, 5e-5, 6e-5, 7e-5, 9e-5, 1e-4, 3e-4, 4e-4, 5e-4, 6e-4, 1e-3, 3e-3),
        ),
    },
    source="chosen here: the rates of Verma et al., App. D.3 and D.4; the paper states none for ViT",
)

# D.5: OpenAI's model, poisoned by finetuning with MMCL; 69 rates.
FINETUNED_MMCL = Grid(
    axes={
        "learning_rate": (
            *(1e-8, 5e-8, 1e-7, 5e-7, 1e-6, 1.25e-6, 1.5e-6, 1.75e-6, 2e-6),
            *(2.25e-6, 2.5e-6, 2.75e-6, 3e-6, 3.25e-6, 3.5e-6, 3.75e-6, 4e-6, 4.25e-6),
            *(4.5e-6, 4.75e-6, 4.9e-6, 5e-6, 6e-6, 7e-6, 8e-6, 9e-6, 1e-5),
            *(1.1e-5, 1.2e-5, 1.3e-5, 1.4e-5, 1.5e-5, 1.6e-5, 1.7e-5, 1.8e-5, 1.9e-5),
            *(2e-5, 2.1e-5, 2.2e-5, 2.3e-5, 2.4e-5, 2.5e-5, 2.6e-5, 2.7e-5, 2.8e-5),
            *(2.9e-5, 3e-5, 3.1e-5, 3.2e-5, 3.3e-5, 3.4e-5, 3.5e-5, 3.6e-5, 3.7e-5),
            *(3.75e-5, 3.8e-5, 3.9e-5, 4e-5, 4.1e-5, 4.2e-5, 4.25e-5, 4.3e-5, 4.4e-5),
            *(4.5e-5, 4.6e-5, 4.7e-5, 4.8e-5, 4.9e-5, 5e-5),
        ),
    },
    source="Verma et al., App. D.5",
)

# D.6: OpenAI's model, poisoned by finetuning with MMCL + SSL; 85 rates are stated, 62 differ.
FINETUNED_MMCL_SSL = Grid(
    axes={
        "learning_rate": (
            *(1e-8, 5e-8, 1e-7, 5e-7, 1e-6, 5e-6, 6e-6, 7e-6, 8e-6),
            *(9e-6, 1e-5, 1.1e-5, 1.2e-5, 1.3e-5, 1.4e-5, 1.5e-5, 1.6e-5, 1.7e-5),
            *(1.75e-5, 1.8e-5, 1.9e-5, 2e-5, 2.1e-5, 2.2e-5, 2.25e-5, 2.3e-5, 2.4e-5),
            *(2.5e-5, 2.6e-5, 2.7e-5, 2.75e-5, 2.8e-5, 2.9e-5, 3e-5, 3.1e-5, 3.2e-5),
            *(3.25e-5, 3.3e-5, 3.4e-5, 3.5e-5, 3.6e-5, 3.7e-5, 3.75e-5, 3.8e-5, 3.9e-5),
            *(4e-5, 4.1e-5, 4.2e-5, 4.25e-5, 4.3e-5, 4.4e-5, 4.5e-5, 4.6e-5, 4.7e-5),
            *(4.75e-5, 4.8e-5, 4.9e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3),
        ),
    },
    source="Verma et al., App. D.6",
)

# D.7: label-consistent poison, MMCL victim; 44 rates.
LABEL_CONSISTENT_MMCL = Grid(
    axes={
        "learning_rate": (
            *(1e-8, 5e-8, 1e-7, 5e-7, 1e-6, 5e-6, 6e-6, 7e-6, 8e-6),
            *(9e-6, 1e-5, 1.1e-5, 1.2e-5, 1.3e-5, 1.4e-5, 1.5e-5, 1.6e-5, 1.7e-5),
            *(1.8e-5, 1.9e-5, 2e-5, 2.1e-5, 2.2e-5, 2.3e-5, 2.4e-5, 2.5e-5, 2.6e-5),
            *(2.7e-5, 2.8e-5, 2.9e-5, 3e-5, 3.1e-5, 3.2e-5, 3.3e-5, 3.4e-5, 3.5e-5),
            *(3.6e-5, 3.7e-5, 3.75e-5, 3.8e-5, 4e-5, 4.25e-5, 4.75e-5, 5e-5),
        ),
    },
    source="Verma et al., App. D.7",
)

# D.8: label-consistent poison, MMCL + SSL victim; 71 rates. (1.5e-4 is missing: the authors' list has 1.5e-5 twice.)
LABEL_CONSISTENT_MMCL_SSL = Grid(
    axes={
        "learning_rate": (
            *(1e-8, 5e-8, 1e-7, 5e-7, 1e-6, 5e-6, 6e-6, 7e-6, 8e-6),
            *(9e-6, 1e-5, 1.1e-5, 1.2e-5, 1.3e-5, 1.4e-5, 1.5e-5, 1.6e-5, 1.7e-5),
            *(1.8e-5, 1.9e-5, 2e-5, 2.1e-5, 2.2e-5, 2.3e-5, 2.4e-5, 2.5e-5, 2.6e-5),
            *(2.7e-5, 2.8e-5, 2.9e-5, 3e-5, 3.1e-5, 3.2e-5, 3.3e-5, 3.4e-5, 3.5e-5),
            *(3.6e-5, 3.7e-5, 3.75e-5, 3.8e-5, 4e-5, 4.25e-5, 4.75e-5, 5e-5, 6e-5),
            *(7e-5, 8e-5, 9e-5, 1e-4, 1.1e-4, 1.2e-4, 1.3e-4, 1.4e-4, 1.6e-4),
            *(1.7e-4, 1.8e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 7e-4, 8e-4),
            *(9e-4, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 7e-3),
        ),
    },
    source="Verma et al., App. D.8",
)

# D.9: 8 rates, each with 5, 10 and 25 poisons: `SlippedPoisons(count=...)`. The authors cleaned with CC12M pairs.
NON_IDEAL_CC3M = Grid(
    axes={
        "learning_rate": (1e-7, 3e-7, 7e-7, 1e-6, 3e-6, 7e-6, 1e-5, 3e-5),
    },
    source="Verma et al., App. D.9",
)

# D.10: 19 rates are stated, 17 differ; each with 1, 2, 3, 4, 5, 10 and 25 poisons.
NON_IDEAL_CC6M = Grid(
    axes={
        "learning_rate": (
            *(1e-8, 5e-8, 1e-7, 3e-7, 5e-7, 7e-7, 1e-6, 3e-6, 5e-6),
            *(7e-6, 1e-5, 3e-5, 5e-5, 1e-4, 3e-4, 5e-4, 7e-4),
        ),
    },
    source="Verma et al., App. D.10",
)

# D.11: 8 weights x 9 rates, method `DeepClustering`. (Sec. 5 says 10 epochs and 8 rates, the list has 20 and 9.)
DEEP_CLUSTERING = Grid(
    axes={
        "clustering_weight": (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0),
        "learning_rate": (5e-6, 1e-5, 5e-5, 1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 1e-3),
    },
    source="Verma et al., App. D.11",
)

# D.12: 9 decays x 8 rates, under each of MMCL, SSL and MMCL + SSL. (Sec. 5 says 10 epochs, the list 20.)
HEAVY_REGULARISATION = Grid(
    axes={
        "weight_decay": (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
        "learning_rate": (3e-6, 7e-6, 1e-5, 3e-5, 1e-4, 5e-4, 1e-3, 5e-3),
    },
    source="Verma et al., App. D.12",
)

# D.13: 17 lambdas x 15 p = 255 starts that are only evaluated (`epochs=0`). (Sec. 5 says 5 lambdas.)
SHRINK_PERTURB_STARTS = Grid(
    axes={
        "shrink_perturb": (True,),
        "shrink": (
            *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
            *(0.92, 0.93, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0),
        ),
        "perturb": (
            *(1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
            *(0.4, 0.8, 1.0, 2.0, 3.0, 4.0),
        ),
    },
    source="Verma et al., App. D.13",
)

# D.13: 9 rates from the selected start (Sec. 5 says 8).
SHRINK_PERTURB_RATES = Grid(
    axes={
        "learning_rate": (1e-5, 2e-5, 4e-5, 5e-5, 7e-5, 9e-5, 1e-4, 2e-4, 1e-3),
    },
    source="Verma et al., App. D.13",
)

# D.14: 14 rates on 200,000 cleaning pairs.
LARGER_CLEANING_SET = Grid(
    axes={
        "learning_rate": (
            *(1e-9, 5e-9, 1e-8, 5e-8, 1e-7, 3e-7, 7e-7, 1e-6, 3e-6),
            *(7e-6, 1e-5, 3e-5, 1e-4, 1e-3),
        ),
    },
    source="Verma et al., App. D.14",
)

# D.15: 13 rates at 50 epochs and at 100 (Sec. 5 says 12).
LONGER = Grid(
    axes={
        "learning_rate": (
            *(1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 7e-5, 9e-5, 1e-4),
            *(2e-4, 3e-4, 4e-4, 5e-4),
        ),
    },
    source="Verma et al., App. D.15",
)

# D.16: 4 SSL weights x 4 rates.
SSL_WEIGHTS = Grid(
    axes={
        "ssl_weight": (2.0, 4.0, 6.0, 8.0),
        "learning_rate": (5e-5, 1e-4, 5e-4, 1e-3),
    },
    source="Verma et al., App. D.16",
)

APPENDIX_D = {
    "D.1": (CC3M_MMCL,),
    "D.2": (CC3M_MMCL_SSL,),
    "D.3": (CC6M_MMCL_GRID,),
    "D.4": (CC6M_MMCL_SSL_GRID,),
    "D.5": (FINETUNED_MMCL,),
    "D.6": (FINETUNED_MMCL_SSL,),
    "D.7": (LABEL_CONSISTENT_MMCL,),
    "D.8": (LABEL_CONSISTENT_MMCL_SSL,),
    "D.9": (NON_IDEAL_CC3M,),
    "D.10": (NON_IDEAL_CC6M,),
    "D.11": (DEEP_CLUSTERING,),
    "D.12": (HEAVY_REGULARISATION,),
    "D.13": (SHRINK_PERTURB_STARTS, SHRINK_PERTURB_RATES),
    "D.14": (LARGER_CLEANING_SET,),
    "D.15": (LONGER,),
    "D.16": (SSL_WEIGHTS,),
}
"""All of them by section."""
