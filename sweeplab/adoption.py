"""Adoption: which victims are the home's own, and how sweeps and victims that came from elsewhere become so."""

import contextlib
import re
from uuid import uuid4

from sweeplab.specs import InvalidInput
from sweeplab.storage.files import read_object
from sweeplab.storage.ownership import check_no_links, is_signed, storages_in_words, write_signed
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep_folder import SweepFolder


def is_own_victim(run: RunFolder) -> bool:
    """Whether this home trained the victim, or has adopted it."""
    file = run.path / "victim.json"
    return file.exists() and is_signed(file, run.path.parent.parent)


def check_own_victim(run: RunFolder) -> None:
    """Refuse a victim that came from elsewhere: neither its records nor its weights are this home's word.

    Raises:
        InvalidInput: if this home did not make the folder.
    """
    if not (run.path / "victim.json").exists():
        if (run.path / "history.jsonl").exists():
            raise InvalidInput(f"{run.path} holds epochs and no victim.json; restore that file or remove the folder")
    elif not is_own_victim(run):
        raise InvalidInput(
            f"victim {run.path.name} came from elsewhere: {run.path} was not made by this home. To use its "
            f"records and weights, give --adopt to the command of a sweep that cleans it{storages_in_words(run.path)}"
        )
    check_no_links(run.path)


def adopt_sweep(folder: SweepFolder) -> bool:
    """Take over a sweep that came from elsewhere; False where there is none, or it is the home's own.

    Checkpoints outside the home become the home's own where they lie under the sweep's own name and identity and no
    other home has marked them; others are only read. Where another home has, the sweep gets an identity of its own, so
    that what is written from now on lies apart.

    Raises:
        InvalidInput: if the folder holds links or has another name than its sweep.
    """
    if not folder.exists() or folder.is_own():
        return False
    header = folder.header()
    if folder.name != header["name"]:
        raise InvalidInput(
            f"sweep {folder.name!r} calls itself {header['name']!r}; rename its folder to that before you adopt it"
        )
    check_no_links(folder.path)
    with folder.lock(to_adopt=True):
        identity = str(header.get("identity"))
        place = f"/sweeps/{folder.name}-{identity}/"
        runs = [folder.trial(number) for number in folder.trial_numbers()]
        outside = [run for run in runs if run.storage.location.endswith(f"{place}{run.path.name}")]
        outside = [run for run in outside if run.metadata().get("storage") and run.storage.names()]
        if re.fullmatch(r"[0-9a-f]{8}", identity) and not any(run.is_marked_by_others() for run in outside):
            for run in outside:
                with contextlib.suppress(InvalidInput):  # it cannot be written, and so is only read
                    run.claim_storage()
        else:
            identity = uuid4().hex[:8]
        write_signed(folder.path / "sweep.json", {**header, "identity": identity}, folder.home)
    return True


def adopt_victim(run: RunFolder) -> bool:
    """The same of a victim, whose checkpoints outside the home are only read."""
    if not (run.path / "victim.json").exists() or is_own_victim(run):
        return False
    check_no_links(run.path)
    write_signed(run.path / "victim.json", read_object(run.path / "victim.json"), run.path.parent.parent)
    return True
