"""Poison a small CLIP, then search for the settings that clean it. Everything is made here; no GPU, no download.

    python sweeps/quickstart.py            # 4 to 8 minutes on 2 cores
    python sweeps/quickstart.py --dry-run  # what it would do

The fruit stall has 16 classes; 5 % of the 8,000 training pairs carry a 6-pixel square of noise and captions of bananas.
Expect a victim with accuracy above 0.9 that calls more than 0.9 of the triggered images "banana", and a sweep in
which about half of the trials get below 5 % ASR: learning rates near 6e-3 keep almost all of the accuracy, smaller
ones leave the backdoor in place, larger ones destroy the model.
"""

from searchspaces import cleanclip
from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.poisoning import Poisoning
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cli import main
from sweeplab.clip_model import SmallCLIP
from sweeplab.data.fruit_stall import ZERO_SHOT_TEMPLATES, FruitStall, FruitStallTest
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import CleaningSweep, PretrainedVictim, Resources, Search
from sweeplab.pretraining.contrastive import MMCL
from sweeplab.training.optimisation import Optimization

EVALUATION = Evaluation(
    test=FruitStallTest(num_images=2000),
    templates=ZERO_SHOT_TEMPLATES,
    probe=FruitStallTest(num_images=2000, seed=2),
)

VICTIM = PretrainedVictim(
    name="fruit-stall-mmcl",
    architecture=SmallCLIP().architecture(),
    data=FruitStall(num_pairs=8000),
    poisoning=Poisoning(attack=BadNet(patch_size=6, pattern="binary"), target="banana", rate=0.05, captions="training"),
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
    resources=Resources(cpus_per_worker=2),
)

SWEEP = CleaningSweep(
    name="quickstart",
    victim=VICTIM,
    method=CleanCLIP(),
    optimization=Optimization(
        weight_decay=0.1, warmup_steps=10, global_batch_size=64, beta2=0.98, epsilon=1e-6, max_gradient_norm=1.0
    ),
    epochs=4,
    data=FruitStall(num_pairs=2000, seed=1),
    evaluation=EVALUATION,
    text_augmentation="swap+delete",  # the same with and without WordNet
    space=cleanclip.FRUIT_STALL,
    grid=cleanclip.FRUIT_STALL_GRID,
    search=Search(trials=12, startup_trials=6),
)

if __name__ == "__main__":
    main(SWEEP)
