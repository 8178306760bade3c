"""Decoded images in a file: the same pixels, made once by all processes of a node together, whatever is killed."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.poisoning import Poisoning
from sweeplab.clip_model import Architecture, build
from sweeplab.data import decoded as module
from sweeplab.data import training_pairs
from sweeplab.data.augmentation import AutoAugmentView
from sweeplab.data.decoded import DecodedFiles
from sweeplab.data.fruit_stall import ZERO_SHOT_TEMPLATES, FruitStallTest
from sweeplab.data.images import decode_all, load_all
from sweeplab.data.tables import LabelledImages, PairTable
from sweeplab.data.training_pairs import TrainingPairs
from sweeplab.evaluation import measure as measure_module
from sweeplab.evaluation.measure import Evaluation, Measure, Trigger
from sweeplab.specs import InvalidInput, Spec, StorageFault
from sweeplab.storage.node_cache import kept_copies


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven images of 32 pixels a chunk."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 7 * 3 * 32 * 32)


@pytest.fixture
def files(tmp_path: Path) -> DecodedFiles:
    return DecodedFiles(tmp_path / "node", max_bytes=1e9)


class Counting:
    """Stands in for `decode_all`; remembers how many images it was asked for, and can die."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dies_after: int = 10**9) -> None:
        self.counts: list[int] = []
        self.dies_after = dies_after
        monkeypatch.setattr(module, "decode_all", self)

    def __call__(self, images: Any, *arguments: Any, **options: Any) -> tuple[Tensor, dict[int, str]]:
        if len(self.counts) >= self.dies_after:
            raise KeyboardInterrupt
        self.counts.append(len(images))
        return decode_all(images, *arguments, **options)


@pytest.mark.parametrize("squash", [False, True])
def test_the_pixels_are_those_of_decoding(stall_test: LabelledImages, files: DecodedFiles, squash: bool):
    found = files.tensor(stall_test, 32, squash=squash)
    assert found is not None
    assert torch.equal(found, load_all(stall_test, 32, squash=squash))
    other = files.tensor(stall_test, 24, squash=squash)
    assert other is not None
    assert torch.equal(other, load_all(stall_test, 24, squash=squash))


def test_images_are_decoded_once(stall_test: LabelledImages, files: DecodedFiles, monkeypatch: pytest.MonkeyPatch):
    counting = Counting(monkeypatch)
    first, second = files.tensor(stall_test, 32), files.tensor(stall_test, 32)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    assert counting.counts == [7] * 6 + [6]


@pytest.mark.parametrize("left", [["complete", "done"], ["done"], []])
@pytest.mark.parametrize("loss", ["gone", "shorter"])
def test_a_file_that_the_system_tidied_away_is_made_again(
    stall_test: LabelledImages, files: DecodedFiles, left: list[str], loss: str
):
    expected = files.tensor(stall_test, 32)
    assert expected is not None
    place = next(files.folder.glob("decoded-*"))
    for name in {"complete", "done"} - set(left):
        (place / name).unlink()
    (place / "pixels").rename(files.folder / "pixels")  # of those that have mapped it, none loses it
    if loss == "shorter":
        (place / "pixels").write_bytes(b"a few")
    found = files.tensor(stall_test, 32)
    assert found is not None
    assert torch.equal(found, load_all(stall_test, 32))


def test_who_writes_to_the_tensor_changes_nothing_for_others(stall_test: LabelledImages, files: DecodedFiles):
    first, expected = files.tensor(stall_test, 32), load_all(stall_test, 32)
    assert first is not None
    first.zero_()
    again = files.tensor(stall_test, 32)
    assert again is not None
    assert torch.equal(again, expected)


@pytest.mark.parametrize("dies_after", [0, 1, 6])
def test_after_a_kill_only_what_is_missing_is_decoded(
    stall_test: LabelledImages, files: DecodedFiles, monkeypatch: pytest.MonkeyPatch, dies_after: int
):
    Counting(monkeypatch, dies_after)
    with pytest.raises(KeyboardInterrupt):
        files.tensor(stall_test, 32)
    following = Counting(monkeypatch)
    found = files.tensor(stall_test, 32)
    assert found is not None
    assert torch.equal(found, load_all(stall_test, 32))
    assert len(following.counts) == 7 - dies_after


def test_an_image_that_changed_is_decoded_again(tmp_path: Path, files: DecodedFiles):
    images = FruitStallTest(num_images=48, image_size=32, seed=5).read(tmp_path / "data")
    first = files.tensor(images, 32)
    os.replace(images.image(1), images.image(0))
    second, expected = files.tensor(images.subset([0, *range(2, 48)]), 32), load_all(images.subset([0]), 32)
    assert first is not None
    assert second is not None
    assert torch.equal(second[0], expected[0])
    assert torch.equal(second[0], first[1])


def test_pixels_that_an_older_decoder_left_are_not_served(
    stall_test: LabelledImages, files: DecodedFiles, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "DECODING", module.DECODING - 1)
    old = files.tensor(stall_test, 32)
    assert old is not None
    next(files.folder.glob("decoded-*/pixels")).write_bytes(b"\xff" * old.numel())
    monkeypatch.undo()
    found = files.tensor(stall_test, 32)
    assert found is not None
    assert torch.equal(found, load_all(stall_test, 32))


def test_a_set_beyond_the_limit_is_not_kept(stall_test: LabelledImages, tmp_path: Path):
    num_bytes = 48 * 3 * 32 * 32
    assert DecodedFiles(tmp_path / "a", num_bytes - 1).tensor(stall_test, 32) is None
    assert not (tmp_path / "a").exists()
    assert DecodedFiles(tmp_path / "a", num_bytes).tensor(stall_test, 32) is not None


def test_no_more_than_half_of_the_free_space_is_taken(
    stall_test: LabelledImages, files: DecodedFiles, monkeypatch: pytest.MonkeyPatch
):
    num_bytes = 48 * 3 * 32 * 32
    free = [2 * num_bytes - 1]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: type("Usage", (), {"free": free[0]}))
    assert files.tensor(stall_test, 32) is None
    assert kept_copies(files.folder) == []
    free[0] += 1
    assert files.tensor(stall_test, 32) is not None
    free[0] = 0
    assert files.tensor(stall_test, 32) is not None  # it is there, whatever is free by now


def test_a_disk_that_promises_too_much_is_done_without(
    stall_test: LabelledImages, files: DecodedFiles, monkeypatch: pytest.MonkeyPatch
):
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    assert files.tensor(stall_test, 32) is None
    assert kept_copies(files.folder) == []


def test_a_disk_that_fails_later_is_a_fault_of_the_storage(
    stall_test: LabelledImages, files: DecodedFiles, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "_write", fail)
    with pytest.raises(StorageFault, match="Input/output error"):
        files.tensor(stall_test, 32)


def test_a_file_that_cannot_be_decoded_is_named_every_time(tmp_path: Path, files: DecodedFiles):
    images = FruitStallTest(num_images=48, image_size=32, seed=6).read(tmp_path / "data")
    Path(images.image(20)).write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(InvalidInput, match="cannot be decoded as an image"):
            files.tensor(images, 32)
    Path(images.image(40)).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(
            InvalidInput, match=r"2 of 48 images are broken, and none may be:\n  row 21: .*\n  row 41: .*"
        ):
            files.tensor(images, 32)


def test_what_is_broken_is_black_and_known_to_all_processes(tmp_path: Path, files: DecodedFiles):
    images = FruitStallTest(num_images=48, image_size=32, seed=7).read(tmp_path / "data")
    whole = load_all(images, 32)
    for row in (20, 3):
        Path(images.image(row)).write_bytes(b"no image")
    for _ in range(2):  # the second time from the file
        found = files.decoded(images, 32)
        assert found is not None
        pixels, broken = found
        assert list(broken) == [3, 20]
        assert all("cannot be decoded as an image" in reason for reason in broken.values())
        assert not pixels[[3, 20]].any()
        others = [row for row in range(48) if row not in broken]
        assert torch.equal(pixels[others], whole[others])


def test_it_says_that_it_is_alive(stall_test: LabelledImages, tmp_path: Path):
    heartbeats: list[int] = []
    DecodedFiles(tmp_path, 1e9, lambda: heartbeats.append(1)).tensor(stall_test, 32)
    assert len(heartbeats) >= 7


MAKER = """
import sys, time
from pathlib import Path
from sweeplab.data import decoded
from sweeplab.data.fruit_stall import FruitStallTest

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
decoded.CHUNK_BYTES = 3 * 32 * 32
images = FruitStallTest(num_images=48, image_size=32).read(folder / "data")
plain, count = decoded.decode_all, 0

def slow(*arguments, **options):
    global count
    count += 1
    if count == 1:
        print("makes", flush=True)
    time.sleep(seconds)
    return plain(*arguments, **options)

decoded.decode_all = slow
print("ready", flush=True)
sys.stdin.readline()
found = decoded.DecodedFiles(folder / "node", 1e9).tensor(images, 32)
print(count, int(found.long().sum()))
"""


@pytest.mark.slow
def test_processes_share_the_work_and_one_that_is_killed_leaves_its_part_to_the_others(tmp_path: Path):
    images = FruitStallTest(num_images=48, image_size=32).read(tmp_path / "data")

    def start(seconds: float) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", MAKER, str(tmp_path), str(seconds)]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def begin(*makers: subprocess.Popen[str]) -> None:
        """All at once, until each is at a part."""
        for maker in makers:
            assert maker.stdout.readline() == "ready\n"
        for maker in makers:
            maker.stdin.write("go\n")
        for maker in makers:
            assert maker.stdout.readline() == "makes\n"

    hanging = start(600.0)
    begin(hanging)
    workers = [start(0.3), start(0.3)]
    begin(*workers)
    hanging.kill()
    hanging.wait()
    counts = []
    for worker in workers:
        count, total = map(int, worker.stdout.read().split())
        assert total == int(load_all(images, 32).long().sum())
        counts.append(count)
    assert sum(counts) == 48
    assert min(counts) > 0


# --- where it is used


def pairs_of(table: PairTable, tokenize: Callable[[list[str]], Tensor], files: DecodedFiles | None) -> TrainingPairs:
    plan = Poisoning(attack=BadNet(patch_size=8), target="banana", count=16).plan(table, Path())
    pairs = TrainingPairs(
        table,
        32,
        tokenize=tokenize,
        seed=3,
        captions=plan.caption_changes(),
        alter=plan.stamp_rows,
        decoded=files,
    )
    pairs.use_views(AutoAugmentView(), augments_captions=True)
    return pairs


def test_batches_from_the_file_are_those_from_memory(
    stall_pairs: PairTable,
    tokenize: Callable[[list[str]], Tensor],
    files: DecodedFiles,
    monkeypatch: pytest.MonkeyPatch,
):
    in_memory = pairs_of(stall_pairs, tokenize, None)
    monkeypatch.setattr(training_pairs, "CACHE_BYTES", 0)
    counting = Counting(monkeypatch)
    mapped = pairs_of(stall_pairs, tokenize, files)
    assert sum(counting.counts) == 64
    assert not mapped.is_in_memory
    monkeypatch.setattr(training_pairs, "load_image", lambda *arguments: pytest.fail("decoded again"))
    keys = [(1, row) for row in (5, 63, 0, 17)]
    for _ in range(2):
        first, second = in_memory.__getitems__(keys), mapped.__getitems__(keys)
        for name in ("rows", "images", "tokens", "image_views", "token_views"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize("protocol", ["paper", "authors"])
def test_a_measurement_from_the_file_is_that_from_memory(
    stall_test: LabelledImages,
    tiny: Architecture,
    tokenize: Callable[[list[str]], Tensor],
    files: DecodedFiles,
    monkeypatch: pytest.MonkeyPatch,
    protocol: Any,
):
    evaluation = Evaluation(
        test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES, batch_size=7
    )
    trigger = Trigger(BadNet(patch_size=8), "banana")
    model = build(tiny, seed=4)

    def measure(decoded: DecodedFiles | None) -> Measure:
        return Measure(
            evaluation, stall_test, 32, tokenize=tokenize, trigger=trigger, protocol=protocol, decoded=decoded
        )

    expected = measure(None)(model)
    monkeypatch.setattr(measure_module, "CACHE_BYTES", 0)
    mapped = measure(files)
    monkeypatch.setattr(measure_module, "load_image", lambda *arguments, **options: pytest.fail("decoded again"))
    assert mapped(model) == expected
    assert len(list(files.folder.glob("decoded-*"))) == (2 if protocol == "authors" else 1)
    assert len(list(files.folder.glob("changed-*"))) == (0 if protocol == "authors" else 1)


def test_images_without_room_are_decoded_by_several_threads_and_the_log_says_so_once(
    stall_test: LabelledImages,
    tiny: Architecture,
    tokenize: Callable[[list[str]], Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """Each of four threads waits with its clean image for the other three. There are 48 of those, and 45 triggered."""
    evaluation = Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES)
    trigger, model = Trigger(BadNet(patch_size=8), "banana"), build(tiny, seed=4)
    expected = Measure(evaluation, stall_test, 32, tokenize=tokenize, trigger=trigger)(model)
    monkeypatch.setattr(measure_module, "CACHE_BYTES", 0)
    places, together, load = [], threading.Barrier(4), measure_module.load_image

    def load_with_others(place: Any, *arguments: Any, **options: Any) -> Any:
        places.append(place)
        if len(places) <= 48:
            together.wait(timeout=60)
        return load(place, *arguments, **options)

    monkeypatch.setattr(measure_module, "load_image", load_with_others)
    files = DecodedFiles(tmp_path / "node", max_bytes=1000)
    measure = Measure(evaluation, stall_test, 32, tokenize=tokenize, trigger=trigger, decode_workers=4, decoded=files)
    assert [measure(model), measure(model)] == [expected] * 2
    assert len(places) == 2 * (48 + 45)
    told = [record.getMessage() for record in caplog.records if "has no room" in record.getMessage()]
    assert len(told) == 1
    for words in ("48 images of 32 pixels", "GB are free", "decoded anew", "set TMPDIR", "node_cache_gigabytes=1e-06"):
        assert words in told[0]


class CountingBadNet(BadNet):
    """Counts what is stamped."""

    stamped: ClassVar[list[int]] = []

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        self.stamped.append(len(images))
        return super().stamp(images, seeds)


def test_triggers_are_stamped_once_for_all_measurements_of_a_node(
    stall_test: LabelledImages,
    tiny: Architecture,
    tokenize: Callable[[list[str]], Tensor],
    files: DecodedFiles,
    monkeypatch: pytest.MonkeyPatch,
):
    """45 of 48 images are no bananas, seven a chunk; three of them tell which file is theirs. Another seed draws other
    triggers."""
    monkeypatch.setattr(measure_module, "OWN_BYTES", 0)
    monkeypatch.setattr(measure_module, "TRIED", 3)
    evaluation = Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES)
    trigger = Trigger(CountingBadNet(patch_size=8), "banana")

    def measure(seed: int, decoded: DecodedFiles | None) -> Measure:
        own = evaluation.replace(seed=seed)
        return Measure(own, stall_test, 32, tokenize=tokenize, trigger=trigger, decoded=decoded)

    CountingBadNet.stamped.clear()
    mapped = measure(0, files)
    assert CountingBadNet.stamped == [3, 7, 7, 7, 7, 7, 7, 3]
    results = [mapped(build(tiny, seed=4)), mapped(build(tiny, seed=4)), measure(0, files)(build(tiny, seed=4))]
    assert sum(CountingBadNet.stamped) == 3 + 45 + 3
    assert results == [measure(0, None)(build(tiny, seed=4))] * 3
    other = measure(1, files)
    assert not torch.equal(other.triggered_pixels(range(45)), mapped.triggered_pixels(range(45)))


@pytest.mark.parametrize(
    ("changes", "is_another"),
    [
        ({"templates": ("a {}.",)}, False),
        ({"precision": "bfloat16"}, False),
        ({"batch_size": 5}, False),
        ({"seed": 1}, True),
        ({"target": "apple"}, True),
        ({"attack": CountingBadNet(patch_size=9)}, True),
        ({"image_size": 24}, True),
        ({"protocol": "authors"}, True),
    ],
)
def test_triggers_are_stamped_again_where_their_pixels_change_alone(
    stall_test: LabelledImages,
    tokenize: Callable[[list[str]], Tensor],
    files: DecodedFiles,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    is_another: bool,
):
    """Three images are stamped to tell which file it is. Under `authors` no file has stamped ones."""
    monkeypatch.setattr(measure_module, "OWN_BYTES", 0)
    monkeypatch.setattr(measure_module, "TRIED", 3)

    def stamped_by(
        *, attack: Any, target: str = "banana", image_size: int = 32, protocol: Any = "paper", **fields: Any
    ) -> tuple[int, Tensor]:
        images = FruitStallTest(num_images=48, image_size=32)
        evaluation = Evaluation(test=images, **{"templates": ZERO_SHOT_TEMPLATES, **fields})
        options: dict[str, Any] = {"tokenize": tokenize, "trigger": Trigger(attack, target), "protocol": protocol}
        plain = Measure(evaluation, stall_test, image_size, **options)
        CountingBadNet.stamped.clear()
        measure = Measure(evaluation, stall_test, image_size, decoded=files, **options)
        pixels = measure.triggered_pixels(range(len(measure.triggered_rows)))
        count = sum(CountingBadNet.stamped)
        assert torch.equal(pixels, plain.triggered_pixels(range(len(plain.triggered_rows))))
        return count, pixels

    first, pixels = stamped_by(attack=CountingBadNet(patch_size=8))
    assert first == 3 + len(pixels)
    count, pixels = stamped_by(**{"attack": CountingBadNet(patch_size=8), **changes})
    tried = 0 if "protocol" in changes else 3
    assert count == (tried + len(pixels) if is_another else 3)


class Shaded(Spec):
    """Takes its shade from elsewhere, as from a module or a file: its fields and its source stay."""

    kind: Literal["shaded"] = "shaded"
    shade: ClassVar[list[int]] = [255]

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return torch.full_like(images, self.shade[0])

    def check_fits(self, image_size: int) -> None:
        return None


@pytest.mark.parametrize("code", ["digest of the source", None])
def test_an_attack_that_stamps_otherwise_than_before_is_not_served_what_it_stamped_then(
    stall_test: LabelledImages,
    tokenize: Callable[[list[str]], Tensor],
    files: DecodedFiles,
    monkeypatch: pytest.MonkeyPatch,
    code: str | None,
):
    """Of a class without a source, such as one that was typed in, nothing is kept."""
    monkeypatch.setattr(measure_module, "OWN_BYTES", 0)
    monkeypatch.setattr(Shaded, "CODE", code)
    evaluation = Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES)
    seen = []
    for shade in (255, 0):
        monkeypatch.setattr(Shaded, "shade", [shade])
        trigger = Trigger(Shaded(), "banana")
        measure = Measure(evaluation, stall_test, 32, tokenize=tokenize, trigger=trigger, decoded=files)
        seen.append((measure.digest, measure.triggered_pixels(range(45)).unique().tolist()))
    assert seen == [(seen[0][0], [255]), (seen[0][0], [0])]
    assert len(list(files.folder.glob("changed-*"))) == (0 if code is None else 2)


def test_a_process_that_keeps_its_images_decodes_and_stamps_them_once(
    stall_test: LabelledImages,
    tiny: Architecture,
    tokenize: Callable[[list[str]], Tensor],
    monkeypatch: pytest.MonkeyPatch,
):
    evaluation = Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES)
    CountingBadNet.stamped.clear()
    trigger = Trigger(CountingBadNet(patch_size=8), "banana")
    measure = Measure(evaluation, stall_test, 32, tokenize=tokenize, trigger=trigger)
    for name in ("load_all", "load_image"):
        monkeypatch.setattr(measure_module, name, lambda *arguments, **options: pytest.fail("decoded again"))
    assert measure(build(tiny, seed=4)) == measure(build(tiny, seed=4))
    assert CountingBadNet.stamped == [45]


def test_sets_that_would_fit_into_memory_are_decoded_once_a_node_too(
    stall_pairs: PairTable,
    tokenize: Callable[[list[str]], Tensor],
    files: DecodedFiles,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(training_pairs, "OWN_BYTES", 0)
    counting = Counting(monkeypatch)
    monkeypatch.setattr(training_pairs, "decode_all", lambda *arguments, **options: pytest.fail("decoded for itself"))
    first, second = pairs_of(stall_pairs, tokenize, files), pairs_of(stall_pairs, tokenize, files)
    assert sum(counting.counts) == 64
    assert first.is_in_memory
    assert second.is_in_memory
    keys = [(1, row) for row in (5, 63, 0, 17)]
    assert torch.equal(first.__getitems__(keys).images, second.__getitems__(keys).images)
