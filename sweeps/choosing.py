"""Clean a small victim with fewer pairs, with pairs some of which are poisoned, and for longer.

    python sweeps/choosing.py --inline                                # 6 sweeps of 4 settings
    python sweeps/choosing.py --inline --only 'choosing-poisons-*'
    sweeplab leaderboard choosing-poisons-5

The quickstart's recipe on pictures of 32 pixels, as in benchmarks/measured_grid.py; MMCL alone and CleanCLIP, each at
two rates that clean this victim. About 15 minutes of one core. Came out: 25 poisons among 2,000 pairs leave MMCL alone
at 14 % ASR and more, CleanCLIP below 5 %; with as many steps 500 pairs keep 3 to 5 points less than 2,000, with as many
epochs 6 to 13, or clean nothing. The table: docs/choosing.md
"""

from quickstart import SWEEP as QUICKSTART
from quickstart import VICTIM as QUICKSTART_VICTIM

from searchspaces import fruit_stall
from sweeplab.attacks.badnet import BadNet
from sweeplab.cli import main
from sweeplab.clip_model import SmallCLIP
from sweeplab.data.fruit_stall import ZERO_SHOT_TEMPLATES, FruitStall, FruitStallTest
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import Search, family

EVALUATION = Evaluation(test=FruitStallTest(num_images=2000, image_size=32), templates=ZERO_SHOT_TEMPLATES)

VICTIM = QUICKSTART_VICTIM.replace(
    name="fruit-stall-32",
    architecture=SmallCLIP(image_size=32).architecture(),
    data=FruitStall(num_pairs=8000, image_size=32),
    poisoning=QUICKSTART_VICTIM.poisoning.replace(attack=BadNet(patch_size=4, pattern="binary")),
    evaluation=EVALUATION,
)

BASE = QUICKSTART.replace(
    victim=VICTIM,
    data=FruitStall(num_pairs=2000, image_size=32, seed=1),
    evaluation=EVALUATION,
    space=fruit_stall.CLEANCLIP,
    grid=fruit_stall.MMCL_AND_CLEANCLIP,
    search=Search(sampler="grid"),
)

# The same number of epochs, and so a quarter of the steps with a quarter of the pairs; 2,000 are the quickstart's own.
PAIRS = family(BASE.replace(name="choosing-pairs"), "data.num_pairs", (500, 2000))

# As many steps with a quarter of the pairs.
STEPS = PAIRS[0].replace(name="choosing-pairs-500-longer", epochs=16)

# 0.25 and 1.25 % of the 2,000 pairs; of those that the victim was trained on 5 % are poisoned.
POISONS = family(BASE.replace(name="choosing-poisons"), "slipped.count", (5, 25))

LONGER = BASE.replace(name="choosing-epochs-8", epochs=8)

EXPERIMENTS = (*PAIRS, STEPS, *POISONS, LONGER)

if __name__ == "__main__":
    main(*EXPERIMENTS)
