import csv
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.tables import PairTable, _content_digest
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
    with pytest.raises(InvalidInput, match=r"2 of 6 pairs are broken.*\n  row 5: .*a\.png has no 'caption'\n  row 6: "):
        read(path)


def test_a_row_without_an_image_path_is_named(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"1 of 5 pairs are broken.*\n  row 5: it has no 'image'"):
        read(write_pairs(tmp_path, [*good_rows(), (" ", "a pear")]))


def test_the_first_missing_image_is_named_and_all_are_counted(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows())
    for number in (1, 3):
        (tmp_path / "images" / f"{number}.png").unlink()
    with pytest.raises(
        InvalidInput,
        match=r"2 of 4 .*\n  row 2: /.*images/1\.png is missing or empty\n  row 4: .*\npaths are .*; mend them",
    ):
        read(path)


def test_an_empty_image_file_counts_as_missing(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows())
    (tmp_path / "images" / "2.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"1 of 4 pairs are broken.*\n  row 3: .*2\.png is missing or empty"):
        read(path)


def test_a_pipe_in_place_of_an_image_counts_as_missing(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows())
    (tmp_path / "images" / "0.png").unlink()
    os.mkfifo(tmp_path / "images" / "0.png")
    with pytest.raises(InvalidInput, match=r"1 of 4 pairs are broken.*\n  row 1: .*0\.png is missing or empty"):
        read(path)


def test_a_folder_in_place_of_an_image_counts_as_missing(tmp_path: Path):
    path = write_pairs(tmp_path, good_rows())
    (tmp_path / "images" / "0.png").unlink()
    (tmp_path / "images" / "0.png").mkdir()
    with pytest.raises(InvalidInput, match=r"1 of 4 pairs are broken.*\n  row 1: .*0\.png is missing or empty"):
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


def lines_of(folder: Path, changes: dict[int, str]) -> Path:
    """A CSV of 60 rows `i.png,caption i` with their images; some rows are written otherwise."""
    for number in range(1, 61):
        (folder / f"{number}.png").write_bytes(b"x")
    rows = [changes.get(number, f"{number}.png,caption {number}") for number in range(1, 61)]
    (folder / "pairs.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    return folder / "pairs.csv"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({5: '5.png,"no end'}, id="to the end of the file"),
        pytest.param({5: '5.png,"no end', 55: '55.png,a 7" disc'}, id="to a quote in a caption"),
        pytest.param({5: '5.png,"no end', 55: '55.png,a disc of 7"'}, id="to a quote at a line's end"),
        pytest.param({5: '5.png,"no end', 55: '55.png,"red, green"'}, id="to the next quoted caption"),
        pytest.param({5: '"5.png,no end', 55: '55.png,"a disc"'}, id="from the image"),
    ],
)
def test_a_quote_that_is_not_closed_swallows_no_rows_in_silence(tmp_path: Path, changes: dict[int, str]):
    path = lines_of(tmp_path, changes)
    with pytest.raises(InvalidInput, match=r"pairs\.csv: row 5, which begins in line 6, runs on to line (56|61): a qu"):
        read(path)


def test_a_quote_that_is_not_closed_matters_in_rows_that_are_used(tmp_path: Path):
    path = lines_of(tmp_path, {5: '5.png,"no end'})
    with pytest.raises(InvalidInput, match=r"row 5"):
        read(path, num_pairs=5)
    assert len(read(path, num_pairs=4)) == 4


@pytest.mark.parametrize(
    ("written", "caption"),
    [
        ('5.png,"two\nlines, and ""quotes"""', 'two\nlines, and "quotes"'),
        ('5.png,"a list:\none.png, a file that is not there"', "a list:\none.png, a file that is not there"),
        ('5.png,a 7" disc', 'a 7" disc'),
        ('5.png,"a" disc', "a disc"),
        ('\n5.png,"a line\n\nfurther"', "a line\n\nfurther"),
    ],
)
def test_quotes_and_lines_that_swallow_nothing_are_read(tmp_path: Path, written: str, caption: str):
    table = read(lines_of(tmp_path, {5: written}))
    assert (len(table), table.caption(4), table.caption(5)) == (60, caption, "caption 6")


def greys(folder: Path, depths: list[int]) -> Path:
    """Pairs of small grey PNGs of 8 or 16 bits."""
    path = write_pairs(folder, [(f"{number}.png", f"caption {number}") for number in range(len(depths))])
    for number, depth in enumerate(depths):
        Image.fromarray(np.full((8, 8), number, np.uint16 if depth == 16 else np.uint8)).save(folder / f"{number}.png")
    return path


def first_digest(table: PairTable) -> str:
    """As the first release took it: 16-bit greys, which were white then, played no part."""
    return _content_digest(table.images, table.captions, table.sizes)


def test_the_digest_is_another_where_16_bit_greys_are_among_the_images_and_only_there(tmp_path: Path):
    plain, mixed = read(greys(tmp_path / "a", [8, 8, 8])), read(greys(tmp_path / "b", [8, 16, 8]))
    assert plain.digest == first_digest(plain)
    assert mixed.digest != first_digest(mixed)
    assert mixed.deep_grey.tolist() == [False, True, False]


def test_a_subset_without_its_16_bit_greys_has_the_digest_of_the_rows_alone(tmp_path: Path):
    table = read(greys(tmp_path, [8, 16, 8, 16]))
    without, with_one = table.subset([0, 2]), table.subset([3, 0])
    assert without.digest == first_digest(without)
    assert with_one.deep_grey.tolist() == [True, False]
    assert with_one.digest != first_digest(with_one)
    assert pickle.loads(pickle.dumps(table)).deep_grey.tolist() == table.deep_grey.tolist()
    assert table.joined(without).deep_grey.tolist() == [False, True, False, True, False, False]


def test_labelled_images_of_16_bit_greys_have_another_digest_as_pairs_too(tmp_path: Path):
    greys(tmp_path / "set" / "banana", [8, 16])
    (tmp_path / "set" / "banana" / "pairs.csv").unlink()
    images = ClassFolders(path=tmp_path / "set").read(tmp_path)
    assert images.deep_grey.tolist() == [False, True]
    one, both = images.subset([0]), LabelledPairs(images=ClassFolders(path=tmp_path / "set")).read(tmp_path)
    names = pa.array(one.class_names, pa.large_string())
    assert one.digest == _content_digest(one.images, names, one.sizes, one.labels)
    assert both.digest != first_digest(both)


def test_rows_of_missing_images_inside_a_quoted_caption_are_told(tmp_path: Path):
    """A quote that is not closed may have swallowed them, or the caption may say so: some missing images are tolerated,
    so that the files do not tell."""
    lines = ["image,caption", *(f"{row}.png,a photo {row}" for row in range(1, 301))]
    lines[5], lines[7] = '5.png,"a photo 5', '7.png,a photo 7"'
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    for row in (*range(1, 6), *range(8, 301)):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{row}.png")
    (note,) = PairsCSV(path=tmp_path / "pairs.csv").read(tmp_path).notes
    assert "2 lines inside quoted captions look like rows of images that are missing, the first '6.png'" in note
