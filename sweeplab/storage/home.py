"""The home: the folder of all records, with the secret by which it knows what it made."""

import os
import tempfile
from pathlib import Path

from sweeplab.specs import InvalidInput
from sweeplab.storage.ownership import KEY, home_key


def home_folder(*, to_read: bool = False) -> Path:
    """`$SWEEPLAB_HOME`, else `~/sweeplab`; made if needed.

    Args:
        to_read: it need not be writable, nor there: a colleague's, or a copy on a read-only disk.

    Raises:
        InvalidInput: if it cannot be made or written.
    """
    try:
        home = Path(os.environ.get("SWEEPLAB_HOME") or Path.home() / "sweeplab").expanduser().absolute()
    except RuntimeError as error:  # no such user, or one without a home
        named = os.environ.get("SWEEPLAB_HOME")
        why = f"SWEEPLAB_HOME={named}: {str(error).rstrip('.')}" if named else "neither SWEEPLAB_HOME nor HOME is set"
        raise InvalidInput(f"{why}; set SWEEPLAB_HOME to the absolute path of a folder on a lasting disk") from error
    there = next((path for path in (home, *home.parents) if path.exists()), home)
    if there.exists() and not there.is_dir():
        raise InvalidInput(f"SWEEPLAB_HOME={home}: {there} is a file; set it to a folder")
    if to_read:
        return home
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise InvalidInput(
            f"SWEEPLAB_HOME={home} cannot be written ({error.strerror}); "
            "set SWEEPLAB_HOME to a folder on a lasting disk that you may write"
        ) from error
    if not (home / KEY).exists():  # as early as can be: what is copied here from now on came from elsewhere
        home_key(home)
    return home
