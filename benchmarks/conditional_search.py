"""Whether a sampler finds the better branch where it is the one whose parameters have a condition.

    python benchmarks/conditional_search.py                # TPE, NSGA-II, random, Sobol: half a minute of one core
    python benchmarks/conditional_search.py --sampler gp   # the Gaussian process: two minutes

The objective is made up, and nothing is trained. Without shrink and perturb at most .70 is reached. With them .95 is,
at one place, and less than .70 over most of the branch (.46 in the mean): a search that draws the two parameters at
random finds the branch the worse one, and leaves it. Printed are the draws in the better branch among the last ones,
and the best value of each search.
"""

import argparse
import time
from math import log10
from typing import Any

import optuna

from sweeplab.experiment import Search
from sweeplab.search.quiet import quiet_optuna
from sweeplab.search.samplers import Plan, ask
from sweeplab.search_space import Choice, LogUniform, SearchSpace, Uniform

SPACE = SearchSpace(
    dimensions={
        "learning_rate": LogUniform(low=1e-5, high=1e-2),
        "shrink_perturb": Choice(values=(False, True)),
        "shrink": Uniform(low=0.0, high=1.0, when={"shrink_perturb": True}),
        "perturb": Uniform(low=0.0, high=1.0, when={"shrink_perturb": True}),
    },
    source="made up",
)
TRIALS, LATE = 40, 12


def value(setting: dict[str, Any]) -> float:
    """Of one setting; the rate is best at 10^-3.2 in either branch."""
    rate = (log10(setting["learning_rate"]) + 5) / 3
    if not setting["shrink_perturb"]:
        return 0.70 - (rate - 0.6) ** 2
    return 0.95 - (rate - 0.6) ** 2 - 2 * (setting["shrink"] - 0.3) ** 2 - 2 * (setting["perturb"] - 0.7) ** 2


@quiet_optuna()
def search(sampler: Any, seed: int, trials: int = TRIALS) -> list[dict[str, Any]]:
    """The settings of one search, in order, with 8 start-up trials."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler())
    plan = Plan(Search(sampler=sampler, seed=seed, startup_trials=8), SPACE)
    for number in range(trials):
        study.tell(number, value(SPACE.suggest(ask(study, plan, number))))
    return [trial.params for trial in study.get_trials(deepcopy=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sampler", action="append")
    parser.add_argument("--seeds", type=int, default=6)
    arguments = parser.parse_args()
    for sampler in arguments.sampler or ["tpe", "nsga2", "qmc", "random"]:
        began = time.perf_counter()
        runs = [search(sampler, seed) for seed in range(arguments.seeds)]
        late = sum(setting["shrink_perturb"] for run in runs for setting in run[-LATE:])
        best = sorted(max(map(value, run)) for run in runs)
        print(
            f"{sampler:7s} {late}/{LATE * len(runs)} late draws in the better branch; best values "
            f"{' '.join(f'{one:.3f}' for one in best)}, mean {sum(best) / len(best):.3f}; "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
