"""Node data: what an experiment reads reaches a node that does not see it, once, and under the same digests."""

import csv
import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from complete_sweeps import complete_sweeps, write_files
from PIL import Image

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.exchange import ImportedPoison
from sweeplab.attacks.own import ImageTrigger
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.fruit_stall import FruitStall
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.labelled_table import LabelledTable
from sweeplab.data.pairs import PairsCSV
from sweeplab.evaluation.measure import Evaluation
from sweeplab.execution import node_data
from sweeplab.execution.node_data import DataSender, listing_of, node_copy, packed
from sweeplab.experiment import CleaningSweep, CleanSample, ClosestTo, PretrainedVictim
from sweeplab.specs import InvalidInput, Spec, StorageFault
from sweeplab.storage import node_cache
from sweeplab.storage.node_cache import COMPLETE
from sweeplab.worker import input_paths
from sweeplab.worker.input_paths import NO_PATHS, InputPaths, files_of, input_paths_of, parts_of


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another node's temporary folder."""
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    return tmp_path / "node"


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8 + value), (value, 0, 0)).save(path)
    return path


def pairs(folder: Path, images: list[str], name: str = "pairs.csv", **columns: list[str]) -> PairsCSV:
    """A CSV file of images that are drawn where the paths say."""
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        picture(folder / image, number)
    with (folder / name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", *columns])
        writer.writerows(
            [image, f"a fruit {row}", *(held[row] for held in columns.values())] for row, image in enumerate(images)
        )
    return PairsCSV(path=folder / name)


def class_folders(folder: Path) -> ClassFolders:
    for number, place in enumerate(("apple/1.png", "apple/2.png", "banana/1.png")):
        picture(folder / place, number)
    (folder / "apple" / "notes.txt").write_text("no image")
    return ClassFolders(path=folder)


# --- which files


def test_of_pairs_the_file_and_the_images_that_are_used_are_brought(tmp_path: Path):
    data = pairs(tmp_path, ["1.png", "sub/2.png", "3.png"])
    assert list(files_of(data)) == [str(tmp_path / name) for name in ("pairs.csv", "1.png", "sub/2.png", "3.png")]
    assert list(files_of(data.replace(num_pairs=1))) == [str(tmp_path / "pairs.csv"), str(tmp_path / "1.png")]


def test_of_class_folders_the_images_are_brought_wherever_the_spec_lies(tmp_path: Path):
    images = [str(tmp_path / name) for name in ("apple/1.png", "apple/2.png", "banana/1.png")]
    folders = class_folders(tmp_path)
    assert list(files_of(Evaluation(test=folders, templates=("a {}",)))) == images
    targeted = TargetedImages(images=LabelledPairs(images=folders), classes=("apple", "pear"))
    assert list(files_of(targeted)) == images


class Holder(Spec):
    """A spec of a user's own script."""

    kind: str = "holder"
    places: tuple[Path, ...]


def test_of_a_users_own_spec_files_and_whole_folders_are_brought(tmp_path: Path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a.bin", "deep/b.bin", "deep/er/c.bin"):
        (tmp_path / name).write_bytes(b"x")
    found = sorted(files_of(Holder(places=(tmp_path / "a.bin", tmp_path / "deep"))))
    assert found == [str(tmp_path / name) for name in ("a.bin", "deep/b.bin", "deep/er/c.bin")]


def test_embedded_data_need_not_be_brought(smoke: CleaningSweep):
    assert input_paths_of(parts_of(smoke)) == NO_PATHS


def test_a_sweep_reads_what_it_and_its_victims_name(tmp_path: Path, smoke: CleaningSweep):
    assert isinstance(smoke.victim, PretrainedVictim)
    own, theirs, others = (pairs(tmp_path / name, [f"{name}.png"]) for name in ("own", "theirs", "others"))
    test, stamp = class_folders(tmp_path / "test"), picture(tmp_path / "stamp.png")
    poisoning = smoke.victim.poisoning.replace(attack=ImageTrigger(path=stamp))
    reference = smoke.victim.replace(name="reference", data=others)
    victim = smoke.victim.replace(data=theirs, poisoning=poisoning, select=ClosestTo(victim=reference))
    sweep = smoke.replace(victim=victim, data=own, evaluation=Evaluation(test=test, templates=("a {}",)))
    found = input_paths_of(parts_of(sweep))
    assert found is not None
    named = [own.path, theirs.path, others.path, test.path, stamp]
    assert set(found.places.values()) == set(map(str, named))
    examples = [f"{name}/{name}.png" for name in ("own", "theirs", "others")] + ["test/apple/1.png"]
    assert set(found.probes) == {*map(str, named), *(str(tmp_path / place) for place in examples)}
    assert {path for part in parts_of(sweep) for path in files_of(part)} >= {str(stamp), str(tmp_path / "own/own.png")}


def test_the_example_of_pairs_is_the_first_rows_image(tmp_path: Path):
    relative = pairs(tmp_path / "a", ["images/1.png", "images/2.png"])
    absolute = pairs(tmp_path / "b", [str(tmp_path / "elsewhere" / "1.png"), str(tmp_path / "elsewhere" / "2.png")])
    assert relative.example() == str(tmp_path / "a" / "images" / "1.png")
    assert absolute.example() == str(tmp_path / "elsewhere" / "1.png")


def test_the_example_of_an_empty_file_is_refused(tmp_path: Path):
    (tmp_path / "pairs.csv").write_text("image,caption\n")
    with pytest.raises(InvalidInput, match="has a header but no rows"):
        PairsCSV(path=tmp_path / "pairs.csv").example()


# --- tars


def files(folder: Path, sizes: list[int]) -> list[str]:
    """Files of so many bytes each, of different content."""
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        (folder / f"{number:03d}").write_bytes(bytes((17 * number + i) % 251 for i in range(size)))
    return [str(folder / f"{number:03d}") for number in range(len(sizes))]


@pytest.fixture
def small_tars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_data, "TAR_BYTES", 7)


@pytest.mark.usefixtures("small_tars")
def test_tars_hold_whole_files_up_to_their_size(tmp_path: Path):
    listing = listing_of(files(tmp_path / "data", [0, 5, 2, 16, 7, 1]))
    assert [[size for _, size in tar] for tar in listing.tars] == [[0, 5, 2], [16], [7], [1]]
    assert (listing.num_files, listing.num_bytes) == (6, 31)
    assert listing_of([]).tars == ()


def test_the_digest_changes_with_content_and_not_with_order(tmp_path: Path):
    paths = files(tmp_path / "data", [3, 4])
    first = listing_of(paths).digest
    assert listing_of([*reversed(paths), paths[0]]).digest == first
    os.utime(paths[0], ns=(0, 0))
    assert listing_of(paths).digest != first


def test_a_file_that_is_gone_is_named(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"gone\.png cannot be read \(No such file or directory\)"):
        listing_of([str(tmp_path / "gone.png")])


# --- copies


class Remote:
    """Calls like a Ray actor's method, at once."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


class MadeUpSender:
    """A sender that counts the tars that it is asked for, and dies after so many."""

    def __init__(self, paths: list[str], dies_after: int = 10**9) -> None:
        self.sender = DataSender(pickle.dumps([Holder(places=tuple(map(Path, paths)))]))
        self.asked: list[int] = []
        self.dies_after = dies_after
        self.listing, self.tar = Remote(self.sender.listing), Remote(self._tar)

    def _tar(self, number: int) -> tuple[bytes, str]:
        if len(self.asked) >= self.dies_after:
            raise KeyboardInterrupt
        self.asked.append(number)
        return self.sender.tar(number)


SIZES = [0, 5, 2, 16, 7, 1]


def same(root: Path, paths: list[str]) -> bool:
    return all((root / path[1:]).read_bytes() == Path(path).read_bytes() for path in paths)


def copied(sender: MadeUpSender) -> Path:
    """What a new process of the node gets."""
    node_data._brought.clear()
    return node_copy(sender)


@pytest.fixture
def at_once(small_tars: None, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_data, "_get", lambda answer, heartbeat: answer)


@pytest.mark.usefixtures("at_once")
def test_files_are_copied_once_to_a_folder_that_nobody_else_may_write(tmp_path: Path, node: Path):
    paths = files(tmp_path / "data", SIZES)
    sender = MadeUpSender(paths)
    root = copied(sender)
    assert same(root, paths)
    assert sender.asked == [0, 1, 2, 3]
    assert (node_copy(sender), copied(sender)) == (root, root)
    assert sender.asked == [0, 1, 2, 3]
    assert os.stat(next(node.iterdir())).st_mode & 0o077 == 0


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("dies_after", range(4))
def test_whoever_is_killed_is_followed_by_one_who_goes_on(tmp_path: Path, dies_after: int):
    paths = files(tmp_path / "data", SIZES)
    following = MadeUpSender(paths)
    with pytest.raises(KeyboardInterrupt):
        copied(MadeUpSender(paths, dies_after))
    assert same(copied(following), paths)
    assert following.asked == list(range(dies_after, 4))


@pytest.mark.usefixtures("at_once")
def test_a_tar_that_was_unpacked_in_part_is_unpacked_again(tmp_path: Path):
    """As after a power failure: what is there may have the right size and hold nothing."""
    paths = files(tmp_path / "data", SIZES)
    with pytest.raises(KeyboardInterrupt):
        copied(MadeUpSender(paths, 1))
    torn = next(Path(tempfile.gettempdir()).glob("*/data-*/files")) / paths[3][1:]
    torn.write_bytes(bytes(16))
    assert same(copied(MadeUpSender(paths)), paths)


@pytest.mark.usefixtures("at_once")
def test_a_tar_that_arrives_damaged_is_not_unpacked(tmp_path: Path):
    paths = files(tmp_path / "data", SIZES)
    sender = MadeUpSender(paths)
    whole = sender.tar.remote
    sender.tar.remote = lambda number: (whole(number)[0][:-1], whole(number)[1])
    with pytest.raises(StorageFault, match=r"tar 0 of the data reached node .* damaged"):
        copied(sender)
    assert same(copied(MadeUpSender(paths)), paths)


@pytest.mark.usefixtures("at_once")
def test_only_what_a_tidy_system_has_removed_is_brought_again(tmp_path: Path):
    paths = files(tmp_path / "data", SIZES)
    root = copied(MadeUpSender(paths))
    untouched = (root / paths[1][1:]).stat().st_mtime_ns
    for number in (2, 3):
        (root / paths[number][1:]).unlink()
    following = MadeUpSender(paths)
    assert same(copied(following), paths)
    assert following.asked == [0, 1]
    assert (root / paths[1][1:]).stat().st_mtime_ns == untouched


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("loss", ["gone", "shorter"])
def test_a_file_that_is_lost_where_it_is_sent_from_is_named(tmp_path: Path, loss: str):
    paths = files(tmp_path / "data", SIZES)
    sender = MadeUpSender(paths)
    sender.sender.listing()
    if loss == "gone":
        Path(paths[3]).unlink()
    else:
        os.truncate(paths[3], 1)
    with pytest.raises(InvalidInput, match=f"{paths[3]} cannot be read any more .*other nodes need it; restore it"):
        copied(sender)


@pytest.mark.usefixtures("at_once")
def test_data_that_changed_are_copied_again_beside_the_old(tmp_path: Path):
    paths = files(tmp_path / "data", [5])
    first = copied(MadeUpSender(paths))
    Path(paths[0]).write_bytes(b"other")
    os.utime(paths[0], ns=(1, 1))
    second = copied(MadeUpSender(paths))
    assert first != second
    assert same(second, paths)


@pytest.mark.usefixtures("at_once")
def test_a_node_without_room_says_so_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = files(tmp_path / "data", SIZES)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=31 + 6 * 4096 - 1))
    sender = MadeUpSender(paths)
    with pytest.raises(StorageFault, match=r"has 0\.0 GB free, and the data that it lacks are 0\.0 GB"):
        copied(sender)
    assert sender.asked == []


@pytest.mark.usefixtures("at_once")
def test_a_disk_that_fails_is_a_fault_of_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tarfile.TarFile, "extractall", fail)
    with pytest.raises(StorageFault, match="No space left on device"):
        copied(MadeUpSender(files(tmp_path / "data", [5])))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", ["climbs", "links"])
def test_a_tar_that_leads_out_of_the_copy_is_refused(tmp_path: Path, kind: str):
    paths = files(tmp_path / "data", [5])
    name = paths[0][1:] if kind == "links" else f"data/../../{tmp_path.name}/out"
    member = tarfile.TarInfo(name)
    if kind == "links":
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(member)
    sender = MadeUpSender(paths)
    packed = content.getvalue()
    sender.tar = Remote(lambda number: (packed, hashlib.sha256(packed).hexdigest()))
    sender.listing = Remote(lambda: node_data.Listing((((f"/{name}", 0),),), "x"))
    with pytest.raises((StorageFault, tarfile.FilterError)):
        copied(sender)
    assert not list(tmp_path.rglob("out"))


def test_a_victims_data_are_not_read_once_it_is_trained(smoke: CleaningSweep):
    own = smoke.replace(data=FruitStall(num_pairs=64))
    victim = smoke.victim
    assert isinstance(victim, PretrainedVictim)
    assert victim.data in parts_of(own)
    assert victim.data not in parts_of(own, trains_victim=False)
    sample = smoke.replace(data=CleanSample(num_pairs=64))
    assert victim.data in parts_of(sample, trains_victim=False)


def test_a_folder_that_is_an_empty_mount_point_is_not_taken_for_the_data(tmp_path: Path, smoke: CleaningSweep):
    test = class_folders(tmp_path / "test")
    input_paths = input_paths_of(parts_of(smoke.replace(evaluation=Evaluation(test=test, templates=("a {}",)))))
    (tmp_path / "test").rename(tmp_path / "moved")
    (tmp_path / "test").mkdir()
    assert input_paths.missing() == [str(tmp_path / "test" / "apple" / "1.png")]


@pytest.mark.usefixtures("at_once")
def test_copies_that_nobody_used_for_weeks_are_removed_and_others_stay(tmp_path: Path, node: Path):
    old, new = (node_copy(MadeUpSender(files(tmp_path / name, [5]))) for name in ("old", "new"))
    cache = old.parents[1]
    (cache / "victim-old.pt").write_bytes(b"w")
    (cache / "victim-new.pt").write_bytes(b"w")
    past = time.time() - 15 * 86_400
    for path in (old.parent / COMPLETE, cache / "victim-old.pt"):
        os.utime(path, (past, past))
    node_cache.remove_old_copies()  # as other processes see it, this one reads there
    assert same(old, [str(tmp_path / "old" / "000")])
    node_cache.let_go(old.parent)
    node_cache.remove_old_copies()
    assert {path.name for path in cache.iterdir() if path.name[0] != "."} == {new.parent.name, "victim-new.pt"}


# --- a node that sees nothing


@pytest.fixture
def moved(tmp_path: Path, node: Path, at_once: None) -> Callable[[Any], Any]:
    """A function that gives a spec as a node has it that does not see this one's files, which are then gone here."""

    def move(spec: Any) -> Any:
        places = {str(path): input_paths.absolute_path(path) for path in input_paths._paths_in(spec)}
        known, sender = InputPaths(places, tuple(places.values())), DataSender(pickle.dumps([spec]))
        made_up = SimpleNamespace(listing=Remote(sender.listing), tar=Remote(sender.tar))
        node_data._brought.clear()
        root = node_copy(made_up)
        for folder in tmp_path.iterdir():
            if folder != node:
                folder.rename(node / f"hidden-{folder.name}")
        return known.on_this_node(spec, lambda: root)

    return move


@pytest.mark.parametrize(
    "images",
    [
        ["images/1.png", "images/2.png"],
        ["{}/csv/images/1.png", "{}/csv/images/2.png"],
        ["{}/far/1.png", "{}/far/sub/2.png"],
        ["../beside/1.png", "../beside/2.png"],
        ["images/1.png", "{}/far/2.png"],
    ],
    ids=["relative", "absolute below the file", "absolute elsewhere", "relative beside", "of both kinds"],
)
def test_pairs_are_the_same_there(tmp_path: Path, images: list[str], moved: Callable[[Any], Any]):
    data = pairs(tmp_path / "csv", [image.format(tmp_path) for image in images])
    here = data.read(tmp_path)
    brought = moved(data)
    there = brought.read(tmp_path)
    assert not Path(here.image(0)).exists()
    assert there.digest == here.digest
    assert there.subset([1]).digest == here.subset([1]).digest
    assert brought.canonical() == data.canonical()
    assert there.image(1).endswith(os.path.normpath(here.image(1))) or "/../" in there.image(1)
    assert Image.open(there.image(1)).size == (8, 9)


def test_pairs_of_both_kinds_are_found_there_too(tmp_path: Path, moved: Callable[[Any], Any]):
    there = moved(pairs(tmp_path / "csv", ["1.png", str(tmp_path / "far" / "2.png")])).read(tmp_path)
    assert [Image.open(there.image(row)).size for row in range(2)] == [(8, 8), (8, 9)]


def test_pairs_that_were_moved_before_can_be_moved_again(tmp_path: Path, moved: Callable[[Any], Any]):
    original = pairs(tmp_path / "csv", [str(tmp_path / "far" / "1.png")])
    digest = original.read(tmp_path).digest
    (tmp_path / "copy" / str(tmp_path)[1:]).mkdir(parents=True)
    for name in ("csv", "far"):
        shutil.move(tmp_path / name, tmp_path / "copy" / str(tmp_path)[1:] / name)
    data = PairsCSV(path=tmp_path / "copy" / str(tmp_path / "csv" / "pairs.csv")[1:], absolute_below=tmp_path / "copy")
    assert data.read(tmp_path).digest == digest
    assert moved(data).read(tmp_path).digest == digest


def test_absolute_images_are_found_below_a_folder_while_the_file_is_elsewhere(tmp_path: Path):
    picture(tmp_path / "disk" / "home" / "alice" / "1.png")
    (tmp_path / "pairs.csv").write_text("image,caption\n/home/alice/1.png,a fruit\n")
    table = PairsCSV(path=tmp_path / "pairs.csv", absolute_below=tmp_path / "disk").read(tmp_path)
    assert table.image(0) == str(tmp_path / "disk" / "home" / "alice" / "1.png")


def test_labelled_images_are_the_same_there(tmp_path: Path, moved: Callable[[Any], Any]):
    folders = class_folders(tmp_path / "test")
    here = folders.read(tmp_path)
    there = moved(Evaluation(test=folders, templates=("a {}",))).load(tmp_path)
    assert there.digest == here.digest
    assert Image.open(there.image(2)).size == (8, 10)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_labelled_table_is_the_same_there(absolute: bool, tmp_path: Path, moved: Callable[[Any], Any]):
    class_folders(tmp_path / "far" / "set")
    names = sorted(str(image.relative_to(tmp_path / "far")) for image in (tmp_path / "far").rglob("*.png"))
    rows = [
        f"{tmp_path}/far/{name},{Path(name).parent.name}" if absolute else f"{name},x{n}"
        for n, name in enumerate(names)
    ]
    picture(tmp_path / "csv" / "unused.png")
    (tmp_path / "csv" / "test.csv").write_text("\n".join(["image,label", *rows]))
    table = LabelledTable(path=tmp_path / "csv" / "test.csv", root=tmp_path / "far")
    here = table.read(tmp_path)
    brought = moved(table)
    assert brought.canonical() == table.canonical()
    assert brought.read(tmp_path).digest == here.digest


@pytest.mark.parametrize("kind", ["imagenet-flat", "labelled-table", "labelled-shards", "torchvision"])
def test_test_sets_of_every_layout_are_the_same_there(kind: str, tmp_path: Path, moved: Callable[[Any], Any]):
    write_files(tmp_path / "files")
    evaluation = complete_sweeps(tmp_path / "files")[f"test set {kind}"].evaluation
    here = evaluation.load(tmp_path / "home").digest
    brought = moved(evaluation)
    assert brought.test != evaluation.test
    assert brought.load(tmp_path / "other home").digest == here


def test_poison_that_is_marked_in_the_file_is_found_there(tmp_path: Path, moved: Callable[[Any], Any]):
    data = pairs(tmp_path / "csv", ["1.png", "2.png", "3.png"], is_backdoor=["0", "1", "0"])
    poison = ImportedPoison(path=data.path, attack=BadNet(patch_size=2), target="banana")
    plan = poison.plan(data.read(tmp_path), tmp_path)
    data, poison = (lambda both: both.places)(moved(Both(places=(data, poison))))
    there = poison.plan(data.read(tmp_path), tmp_path)
    assert there.rows == plan.rows == (1,)
    assert there.digest == plan.digest


class Both(Spec):
    """Two specs together."""

    places: tuple[Any, ...]


def test_a_picture_is_the_same_trigger_there(tmp_path: Path, moved: Callable[[Any], Any]):
    trigger = ImageTrigger(path=picture(tmp_path / "far" / "stamp.png"))
    brought = moved(trigger)
    assert brought.path != trigger.path
    assert brought.canonical() == trigger.canonical()


def test_a_relative_path_means_the_drivers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smoke: CleaningSweep
):
    class_folders(tmp_path / "test")
    monkeypatch.chdir(tmp_path)
    sweep = smoke.replace(evaluation=Evaluation(test=ClassFolders(path=Path("test")), templates=("a {}",)))
    input_paths, parts = input_paths_of(parts_of(sweep)), pickle.loads(packed(parts_of(sweep)))
    monkeypatch.chdir("/")

    def never() -> Path:
        raise AssertionError("it sees the files")

    assert input_paths.on_this_node(sweep, never).evaluation.test.path == tmp_path / "test"
    assert len([path for part in parts for path in files_of(part)]) == 3


def test_a_node_that_sees_all_gets_the_spec_itself(tmp_path: Path, smoke: CleaningSweep):
    sweep = smoke.replace(data=pairs(tmp_path, ["1.png"]))
    input_paths = input_paths_of(parts_of(sweep))
    assert input_paths.on_this_node(sweep, lambda: Path("/nowhere")) is sweep


def test_a_node_that_sees_the_file_and_not_its_images_is_blind(tmp_path: Path, smoke: CleaningSweep):
    input_paths = input_paths_of(parts_of(smoke.replace(data=pairs(tmp_path, ["1.png"]))))
    (tmp_path / "1.png").unlink()
    assert input_paths.missing() == [str(tmp_path / "1.png")]


SENDING = """
import json, os, signal, sys
from pathlib import Path
from sweeplab.execution import cluster, node_data
from sweeplab.data.pairs import PairsCSV

with cluster.ray_session(needs_train=False):
    import ray

    node_data.TAR_BYTES = 1
    sender = node_data.open_sender(node_data.packed([PairsCSV(path=Path(sys.argv[1]))]))
    ray.get(sender.listing.remote())

    def senders():
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = os.environ["TMPDIR"].encode() in (entry / "environ").read_bytes()
                if is_ours and b"ray::DataSender" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
        return found

    killed = senders()
    for number in killed:
        os.kill(number, signal.SIGKILL)
    folder = node_data.node_copy(sender)
    print(json.dumps({"killed": len(killed), "after": len(set(senders()) - set(killed)), "folder": str(folder)}))
"""


@pytest.mark.slow
@pytest.mark.alone
def test_a_sender_that_is_killed_is_followed_by_another(tmp_path: Path):
    """Whoever waits for its tars notices nothing, and no trial is blamed."""
    file = pairs(tmp_path / "data", ["images/1.png", "images/2.png"]).path
    scratch = tempfile.mkdtemp(prefix="sl-")
    (tmp_path / "sending.py").write_text(SENDING)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "TMPDIR": scratch,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, str(tmp_path / "sending.py"), str(file)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    copied = Path(found["folder"]) / str(file).lstrip("/")
    assert (found["killed"], found["after"]) == (1, 1)
    assert copied.read_bytes() == Path(file).read_bytes()
    shutil.rmtree(scratch, ignore_errors=True)
