"""The grids behind benchmarks/tables/fruit_stall_*.csv: 6 SSL weights x 10 learning rates, 32-pixel fruit stall.

    OMP_NUM_THREADS=1 python benchmarks/measured_grid.py --inline     # 2 x 25 minutes of one shared core
    sweeplab export fruit-stall-grid --to DIR                         # DIR/epochs.csv: fruit_stall_badnet.csv
    sweeplab export fruit-stall-grid-blended --to DIR                 # fruit_stall_blended.csv

Larger than the quickstart's grid, so that a search has something to save; smaller pictures, so that it costs little.
Of the tables only the columns that an import needs are kept.
"""

from searchspaces.cleanclip import FRUIT_STALL
from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.blended import Blended
from sweeplab.attacks.poisoning import Poisoning
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cli import main
from sweeplab.clip_model import SmallCLIP
from sweeplab.data.fruit_stall import ZERO_SHOT_TEMPLATES, FruitStall, FruitStallTest
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import CleaningSweep, PretrainedVictim, Resources, Search
from sweeplab.pretraining.contrastive import MMCL
from sweeplab.search_space import Grid
from sweeplab.training.optimisation import Optimization

EVALUATION = Evaluation(test=FruitStallTest(num_images=2000, image_size=32), templates=ZERO_SHOT_TEMPLATES)

VICTIM = PretrainedVictim(
    name="fruit-stall-32",
    architecture=SmallCLIP(image_size=32).architecture(),
    data=FruitStall(num_pairs=8000, image_size=32),
    poisoning=Poisoning(attack=BadNet(patch_size=4, pattern="binary"), target="banana", rate=0.05, captions="training"),
    objective=MMCL(),
    optimization=Optimization(
        learning_rate=2e-3,
        weight_decay=0.1,
        warmup_steps=50,
        global_batch_size=128,
        beta2=0.98,
        epsilon=1e-6,
        max_gradient_norm=1.0,
    ),
    epochs=10,
    evaluation=EVALUATION,
)

SWEEP = CleaningSweep(
    name="fruit-stall-grid",
    victim=VICTIM,
    method=CleanCLIP(),
    optimization=Optimization(
        weight_decay=0.1, warmup_steps=10, global_batch_size=64, beta2=0.98, epsilon=1e-6, max_gradient_norm=1.0
    ),
    epochs=4,
    data=FruitStall(num_pairs=2000, image_size=32, seed=1),
    evaluation=EVALUATION,
    text_augmentation="swap+delete",
    space=FRUIT_STALL,
    grid=Grid(
        axes={
            "ssl_weight": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
            "learning_rate": (1e-4, 3e-4, 6e-4, 1e-3, 2e-3, 3e-3, 6e-3, 1e-2, 1.7e-2, 3e-2),
        },
        source="chosen for the embedded data: from where the backdoor stays to where the model is destroyed",
    ),
    search=Search(sampler="grid"),
    resources=Resources(keep_checkpoints=1),
)

BLENDED_VICTIM = VICTIM.replace(
    name="fruit-stall-32-blended", poisoning=VICTIM.poisoning.replace(attack=Blended(noise="fixed"))
)
BLENDED_SWEEP = SWEEP.replace(name="fruit-stall-grid-blended", victim=BLENDED_VICTIM)

if __name__ == "__main__":
    main(SWEEP, BLENDED_SWEEP)
