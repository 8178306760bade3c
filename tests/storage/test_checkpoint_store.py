"""Storages of checkpoints: folders and pyarrow's file systems, uploads beside training, copies on other nodes."""

import os
import tempfile
import threading
import time
from pathlib import Path

import pytest

from sweeplab.experiment import Resources
from sweeplab.specs import InvalidInput, StorageFault
from sweeplab.storage import checkpoint_store
from sweeplab.storage.checkpoint_store import Storage, Uploads
from sweeplab.storage.node_cache import content_of, local_copy


@pytest.fixture(params=["path", "url", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A folder, by its path and through pyarrow's file system of the same folder; and a folder of an object store."""
    if request.param == "s3":
        return Storage(f"{request.getfixturevalue('bucket')}/folder")
    place = tmp_path / "store"
    return Storage(place if request.param == "path" else place.as_uri())


def put(storage: Storage, name: str, content: bytes, scratch: Path) -> None:
    if storage.is_remote:
        (scratch / name).write_bytes(content)
        storage.upload(scratch / name, name)
    else:
        Path(storage.location).mkdir(parents=True, exist_ok=True)
        (Path(storage.location) / name).write_bytes(content)


def test_files_come_and_go(storage: Storage, tmp_path: Path):
    assert storage.names() == set()
    put(storage, "a.pt", b"weights", tmp_path)
    assert storage.names() == {"a.pt"}
    assert storage.exists("a.pt")
    assert not storage.exists("b.pt")
    storage.remove("a.pt")
    storage.remove("a.pt")  # again changes nothing
    assert storage.names() == set()


def test_a_folder_below_is_a_storage_too(storage: Storage, tmp_path: Path):
    below = storage / "sweeps" / "mine"
    put(below, "a.pt", b"weights", tmp_path)
    assert below.names() == {"a.pt"}
    assert storage.names() == set()


def test_an_upload_comes_back_byte_for_byte(tmp_path: Path):
    storage = Storage((tmp_path / "store").as_uri())
    put(storage, "a.pt", b"weights", tmp_path)
    storage.download("a.pt", tmp_path / "deep" / "copy.pt")
    assert (tmp_path / "deep" / "copy.pt").read_bytes() == b"weights"


def test_a_download_of_nothing_is_a_fault_of_the_storage(tmp_path: Path):
    with pytest.raises(StorageFault, match=r"a\.pt"):
        Storage((tmp_path / "store").as_uri()).download("a.pt", tmp_path / "copy.pt")


def test_an_object_store_gives_back_what_it_took_and_names_what_it_lacks(bucket: str, tmp_path: Path):
    storage = Storage(bucket) / "sweeps" / "mine"
    put(storage, "a.pt", b"weights" * 10**6, tmp_path)
    storage.download("a.pt", tmp_path / "copy.pt")
    assert (tmp_path / "copy.pt").read_bytes() == b"weights" * 10**6
    with pytest.raises(StorageFault, match=r"has no such file .*b\.pt"):
        storage.download("b.pt", tmp_path / "copy.pt")
    with pytest.raises(StorageFault, match=r"storage s3://no-bucket/a\.pt failed: .*bucket does not exist"):
        Storage("s3://no-bucket").upload(tmp_path / "copy.pt", "a.pt")


@pytest.mark.slow
def test_an_object_store_out_of_reach_is_a_fault_that_shows_no_secret(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.pt").write_bytes(b"weights")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageFault, match="storage s3://") as caught:
        Storage(bucket).upload(tmp_path / "a.pt", "a.pt")
    assert "secret" not in str(caught.value)


def test_a_scheme_that_nobody_knows_is_refused():
    with pytest.raises(InvalidInput, match="ftp:// is no kind of storage that can be opened; known: s3, gs"):
        Storage("ftp://host/x").names()


def test_a_url_with_credentials_is_refused_before_anything_runs():
    with pytest.raises(InvalidInput, match="holds no credentials"):
        Resources(storage="s3://key:secret@bucket/folder")
    assert Resources(storage="s3://bucket/a@b").storage == "s3://bucket/a@b"


@pytest.mark.parametrize("url", ["s3://bucket/folder?access_key=a", "s3://bucket?endpoint_override=host:9000"])
def test_a_url_with_options_is_refused_with_the_way_to_say_them(url: str):
    with pytest.raises(InvalidInput, match=r"holds no options after .*AWS_ENDPOINT_URL"):
        Resources(storage=url)
    with pytest.raises(InvalidInput, match="holds no options"):
        Storage(url).names()


def test_azures_container_is_no_credential():
    url = "abfs://container@account.dfs.core.windows.net/folder"
    assert Resources(storage=url).storage == url
    with pytest.raises(InvalidInput, match="holds no credentials"):
        Resources(storage="abfs://container:key@account.dfs.core.windows.net/folder")


def test_a_path_is_absolute_since_workers_run_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    with pytest.raises(InvalidInput, match="storage: 'checkpoints' must be an absolute path or a URL, since workers"):
        Resources(storage="checkpoints")
    with pytest.raises(InvalidInput, match="ftp:// is no kind of storage that can be opened; known: s3, gs"):
        Resources(storage="ftp://host/folder")
    assert Resources(storage="~/checkpoints").storage == str(tmp_path / "someone" / "checkpoints")


def gated_uploads(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have every upload wait for the event."""
    gate, upload = threading.Event(), Storage.upload

    def slow(self: Storage, source: Path, name: str) -> None:
        gate.wait(60)
        upload(self, source, name)

    monkeypatch.setattr(Storage, "upload", slow)
    return gate


def test_training_waits_where_uploads_are_slower_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One is under way and two wait: the fourth has to wait for the first, so nothing piles up on the node."""
    gate = gated_uploads(monkeypatch)
    uploads = Uploads(Storage((tmp_path / "store").as_uri()))
    names = [f"{number}.pt" for number in range(5)]
    added: list[str] = []

    def add() -> None:
        for name in names:
            (uploads.folder / name).write_bytes(b"weights")
            uploads.add(uploads.folder / name)
            added.append(name)

    thread = threading.Thread(target=add)
    thread.start()
    while len(added) < 3:
        time.sleep(0.001)
    thread.join(0.1)
    assert added == names[:3]
    gate.set()
    thread.join(60)
    uploads.finish()
    assert Storage((tmp_path / "store").as_uri()).names() == set(names)
    uploads.close()


def test_an_upload_that_fails_for_a_moment_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint_store, "UPLOAD_PAUSES", (0.01, 0.01))
    upload, failures = Storage.upload, iter([True, True, False])

    def flaky(self: Storage, source: Path, name: str) -> None:
        if next(failures):
            raise StorageFault("503 slow down")
        upload(self, source, name)

    monkeypatch.setattr(Storage, "upload", flaky)
    uploads = Uploads(Storage((tmp_path / "store").as_uri()))
    (uploads.folder / "a.pt").write_bytes(b"weights")
    uploads.add(uploads.folder / "a.pt")
    uploads.finish()
    assert Storage((tmp_path / "store").as_uri()).names() == {"a.pt"}


def test_a_file_that_was_replaced_before_its_turn_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Checkpoints inside an epoch are removed by the next, which may come before they are uploaded."""
    gate = gated_uploads(monkeypatch)
    uploads = Uploads(Storage((tmp_path / "store").as_uri()))
    before: Path | None = None
    for number in range(3):
        path = uploads.folder / f"rolling-{number}.pt"
        path.write_bytes(b"weights")
        uploads.add(path, before.name if before else None)
        if before is not None:
            before.unlink()
        before = path
    gate.set()
    uploads.finish()
    assert Storage((tmp_path / "store").as_uri()).names() == {"rolling-2.pt"}
    uploads.close()


def test_uploads_go_on_beside_the_caller_and_leave_nothing_behind(tmp_path: Path):
    storage = Storage((tmp_path / "store").as_uri())
    uploads = Uploads(storage)
    for name in ("one.pt", "two.pt"):
        (uploads.folder / name).write_bytes(name.encode())
        uploads.add(uploads.folder / name)
    (uploads.folder / "three.pt").write_bytes(b"three")
    uploads.add(uploads.folder / "three.pt", "two.pt")
    uploads.finish()
    assert storage.names() == {"one.pt", "three.pt"}
    scratch = uploads.folder
    uploads.close()
    assert not scratch.exists()


def test_an_upload_that_fails_is_raised_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint_store, "UPLOAD_PAUSES", ())
    (tmp_path / "store").write_text("a file, not a folder")
    uploads = Uploads(Storage((tmp_path / "store").as_uri()))
    (uploads.folder / "one.pt").write_bytes(b"weights")
    uploads.add(uploads.folder / "one.pt")
    with pytest.raises(StorageFault):
        uploads.finish()
    with pytest.raises(StorageFault):
        uploads.add(uploads.folder / "one.pt")
    uploads.close()


# --- copies on other nodes


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


def test_a_file_that_the_node_sees_is_not_copied(tmp_path: Path, cache: Path):
    path = tmp_path / "victim.pt"
    path.write_bytes(b"weights")
    assert local_copy(str(path), "v", None) == path
    assert local_copy(str(path), content_of(str(path)), pytest.fail) == path
    assert list(cache.iterdir()) == []


def test_a_file_of_the_same_path_and_another_content_is_not_the_one(tmp_path: Path, cache: Path):
    path = tmp_path / "victim.pt"
    path.write_bytes(b"weights of long ago")
    copy = local_copy(str(path), "digest", lambda: b"weights")
    assert copy.read_bytes() == b"weights"
    assert path.read_bytes() == b"weights of long ago"


def test_the_content_is_that_of_the_file_or_the_place_in_an_object_store(tmp_path: Path):
    path = tmp_path / "victim.pt"
    path.write_bytes(b"weights")
    first = content_of(str(path))
    path.write_bytes(b"WEIGHTS")
    os.utime(path, (1, 1))
    assert len({first, content_of(str(path)), content_of("s3://b/1.pt"), content_of("s3://b/2.pt")}) == 4


def test_a_file_of_the_drivers_node_is_copied_once(cache: Path):
    asked = []

    def read() -> bytes:
        asked.append("once")
        return b"0123456789"

    for _ in range(2):
        copy = local_copy("/nowhere/here/victim.pt", "10", read)
        assert copy.read_bytes() == b"0123456789"
        assert copy.name == "weights-10.pt"
    assert asked == ["once"]
    assert os.stat(copy.parent).st_mode & 0o077 == 0


def test_a_file_that_is_nowhere_is_named(cache: Path):
    with pytest.raises(FileNotFoundError, match=r"/nowhere/here/victim\.pt does not exist"):
        local_copy("/nowhere/here/victim.pt", "v", None)


def test_a_url_is_fetched(tmp_path: Path, cache: Path):
    storage = Storage((tmp_path / "store").as_uri())
    put(storage, "victim.pt", b"weights", tmp_path)
    copy = local_copy(f"{storage.location}/victim.pt", "digest", None)
    assert copy.read_bytes() == b"weights"
    assert copy.parent.parent == cache
