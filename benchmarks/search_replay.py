"""How many of a grid's trial-epochs a search needs to find the grid's best: replays over measured and simulated tables.

    python benchmarks/search_replay.py                  # about three minutes of one core
    python benchmarks/search_replay.py --small          # tables of 12 to 16 configurations; one minute
    python benchmarks/search_replay.py --small --startup 1 2 3 4 6 8     # TPE with pruning alone, for each number
    python benchmarks/search_replay.py --gp --seeds 5   # with the Gaussian process, which is slow

Goal: the best retention at an ASR below 5 % (within 0.01) for at most a quarter of the grid's trial-epochs, in the
median over 20 seeds. Defaults of the search were chosen on the first group of tables alone; the second was only
reported. What the sampler adds is seen beside the shuffled grid under the same rules.
Measured tables: benchmarks/measured_grid.py. Simulated ones: benchmarks/surfaces.py.
"""

import argparse
import tempfile
import time
from pathlib import Path

from surfaces import SMALL_SURFACES, SURFACES, table_of_surface

from sweeplab.commands.import_table import import_table
from sweeplab.ranking.stopping import Pruning
from sweeplab.search.replay import SHUFFLED, UNCONSTRAINED, Contender, Table, compare, replay_table

TABLES = Path(__file__).parent / "tables"
GOAL = 0.25


def measured(name: str) -> Table:
    with tempfile.TemporaryDirectory() as home:
        return replay_table(import_table(TABLES / f"{name}.csv", Path(home), name))


def groups(small: bool) -> dict[str, list[Table]]:
    if small:
        return {
            "chosen on": [table_of_surface(surface, 0) for surface in SMALL_SURFACES],
            "reported on": [table_of_surface(surface, seed) for surface in SMALL_SURFACES for seed in (1, 2)],
        }
    return {
        "chosen on": [
            measured("fruit_stall_badnet"),
            *(table_of_surface(surface, 0) for surface in SURFACES),
        ],
        "reported on": [
            measured("fruit_stall_blended"),
            *(table_of_surface(surface, seed) for surface in SURFACES for seed in (1, 2)),
        ],
    }


def near_best(table: Table) -> int:
    """Configurations that would do."""
    whole = [row.prefixes[-1][1] for row in table.rows]
    if table.best_retention is None:
        return sum(min(row.asr) <= table.lowest_asr + 0.01 for row in whole)
    enough = (table.best_retention - 0.01) * table.goal.victim_accuracy
    return sum((row.best_accuracy(table.goal.asr_ceiling) or 0) >= enough for row in whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--gp", action="store_true")
    parser.add_argument("--small", action="store_true", help="The tables of 12 to 16 configurations.")
    parser.add_argument("--startup", type=int, nargs="+", help="Start-up trials to compare, of TPE with pruning.")
    parser.add_argument("--only", default="", help="Part of a table's name.")
    arguments = parser.parse_args()
    contenders = [
        Contender("tpe", Pruning()),
        Contender("nsga2", Pruning()),
        Contender("qmc", Pruning()),
        Contender("random", Pruning()),
        Contender(SHUFFLED, Pruning()),
        Contender("tpe"),
        Contender("random"),
        Contender(SHUFFLED),
        Contender(UNCONSTRAINED),
        *([Contender("gp", Pruning())] if arguments.gp else []),
    ]
    if arguments.startup:
        contenders = [Contender("tpe", Pruning(), number) for number in arguments.startup]
    for group, tables in groups(arguments.small).items():
        for table in tables:
            if arguments.only not in table.name:
                continue
            best = f"lowest ASR {table.lowest_asr:.1%}"
            if table.best_retention is not None:
                best = f"best retention {table.best_retention:.1%}"
            print(
                f"\n{table.name} ({group}): {len(table.rows)} configurations, {table.trial_epochs:g} trial-epochs, "
                f"{best}; {near_best(table)} of them within 0.01",
                flush=True,
            )
            for contender in contenders:
                began = time.perf_counter()
                (row,) = compare(table, [contender], arguments.seeds)["results"]
                shares = [row["share_of_table"][name] for name in ("median", "lower_quartile", "upper_quartile")]
                median, low, high = ("  never" if share is None else f"{share:7.1%}" for share in shares)
                reached = shares[0] is not None and shares[0] <= GOAL
                print(
                    f"  {row['sampler'] + (' + pruning' if row['pruning'] else ''):23s} "
                    f"start-up {row['startup_trials'] or '-':>2}  median {median}  "
                    f"quartiles {low} {high}  arrived {row['arrived']}/{row['seeds']}  "
                    f"{'goal' if reached else '    '}  {time.perf_counter() - began:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
