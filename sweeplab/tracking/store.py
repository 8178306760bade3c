"""Where MLflow holds the runs: the home's own store, or what MLFLOW_TRACKING_URI names; passwords stay here."""

import contextlib
import functools
import importlib.util
import logging
import os
import re
import shlex
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, quote_plus, unquote, urlsplit

from sweeplab.specs import InvalidInput, first_line
from sweeplab.storage.files import read_object, write_json

URI, USER, PASSWORD = "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
TOKEN = "MLFLOW_TRACKING_TOKEN"
"""Of the environment, as MLflow reads them."""

SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
FILES = ("", "file")
"""Schemes of addresses that are used."""

SERVER_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's own tries go on for minutes. A sweep tries again itself, and waits for no server."""

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
"""Anything else before a colon may be part of a password."""

SHORTEST_OPTION = 4
"""Characters of the shortest value of a database's option that is hidden: `ssl=1` would hide every 1."""

ODBC_PASSWORD = re.compile(r"(?:^|;)\s*(?:pwd|password)\s*=\s*(\{(?:[^}]|\}\})*\}|[^;]*)", re.IGNORECASE)
"""Of an option `odbc_connect`."""

DATABASE_SECONDS = 10
"""So long may a database take to answer at all."""

LOOPBACK, PORT = "127.0.0.1", 5000
SERVER_COMMAND = "sweeplab mlflow"

FOR_MLFLOW = ("MLFLOW_", "DO_NOT_TRACK")
"""Beginnings of the names of variables that MLflow reads, or is given here."""

NO_NEWS = "ignore:starlette.middleware.wsgi is deprecated"
"""What the server of MLflow 3 warns of at each start, and nobody here can mend."""

VIEW = "sweeplab"
"""Key of the saved view of a sweep's runs."""

PLACE = "mlflow.json"
"""In a sweep's folder: where MLflow holds it."""


@dataclass(frozen=True)
class Store:
    """An MLflow store, and how it is spoken of."""

    home: Path
    uri: str = field(repr=False)
    """For MLflow alone: a database's may hold a password."""
    address: str = ""
    """Without user, password and options; empty: the home's own."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What may stand in no message."""
    credentials: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Of a server's address, as the environment gives them to MLflow."""

    @property
    def is_server(self) -> bool:
        """Whether a tracking server is asked, which also keeps the files."""
        return self.address.startswith(tuple(f"{scheme}://" for scheme in SERVERS))

    @property
    def path(self) -> Path | None:
        """The home's own file; None where the store is another one."""
        return None if self.address else self.home / "mlflow.db"

    def __str__(self) -> str:
        """As messages name it."""
        return self.address or str(self.path)

    def files_of(self, sweep: str) -> str | None:
        """Where a new experiment keeps its files, as a URL; None: where the server says."""
        return None if self.is_server else (self.home / "mlartifacts" / sweep).as_uri()

    def takes_files(self, location: str | None) -> bool:
        """Whether files may be put where a run keeps them: in this home, or in a store that is no path. The store of a
        home that was copied names the old one's folders, and a server without a proxy may name its own disk's."""
        is_path = urlsplit(location or "").scheme in FILES
        return (location or "").startswith(f"{(self.home / 'mlartifacts').as_uri()}/") if is_path else True

    def client(self, *, is_patient: bool = False) -> Any:
        """MLflow's client of the store. It reads its settings in the environment at every call, where they are put
        here; `environment_kept` takes them out again.

        Args:
            is_patient: let MLflow itself try for minutes where a server does not answer.

        Raises:
            sqlite3.DatabaseError: if the home's own store is no database.
            SQLAlchemyError: if another database does not answer.
            InvalidInput: if the driver of another database is missing.
        """
        for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
            os.environ.setdefault(name, "true")
        if self.is_server:
            os.environ.update({URI: self.uri, **dict(self.credentials)})
            for name, value in () if is_patient else SERVER_PATIENCE.items():
                os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        if self.path is not None:
            check_store(self.home)
        elif not self.is_server:
            _check_database(self.uri)
        # What the store raises is raised to the caller, who tells it in a line; MLflow would print each as a traceback.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return MlflowClient(tracking_uri=self.uri)


@contextmanager
def environment_kept() -> Iterator[None]:
    """Have MLflow's variables at the end as they were, so that no password of it is inherited by what starts later."""
    before = {name: value for name, value in os.environ.items() if name.startswith(FOR_MLFLOW)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(FOR_MLFLOW) and name not in before]:
            del os.environ[name]
        os.environ.update(before)


def tracking_store(home: Path) -> Store:
    """The store that the environment names, else the home's own.

    Raises:
        InvalidInput: for an address that MLflow cannot use; the message does not show it, as it may hold a password.
    """
    uri = os.environ.get(URI, "")
    if not uri:
        return Store(home, store_uri(home))
    scheme = uri.partition(":")[0].lower() if ":" in uri or uri == "databricks" else ""
    engine = scheme.partition("+")[0]
    if engine in DATABASES:
        return _database(home, uri)
    if scheme in SERVERS:
        return _server(home, uri)
    if scheme in FILES:
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
            raise InvalidInput(
                f"{URI} names a folder, which MLflow no longer takes unless MLFLOW_ALLOW_FILE_STORE=true; unset it for "
                "the home's own store, or name a server or a database"
            )
        return Store(home, uri, uri)
    known = ", ".join(f"{name}:" for name in (*SERVERS, *DATABASES, FILES[-1]))
    if uri == scheme:
        fault = f"is {uri!r}"
    else:
        fault = f"begins with {f'{scheme}:'!r}" if SCHEME.fullmatch(scheme) else "begins with no scheme"
    raise InvalidInput(f"{URI} {fault}; SweepLab takes {known}, or none: the home's own store")


def redacted(error: BaseException) -> str:
    """The first line of an error of MLflow's, without the secrets of the store that the environment names."""
    text = str(error) or type(error).__name__
    for secret in tracking_store(Path()).secrets:
        text = text.replace(secret, "***")
    return first_line(Exception(text))  # cut last: of half a secret nothing would be found


def _secrets(*values: str | None) -> tuple[str, ...]:
    """The values in all forms in which a message may hold them, the longest first, as one may hold another."""
    forms: set[str] = set()
    for value in values:
        if value:  # SQLAlchemy renders passwords the last way
            forms |= {value, quote_plus(value), quote(value, safe=""), quote(value, safe=" +")}
    return tuple(sorted(forms, key=len, reverse=True))


UNREADABLE = (
    f"{URI} is no address; write special characters of its user and password as %XX (`@` is %40, `#` is %23), or "
    f"give these in {USER} and {PASSWORD}"
)


def _server(home: Path, uri: str) -> Store:
    """A tracking server, whose user and password may stand in its address or beside it."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidInput(UNREADABLE) from None
    if not host or parts.query or parts.fragment or "@" in parts.path:
        raise InvalidInput(UNREADABLE)
    host = f"[{host}]" if ":" in host else host
    address = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
    given = [(USER, parts.username), (PASSWORD, parts.password)]
    credentials = tuple((name, unquote(value)) for name, value in given if value is not None)
    password = dict(credentials).get(PASSWORD) or os.environ.get(PASSWORD, "")
    return Store(home, address, address, _secrets(password, parts.password, os.environ.get(TOKEN)), credentials)


def _database(home: Path, uri: str) -> Store:
    """A database that MLflow opens itself."""
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
        place = URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()
    except (ArgumentError, ValueError):
        raise InvalidInput(UNREADABLE) from None
    if url.drivername == "postgresql":  # of SQLAlchemy's releases each takes another driver for the usual one
        url = url.set(drivername="postgresql+psycopg")
        if importlib.util.find_spec("psycopg") is None:
            raise InvalidInput(f"{URI} names a Postgres; `pip install 'sweeplab[postgres]'` installs what reads it")
    hidden = [url.password]
    for name, values in url.normalized_query.items():
        if name.lower() == "odbc_connect":
            found = [match for value in values for match in ODBC_PASSWORD.findall(value)]
            hidden += [*found, *(match[1:-1] for match in found if match.startswith("{"))]
        else:
            hidden += [value for value in values if len(value) >= SHORTEST_OPTION]
    return Store(home, url.render_as_string(hide_password=False), place, _secrets(*hidden))


# --- where a sweep is


@dataclass(frozen=True)
class Place:
    """Where MLflow holds a sweep: beside its ledger, so that later commands find it without asking MLflow."""

    store: str
    """Address of the store; empty: the home's own."""
    experiment: str
    """Its ID there."""
    run: str
    """ID of the victim's run, which holds the sweep's files."""
    files: str
    """Where those lie, as a URL."""

    @classmethod
    def read(cls, folder: Path) -> "Place | None":
        """That of the sweep in a folder; None where MLflow has not been told of it, or the file is damaged."""
        with contextlib.suppress(FileNotFoundError, InvalidInput, KeyError):
            values = read_object(folder / PLACE, store=str, experiment=str, run=str, files=str)
            return cls(*(values[name] for name in ("store", "experiment", "run", "files")))
        return None

    def write(self, folder: Path) -> None:
        """Keep it in the sweep's folder."""
        write_json(folder / PLACE, asdict(self), durable=False)


def page_of(home: Path, sweep: Path) -> tuple[str, str]:
    """How to see a sweep in MLflow.

    Args:
        home: of the sweep.
        sweep: its folder.

    Returns:
        The command that starts a server, with the store where that is not the home's own, empty where a server runs
        already; and the address of the sweep's saved view. Both are empty where MLflow has not been told of the sweep.
    """
    place = Place.read(sweep)
    if place is None or not place.store:
        has_runs = (home / "mlflow.db").exists()
        return (SERVER_COMMAND, page_address(home, sweep.name)) if has_runs else ("", "")
    if place.store.startswith(tuple(f"{scheme}://" for scheme in SERVERS)):
        return "", _view_address(place.store, place.experiment)
    command = f"{URI}={shlex.quote(place.store)} {SERVER_COMMAND}"  # over another store the ID is another sweep's
    return command, _view_address(_own_server(), place.experiment)


def put_page(home: Path, sweep: Path, page: Path) -> str:
    """Put a sweep's page among the files that MLflow shows of it, those of the victim's run.

    Args:
        home: of the sweep.
        sweep: its folder.
        page: the file; in the home's own store it lies once, under two names.

    Returns:
        Why it is not there; empty where all is well, or MLflow has not been told of the sweep.
    """
    store, place = tracking_store(home), Place.read(sweep)
    if place is None or place.store != store.address or not store.takes_files(place.files):
        return ""
    parts = urlsplit(place.files)
    try:
        if parts.scheme in FILES:
            target = Path(unquote(parts.path)) / page.name
            target.unlink(missing_ok=True)
            os.link(page, target)
        else:
            with environment_kept():
                store.client().log_artifact(place.run, str(page))
    except Exception as error:  # noqa: BLE001 - MLflow's store raises many kinds; told, and the page is there all the same
        return redacted(error)
    return ""


WORKFLOW = "workflowType=machine_learning"
"""Without it MLflow opens its pages for language models, which show no runs."""


def _own_server(port: int = PORT) -> str:
    return f"http://{LOOPBACK}:{port}"


def front_address(server: str) -> str:
    """Where a server lists its sweeps."""
    return f"{server}/#/experiments?{WORKFLOW}"


def _view_address(server: str, experiment: str) -> str:
    return f"{server}/#/experiments/{quote(experiment)}/runs?{WORKFLOW}&viewStateShareKey={VIEW}"


def page_address(home: Path, sweep: str) -> str:
    """Where the saved view of a sweep in the home's own store lies once the server runs; the list of all sweeps where
    the store does not tell.

    The store's file is asked itself: to import MLflow takes seconds.
    """
    found = None
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"{(home / 'mlflow.db').absolute().as_uri()}?mode=ro", uri=True)) as store,
    ):
        found = store.execute("SELECT experiment_id FROM experiments WHERE name = ?", (sweep,)).fetchone()
    return _view_address(_own_server(), str(found[0])) if found is not None else front_address(_own_server())


# --- the home's own store


@functools.cache
def write_ahead(store: str) -> None:
    """Connections to a store, a resolved path, write ahead and leave the waiting for the disk to the system.

    A kill loses nothing; what a power failure takes is derived from the ledger again.
    """
    # MLflow makes its engine itself, so that every engine has to be listened to.
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        is_sqlite = type(connection).__module__.startswith("sqlite3")
        if is_sqlite and (0, "main", store) in connection.execute("PRAGMA database_list"):
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")


def check_store(home: Path) -> None:
    """Raise sqlite3.DatabaseError where the store's file is no database, or a damaged one, over which MLflow would
    try for minutes. A locked one, which MLflow waits for, passes."""
    path = home / "mlflow.db"
    if not path.exists():
        return
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(path, timeout=0.1)) as store,
    ):
        store.execute("PRAGMA schema_version").fetchone()


def _check_database(uri: str) -> None:
    """Raise SQLAlchemyError where a database does not answer, which MLflow would ask for minutes; InvalidInput where
    its driver is missing."""
    from sqlalchemy import create_engine

    if uri.partition("+")[0].partition(":")[0].lower() not in DATABASES:
        return
    waits = {"connect_timeout": DATABASE_SECONDS} if uri.startswith(("postgresql", "mysql")) else {}
    try:
        engine = create_engine(uri, connect_args=waits)
    except ImportError as error:
        raise InvalidInput(
            f"{URI} names a database whose driver cannot be imported ({first_line(error)}); install it with pip"
        ) from None
    with contextlib.closing(engine.connect()):
        pass
    engine.dispose()


def store_uri(home: Path) -> str:
    """The home's MLflow store, as a URL in which a path's blanks, `%`, `?`, `#` and quotes are escaped."""
    path = quote(str(home / "mlflow.db"))
    # Of `sqlite:///` MLflow makes the folder that the escaped path would name.
    return f"{'sqlite' if unquote(path) == path else 'sqlite+pysqlite'}:///{path}"


def serve(home: Path, port: int, announce: Callable[[str], object] = lambda address: None) -> NoReturn:
    """Turn this process into MLflow's server over the store: one worker, on loopback, no jobs, no telemetry.

    Args:
        home: whose environment's store, or own one.
        port: of loopback.
        announce: is given the address of the server's list of sweeps, once nothing stands against the start.

    Raises:
        InvalidInput: if there is no store yet, it is damaged, does not answer or has a server already, or the port is
            taken.
    """
    from sqlalchemy.exc import SQLAlchemyError

    store = tracking_store(home)
    if store.is_server:
        raise InvalidInput(f"{URI} names a server, which shows its runs: {store}; unset it for the home's own runs")
    if store.path is not None:
        _check_own(home)
    else:
        try:
            _check_database(store.uri)
        except SQLAlchemyError as error:
            raise InvalidInput(f"MLflow's store {store} fails: {redacted(error)}") from None
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise InvalidInput(f"--port={port} cannot be used ({error.strerror}); choose another one") from None
    words = ["-m", "mlflow", "server", "--workers", "1"]
    words += ["--uvicorn-opts", "--log-level warning"]  # a line for every request would scroll the address away
    words += ["--host", LOOPBACK, "--port", str(port)]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": store.uri,  # not among the words, which every user of the machine can read
        "MLFLOW_REGISTRY_STORE_URI": store.uri,  # the same; where it is left out, the server says so
        "MLFLOW_ARTIFACTS_DESTINATION": (home / "mlartifacts").as_uri(),  # for clients that come through the server
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), NO_NEWS))),
    }
    announce(front_address(_own_server(port)))
    os.execve(sys.executable, [sys.executable, *words], os.environ | settings)


def _check_own(home: Path) -> None:
    if not (home / "mlflow.db").is_file():
        raise InvalidInput(
            f"{home} holds no mlflow.db: no sweep has run there yet, or SWEEPLAB_HOME names another home"
        )
    try:
        check_store(home)
    except sqlite3.DatabaseError as error:
        raise InvalidInput(
            f"{home / 'mlflow.db'} is damaged ({error}); remove it, and the next run makes it again"
        ) from None
