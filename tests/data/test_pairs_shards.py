import functools
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from test_labelled_shards import EVIL, write_tar

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.exchange import ImportedPoison, export_poisoned_csv
from sweeplab.attacks.poisoning import Poisoning, plan_poison
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.data import shard_index, tar_members
from sweeplab.data.decoded import DecodedFiles
from sweeplab.data.images import load_all, load_image
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.pairs_shards import PairsShards, expanded
from sweeplab.data.tables import PairTable
from sweeplab.data.tar_members import TarMember
from sweeplab.specs import InvalidInput, StorageFault
from sweeplab.storage import node_cache

Member = tuple[str | tarfile.TarInfo, bytes]


def picture(level: int, suffix: str = "png") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(content, "jpeg" if suffix == "jpg" else suffix)
    return content.getvalue()


def sample(number: int, caption: str | None = None) -> list[Member]:
    text = f"picture number {number}" if caption is None else caption
    return [(f"{number:09d}.png", picture(number)), (f"{number:09d}.txt", text.encode())]


def samples(numbers: range) -> list[Member]:
    return [member for number in numbers for member in sample(number)]


def levels(table: PairTable) -> list[int]:
    """What `picture` was given."""
    return load_all(table, 8)[:, 0, 0, 0].tolist()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node cache of this test's own."""
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(node_cache.tempfile, "gettempdir", lambda: str(tmp_path / "node"))
    return node_cache.node_cache()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """12 tars of 2 pairs, of which the eleventh sorts between 1 and 2 by its letters."""
    for number in range(12):
        write_tar(tmp_path / "shards" / f"{number}.tar", samples(range(2 * number, 2 * number + 2)))
    return tmp_path / "shards"


def test_pairs_come_in_the_order_of_the_numbers_of_the_shards(shards: Path, tmp_path: Path):
    table = PairsShards(path=shards).read(tmp_path / "home")
    assert levels(table) == list(range(24))
    assert [table.caption(row) for row in (0, 23)] == ["picture number 0", "picture number 23"]
    assert str(table.image(5)) == f"{shards}/2.tar/000000005.png"


def test_what_webdataset_writes_is_read_back_row_by_row(tmp_path: Path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/%05d.tar", maxcount=3, verbose=0) as writer:
        for number in range(7):
            key, facts = f"{number:09d}", {"caption": f"a café, {number}", "width": 8}
            writer.write({"__key__": key, "png": picture(number), "json": json.dumps(facts).encode()})
    table = PairsShards(path=tmp_path / "{00000..00002}.tar").read(tmp_path / "home")
    assert levels(table) == list(range(7))
    assert [table.caption(row) for row in range(7)] == [f"a café, {number}" for number in range(7)]


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_images_keep_their_bytes_and_stay_in_the_tars(suffix: str, tmp_path: Path):
    write_tar(tmp_path / "a.tar", [(f"in/b.{suffix}", picture(7, suffix)), ("in/b.txt", b"seven")])
    table = PairsShards(path=tmp_path / "a.tar").read(tmp_path / "home")
    member = table.image(0)
    assert isinstance(member, TarMember)
    assert member.read() == picture(7, suffix)
    written = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert [path.suffix for path in written if path.suffix != ".lock"] == [".arrow"]
    assert not any(picture(7, suffix) in path.read_bytes() for path in written)


def test_a_sample_may_have_its_members_in_any_order_and_in_small_or_large_letters(tmp_path: Path):
    parts = [("./1.txt", b"one"), ("./0.JPG", picture(0, "jpg")), ("./1.png", picture(1)), ("./0.txt", b"nought")]
    write_tar(tmp_path / "a.tar", parts)
    table = PairsShards(path=tmp_path / "a.tar").read(tmp_path / "home")
    assert [table.caption(row) for row in range(2)] == ["one", "nought"]
    assert str(table.image(1)).endswith("a.tar/0.JPG")


def test_what_failed_or_has_no_caption_is_left_out_with_a_note(tmp_path: Path):
    without_image = [("000000002.txt", b"gone"), ("000000002.json", b'{"status": "failed_to_download"}')]
    write_tar(tmp_path / "00000.tar", [*sample(1), *without_image, *sample(3, " \n"), ("000000004.png", picture(4))])
    write_tar(tmp_path / "00001.tar", sample(5))
    stats = {"count": 9, "successes": 6, "failed_to_download": 2, "failed_to_resize": 1, "status_dict": {}}
    (tmp_path / "00000_stats.json").write_text(json.dumps(stats))
    table = PairsShards(path=tmp_path).read(tmp_path / "home")
    assert levels(table) == [1, 5]
    assert table.notes == (
        f"3 of the 8 rows of {tmp_path} were not downloaded and are left out (failed_to_download 2, "
        "failed_to_resize 1)",
        f"1 of the 5 samples of {tmp_path} have no image and are left out",
        f"2 of the 5 samples of {tmp_path} have no caption and are left out",
    )


@pytest.mark.parametrize("keep", [0, 100, 600, 1700, 2048, 2049, 2600, 4096])
def test_a_truncated_tar_is_named_with_its_last_good_key(keep: int, shards: Path, tmp_path: Path):
    """A sample has two headers and two blocks of content: the first ends at 2,048 bytes, the second at 4,096, where
    the zeros begin that end the tar."""
    tar = shards / "3.tar"
    tar.write_bytes(tar.read_bytes()[:keep])
    last = "after sample '000000007'" if keep == 4096 else "after sample '000000006'" if keep >= 2048 else ""
    with pytest.raises(InvalidInput, match=rf"3\.tar cannot be read {last or 'at its beginning'} .*; copy or download"):
        PairsShards(path=shards).read(tmp_path / "home")


def test_a_compressed_tar_is_refused(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(InvalidInput, match=r"a\.tar cannot be read .* must not be compressed"):
        PairsShards(path=tmp_path).read(tmp_path / "home")


@pytest.mark.parametrize(("evil", "match"), EVIL)
def test_members_that_lead_elsewhere_are_refused_and_nothing_is_written(
    evil: tarfile.TarInfo, match: str, shards: Path, tmp_path: Path
):
    write_tar(shards / "5.tar", [*sample(1), (evil, b"x" * evil.size)])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidInput, match=rf"5\.tar: member .*{match}"):
        PairsShards(path=shards).read(tmp_path / "home")
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - set(before)
    assert {path.suffix for path in new} <= {".arrow", ".lock"}


def test_a_pickled_member_is_not_read(tmp_path: Path):
    bomb = f"cos\nsystem\n(S'touch {tmp_path}/never'\ntR.".encode()
    write_tar(tmp_path / "a.tar", [*sample(1), ("000000001.pyd", bomb), ("000000001.pth", bomb)])
    table = PairsShards(path=tmp_path / "a.tar").read(tmp_path / "home")
    assert levels(table) == [1]
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([("1.png", picture(1)), ("1.txt", b"\xff")], r"a\.tar: the caption of sample '1' cannot be read .* UTF-8"),
        ([("1.png", picture(1)), ("1.json", b"[1]")], r"a\.tar: the caption of sample '1' cannot be read"),
        ([("1.png", picture(1)), ("1.json", b'{"caption": "\\ud800"}')], r"a\.tar holds the text .* not Unicode"),
        ([("1.png", b"x"), ("1.jpg", b"x"), ("1.txt", b"a")], r"sample '1' has 2 images \(\.png, \.jpg\)"),
        ([("1.txt", b"a"), ("1.png", b"x"), ("1.txt", b"b")], r"sample '1' has two members \.txt"),
        ([("1.png", b""), ("1.txt", b"a")], r"1 of 1 pairs are broken.*\n  row 1: .*a\.tar/1\.png is empty"),
        ([("1.png", picture(1)), ("2.txt", b"a")], r"holds no image with a caption: 1 of the 2 samples .* no image"),
        ([], r"holds no image with a caption; a sample is"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(parts: list[Member], match: str, tmp_path: Path):
    write_tar(tmp_path / "a.tar", parts)
    with pytest.raises(InvalidInput, match=match):
        PairsShards(path=tmp_path / "a.tar").read(tmp_path / "home")


# --- places


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}.tar", ["8.tar", "9.tar", "10.tar", "11.tar"]),
        ("{00008..00010}.tar", ["00008.tar", "00009.tar", "00010.tar"]),
        ("{2..0}.tar", ["2.tar", "1.tar", "0.tar"]),
        ("{train,val}/{0..1}.tar", ["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]),
    ],
)
def test_a_pattern_stands_for_what_it_stands_for_in_a_shell(pattern: str, names: list[str]):
    assert expanded(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..99999999}.tar", "{0..9999}/{0..9999}.tar", "{a..c}.tar", "{}.tar"])
def test_a_pattern_that_stands_for_no_shards_or_too_many_is_refused(pattern: str, tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"stands for more than 1000000 shards|is neither numbers"):
        PairsShards(path=tmp_path / pattern).files()


def test_a_list_is_read_in_its_order(shards: Path, tmp_path: Path):
    table = PairsShards(path=(shards / "{9..10}.tar", shards / "1.tar")).read(tmp_path / "home")
    assert levels(table) == [18, 19, 20, 21, 2, 3]


def test_shards_that_are_missing_are_counted(shards: Path, tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"not all there: 3 of 15 shards are missing, the first .*12\.tar"):
        PairsShards(path=shards / "{0..14}.tar").read(tmp_path / "home")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=r"empty is a folder without \.tar files"):
        PairsShards(path=tmp_path / "empty").files()


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("s3://key:secret@bucket/a.tar", "holds no credentials"),
        ("s3://bucket/a.tar?region=x", "holds no options"),
        ("https://me:secret@host/a.tar", "hold no credentials"),
        ("https://host/a.tar?token=secret", "hold no credentials"),
        ("ftp://host/a.tar", "no kind of storage"),
    ],
)
def test_a_url_that_could_hold_a_secret_is_refused(url: str, match: str):
    with pytest.raises(InvalidInput, match=match):
        PairsShards(path=url)
    with pytest.raises(InvalidInput, match=match):
        PairsShards(path=(Path("a.tar"), url))


def test_the_digest_is_of_the_pairs_and_their_shards_not_of_places(shards: Path, tmp_path: Path):
    """Another cut into tars is another order of an epoch."""
    spec, whole = PairsShards(path=shards), PairsShards(path=shards).read(tmp_path / "home")
    shutil.copytree(shards, tmp_path / "elsewhere" / "deep")
    moved = spec.replace(path=tmp_path / "elsewhere" / "deep" / "{0..11}.tar")
    assert moved.read(tmp_path / "home").digest == whole.digest
    assert moved.digest() == spec.digest()
    for folder, cut in (("one", [4]), ("two", [2, 2])):
        first = 0
        for number, count in enumerate(cut):
            parts = [(f"same/{name}", content) for name, content in samples(range(first, first + count))]
            write_tar(tmp_path / folder / str(number) / "0.tar", parts)
            first += count
    one = PairsShards(path=tmp_path / "one" / "0" / "0.tar").read(tmp_path / "home")
    two = PairsShards(path=tmp_path / "two" / "{0,1}" / "0.tar").read(tmp_path / "home")
    assert one.images.equals(two.images)
    assert one.digest != two.digest


# --- the index


def test_a_shard_is_read_through_once(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = PairsShards(path=shards)
    before = spec.read(tmp_path / "home")
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: pytest.fail("opened again"))
    assert spec.read(tmp_path / "home").digest == before.digest
    monkeypatch.undo()
    write_tar(shards / "0.tar", samples(range(100, 103)))
    assert levels(spec.read(tmp_path / "home"))[:4] == [100, 101, 102, 2]


@pytest.mark.parametrize("damage", [b"", b"ARROW1\0\0garbage", None])
def test_a_damaged_index_is_made_again(damage: bytes | None, shards: Path, tmp_path: Path):
    spec = PairsShards(path=shards)
    before = spec.read(tmp_path / "home")
    files = sorted((tmp_path / "home" / "shard-index").glob("*.arrow"))
    for file in files:
        file.write_bytes(file.read_bytes()[:-20] if damage is None else damage)
    assert spec.read(tmp_path / "home").digest == before.digest
    assert len(files) == 12


def test_a_home_that_cannot_be_written_is_said(shards: Path, tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InvalidInput, match=r"data_home=.* cannot hold the index of .*shards"):
        PairsShards(path=shards).read(tmp_path / "file" / "data")


@pytest.mark.slow
def test_many_shards_are_indexed_by_processes(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    alone = PairsShards(path=shards).read(tmp_path / "home")
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    monkeypatch.setattr(shard_index, "PROCESS_BYTES", 1)
    asked = []
    parallel = joblib.Parallel
    monkeypatch.setattr(joblib, "Parallel", lambda **options: (asked.append(options["n_jobs"]), parallel(**options))[1])
    together = PairsShards(path=shards).read(tmp_path / "other")
    assert asked == [2]
    assert together.digest == alone.digest
    (shards / "4.tar").write_bytes(b"x" * 2000)
    with pytest.raises(InvalidInput, match=r"4\.tar cannot be read"):
        PairsShards(path=shards).read(tmp_path / "third")


# --- images in tars wherever images are used


@pytest.fixture
def both(tmp_path: Path) -> tuple[PairTable, PairTable]:
    """The same 24 pairs in 12 tars and as files."""
    (tmp_path / "files").mkdir()
    lines = ["image,caption"]
    for number in range(24):
        caption = f"a banana, number {number}" if number % 3 == 0 else f"picture number {number}"
        write_tar(tmp_path / "tars" / f"{number:02d}.tar", sample(number, caption))
        (tmp_path / "files" / f"{number}.png").write_bytes(picture(number))
        lines.append(f'{number}.png,"{caption}"')
    (tmp_path / "files" / "pairs.csv").write_text("\n".join(lines))
    packed = PairsShards(path=tmp_path / "tars").read(tmp_path / "home")
    return packed, PairsCSV(path=tmp_path / "files" / "pairs.csv").read(tmp_path / "home")


def test_parts_and_unions_of_tables_keep_their_images(both: tuple[PairTable, PairTable]):
    packed, files = both
    assert levels(packed.subset([5, 3, 3])) == [5, 3, 3]
    assert levels(packed.joined(files.subset([1, 2]))) == [*range(24), 1, 2]
    assert levels(files.subset([1]).joined(packed.subset([9]))) == [1, 9]
    mixed = packed.subset([5, 3, 3]).joined(files.subset([1])).joined(packed.subset([3, 7]))
    assert levels(mixed.subset([5, 3, 0])) == [7, 1, 5]
    assert mixed.members is not None
    assert mixed.members.numbers.tolist() == [0, 1, 1, -1, 1, 2]
    part = packed.subset([5, 3])
    assert part.members is not None
    assert [shard.name for shard in part.members.shards] == ["05.tar", "03.tar"]


def test_poisons_choose_the_same_rows_and_stamp_the_same_pixels(both: tuple[PairTable, PairTable]):
    poisoning = Poisoning(attack=BadNet(patch_size=2), target="banana", count=5, placement="add")
    plans = [plan_poison(poisoning, table) for table in both]
    assert plans[0].indices == plans[1].indices
    pixels = [load_all(plan.training_table(table), 8) for plan, table in zip(plans, both, strict=True)]
    rows = list(range(29))
    assert torch.equal(plans[0].stamp_rows(pixels[0], rows), plans[1].stamp_rows(pixels[1], rows))


def test_a_target_image_in_the_same_tar_is_found_in_the_training_set(both: tuple[PairTable, PairTable], tmp_path: Path):
    packed, files = both
    source = PairsShards(path=tmp_path / "tars", num_pairs=4)
    attack = TargetedImages(images=source, num_targets=2, poisons_per_target=1, classes=("apple", "pear"))
    with pytest.raises(InvalidInput, match="a target image is in the training set"):
        attack.plan(packed, tmp_path / "home")
    assert len(attack.plan(packed.subset(range(4, 24)), tmp_path / "home").indices) == 2
    assert len(attack.plan(files, tmp_path / "home").indices) == 2


def test_an_export_names_files(both: tuple[PairTable, PairTable], tmp_path: Path):
    packed, _ = both
    plan = plan_poison(Poisoning(attack=BadNet(patch_size=2), target="banana", count=3), packed)
    made = export_poisoned_csv(packed, plan, tmp_path / "export", image_size=8)
    again = PairsCSV(path=made).read(tmp_path / "home")
    clean = [row for row in range(24) if row not in plan.rows]
    assert levels(again.subset(range(3, 24))) == clean
    assert ImportedPoison(path=made, attack=plan.attack, target="banana").plan(again, tmp_path).rows == (0, 1, 2)


def test_decoded_files_tell_members_and_tars_apart(both: tuple[PairTable, PairTable], tmp_path: Path):
    packed, _ = both
    files = DecodedFiles(tmp_path / "cache", 1e9)
    assert torch.equal(files.tensor(packed, 8), load_all(packed, 8))
    assert torch.equal(files.tensor(packed.subset(range(23, -1, -1)), 8), load_all(packed, 8).flip(0))
    write_tar(tmp_path / "tars" / "00.tar", sample(200, "another"))
    again = PairsShards(path=tmp_path / "tars").read(tmp_path / "home")
    assert files.tensor(again, 8)[0].max() == 200


def test_a_broken_image_is_named_with_its_tar(tmp_path: Path):
    write_tar(tmp_path / "a.tar", [*sample(1), ("2.png", picture(2)[:-30]), ("2.txt", b"broken")])
    table = PairsShards(path=tmp_path).read(tmp_path / "home")
    with pytest.raises(InvalidInput, match=r"a\.tar/2\.png cannot be decoded as an image"):
        load_all(table, 8)
    os.truncate(tmp_path / "a.tar", 520)
    with pytest.raises(InvalidInput, match=r"a\.tar/000000001\.png cannot be decoded as an image \(.*breaks off"):
        load_image(table.image(0), 8)


def test_deep_greys_are_found_in_tars_as_in_files(tmp_path: Path):
    deep = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(deep, "png")
    write_tar(tmp_path / "a.tar", [*sample(1), ("2.png", deep.getvalue()), ("2.txt", b"deep")])
    table = PairsShards(path=tmp_path).read(tmp_path / "home")
    assert table.deep_grey.tolist() == [False, True]
    assert levels(table) == [1, 40_000 >> 8]


# --- remote shards


@pytest.fixture
def web(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address under which a server of this process has the shards."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def upload(shards: Path, url: str) -> None:
    """The first three."""
    for tar in map(shards.joinpath, ("0.tar", "1.tar", "2.tar")):
        boto3.client("s3").upload_file(str(tar), url.removeprefix("s3://"), f"pairs/{tar.name}")


def test_shards_of_an_object_store_come_to_a_node_once(bucket: str, shards: Path, node: Path, tmp_path: Path):
    upload(shards, bucket)
    here, spec = PairsShards(path=shards / "{0..2}.tar").read(tmp_path / "home"), PairsShards(path=f"{bucket}/pairs")
    there = spec.read(tmp_path / "home")
    assert there.digest == here.digest
    assert spec.files() == []
    assert spec.example() is None
    again = spec.replace(path=f"{bucket}/pairs/{{0..2}}.tar").read(tmp_path / "home")
    for number in range(3):
        boto3.client("s3").delete_object(Bucket=bucket.removeprefix("s3://"), Key=f"pairs/{number}.tar")
    assert levels(again) == levels(there) == list(range(6))
    assert len(list(node.glob("shard-*.tar"))) == 3


def test_a_shard_that_made_room_or_never_came_to_this_node_is_fetched_when_an_image_is_wanted(
    bucket: str, shards: Path, node: Path, tmp_path: Path
):
    upload(shards, bucket)
    table = PairsShards(path=f"{bucket}/pairs").read(tmp_path / "home")
    for copy in node.glob("shard-*.tar"):
        copy.unlink()
    assert levels(table.subset([4, 5])) == [4, 5]
    assert len(list(node.glob("shard-*.tar"))) == 1


def test_processes_that_want_a_remote_shard_at_once_fetch_it_once(
    bucket: str, shards: Path, node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    upload(shards, bucket)
    table = PairsShards(path=f"{bucket}/pairs/0.tar").read(tmp_path / "home")
    next(node.glob("shard-*.tar")).unlink()
    plain, fetched = tar_members.fetch, []

    def slow(url: str, to: Path) -> None:
        fetched.append(url)
        time.sleep(0.1)
        plain(url, to)

    monkeypatch.setattr(tar_members, "fetch", slow)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda row: load_image(table.image(row), 8).max(), [0, 1, 0, 1])) == [0, 1, 0, 1]
    assert fetched == [f"{bucket}/pairs/0.tar"]


@pytest.mark.usefixtures("node")
def test_an_object_of_another_content_is_another_shard(bucket: str, shards: Path, tmp_path: Path):
    upload(shards, bucket)
    spec = PairsShards(path=f"{bucket}/pairs/0.tar")
    assert levels(spec.read(tmp_path / "home")) == [0, 1]
    write_tar(shards / "0.tar", samples(range(50, 53)))
    upload(shards, bucket)
    assert levels(spec.read(tmp_path / "home")) == [50, 51, 52]
    with pytest.raises(InvalidInput, match=r"s3://.*/77\.tar does not exist"):
        PairsShards(path=f"{bucket}/pairs/77.tar").read(tmp_path / "home")


@pytest.mark.usefixtures("node")
def test_shards_of_a_web_server_are_read(web: str, shards: Path, tmp_path: Path):
    here = PairsShards(path=shards / "{3..5}.tar").read(tmp_path / "home")
    there = PairsShards(path=f"{web}/{{3..5}}.tar").read(tmp_path / "home")
    assert there.digest == here.digest
    assert levels(there) == list(range(6, 12))
    with pytest.raises(InvalidInput, match=r"http://.*/77\.tar does not exist"):
        PairsShards(path=f"{web}/77.tar").read(tmp_path / "home")
    with pytest.raises(InvalidInput, match="nobody lists what a web server has"):
        PairsShards(path=web).read(tmp_path / "home")


def test_a_server_that_does_not_answer_is_no_fault_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(StorageFault, match=r"http://127\.0\.0\.1:9/a\.tar cannot be read"):
        PairsShards(path="http://127.0.0.1:9/a.tar").read(tmp_path / "home")


def test_a_pattern_of_stars_is_told_of_braces(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"1 of 1 shards are missing.* of patterns only braces are known"):
        PairsShards(path=tmp_path / "*.tar").read(tmp_path)


def test_a_caption_begins_after_the_mark_of_its_encoding(tmp_path: Path):
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "png")
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, content in (("1.png", image.getvalue()), ("1.txt", b"\xef\xbb\xbfa photo")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert PairsShards(path=tmp_path).read(tmp_path / "home").caption(0) == "a photo"
