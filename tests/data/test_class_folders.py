import pickle
import shutil
from pathlib import Path

import pytest

from sweeplab.clip_model import imagenet_class_names
from sweeplab.data.class_folders import ClassFolders
from sweeplab.specs import InvalidInput


def fill(root: Path, files: dict[str, list[str]]) -> Path:
    """Class folders with files of one byte."""
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(b"x")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fill(tmp_path / "root", {"hot_dog": ["b.PNG", "a.jpg"], "banana": ["1.JPEG", "notes.txt", ".hidden.png"]})


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet")
    return fill(folder / "val", {f"n{number:08d}": ["a.JPEG"] for number in range(1000)})


def test_classes_and_images_are_sorted(root: Path):
    images = ClassFolders(path=root).read(root)
    expected = ["banana/1.JPEG", "hot_dog/a.jpg", "hot_dog/b.PNG"]
    assert [images.image(row) for row in range(len(images))] == [str(root / name) for name in expected]


def test_labels_index_the_class_names(root: Path):
    images = ClassFolders(path=root).read(root)
    assert [images.class_names[label] for label in images.labels] == ["banana", "hot dog", "hot dog"]


def test_labels_are_int64(root: Path):
    assert ClassFolders(path=root).read(root).labels.dtype == "int64"


def test_given_names_stand_in_the_order_of_the_sorted_folders(root: Path):
    images = ClassFolders(path=root, class_names=("ripe banana", "sausage")).read(root)
    assert images.class_names == ("ripe banana", "sausage")


def test_hidden_folders_and_loose_files_are_no_classes(root: Path):
    fill(root, {".cache": ["a.png"]})
    (root / "readme.png").write_bytes(b"x")
    assert len(ClassFolders(path=root).read(root).class_names) == 2


def test_the_digest_does_not_depend_on_the_place(root: Path, tmp_path: Path):
    before = ClassFolders(path=root).read(root).digest
    shutil.move(root, tmp_path / "moved")
    assert ClassFolders(path=tmp_path / "moved").read(root).digest == before


def test_the_digest_depends_on_the_class_names(root: Path):
    renamed = ClassFolders(path=root, class_names=("banana", "sausage")).read(root)
    assert renamed.digest != ClassFolders(path=root).read(root).digest


def test_the_digest_depends_on_the_file_sizes(root: Path):
    before = ClassFolders(path=root).read(root).digest
    (root / "hot_dog" / "a.jpg").write_bytes(b"xx")
    assert ClassFolders(path=root).read(root).digest != before


def test_a_subset_keeps_all_class_names(root: Path):
    subset = ClassFolders(path=root).read(root).subset([2])
    assert (subset.class_names, subset.labels.tolist()) == (("banana", "hot dog"), [1])


def test_labelled_images_survive_pickling(root: Path):
    images = ClassFolders(path=root).read(root)
    assert pickle.loads(pickle.dumps(images)).image(1) == images.image(1)


def test_imagenet_names_belong_to_the_sorted_wordnet_ids(wordnet: Path):
    images = ClassFolders(path=wordnet, class_names="imagenet", num_images=1000).read(wordnet)
    assert images.class_names == imagenet_class_names()


def test_two_wordnet_ids_may_share_a_name(wordnet: Path):
    """open_clip's list says `missile` for class 744, WordNet's projectile, too."""
    names = ClassFolders(path=wordnet, class_names="imagenet").read(wordnet).class_names
    assert [label for label, name in enumerate(names) if name == "missile"] == [657, 744]


def test_imagenet_names_need_a_thousand_folders(root: Path):
    with pytest.raises(InvalidInput, match=r"needs the 1000 WordNet-id folders .* holds 2 folders, one 'banana'"):
        ClassFolders(path=root, class_names="imagenet").read(root)


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"path=.*nowhere is no folder; give the folder"):
        ClassFolders(path=tmp_path / "nowhere").read(tmp_path)


def test_a_folder_without_class_folders_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"holds no class folders"):
        ClassFolders(path=tmp_path).read(tmp_path)


def test_an_empty_class_is_named(root: Path):
    fill(root, {"pear": ["notes.txt"]})
    with pytest.raises(InvalidInput, match=r"root/pear holds no images .*remove the folder"):
        ClassFolders(path=root).read(root)


def test_another_number_of_images_than_declared_is_refused(root: Path):
    with pytest.raises(InvalidInput, match=r"num_images=4, but .* holds 3 images; set num_images=3"):
        ClassFolders(path=root, num_images=4).read(root)


def test_another_number_of_names_than_folders_is_refused(root: Path):
    with pytest.raises(
        InvalidInput, match=r"class_names has 1 names, but .* holds 2 class folders \(banana, hot_dog\)"
    ):
        ClassFolders(path=root, class_names=("banana",)).read(root)


def test_two_folders_of_one_name_are_named(root: Path):
    fill(root, {"hot dog": ["a.png"]})
    with pytest.raises(InvalidInput, match=r"class name 'hot dog' stands for 2 folders .*\(hot dog, hot_dog\)"):
        ClassFolders(path=root).read(root)


def test_place_and_declared_size_are_no_part_of_the_spec_digest(tmp_path: Path):
    declared = ClassFolders(path=tmp_path / "a", num_images=5)
    assert declared.digest() == ClassFolders(path=tmp_path / "b").digest()


def test_a_spec_survives_json(root: Path):
    spec = ClassFolders(path=root, class_names=("banana", "sausage"))
    assert ClassFolders.model_validate(spec.to_json()) == spec


def test_the_example_is_the_first_image_of_the_first_class_and_lists_no_other(tmp_path: Path):
    for place in ("b/1.png", "a/2.png", "a/1.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    images = ClassFolders(path=tmp_path)
    assert images.example() == images.read(tmp_path).image(0) == str(tmp_path / "a" / "1.png")
    (tmp_path / "b" / "1.png").unlink()
    assert images.example() == str(tmp_path / "a" / "1.png")
    for number in (1, 2):
        (tmp_path / "a" / f"{number}.png").unlink()
    with pytest.raises(InvalidInput, match="holds no images"):
        images.example()
