"""One table of every attack: its victim, and the unpoisoned twin under the same trigger. Prints markdown.

    python benchmarks/attack_table.py                                  # the victims of sweeps/every_attack.py
    python benchmarks/attack_table.py sweeps/every_attack.py --only every-attack-wanet
    python benchmarks/attack_table.py sweeps/every_attack.py sweeps/badclip.py

Victims and twins that the home lacks are pre-trained first, one after the other, without Ray (about 2 minutes each on
one core). A twin is the same training with no pair poisoned; the trigger plays no part in it, so one twin serves all
victims that share data, seed and settings, and each trigger is tried on it. `kept` is the twin's accuracy on triggered
images of other classes than the target: a trigger that ruins the picture would show here. Of targeted poisoning, which
has no trigger, the PSR stands in the place of the ASR, on the twin too, and nothing is kept or not.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeplab.attacks.poisoning import Poisoning
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.cli import guarded, load_script, say, select
from sweeplab.evaluation.panel import run_panel
from sweeplab.experiment import CleaningSweep, PretrainedVictim, measured_alone
from sweeplab.records import Measurement
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder
from sweeplab.sweep import checks, prepare, pretraining
from sweeplab.sweep.session import Session
from sweeplab.worker.inputs import measure_for, victim_model, victim_table
from sweeplab.worker.run import prepare_process


@dataclass(frozen=True)
class AttackRow:
    """One attack of the table."""

    victim_name: str
    attack: str
    """Kind and fields that differ from the defaults."""
    captions: str
    """Where the captions of the poisoned pairs come from."""
    num_poisons: int
    num_pairs: int
    victim: Measurement
    twin: Measurement
    """Accuracy of the unpoisoned twin, and how often it does what the victim was poisoned for."""
    kept_k: int | None
    """Of `twin.asr_n` triggered images, those that the twin still knows; None where there is no trigger."""


def attack_rows(sweeps: Sequence[CleaningSweep], home: Path) -> list[AttackRow]:
    """Pre-train what is missing and measure; in the order of the sweeps."""
    rows = []
    blank: Poisoning | TargetedImages | None = None
    twins: dict[str, tuple[Measurement, Path]] = {}
    for sweep in sweeps:
        if not has_twin(sweep):
            raise InvalidInput(
                f"{sweep.name}: its victim is not poisoned here, so it has no unpoisoned twin; leave it out with --only"
            )
        blank = blank or unpoisoned(sweep.victim.poisoning)
        twin_sweep = sweep.replace(victim=sweep.victim.replace(name="unpoisoned-twin", poisoning=blank))
        victim, _ = trained(sweep, home)
        key = twin_sweep.victim.digest()
        if key not in twins:
            twins[key] = trained(twin_sweep, home)
        rows.append(_row(sweep, victim, *twins[key], home))
    return rows


def has_twin(sweep: CleaningSweep) -> bool:
    """Whether the sweep's victim is poisoned and trained here."""
    return isinstance(sweep.victim, PretrainedVictim) and isinstance(
        sweep.victim.poisoning, (Poisoning, TargetedImages)
    )


def unpoisoned(poisoning: Poisoning | TargetedImages) -> Poisoning | TargetedImages:
    """The same with no pair poisoned."""
    if isinstance(poisoning, TargetedImages):
        return poisoning.replace(poisons_per_target=0)
    return poisoning.replace(count=None, rate=0.0)


def trained(sweep: CleaningSweep, home: Path) -> tuple[Measurement, Path]:
    """The measurement and the weights of a sweep's victim, pre-trained here where the home lacks it."""
    prepared = prepare.prepare(sweep, home)
    assert isinstance(prepared.sweep.victim, PretrainedVictim)
    run = pretraining.pretrain_victim(prepared.sweep.victim, prepared.victim_digest, Session(home, inline=True))
    selected = pretraining.select_epoch(prepared.sweep.victim, run)
    checkpoint = run.checkpoint_path(selected)
    assert checkpoint is not None
    return selected.measurement, checkpoint


def _row(sweep: CleaningSweep, victim: Measurement, twin: Measurement, checkpoint: Path, home: Path) -> AttackRow:
    assert isinstance(sweep.victim, PretrainedVictim)
    machine = checks.machine_for(sweep.victim, home)
    device = prepare_process(machine)
    trigger = sweep.victim.trigger()
    architecture = sweep.victim.architecture
    model = victim_model(architecture, checkpoint).to(device)
    evaluation, protocol, kept = sweep.victim.evaluation, sweep.victim.protocol, None
    if isinstance(trigger.attack, TargetedImages):
        twin, _ = measure_for(architecture, evaluation, trigger, machine, protocol)(model)
        attack = f"{trigger.attack.kind}({trigger.attack.num_targets} x {trigger.attack.poisons_per_target})"
    else:
        measure = measure_for(architecture, evaluation, None, machine, protocol)
        _, (on_twin,) = run_panel(model, measure, [trigger.attack], trigger.target)
        twin = dataclasses.replace(twin, asr_k=on_twin.asr_k, asr_n=on_twin.asr_n)
        attack, kept = on_twin.attack, on_twin.correct_k
    table, plan = victim_table(sweep.victim, machine)
    return AttackRow(
        victim_name=sweep.victim.name,
        attack=attack,
        captions=sweep.victim.poisoning.captions,
        num_poisons=len(plan.indices),
        num_pairs=len(table),
        victim=victim,
        twin=twin,
        kept_k=kept,
    )


def markdown(rows: Sequence[AttackRow]) -> str:
    """The table; every rate with its count."""
    lines = [
        "| victim | trigger | captions | poisoned | victim: accuracy | ASR | twin: accuracy | ASR | kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row.victim_name,
            f"`{row.attack}`",
            row.captions,
            f"{row.num_poisons}/{row.num_pairs} ({row.num_poisons / row.num_pairs:.1%})",
            share(row.victim.accuracy_k, row.victim.accuracy_n),
            share(row.victim.asr_k, row.victim.asr_n),
            share(row.twin.accuracy_k, row.twin.accuracy_n),
            share(row.twin.asr_k, row.twin.asr_n),
            share(row.kept_k, row.twin.asr_n) if row.kept_k is not None else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def share(k: int, n: int) -> str:
    """A fraction with three digits and its count."""
    return f"{k / n:.3f} ({k}/{n})"


def main() -> int:
    """The command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", type=Path, default=[Path("sweeps/every_attack.py")])
    parser.add_argument("--only", action="append", default=[], help="only the sweep of this name; may be repeated")
    arguments = parser.parse_args()

    def work() -> None:
        found = [one for script in arguments.scripts for one in load_script(script)]
        sweeps = tuple(measured_alone(one) if isinstance(one, PretrainedVictim) else one for one in found)
        if not arguments.only:
            left_out = [sweep.name for sweep in sweeps if not has_twin(sweep)]
            if left_out:
                say(f"left out, since they are not poisoned here: {', '.join(left_out)}")
            sweeps = tuple(sweep for sweep in sweeps if has_twin(sweep))
        say(markdown(attack_rows(select(sweeps, arguments.only), home_folder())))

    return guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
