"""Trial storage: where a trial's checkpoints go, and where they must not."""

from sweeplab.experiment import CleaningSweep
from sweeplab.specs import InvalidInput
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep_folder import TRIAL_FORMAT, SweepFolder


def storage_of_trial(sweep: CleaningSweep, folder: SweepFolder, number: int) -> str | None:
    """Where a trial's checkpoints go, if not into its folder; apart from those of sweeps that were set aside."""
    root = sweep.resources.storage
    if root is None:
        return None
    name = f"{sweep.name}-{folder.header()['identity']}"
    return (Storage(root) / "sweeps" / name / TRIAL_FORMAT.format(number)).location


def check_storage_of_trial(sweep: CleaningSweep, folder: SweepFolder, number: int, run: RunFolder) -> None:
    """Refuse to write a trial's checkpoints where neither the spec has them nor this home has put them before: a path
    in a file is not enough.

    Raises:
        InvalidInput: with what can be done by hand.
    """
    if run.metadata().get("storage") != storage_of_trial(sweep, folder, number) and not run.owns_storage():
        raise InvalidInput(f"trial {number}: {run.foreign_storage()}")
