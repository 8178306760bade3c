"""Where MLflow holds the runs: addresses of all kinds, and passwords that no message shows."""

import os
import sys
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from sweeplab.specs import InvalidInput
from sweeplab.sweep.tracking_process import trouble_of
from sweeplab.tracking.store import Place, environment_kept, page_of, redacted, serve, store_uri, tracking_store


def named(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"MLFLOW_{name}", value)


@pytest.mark.parametrize("value", [None, ""])
def test_without_an_address_it_is_the_homes_own(value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if value is not None:
        named(monkeypatch, TRACKING_URI=value)
    store = tracking_store(tmp_path)
    assert (store.uri, store.address, store.path) == (store_uri(tmp_path), "", tmp_path / "mlflow.db")
    assert not store.is_server
    assert store.files_of("toy") == f"file://{tmp_path}/mlartifacts/toy"


@pytest.mark.parametrize(
    ("uri", "address", "credentials"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000", {}),
        ("https://host/prefix/", "https://host/prefix", {}),
        ("http://[::1]:5000", "http://[::1]:5000", {}),
        ("HTTP://user@host", "http://host", {"USERNAME": "user"}),
        ("https://us%40er:s%23cret%2F@host:8/p", "https://host:8/p", {"USERNAME": "us@er", "PASSWORD": "s#cret/"}),
    ],
)
def test_a_servers_address_is_taken_apart(
    uri: str, address: str, credentials: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """User and password go to MLflow as its variables do, and not in the address that it is given."""
    named(monkeypatch, TRACKING_URI=uri)
    store = tracking_store(tmp_path)
    assert (store.uri, store.address, store.path, store.is_server) == (address, address, None, True)
    assert {name.removeprefix("MLFLOW_TRACKING_"): value for name, value in store.credentials} == credentials
    assert store.files_of("toy") is None
    assert "s#cret" not in repr(store)


@pytest.mark.parametrize(
    ("uri", "address", "opened"),
    [
        ("sqlite:////some/where.db", "sqlite:////some/where.db", "sqlite:////some/where.db"),
        ("mysql+pymysql://me:secret@host/db?ssl_key=secret", "mysql+pymysql://host/db", None),
        ("postgresql+psycopg2://me:secret@host:5/db", "postgresql+psycopg2://host:5/db", None),
        ("postgresql://me:secret@host/db", "postgresql://host/db", "postgresql+psycopg://me:secret@host/db"),
    ],
)
def test_a_databases_address_is_shown_without_user_password_and_options(
    uri: str, address: str, opened: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # psycopg is an extra
    named(monkeypatch, TRACKING_URI=uri)
    store = tracking_store(tmp_path)
    assert (store.uri, store.address, str(store)) == (opened or uri, address, address)
    assert store.files_of("toy") == f"file://{tmp_path}/mlartifacts/toy"
    assert "secret" not in f"{store!r} {store}"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://user:secret@host", "begins with 'ftp:'; SweepLab takes http:, https:, sqlite:"),
        ("databricks", "is 'databricks'; SweepLab takes http:"),
        ("databricks://profile", "begins with 'databricks:'"),
        ("user:secret@host:5000", "begins with 'user:'"),
        ("host:5000", "begins with 'host:'"),
        ("secret@host:5000", "begins with no scheme; SweepLab takes http:"),
        ("file:///some/folder", "no longer takes"),
        ("./mlruns", "names a folder, which MLflow no longer takes unless MLFLOW_ALLOW_FILE_STORE=true"),
        ("http://", "is no address"),
        ("http://user:sec#ret@host", "is no address; write special characters of its user and password as %XX"),
        ("http://user:12#secret@host", "is no address"),
        ("http://user:12/secret@host", "is no address"),
        ("http://host?secret", "is no address"),
        ("http://[secret", "is no address"),
        ("sqlite:nothing-secret", "is no address"),
        ("postgresql://user:secret@host:port/db", "is no address"),
        ("postgresql://user:secret@host/db", r"pip install 'sweeplab\[postgres\]'"),
    ],
)
def test_an_address_that_mlflow_cannot_use_is_refused_without_being_shown(
    uri: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    named(monkeypatch, TRACKING_URI=uri)
    with pytest.raises(InvalidInput, match=message) as refused:
        tracking_store(tmp_path)
    assert "sec" not in str(refused.value).replace("secrets", "")
    assert refused.value.__suppress_context__ or refused.value.__context__ is None  # nor in a traceback


def test_a_folder_serves_where_mlflow_was_told_to_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    named(monkeypatch, TRACKING_URI="file:///some/folder", ALLOW_FILE_STORE="true")
    assert tracking_store(tmp_path).uri == "file:///some/folder"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"TRACKING_URI": "http://user:p%40ss@host"}, "p@ss, p%40ss"),
        ({"TRACKING_URI": "http://host", "TRACKING_PASSWORD": "p@ss"}, "p@ss, p%40ss"),
        ({"TRACKING_URI": "mysql://user:p%40ss@host/db"}, "p@ss, p%40ss"),
        ({"TRACKING_URI": "mysql://host/db?a=p@ss&b=p%2540ss"}, "p@ss, p%40ss"),
        ({"TRACKING_URI": "mysql://me:a+b%40c@h/db"}, "a+b@c, a+b%40c"),
        ({"TRACKING_URI": "mysql://me:a%20b%40c@h/db"}, "a b%40c, a+b%40c"),
        ({"TRACKING_URI": "http://host", "TRACKING_TOKEN": "t/k"}, "t/k, t%2Fk"),
        ({"TRACKING_URI": "mssql+pyodbc:///?odbc_connect=DSN%3Dx%3BPWD%3Dab"}, "ab, ab"),
        ({"TRACKING_URI": "mssql+pyodbc:///?odbc_connect=pwd%3D%7Ba;b%7D%7D%7D%3BDSN%3Dx"}, "{a;b}}}, a;b}}"),
    ],
)
def test_what_mlflow_says_is_told_without_the_password(
    values: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
):
    named(monkeypatch, **values)
    assert trouble_of(OSError(f"no answer from {text}")) == "OSError: no answer from ***, ***"


def test_neither_a_cut_nor_a_short_option_spoils_a_message(monkeypatch: pytest.MonkeyPatch):
    """The password's first half ends before the 200th character. DSN and `1` are no secrets."""
    named(monkeypatch, TRACKING_URI="mysql://me:secret@host/db?ssl=1&odbc_connect=DSN%3Dport")
    assert redacted(OSError(f"port 1{' ' * 190}secret")) == f"port 1{' ' * 190}***"
    assert redacted(OSError()) == "OSError"


@pytest.mark.parametrize(
    ("location", "is_taken"),
    [
        ("file://{home}/mlartifacts/toy/1", True),
        ("{home}/mlartifacts/toy/1", False),
        ("file://{home}/mlartifacts-of-others/1", False),
        ("file:///srv/mlruns/1", False),
        ("/srv/mlruns/1", False),
        ("mlflow-artifacts:/1/2/artifacts", True),
        ("s3://bucket/1", True),
        (None, False),
    ],
)
def test_files_go_into_the_home_or_through_a_server(location: str | None, is_taken: bool, tmp_path: Path):
    assert tracking_store(tmp_path).takes_files(location and location.format(home=tmp_path)) == is_taken


def test_a_database_that_does_not_answer_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before MLflow is asked, which would try for minutes."""
    monkeypatch.setattr("mlflow.tracking.MlflowClient", lambda **named: pytest.fail("MLflow was asked"))
    named(monkeypatch, TRACKING_URI=f"sqlite:///{tmp_path}/nowhere/runs.db")
    with pytest.raises(OperationalError, match="unable to open database file"):
        tracking_store(tmp_path).client()


def test_a_servers_password_is_in_the_environment_while_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    named(monkeypatch, TRACKING_URI="http://me:secret@host:5000", TRACKING_PASSWORD="")
    before = dict(os.environ)
    with environment_kept():
        tracking_store(tmp_path).client()
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://host:5000"
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret"
    assert dict(os.environ) == before


def test_a_sweep_is_shown_where_it_was_written(tmp_path: Path):
    sweep = tmp_path / "sweeps" / "toy"
    sweep.mkdir(parents=True)
    query = "runs?workflowType=machine_learning&viewStateShareKey=sweeplab"
    assert page_of(tmp_path, sweep) == ("", "")
    Place("https://host/prefix", "12", "r", "mlflow-artifacts:/12/r").write(sweep)
    assert page_of(tmp_path, sweep) == ("", f"https://host/prefix/#/experiments/12/{query}")
    Place("postgresql://host/my db", "3", "r", "file:///x").write(sweep)
    command = "MLFLOW_TRACKING_URI='postgresql://host/my db' sweeplab mlflow"
    assert page_of(tmp_path, sweep) == (command, f"http://127.0.0.1:5000/#/experiments/3/{query}")
    (sweep / "mlflow.json").write_text("torn")
    assert page_of(tmp_path, sweep) == ("", "")


def test_the_lean_server_serves_a_database_whose_password_no_other_user_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every user of a machine reads the words of its commands."""
    started: list[object] = []
    monkeypatch.setattr(os, "execve", lambda *words: started.extend(words))
    monkeypatch.setattr("sweeplab.tracking.store._check_database", lambda uri: None)
    named(monkeypatch, TRACKING_URI="mysql+pymysql://me:secret@host/db")
    serve(tmp_path, 0)
    _, words, environment = started
    assert "secret" not in str(words)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "mysql+pymysql://me:secret@host/db"  # type: ignore[index]


def test_of_a_server_no_second_one_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    named(monkeypatch, TRACKING_URI="http://user:secret@host:5000")
    with pytest.raises(InvalidInput, match=r"names a server, which shows its runs: http://host:5000; unset it"):
        serve(tmp_path, 0)


def test_over_a_database_that_does_not_answer_no_server_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "execve", lambda *words: pytest.fail("a server was started"))
    named(monkeypatch, TRACKING_URI=f"sqlite:///{tmp_path}/nowhere/runs.db")
    with pytest.raises(InvalidInput, match=r"MLflow's store sqlite:.* fails: .*unable to open database file"):
        serve(tmp_path, 0, lambda address: pytest.fail("it was announced"))


def test_a_driver_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    named(monkeypatch, TRACKING_URI="mysql://me:secret@host/db")
    with pytest.raises(InvalidInput, match=r"driver cannot be imported \(.*MySQLdb.*\); install it with pip"):
        tracking_store(tmp_path).client()
