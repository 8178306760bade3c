import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sweeplab.clip_model import imagenet_class_names, imagenet_names
from sweeplab.data.class_folders import IMAGE_SUFFIXES, ClassFolders
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
    return fill(folder / "val", {name: ["a.JPEG"] for name in imagenet_names()})


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


def test_the_names_of_ids_are_imagenets():
    """Known from ImageNet's own list: WordNet's n04008634 is `projectile`, which OpenAI's names call `missile` too."""
    names = imagenet_names()
    wanted = {
        "n01440764": "tench",
        "n02123045": "tabby cat",
        "n07753592": "banana",
        "n03773504": "missile",
        "n04008634": "missile",
        "n15075141": "toilet paper",
    }
    assert {name: names[name] for name in wanted} == wanted
    assert tuple(names.values()) == imagenet_class_names()


@pytest.mark.parametrize("class_names", ["imagenet", "folders"])
def test_ids_of_a_subset_become_their_own_names(tmp_path: Path, class_names: str):
    """The second, third and fourth folder are not the second, third and fourth of the 1,000 classes."""
    ids = ("n01440764", "n02123045", "n03773504", "n04008634")
    images = ClassFolders(path=fill(tmp_path, {name: ["a.png"] for name in ids}), class_names=class_names)
    assert images.read(tmp_path).class_names == ("tench", "tabby cat", "missile", "missile")


def test_ids_and_names_may_stand_side_by_side(tmp_path: Path):
    fill(tmp_path, {"n07753592": ["a.png"], "hot_dog": ["a.png"]})
    assert ClassFolders(path=tmp_path).read(tmp_path).class_names == ("hot dog", "banana")


def test_a_name_and_the_id_of_that_name_are_two_folders_of_one_class(tmp_path: Path):
    fill(tmp_path, {"n07753592": ["a.png"], "banana": ["a.png"]})
    with pytest.raises(InvalidInput, match=r"class name 'banana' stands for 2 folders .*\(banana, n07753592\)"):
        ClassFolders(path=tmp_path).read(tmp_path)


@pytest.mark.parametrize("class_names", ["imagenet", "folders"])
def test_a_thousand_invented_ids_are_not_imagenet(tmp_path: Path, class_names: str):
    fill(tmp_path, {f"n{number:08d}": ["a.JPEG"] for number in range(1000)})
    with pytest.raises(InvalidInput, match=r"1,000 of the 1,000 folders .*\(n00000000, .*set class_names to one name"):
        ClassFolders(path=tmp_path, class_names=class_names).read(tmp_path)


def test_an_id_that_imagenet_lacks_is_no_name(tmp_path: Path):
    """WordNet's cow, a class of Tiny ImageNet."""
    fill(tmp_path, {"n01440764": ["a.JPEG"], "n02403454": ["a.JPEG"]})
    with pytest.raises(InvalidInput, match=r"1 of the 2 folders .* are WordNet ids .*\(n02403454\), and an id is no"):
        ClassFolders(path=tmp_path).read(tmp_path)
    images = ClassFolders(path=tmp_path, class_names=("tench", "cow")).read(tmp_path)
    assert images.class_names == ("tench", "cow")


@pytest.mark.parametrize("spelled", ["N01440764", "n01440764 "])
def test_an_id_in_another_spelling_is_no_name_either(spelled: str, tmp_path: Path):
    for name in (spelled, "pear"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    with pytest.raises(InvalidInput, match="an id is no name for a prompt"):
        ClassFolders(path=tmp_path).read(tmp_path)


def test_an_id_among_own_names_is_refused(root: Path):
    with pytest.raises(InvalidInput, match=r"class_names holds the WordNet id 'n07753592'.* give words"):
        ClassFolders(path=root, class_names=("n07753592", "hot dog")).read(root)


def test_imagenet_names_need_folders_named_after_ids(root: Path):
    with pytest.raises(InvalidInput, match=r"2 of the 2 folders of .* are others \(banana, hot_dog\); .*'folders'"):
        ClassFolders(path=root, class_names="imagenet").read(root)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ([str(number) for number in range(16)], [str(number) for number in range(16)]),
        (["class_2", "class_10", "class_1"], ["class_1", "class_2", "class_10"]),
        (["10", "2", "x"], ["10", "2", "x"]),
        (["2 cats", "10 dogs"], ["10 dogs", "2 cats"]),
        (["007", "10", "7"], ["007", "7", "10"]),
    ],
)
def test_folders_that_differ_in_a_number_alone_sort_by_it(tmp_path: Path, folders: list[str], expected: list[str]):
    root = fill(tmp_path, {name: ["a.png"] for name in folders})
    images = ClassFolders(path=root).read(root)
    assert [Path(images.image(row)).parent.name for row in range(len(images))] == expected
    assert ClassFolders(path=root).example() == images.image(0)


def test_own_names_belong_to_the_numbers_of_the_folders(tmp_path: Path):
    names = tuple(f"name of {number}" for number in range(16))
    fill(tmp_path, {str(number): [f"{number}.png"] for number in range(16)})
    images = ClassFolders(path=tmp_path, class_names=names).read(tmp_path)
    for row, label in enumerate(images.labels):
        assert images.class_names[label] == f"name of {Path(images.image(row)).stem}"


def test_own_names_that_are_not_their_folders_are_shown_beside_them(tmp_path: Path):
    fill(tmp_path, {name: ["a.png"] for name in ("airplane", "hot_dog", "n07753592")})
    (note,) = ClassFolders(path=tmp_path, class_names=("hot dog", "airplane", "Banana")).read(tmp_path).notes
    assert "2 of 3 class_names differ" in note
    assert "airplane -> hot dog, hot_dog -> airplane;" in note


def test_own_names_that_spell_their_folders_otherwise_pass_without_a_word(tmp_path: Path):
    fill(tmp_path, {name: ["a.png"] for name in ("Hot-Dog", "n07753592")})
    assert ClassFolders(path=tmp_path, class_names=("hot dog", "banana")).read(tmp_path).notes == ()


def test_numbers_in_place_of_names_are_remarked(tmp_path: Path):
    fill(tmp_path, {str(number): ["a.png"] for number in range(10)})
    (note,) = ClassFolders(path=tmp_path).read(tmp_path).notes
    assert "are numbers, and prompts name the classes so (0, 1, 2, 3, 4, ...)" in note


def test_what_is_left_out_is_counted_and_named(root: Path):
    fill(root, {"banana/inner": ["deep.png"]})
    for place in ("banana/x.heic", "banana/2.heic", "hot_dog/plain", "loose.png", "readme.md", ".hidden"):
        (root / place).write_bytes(b"x")
    (root / "hot_dog" / "gone.png").symlink_to(root / "nowhere.png")
    images = ClassFolders(path=root).read(root)
    assert len(images) == 3
    (note,) = images.notes
    assert "7 files or folders in" in note
    assert "(.png 2, .heic 2, folders 1, .txt 1, without suffix 1), the first: loose.png" in note


def test_a_subset_keeps_the_notes(root: Path):
    images = ClassFolders(path=root).read(root)
    assert images.notes
    assert images.subset([0]).notes == images.notes


def test_notes_are_no_part_of_the_digest(root: Path):
    before = ClassFolders(path=root).read(root)
    (root / "hot_dog" / "more.txt").write_bytes(b"x")
    after = ClassFolders(path=root).read(root)
    assert before.notes != after.notes
    assert before.digest == after.digest


def test_images_of_every_suffix_that_pillow_opens_are_read(tmp_path: Path):
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    documents_and_measurements = {
        *(".eps", ".ps", ".wmf", ".emf", ".mpg", ".mpeg"),
        *(".fit", ".fits", ".h5", ".hdf", ".grib", ".bufr", ".iim", ".pfm", ".gbr"),
    }
    assert known - set(IMAGE_SUFFIXES) <= documents_and_measurements
    files = [f"{number}{suffix}" for number, suffix in enumerate(IMAGE_SUFFIXES)]
    assert len(ClassFolders(path=fill(tmp_path / "all", {"apple": files})).read(tmp_path)) == len(IMAGE_SUFFIXES)


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"path=.*nowhere is no folder; give the folder"):
        ClassFolders(path=tmp_path / "nowhere").read(tmp_path)


def test_a_folder_without_class_folders_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"holds no class folders"):
        ClassFolders(path=tmp_path).read(tmp_path)


def test_an_empty_class_is_named(root: Path):
    fill(root, {"pear": ["notes.txt"]})
    with pytest.raises(InvalidInput, match=r"root/pear holds no images, only others \(\.txt 1\); .*remove the folder"):
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
