"""Of `PairsCSV`, what differs between commas, tabs, packed files and files without a header."""

import bz2
import csv
import gzip
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeplab.data.pairs import PairsCSV
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput

CAPTIONS = ["a banana, ripe", 'the "best" apple', '"quoted" pear', "un citron; très jaune", "two\nlines", "a\ttab"]
OPEN_CLIP = {"image_column": "filepath", "caption_column": "title"}


def images(folder: Path, count: int = len(CAPTIONS)) -> list[str]:
    """Names of image files, made in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(b"x" * (number + 1))
    return [f"{number}.png" for number in range(count)]


def captions(table: PairTable) -> list[str]:
    return [table.caption(row) for row in range(len(table))]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_files_that_pandas_writes_are_read_without_being_told_the_separator(tmp_path: Path, separator: str):
    frame = pd.DataFrame({"filepath": images(tmp_path), "title": CAPTIONS})
    frame.to_csv(tmp_path / "pairs.csv", sep=separator, index=False)
    table = PairsCSV(path=tmp_path / "pairs.csv", **OPEN_CLIP).read(tmp_path)
    assert captions(table) == CAPTIONS
    given_one = PairsCSV(path=tmp_path / "pairs.csv", separator=separator, **OPEN_CLIP).read(tmp_path)
    assert given_one.digest == table.digest


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])).filter(str.strip), min_size=1))
def test_any_captions_survive_tabs(tmp_path_factory: pytest.TempPathFactory, texts: list[str]):
    folder = tmp_path_factory.mktemp("tsv")
    pd.DataFrame({"image": images(folder, len(texts)), "caption": texts}).to_csv(
        folder / "pairs.tsv", sep="\t", index=False
    )
    assert captions(PairsCSV(path=folder / "pairs.tsv").read(folder)) == texts


def test_a_file_without_header_is_read_as_its_columns_are_named(tmp_path: Path):
    """As CC3M's and CC12M's: caption, tab, place; quotes are plain characters, commas too."""
    texts = ['"a hat, red', 'a 7" disc', '"all of it"', "plain"]
    lines = [f"{text}\t{name}" for text, name in zip(texts, images(tmp_path, 4), strict=True)]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    data = PairsCSV(path=tmp_path / "train.tsv", columns=("caption", "image"))
    assert captions(data.read(tmp_path)) == texts
    assert data.example() == str(tmp_path / "0.png")
    assert captions(data.replace(num_pairs=2).read(tmp_path)) == texts[:2]


def test_a_comma_separated_file_without_header_is_quoted(tmp_path: Path):
    images(tmp_path, 2)
    (tmp_path / "pairs.csv").write_text('0.png,"red, green"\n1.png,blue\n')
    data = PairsCSV(path=tmp_path / "pairs.csv", columns=("image", "caption"))
    assert captions(data.read(tmp_path)) == ["red, green", "blue"]


def test_quotes_are_plain_characters_where_that_is_said(tmp_path: Path):
    names = images(tmp_path, 3)
    (tmp_path / "pairs.tsv").write_text(f'image\tcaption\n{names[0]}\t"a\n{names[1]}\tb"\n{names[2]}\tc\n')
    data = PairsCSV(path=tmp_path / "pairs.tsv")
    with pytest.raises(InvalidInput, match=r"row 1, which begins in line 2, runs on to line 3.*or set quoted=False"):
        data.read(tmp_path)
    assert captions(data.replace(quoted=False).read(tmp_path)) == ['"a', 'b"', "c"]


@pytest.mark.parametrize(("later", "line"), [("plain", 10), ('a 7" disc', 9), ('"red, green"', 9)])
def test_a_quote_that_swallows_rows_of_a_tsv_is_found(tmp_path: Path, later: str, line: int):
    texts = ["plain"] * 4 + ['"no end'] + ["plain"] * 2 + [later, "plain"]
    rows = [f"{name}\t{text}" for name, text in zip(images(tmp_path, 9), texts, strict=True)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["image\tcaption", *rows]) + "\n")
    with pytest.raises(InvalidInput, match=rf"pairs\.tsv: row 5, which begins in line 6, runs on to line {line}:"):
        PairsCSV(path=tmp_path / "pairs.tsv").read(tmp_path)


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_quote_that_is_open_in_the_last_row_is_found(tmp_path: Path, end: str):
    images(tmp_path, 3)
    rows = ["image,caption", '0.png,"red, green"', '1.png,a 7" disc', '2.png,"no end']
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + end)
    data = PairsCSV(path=tmp_path / "pairs.csv")
    with pytest.raises(InvalidInput, match=r"pairs\.csv: a quote in the last row, line 4, is not closed"):
        data.read(tmp_path)
    assert captions(data.replace(num_pairs=2).read(tmp_path)) == ["red, green", 'a 7" disc']


@pytest.mark.parametrize("last", ['a 7" disc', '"a ""b"" c"', 'x"', '"a, b"'])
def test_quotes_in_the_last_row_that_are_closed_or_plain_are_let_through(tmp_path: Path, last: str):
    images(tmp_path, 2)
    (tmp_path / "pairs.csv").write_text(f"caption,image\nplain,0.png\n{last},1.png\n")
    assert captions(PairsCSV(path=tmp_path / "pairs.csv").read(tmp_path)) == ["plain", next(csv.reader([last]))[0]]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_packed_files_are_read(tmp_path: Path, suffix: str, pack):
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("image", "caption"), *zip(images(tmp_path), CAPTIONS, strict=True)])
    packed = tmp_path / f"pairs.csv{suffix}"
    packed.write_bytes(pack((tmp_path / "pairs.csv").read_bytes()))
    plain = PairsCSV(path=tmp_path / "pairs.csv").read(tmp_path)
    assert PairsCSV(path=packed).read(tmp_path).digest == plain.digest
    assert PairsCSV(path=packed).example() == plain.image(0)


def test_a_packed_file_that_is_cut_short_is_refused(tmp_path: Path):
    rows = "".join(f"{name},caption {name}\n" for name in images(tmp_path, 500))
    (tmp_path / "pairs.csv.gz").write_bytes(gzip.compress(f"image,caption\n{rows}".encode())[:-400])
    with pytest.raises(InvalidInput, match=r"pairs\.csv\.gz cannot be read .*that it is whole if it is packed"):
        PairsCSV(path=tmp_path / "pairs.csv.gz").read(tmp_path)


def test_a_quote_in_a_packed_file_is_found_too(tmp_path: Path):
    rows = [f"{name},{chr(34) if name == '4.png' else ''}{name}" for name in images(tmp_path, 9)]
    (tmp_path / "pairs.csv.gz").write_bytes(gzip.compress("\n".join(["image,caption", *rows]).encode()))
    with pytest.raises(InvalidInput, match="row 5, which begins in line 6"):
        PairsCSV(path=tmp_path / "pairs.csv.gz").read(tmp_path)


def test_relative_images_lie_below_the_root(tmp_path: Path):
    names = images(tmp_path / "images", 2)
    for place in (tmp_path / "images", tmp_path):
        (place / "pairs.csv").write_text("".join(["image,caption\n", *(f"{name},{name}\n" for name in names)]))
    beside = PairsCSV(path=tmp_path / "images" / "pairs.csv")
    apart = PairsCSV(path=tmp_path / "pairs.csv", root=tmp_path / "images")
    assert apart.read(tmp_path).digest == beside.read(tmp_path).digest
    assert apart.example() == beside.example() == str(tmp_path / "images" / "0.png")
    assert apart.digest() == beside.digest()


def test_how_a_file_is_written_is_no_part_of_the_digest(tmp_path: Path):
    told = PairsCSV(path=tmp_path, separator="\t", columns=("image", "caption"), quoted=False)
    assert told.digest() == PairsCSV(path=tmp_path).digest()


def test_columns_that_lack_one_that_is_read_are_refused():
    with pytest.raises(InvalidInput, match=r"columns=\('caption', 'url'\) must name 'image' once; set image_column"):
        PairsCSV(path=Path("x.tsv"), columns=("caption", "url"))


def test_web_addresses_in_place_of_files_are_told_with_the_remedy(tmp_path: Path):
    (tmp_path / "cc3m.tsv").write_text("a hat, red\thttp://example.com/1.jpg\n")
    data = PairsCSV(path=tmp_path / "cc3m.tsv", columns=("caption", "url"), image_column="url")
    with pytest.raises(InvalidInput, match=r"web addresses, as in row 1: http://example\.com/1\.jpg; .*img2dataset"):
        data.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        ("filepath\ttitle\n0.png\ta\n", {}, r"no column 'image'; columns found: 'filepath', 'title'; set image_column"),
        ("0.png\ta\n", {}, r"where the file has none, name all columns"),
        ("image\tcaption\n0.png\ta\tb\n", {}, r"not readable as TSV .*save it as tab-separated UTF-8 with a header"),
        ("0.png\ta\n0.png\n", {"columns": ("image", "caption")}, r"as TSV .*tab-separated UTF-8 with 2 cells in each"),
        ("image\tcaption\n", {}, r"has a header but no rows"),
        ("image\tcaption\n0.png\t \n", {}, r"1 of 1 pairs are broken.*\n  row 1: .*0\.png has no 'caption'"),
        ("image,caption\n0.png,a\n", {"separator": "\t"}, r"columns found: 'image,caption'"),
    ],
)
def test_faults_of_a_file_with_tabs_are_told_as_such(tmp_path: Path, content: str, fields: dict, message: str):
    images(tmp_path, 1)
    (tmp_path / "pairs.tsv").write_text(content)
    with pytest.raises(InvalidInput, match=message):
        PairsCSV(path=tmp_path / "pairs.tsv", **fields).read(tmp_path)


def test_rows_in_messages_count_in_the_file_where_a_sample_is_drawn(tmp_path: Path):
    names = images(tmp_path, 40)
    (tmp_path / "pairs.csv").write_text("".join(["image,caption\n", *(f"{name},{name}\n" for name in names)]))
    data = PairsCSV(path=tmp_path / "pairs.csv", sample={"num": 20})
    table = data.read(tmp_path)
    third = int(table.caption(2).removesuffix(".png"))
    assert data.example() == table.image(0)
    assert data.files() == [str(tmp_path / "pairs.csv"), *(table.image(row) for row in range(20))]
    (tmp_path / f"{third}.png").unlink()
    with pytest.raises(InvalidInput, match=rf"1 of 20 pairs are broken.*\n  row {third + 1}: "):
        data.read(tmp_path)


def test_a_sample_is_drawn_from_the_first_rows_where_both_are_given(tmp_path: Path):
    names = images(tmp_path, 40)
    (tmp_path / "pairs.csv").write_text("".join(["image,caption\n", *(f"{name},{name}\n" for name in names)]))
    data = PairsCSV(path=tmp_path / "pairs.csv", num_pairs=10, sample={"num": 10})
    assert captions(data.read(tmp_path)) == names[:10]
    with pytest.raises(InvalidInput, match=r"pairs\.csv: sample\.num=11 exceeds the 10 rows"):
        data.replace(sample={"num": 11}).read(tmp_path)
