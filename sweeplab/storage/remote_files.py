"""Remote files: what lies in an object store, or behind https, looked at and fetched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeplab.specs import InvalidInput, StorageFault, check_storage_url, first_line
from sweeplab.storage.checkpoint_store import Storage

WEB = ("https", "http")
"""Schemes of web addresses, which are fetched one file at a time: nobody lists what is there."""
SILENT_SECONDS = 60.0
"""A web server that sends nothing for so long is given up."""


def check_file_url(url: str) -> str:
    """The URL of a file or folder to be read, which reaches records and logs, and so must hold no secret.

    Raises:
        ValueError: if it holds credentials, or options, among which they could be; for a scheme that nobody opens.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in WEB:
        return check_storage_url(url)
    if "@" in rest.partition("/")[0] or "?" in url:
        raise ValueError(
            f"{scheme}:// addresses hold no credentials and nothing after `?`, which would reach records; give one "
            "that everybody may read, or s3://, gs:// or abfs://"
        )
    if not rest.strip("/"):
        raise ValueError(f"{url} names no file")
    return url


def is_web(url: str) -> bool:
    """Whether it is a web address and not in an object store."""
    return url.partition("://")[0] in WEB


def remote_version(url: str) -> str:
    """Tells the content of a file from an earlier one of the same name: its size and time of change, or what a web
    server says in their place.

    Raises:
        InvalidInput: if there is no such file.
        StorageFault: if the store or the server does not answer.
    """
    if is_web(url):
        with _web_faults(url) as system:
            found = system.info(url)
        return f"{found.get('size')} {found.get('ETag') or found.get('Last-Modified', '')}"
    folder, _, name = url.rpartition("/")
    version = Storage(folder).version(name)
    if version is None:
        raise InvalidInput(f"{url} does not exist; mend the address, or what it stands for")
    return version


def fetch(url: str, to: Path) -> None:
    """Copy a file from there; it appears whole or not at all.

    Raises:
        InvalidInput: if there is no such file at a web address.
        StorageFault: if it is not there or the store or server does not answer.
    """
    if not is_web(url):
        folder, _, name = url.rpartition("/")
        Storage(folder).download(name, to)
        return
    unfinished = to.with_name(f".{to.name}.part")
    with _web_faults(url) as system:
        system.get_file(url, str(unfinished))
    unfinished.replace(to)


@contextmanager
def _web_faults(url: str) -> Iterator[Any]:
    """fsspec's file system; what a server answers becomes a fault of ours."""
    import fsspec
    from aiohttp import ClientError, ClientTimeout

    # aiohttp ends a transfer after five minutes, however large it is, and heeds no proxy of the environment.
    patience = ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
    try:
        yield fsspec.filesystem("https", client_kwargs={"timeout": patience, "trust_env": True})
    except FileNotFoundError as error:  # what fsspec says of a server that does not answer, too
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError | None) or 400 <= getattr(cause, "status", 0) < 500:
            raise InvalidInput(f"{url} does not exist, or is not for everybody; mend the address") from None
        raise StorageFault(f"{url} cannot be read: {first_line(cause)}") from error
    except (OSError, ClientError, TimeoutError) as error:
        raise StorageFault(f"{url} cannot be read: {first_line(error)}") from error
