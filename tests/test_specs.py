"""Specs: what is refused and how it is said, digests, JSON both ways."""

import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
from pydantic import Field, ValidationError

from sweeplab.attacks.badnet import BadNet
from sweeplab.experiment import Search
from sweeplab.specs import (
    AnySpec,
    InvalidInput,
    Spec,
    changes_of,
    changes_since,
    digest_of,
    kinds,
    one_of,
    own_code,
)


class Round(Spec):
    kind: Literal["round"] = "round"
    radius: float = Field(default=1.0, gt=0)


class Square(Spec):
    kind: Literal["square"] = "square"
    side: float = Field(default=1.0, gt=0)
    corners: tuple[int, ...] = ()


class Blob(Spec):
    """A user's own member: in no tuple, but with what the family needs."""

    kind: Literal["blob"] = "blob"
    wobble: float = 0.5

    @property
    def draw(self) -> None:
        return None


for _shape in (Round, Square):
    _shape.draw = property(lambda self: None)

SHAPES = (Round, Square)
Shape = Annotated[AnySpec, one_of(lambda: SHAPES, "draw", "shape")]


class Sheet(Spec):
    NOT_IN_DIGEST: ClassVar[frozenset[str]] = frozenset({"name", "path"})

    name: str = "sheet"
    path: Path = Path("here")
    count: int = Field(default=1, ge=1)
    scale: float = 1.0
    shape: Shape = Round()
    notes: dict[str, float] = {}


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Sheet().count = 2


def test_an_unknown_field_is_refused_and_the_known_ones_are_named():
    with pytest.raises(InvalidInput, match=r"colour: unknown field; known: name, path, count, scale, shape, notes"):
        Sheet(colour="red")


def test_all_faults_come_in_one_message():
    with pytest.raises(InvalidInput, match=r"(?s)Sheet: 3 faults.*count=0.*scale='wide'.*colour: unknown field"):
        Sheet(count=0, scale="wide", colour="red")


def test_a_fault_names_the_value_and_the_rule():
    with pytest.raises(InvalidInput, match=r"Sheet: count=0: .*greater than or equal to 1"):
        Sheet(count=0)


def test_a_fault_inside_a_field_says_where():
    with pytest.raises(InvalidInput, match=r"shape: Round: radius=-1.0"):
        Sheet(shape={"kind": "round", "radius": -1.0})


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(scale: float):
    with pytest.raises(InvalidInput, match="finite"):
        Sheet(scale=scale)


@pytest.mark.parametrize("count", [True, "1", b"1", 1.0, 2**63], ids=repr)
def test_a_whole_number_is_taken_from_no_other_type_and_has_a_bound(count: object):
    with pytest.raises(InvalidInput, match=r"^Sheet: count=.*(valid integer|less than or equal to 922337)"):
        Sheet(count=count)


def test_a_value_of_the_wrong_type_is_answered_with_the_fields_default():
    with pytest.raises(InvalidInput, match=r"^Search: trials='x': Input should be a valid integer; its default is 16$"):
        Search.model_validate({"trials": "x"})


def test_numpys_scalars_are_numbers_too():
    sheet = Sheet(count=np.int64(3), scale=np.float32(0.5), shape=Square(corners=(np.int8(1),)))
    assert (type(sheet.count), sheet.count, sheet.scale, sheet.shape.corners) == (int, 3, 0.5, (1,))


def test_a_number_too_long_to_print_is_refused_all_the_same():
    with pytest.raises(InvalidInput, match="name=a number of more digits than Python prints: Input should be a valid"):
        Sheet(name=10**5000)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nosuchuser/x", "'~nosuchuser/x' begins in a home that this system does not know"),
        ("a\0b", r"'a\\x00b' is no path: it holds a null character"),
        ("a" * 256, "is no path: a name has at most 255 bytes, and a path 4095"),
        (Path("\ud800"), "is no path: it is not UTF-8"),
    ],
    ids=["home", "null", "long", "surrogate"],
)
def test_a_path_at_which_nothing_can_be_is_refused(path: object, message: str):
    with pytest.raises(InvalidInput, match=message):
        Sheet(path=path)


def test_a_home_in_a_path_is_written_out():
    assert Sheet(path="~/pairs.csv").path == Path.home() / "pairs.csv"


def test_replace_validates():
    assert Sheet().replace(count=3).count == 3
    with pytest.raises(InvalidInput, match="count=0"):
        Sheet().replace(count=0)


def test_replace_leaves_the_original():
    sheet = Sheet()
    sheet.replace(count=3)
    assert sheet == Sheet()


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(InvalidInput, match="unknown shape kind='star'; known: round, square"):
        Sheet(shape={"kind": "star"})


def test_a_value_that_is_no_member_says_what_would_be():
    with pytest.raises(InvalidInput, match="5 is no shape; give one of round, square, or a spec with `draw`"):
        Sheet(shape=5)


def test_a_spec_of_another_family_is_refused():
    with pytest.raises(InvalidInput, match="is no shape"):
        Sheet(shape=Sheet())


def test_a_users_own_member_is_taken():
    assert Sheet(shape=Blob(wobble=0.25)).shape == Blob(wobble=0.25)


def test_kinds_are_the_words_of_the_family():
    assert kinds(SHAPES) == ["round", "square"]


def test_json_goes_both_ways():
    sheet = Sheet(name="a", path=Path("b/c"), count=4, shape=Square(side=2.0, corners=(1, 2)), notes={"x": 0.1})
    assert Sheet.model_validate(sheet.to_json()) == sheet


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "^Sheet: count=0: Input should be"),
        ({"count": 0, "colour": "red"}, "(?s)^Sheet: 2 faults.*count=0.*colour: unknown field"),
        ({"shape": {"kind": "star"}}, "^Sheet: shape: unknown shape kind='star'; known: round, square$"),
        ({"shape": {"kind": "round", "radius": 0}}, "^Sheet: shape: Round: radius=0: Input should be"),
        ([1, 2], "^Sheet: .*dictionary"),
    ],
    ids=str,
)
def test_json_that_breaks_a_rule_is_invalid_input_in_the_same_words(values: object, message: str):
    with pytest.raises(InvalidInput, match=message):
        Sheet.model_validate(values)


def test_json_holds_all_fields_of_a_member():
    assert Sheet(shape=Square(side=2.0)).to_json()["shape"] == {"kind": "square", "side": 2.0, "corners": []}


def test_names_and_places_do_not_change_the_digest():
    assert Sheet(name="other", path=Path("elsewhere")).digest() == Sheet().digest()


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 2},
        {"scale": 1.0000001},
        {"shape": Square()},
        {"shape": Round(radius=2.0)},
        {"shape": Square(corners=(1,))},
        {"notes": {"x": 1.0}},
    ],
    ids=str,
)
def test_what_changes_a_result_changes_the_digest(fields: dict[str, object]):
    assert Sheet(**fields).digest() != Sheet().digest()


def test_a_field_that_equals_its_default_does_not_change_the_digest():
    assert Sheet(count=1, scale=1.0, shape=Round(radius=1.0), notes={}).digest() == Sheet().digest()


def test_a_part_that_differs_in_its_name_alone_does_not_change_the_digest():
    class Book(Spec):
        sheet: Sheet = Sheet()
        sheets: tuple[Sheet, ...] = (Sheet(),)

    renamed = Sheet(name="other", path=Path("elsewhere"))
    assert Book(sheet=renamed, sheets=(renamed,)).digest() == Book().digest()
    assert Book(sheet=renamed.replace(count=2)).digest() != Book().digest()


def test_a_whole_number_and_the_same_real_number_have_one_digest():
    assert Sheet(scale=2).digest() == Sheet(scale=2.0).digest()


def test_a_new_optional_field_leaves_old_digests_alone():
    class Before(Spec):
        count: int = 1

    class After(Spec):
        count: int = 1
        colour: str = "red"

    assert After(count=3).digest() == Before(count=3).digest()
    assert After(count=3, colour="blue").digest() != Before(count=3).digest()


def test_the_kind_counts_although_it_is_always_the_default():
    class Disc(Spec):
        kind: Literal["disc"] = "disc"
        radius: float = 1.0

    class Ring(Spec):
        kind: Literal["ring"] = "ring"
        radius: float = 1.0

    assert Disc().digest() != Ring().digest()


def test_contents_change_the_digest():
    digests = {Sheet().digest(), Sheet().digest(data="1"), Sheet().digest(data="2"), Sheet().digest(other="1")}
    assert len(digests) == 4


def test_a_digest_is_sixteen_hexadecimal_digits_whatever_the_order_of_keys():
    assert digest_of({"a": 1, "b": [2.5, None, "é"]}) == digest_of({"b": [2.5, None, "é"], "a": 1})
    assert len(digest_of({})) == 16
    assert int(digest_of({}), 16) >= 0


def test_a_digest_of_nothing_is_the_same_on_every_machine():
    """sha256(b"{}"), first sixteen digits: `printf '{}' | sha256sum`."""
    assert digest_of({}) == "44136fa355b3678a"


def test_a_digest_refuses_what_is_not_a_number():
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of({"a": math.nan})


def test_invalid_input_is_a_value_error():
    assert issubclass(InvalidInput, ValueError)


# --- classes of a user's own script ---------------------------------------------------------------------------------

OWN = '''
from typing import Literal

from sweeplab.specs import Spec

STRENGTH = 3.0
OTHER = 1


def helper(value):
    return value * STRENGTH


class Own(Spec):
    """A method of a user."""

    kind: Literal["own"] = "own"
    rate: float = 1.0

    def loss(self, state, batch):
        return helper(self.rate)
'''


def own_spec(folder: Path, text: str) -> Spec:
    """What a script of that text makes."""
    path = folder / "script.py"
    path.write_text(text)
    made: Spec = runpy.run_path(str(path), run_name="users_script")["Own"]()
    return made


def test_a_users_class_is_part_of_the_digest_with_what_it_uses_of_its_file(tmp_path: Path):
    digest = own_spec(tmp_path, OWN).digest()
    assert own_spec(tmp_path, OWN).digest() == digest
    assert own_spec(tmp_path, OWN.replace("OTHER = 1", "OTHER = 2  # trials")).digest() == digest
    for before, after in (
        ("helper(self.rate)", "2 * helper(self.rate)"),
        ("value * STRENGTH", "value + STRENGTH"),
        ("STRENGTH = 3.0", "STRENGTH = 4.0"),
    ):
        assert own_spec(tmp_path, OWN.replace(before, after)).digest() != digest


def test_the_classes_of_the_library_have_no_code_in_their_digest():
    assert BadNet.CODE is None
    assert "code" not in BadNet(patch_size=4).canonical()


def test_module_and_source_of_a_users_class_are_found_inside_a_spec(tmp_path: Path):
    own = own_spec(tmp_path, OWN)

    class Holder(Spec):
        parts: tuple[AnySpec, ...]

    found = own_code(Holder(parts=(BadNet(), own)))
    assert found["Own"] == {"module": "users_script", "code": own.CODE}
    assert len(found) == 2
    assert own_code(BadNet()) == {}


def test_a_users_class_keeps_its_digest_in_another_process(tmp_path: Path):
    """By value, as Ray sends it; there the script's file is not known under that name."""
    cloudpickle = pytest.importorskip("cloudpickle")
    own = own_spec(tmp_path, OWN)
    (tmp_path / "spec.pickle").write_bytes(cloudpickle.dumps(own))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).digest())"
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "spec.pickle")], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == own.digest()


def test_a_changed_behaviour_changes_the_digests_of_what_holds_it_alone(monkeypatch):
    round_sheet, square_sheet = Sheet().digest(), Sheet(shape=Square()).digest()
    assert changes_of(Sheet()) == {}
    monkeypatch.setattr(Round, "CHANGES", ("corners are counted",))
    assert Sheet().digest() != round_sheet
    assert Sheet().canonical()["shape"]["version"] == 2
    assert changes_of(Sheet()) == {"Round": ("corners are counted",)}
    assert Sheet(shape=Square()).digest() == square_sheet


def test_a_changed_default_keeps_the_digest_of_what_was_said_before(monkeypatch):
    """A radius of 1 was the default and is left out; when 5 becomes the default, 1 stays what is left out."""
    before = Round(radius=1.0).digest()
    monkeypatch.setattr(Round, "FIRST_DEFAULTS", {"radius": 1.0})
    monkeypatch.setattr(Round.model_fields["radius"], "default", 5.0)
    assert Round(radius=1.0).digest() == before
    assert Round(radius=5.0).canonical()["radius"] == 5.0


class Picture(Spec):
    """Has changed for wobbly values and for large ones, in that order."""

    CHANGES: ClassVar[tuple[str, ...]] = ("wobbles less", "is larger")
    wobble: float = 0.0
    size: int = 1
    inner: "Picture | None" = None

    def changes(self) -> tuple[str, ...]:
        return (*self.CHANGES[: self.wobble > 0], *self.CHANGES[1 : 1 + (self.size > 1)])


def test_of_two_values_of_a_class_all_changes_count_and_of_one_those_that_touch_it():
    assert changes_of(Picture()) == {}
    assert changes_of(Picture(size=2)) == {"Picture": ("is larger",)}
    assert changes_of(Picture(wobble=1.0, inner=Picture(size=2))) == {"Picture": ("is larger", "wobbles less")}


def test_what_a_record_knew_of_is_no_change_since():
    assert changes_since(Picture(wobble=1.0, size=2), {}) == ("Picture: wobbles less", "Picture: is larger")
    assert changes_since(Picture(wobble=1.0, size=2), {"Picture": 1}) == ("Picture: is larger",)
    assert changes_since(Picture(wobble=1.0, size=2), {"Picture": 2, "Other": 1}) == ()
