"""Clean the quickstart's victim with fewer pairs, with pairs some of which are poisoned, and for longer.

    python sweeps/choosing.py --inline                                # 6 sweeps of 4 settings: 25 minutes of one core
    python sweeps/choosing.py --inline --only 'choosing-poisons-*'
    sweeplab leaderboard choosing-poisons-5

MMCL alone and CleanCLIP, each at two rates that clean this victim (docs/results.md). docs/choosing.md says what the
papers found and what came out here.
"""

from quickstart import SWEEP as QUICKSTART

from searchspaces import fruit_stall
from sweeplab.cli import main
from sweeplab.experiment import Search, family

BASE = QUICKSTART.replace(
    space=fruit_stall.CLEANCLIP, grid=fruit_stall.MMCL_AND_CLEANCLIP, search=Search(sampler="grid")
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
