import csv
import pickle
import shutil
from pathlib import Path

import pytest

from sweeplab.data.pairs import PairsCSV
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput

CAPTIONS = ["a banana, ripe", 'the "best" apple', "two lines\nof a pear", "un citron très jaune"]


def write_pairs(folder: Path, rows: list[tuple[str, str]], *, header: tuple[str, ...] = ("image", "caption")) -> Path:
    """A CSV file of these rows, and a file of another size for each relative image."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, _) in enumerate(rows):
        if image.strip():
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            (folder / image).write_bytes(b"x" * (number + 1))
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return folder / "pairs.csv"


def good_rows() -> list[tuple[str, str]]:
    return [(f"images/{number}.png", caption) for number, caption in enumerate(CAPTIONS)]


def read(path: Path, **fields: object) -> PairTable:
    return PairsCSV(path=path, **fields).read(path.parent)


def test_captions_come_back_as_they_were_written(tmp_path: Path):
    table = read(write_pairs(tmp_path, good_rows()))
    assert [table.caption(row) for row in range(len(table))] == CAPTIONS


def test_images_are_relative_to_the_folder_of_the_file(tmp_path: Path):
    table = read(write_pairs(tmp_path, good_rows()))
    assert table.image(3) == str(tmp_path / "images" / "3.png")


def test_a_relative_path_of_the_file_gives_absolute_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_pairs(tmp_path, good_rows())
    monkeypatch.chdir(tmp_path)
    assert read(Path("pairs.csv")).image(0) == str(tmp_path / "images" / "0.png")


def test_columns_may_have_other_names_and_neighbours(tmp_path: Path):
    rows = [(image, "5", caption) for image, caption in good_rows()]
    path = write_pairs(tmp_path, good_rows())
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "score", "title"), *rows])
    assert read(path, image_column="file", caption_column="title").caption(0) == CAPTIONS[0]


def test_captions_that_look_like_numbers_or_nulls_stay_texts(tmp_path: Path):
    table = read(write_pairs(tmp_path, [("1.png", "007"), ("2.png", "NA"), ("3.png", "null")]))
    assert [table.caption(row) for row in range(3)] == ["007", "NA", "null"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read(path)) == 4


def test_num_pairs_takes_the_first_rows(tmp_path: Path):
    table = read(write_pairs(tmp_path, good_rows()), num_pairs=2)
    assert [table.caption(row) for row in range(len(table))] == CAPTIONS[:2]


def test_rows_below_num_pairs_are_not_checked(tmp_path: Path):
    path = write_pairs(tmp_path, [*good_rows(), ("", "")])
    assert len(read(path, num_pairs=4)) == 4


def test_the_digest_does_not_depend_on_the_place(tmp_path: Path):
    first = read(write_pairs(tmp_path / "here", good_rows()))
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "deeper")
    assert read(tmp_path / "there" / "deeper" / "pairs.csv").digest == first.digest


@pytest.mark.parametrize("below", [True, False])
def test_absolute_images_do_not_tie_the_digest_to_a_place(tmp_path: Path, below: bool):
    digests = set()
    for place in ("here", "there/deeper"):
        images = tmp_path / place if below else tmp_path / place / "elsewhere"
        write_pairs(images, good_rows())
        rows = [(str(images / image), caption) for image, caption in good_rows()]
        digests.add(read(write_pairs(tmp_path / place, rows)).digest)
    assert len(digests) == 1


def test_absolute_images_below_the_folder_equal_relative_ones(tmp_path: Path):
    relative = read(write_pairs(tmp_path, good_rows()))
    rows = [(str(tmp_path / image), caption) for image, caption in good_rows()]
    assert read(write_pairs(tmp_path, rows)).digest == relative.digest


def test_absolute_and_relative_images_may_be_mixed(tmp_path: Path):
    outside = tmp_path / "outside.png"
    table = read(write_pairs(tmp_path / "data", [("a.png", "a lime"), (str(outside), "a lemon")]))
    assert [table.image(0), table.image(1)] == [str(tmp_path / "data" / "a.png"), str(outside)]


@pytest.mark.parametrize("change", ["caption", "name", "size", "order", "fewer"])
def test_the_digest_depends_on_the_content(tmp_path: Path, change: str):
    before = read(write_pairs(tmp_path, good_rows())).digest
    rows = good_rows()
    if change == "caption":
        rows[1] = (rows[1][0], "an apple")
    elif change == "name":
        rows[1] = ("images/other.png", rows[1][1])
    elif change == "order":
        rows = rows[::-1]
    path = write_pairs(tmp_path, rows)
    if change == "size":
        (tmp_path / "images" / "1.png").write_bytes(b"x" * 99)
    assert read(path, num_pairs=3 if change == "fewer" else None).digest != before


def test_a_subset_has_the_digest_of_the_same_rows_read_alone(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows())
    assert read(path).subset([0, 1]).digest == read(path, num_pairs=2).digest


def test_a_subset_keeps_the_order_that_was_asked_for(tmp_path: Path):
    subset = read(write_pairs(tmp_path, good_rows())).subset([3, 1])
    assert (subset.caption(0), subset.image(1)) == (CAPTIONS[3], str(tmp_path / "images" / "1.png"))


def test_an_empty_subset_is_a_table(tmp_path: Path):
    assert len(read(write_pairs(tmp_path, good_rows())).subset([])) == 0


def test_a_table_survives_pickling(tmp_path: Path):
    table = read(write_pairs(tmp_path, good_rows()))
    again = pickle.loads(pickle.dumps(table))
    assert (again.digest, again.caption(2), again.image(2)) == (
        table.digest,
        table.caption(2),
        table.image(2),
    )


def test_a_missing_file_is_named_with_the_columns_it_needs(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"nowhere\.csv is no file; .*'image' and 'caption'"):
        read(tmp_path / "nowhere.csv")


def test_a_missing_column_lists_those_found(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows(), header=("file", "title"))
    with pytest.raises(InvalidInput, match=r"no column 'image'; columns found: 'file', 'title'; set image_column"):
        read(path)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows(), header=("image", "image"))
    with pytest.raises(InvalidInput, match=r"more than one column 'image'"):
        read(path)


def test_more_pairs_than_rows_are_refused(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows())
    with pytest.raises(InvalidInput, match=r"num_pairs=5 exceeds the 4 rows .* choose num_pairs <= 4"):
        read(path, num_pairs=5)


def test_a_header_without_rows_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"has a header but no rows"):
        read(write_pairs(tmp_path, []))


@pytest.mark.parametrize("blank", ["", "  \t "])
def test_the_first_row_without_a_caption_is_named(tmp_path: Path, blank: str):
    path = write_pairs(tmp_path, [*good_rows(), ("a.png", blank), ("b.png", blank)])
    with pytest.raises(InvalidInput, match=r"2 of 6 rows have no 'caption', the first is row 5"):
        read(path)


def test_a_row_without_an_image_path_is_named(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"1 of 5 rows have no 'image', the first is row 5"):
        read(write_pairs(tmp_path, [*good_rows(), (" ", "a pear")]))


def test_the_first_missing_image_is_named_and_all_are_counted(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows())
    for number in (1, 3):
        (tmp_path / "images" / f"{number}.png").unlink()
    with pytest.raises(InvalidInput, match=r"2 of 4 images are missing .* row 2: /.*images/1\.png; .*mend the paths"):
        read(path)


def test_an_empty_image_file_counts_as_missing(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows())
    (tmp_path / "images" / "2.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"1 of 4 images are missing or empty files, the first in row 3"):
        read(path)


def test_a_folder_in_place_of_an_image_counts_as_missing(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows())
    (tmp_path / "images" / "0.png").unlink()
    (tmp_path / "images" / "0.png").mkdir()
    with pytest.raises(InvalidInput, match=r"1 of 4 images are missing"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty file"),
        pytest.param(b"image,caption\na.png,caf\xe9\n", id="Latin-1 letters"),
        pytest.param(b"image,caption\na.png,one,two\n", id="a cell too many"),
        pytest.param(b"image,caption\na.png\n", id="a cell too few"),
    ],
)
def test_a_file_that_is_no_csv_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"is not readable as CSV .*comma-separated UTF-8"):
        read(tmp_path / "pairs.csv")


def test_the_path_is_no_part_of_the_spec_digest(tmp_path: Path):
    assert PairsCSV(path=tmp_path / "a").digest() == PairsCSV(path=tmp_path / "b").digest()
