import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.images import load_all
from sweeplab.data.labelled_shards import LabelledShards
from sweeplab.data.labelled_sources import source_at
from sweeplab.evaluation.measure import Evaluation
from sweeplab.specs import InvalidInput


def picture(level: int, suffix: str = "webp") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(
        content, suffix, **({"lossless": True} if suffix == "webp" else {})
    )
    return content.getvalue()


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def write_tar(file: Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    """In USTAR, with one sample's members one after the other, as webdataset's TarWriter does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = member(name, size=len(content)) if isinstance(name, str) else name
            tar.addfile(info, io.BytesIO(content))
    return file


def samples(levels: range, labels: list[int], suffix: str = "webp") -> list[tuple[str | tarfile.TarInfo, bytes]]:
    rows = zip(levels, labels, strict=True)
    return [
        part
        for number, label in rows
        for part in ((f"s{number:07d}.{suffix}", picture(number, suffix)), (f"s{number:07d}.cls", str(label).encode()))
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As CLIP_benchmark's `convert_dataset` leaves it: eleven shards, of which the eleventh sorts between 1 and 2."""
    folder = tmp_path / "wds"
    for shard in range(11):
        write_tar(folder / "test" / f"{shard}.tar", samples(range(2 * shard, 2 * shard + 2), [shard % 3, 2]))
    (folder / "test" / "nshards.txt").write_text("11\n")
    (folder / "classnames.txt").write_text("tabby cat\ngoldfish\nhen\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}\n")
    return folder


def test_samples_come_back_in_the_order_of_the_numbers_of_the_shards(root: Path, tmp_path: Path):
    images = LabelledShards(path=root, num_images=22).read(tmp_path / "home")
    assert load_all(images, 8)[:, 0, 0, 0].tolist() == list(range(22))
    assert images.labels.tolist() == [label for shard in range(11) for label in (shard % 3, 2)]
    assert images.class_names == ("tabby cat", "goldfish", "hen")
    assert images.templates == ("a photo of a {}.", "the {}")


@pytest.mark.parametrize("suffix", ["png", "webp", "jpeg"])
def test_images_keep_their_bytes_and_get_the_suffix_of_their_content(suffix: str, root: Path, tmp_path: Path):
    write_tar(root / "train" / "0.tar", samples(range(2), [0, 1], suffix))
    images = LabelledShards(path=root, split="train").read(tmp_path / "home")
    assert Path(images.image(1)).read_bytes() == picture(1, suffix)
    assert Path(images.image(1)).suffix == {"jpeg": ".jpg"}.get(suffix, f".{suffix}")


def test_the_digest_is_of_the_samples_not_of_their_tars(root: Path, tmp_path: Path):
    """The same samples in one tar, under other keys and in a folder of their own."""
    split = LabelledShards(path=root).read(tmp_path / "home")
    rows = samples(range(22), [label for shard in range(11) for label in (shard % 3, 2)])
    renamed = [(f"inner/{name}", content) for name, content in rows]
    write_tar(tmp_path / "one" / "all.tar", renamed)
    whole = LabelledShards(path=tmp_path / "one", class_names=split.class_names).read(tmp_path / "home")
    assert whole.digest == split.digest
    assert len(list((tmp_path / "home").glob("shard-images-*"))) == 2


def test_what_was_unpacked_is_used_again_though_the_tars_are_only_looked_at(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = LabelledShards(path=root)
    before = spec.read(tmp_path / "home")
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: pytest.fail("opened again"))
    monkeypatch.setattr("sweeplab.data.unpacked.file_digest", lambda path: pytest.fail("read again"))
    assert spec.read(tmp_path / "home").digest == before.digest


def test_a_tar_that_was_written_anew_is_unpacked_anew(root: Path, tmp_path: Path):
    spec = LabelledShards(path=root)
    before = spec.read(tmp_path / "home")
    write_tar(root / "test" / "0.tar", samples(range(100, 102), [0, 2]))
    os.utime(root / "test" / "0.tar", ns=(1, 1))
    after = spec.read(tmp_path / "home")
    assert after.digest != before.digest
    assert load_all(after, 8)[0].max() == 100


def test_a_path_of_tars_is_told_from_them(root: Path):
    assert source_at(root) == LabelledShards(path=root)
    assert source_at(root / "test") == LabelledShards(path=root / "test")
    assert LabelledShards(path=root / "test").files() == LabelledShards(path=root).files()
    assert len(LabelledShards(path=root).files()) == 14
    assert LabelledShards(path=root).example() == str(root / "test" / "0.tar")


def test_prompts_that_come_with_the_images_are_taken_where_they_are_asked_for(root: Path, tmp_path: Path):
    evaluation = Evaluation(test=LabelledShards(path=root), templates="dataset")
    images = evaluation.load(tmp_path / "home")
    assert evaluation.prompts(images) == ("a photo of a {}.", "the {}")
    before = evaluation.contents(images)
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    after = evaluation.contents(evaluation.load(tmp_path / "home"))
    assert before["test"] == after["test"]
    assert before["prompts"] != after["prompts"]
    (root / "zeroshot_classification_templates.txt").write_text("a photo\n")
    with pytest.raises(InvalidInput, match=r"the test set's templates need one {} each"):
        evaluation.prompts(evaluation.load(tmp_path / "home"))
    (root / "zeroshot_classification_templates.txt").unlink()
    with pytest.raises(InvalidInput, match="no prompts come with the test set"):
        evaluation.prompts(evaluation.load(tmp_path / "home"))


def test_a_home_that_cannot_be_written_is_said(root: Path, tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InvalidInput, match=r"data_home=.* cannot hold the images of .*0\.tar"):
        LabelledShards(path=root).read(tmp_path / "file" / "data")


EVIL = [
    (member("../out.png", size=1), "leads out of the tar"),
    (member("/etc/out.png", size=1), "leads out of the tar"),
    (member("a/../../out.png", size=1), "leads out of the tar"),
    (member("s.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link or something else"),
    (member("s.png", type=tarfile.LNKTYPE, linkname="../out.png"), "is a link or something else"),
    (member("s.png", type=tarfile.FIFOTYPE), "is a link or something else"),
    (member("s.png", type=tarfile.GNUTYPE_SPARSE), "is a link or something else"),
]


@pytest.mark.parametrize(("evil", "match"), EVIL)
def test_members_that_lead_elsewhere_are_refused_and_nothing_is_written(
    evil: tarfile.TarInfo, match: str, root: Path, tmp_path: Path
):
    write_tar(root / "test" / "5.tar", [*samples(range(1), [0]), (evil, b"x" * evil.size)])
    before = sorted(path for path in tmp_path.rglob("*") if "home" not in path.parts)
    with pytest.raises(InvalidInput, match=rf"5\.tar: member .*{match}"):
        LabelledShards(path=root).read(tmp_path / "home")
    assert sorted(path for path in tmp_path.rglob("*") if "home" not in path.parts) == before
    assert list((tmp_path / "home").rglob("*.webp")) == []


def test_a_pickled_member_is_not_read(root: Path, tmp_path: Path):
    """Whatever lies in a .pyd or .pth stays there."""
    bomb = b"cos\nsystem\n(S'touch /tmp/never'\ntR."
    parts = [("s1.webp", picture(1)), ("s1.cls", b"0"), ("s1.pyd", bomb), ("s1.pth", bomb)]
    write_tar(root / "train" / "0.tar", parts)
    images = LabelledShards(path=root, split="train").read(tmp_path / "home")
    assert (len(images), len(list(Path(images.root).rglob("*.*")))) == (1, 2)  # the image and the table


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([("s1.webp", picture(1))], r"sample 's1' has the members \.webp; each needs one image .* and a \.cls"),
        ([("s1.cls", b"0")], r"sample 's1' has the members \.cls"),
        ([("s1.webp", b"x"), ("s1.png", b"x"), ("s1.cls", b"0")], r"has the members \.webp, \.png, \.cls"),
        ([("s1.webp", b"x"), ("s1.cls", b"0"), ("s1.cls", b"1")], r"two members \.cls"),
        ([("s1.webp", b"x"), ("s1.cls", b"-1")], r"has the \.cls b'-1'"),
        ([("s1.webp", b"x"), ("s1.cls", b"hen")], r"has the \.cls b'hen'"),
        ([("s1.webp", b"x"), ("s1.cls", b"3")], r"1 of 1 labels are outside of 0 \.\.\. 2"),
        ([], "holds no images"),
    ],
)
def test_samples_that_are_not_whole_are_refused(parts: list, match: str, root: Path, tmp_path: Path):
    write_tar(root / "bad" / "0.tar", parts)
    with pytest.raises(InvalidInput, match=match):
        LabelledShards(path=root, split="bad").read(tmp_path / "home")


@pytest.mark.parametrize("keep", [0, 100, 600, 1700, 2048, 2049, 2600, 4096])
def test_a_truncated_tar_is_named_with_its_last_good_sample(keep: int, root: Path, tmp_path: Path):
    """A sample here has two headers and two blocks of content: the first ends at 2,048 bytes, the second at 4,096,
    where the zeros begin that end the tar."""
    tar = root / "test" / "3.tar"
    tar.write_bytes(tar.read_bytes()[:keep])
    last = "after sample 's0000007'" if keep == 4096 else "after sample 's0000006'" if keep > 2048 else ""
    with pytest.raises(InvalidInput, match=rf"3\.tar.*{last}"):
        LabelledShards(path=root).read(tmp_path / "home")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda root: (root / "test" / "7.tar").unlink(), r"nshards\.txt says 11, but .* holds 10 tars"),
        (lambda root: (root / "classnames.txt").unlink(), r"has no classnames\.txt"),
        (lambda root: (root / "classnames.txt").write_text("a\na\nb\n"), r"more than once \(a\)"),
        (lambda root: (root / "classnames.txt").write_text("a\n\nb\n"), "class name 2 of 3 is blank"),
        (lambda root: (root / "classnames.txt").write_bytes(b"\xff\n"), "save it in UTF-8"),
        (lambda root: (root / "dataset_type.txt").write_text("retrieval\n"), "says 'retrieval'"),
        (lambda root: [tar.unlink() for tar in (root / "test").glob("*.tar")], r"holds no \.tar files"),
    ],
)
def test_what_is_wrong_with_the_folder_is_said(change, match: str, root: Path, tmp_path: Path):
    change(root)
    with pytest.raises(InvalidInput, match=match):
        LabelledShards(path=root).read(tmp_path / "home")


def test_a_split_is_one_folder():
    with pytest.raises(InvalidInput, match="is no folder's name"):
        LabelledShards(path=Path("x"), split="../elsewhere")


def test_tars_of_another_split_are_not_taken_for_the_one_that_was_asked_for(root: Path, tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"holds the tars of split 'test', not of 'train'; give "):
        LabelledShards(path=root / "test", split="train").read(tmp_path)


def test_an_archive_beside_class_folders_makes_no_shards_of_them(tmp_path: Path):
    for name in ("apple", "pear"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(picture(1, "png"))
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"")
    assert source_at(tmp_path) == ClassFolders(path=tmp_path)
