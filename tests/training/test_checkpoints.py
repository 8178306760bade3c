"""Checkpoints: whole or not at all, and nothing is executed."""

import pickle
from pathlib import Path

import pytest
import torch

from sweeplab.specs import InvalidInput, StorageFault
from sweeplab.training import checkpoints
from sweeplab.training.checkpoints import Checkpoint
from sweeplab.training.page_locked import say_not_locked


def checkpoint(value: float = 1.0) -> Checkpoint:
    return {
        "model": {"weight": torch.full((4,), value)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "state": {},
        "epoch": 2,
        "step": 8,
        "point": 2,
        "random": torch.random.get_rng_state(),
        "config": "{}",
    }


def test_what_was_saved_is_loaded(tmp_path: Path):
    checkpoints.save(checkpoint(0.5), tmp_path / "epoch.pt")
    loaded = checkpoints.load(tmp_path / "epoch.pt")
    assert torch.equal(loaded["model"]["weight"], torch.full((4,), 0.5))
    assert torch.equal(loaded["random"], checkpoint()["random"])
    assert loaded["optimizer"]["param_groups"] == [{"lr": 0.1, "params": [0]}]
    assert (loaded["epoch"], loaded["step"], loaded["point"], loaded["config"]) == (2, 8, 2, "{}")


def test_saving_makes_the_folder_and_leaves_nothing_else_in_it(tmp_path: Path):
    checkpoints.save(checkpoint(), tmp_path / "new" / "folder" / "epoch.pt")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["epoch.pt"]


def test_saving_again_replaces(tmp_path: Path):
    checkpoints.save(checkpoint(0.5), tmp_path / "epoch.pt")
    checkpoints.save(checkpoint(2.0), tmp_path / "epoch.pt")
    assert float(checkpoints.load(tmp_path / "epoch.pt")["model"]["weight"][0]) == 2.0


def test_whatever_keeps_a_thread_from_writing_is_raised_where_it_is_waited_for(tmp_path: Path):
    """A lambda in a user's state cannot be written: had nobody heard, the checkpoint before would be removed."""
    writing = checkpoints.Writing({**checkpoint(), "state": {"rate": lambda: 1.0}}, tmp_path / "epoch.pt")
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        writing.wait()
    assert list(tmp_path.iterdir()) == []


def test_where_no_memory_can_be_locked_a_checkpoint_is_copied_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    say_not_locked.cache_clear()

    def fail(*tensors: torch.Tensor, **options: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty_like", fail)
    weight = torch.ones(4, requires_grad=True)
    held = checkpoints.copied({"model": {"weight": weight}})["model"]["weight"]
    weight.detach().fill_(2.0)
    assert (held.tolist(), held.requires_grad) == ([1.0] * 4, False)
    assert "page-locked (CUDA error: out of memory)" in caplog.text


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoints.save(checkpoint(0.5), tmp_path / "epoch.pt")
    before = (tmp_path / "epoch.pt").read_bytes()

    def write_half(content: object, file) -> None:
        file.write(b"half")
        raise fault

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(StorageFault, match=r"cannot write checkpoint .*epoch.pt: .*free space or choose another"):
        checkpoints.save(checkpoint(2.0), tmp_path / "epoch.pt")
    assert (tmp_path / "epoch.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["epoch.pt"]


def test_a_value_that_cannot_be_written_leaves_the_old_file_and_no_other(tmp_path: Path):
    checkpoints.save(checkpoint(0.5), tmp_path / "epoch.pt")
    faulty = {**checkpoint(2.0), "state": {"remembered": lambda: None}}
    with pytest.raises(Exception, match="pickle"):
        checkpoints.save(faulty, tmp_path / "epoch.pt")
    assert float(checkpoints.load(tmp_path / "epoch.pt")["model"]["weight"][0]) == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["epoch.pt"]


def test_a_folder_that_cannot_be_made_is_invalid_input(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFault, match="cannot write checkpoint"):
        checkpoints.save(checkpoint(), tmp_path / "file" / "epoch.pt")


def test_a_missing_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"epoch.pt does not exist"):
        checkpoints.load(tmp_path / "epoch.pt")


class Mischief:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickled_object_is_refused_and_not_executed(tmp_path: Path):
    torch.save({**checkpoint(), "config": Mischief(tmp_path / "done")}, tmp_path / "epoch.pt")
    with pytest.raises(InvalidInput, match="is damaged"):
        checkpoints.load(tmp_path / "epoch.pt")
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 2000])
def test_a_torn_file_is_invalid_input(kept: int, tmp_path: Path):
    checkpoints.save(checkpoint(), tmp_path / "epoch.pt")
    (tmp_path / "epoch.pt").write_bytes((tmp_path / "epoch.pt").read_bytes()[:kept])
    with pytest.raises(InvalidInput, match=r"is damaged .*remove it, and the run repeats its epochs"):
        checkpoints.load(tmp_path / "epoch.pt")


@pytest.mark.parametrize("content", [{"model": {}}, {}, [1, 2], 3, torch.zeros(2)], ids=str)
def test_a_file_of_something_else_is_invalid_input(content: object, tmp_path: Path):
    torch.save(content, tmp_path / "epoch.pt")
    with pytest.raises(InvalidInput, match=r"lacks .*it was stripped, or not written by SweepLab"):
        checkpoints.load(tmp_path / "epoch.pt")


def test_what_the_system_said_is_told_and_not_what_torch_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object, **named: object) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 - as torch does it

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(StorageFault, match=r"No space left on device; free space"):
        checkpoints.save({}, tmp_path / "x.pt")  # type: ignore[typeddict-item]


@pytest.mark.parametrize("keep_state", [False, True])
def test_a_stripped_checkpoint_is_its_weights_and_nothing_goes_on_from_it(keep_state: bool, tmp_path: Path):
    """Weights of 40 KB beside moments of 80 KB: a third stays."""
    path, large = tmp_path / "epoch.pt", torch.rand(10_000)
    moments = {0: {"exp_avg": large.clone(), "exp_avg_sq": large.clone()}}
    whole = {**checkpoint(), "model": {"w": large}, "state": {"head": torch.ones(3)}, "optimizer": {"state": moments}}
    checkpoints.save(whole, path)
    assert checkpoints.is_whole(path)
    checkpoints.strip(path, keep_state=keep_state)
    content = torch.load(path, weights_only=True)
    assert torch.equal(content["model"]["w"], large)
    assert set(content) - {"model"} == {"epoch", "step", "point", "config", *(["state"] if keep_state else [])}
    assert path.stat().st_size < 45_000
    assert not checkpoints.is_whole(path)
    with pytest.raises(InvalidInput, match="lacks optimizer"):
        checkpoints.load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["epoch.pt"]


def test_what_cannot_be_read_is_not_whole(tmp_path: Path):
    (tmp_path / "epoch.pt").write_bytes(b"weights")
    assert not checkpoints.is_whole(tmp_path / "epoch.pt")
    assert not checkpoints.is_whole(tmp_path / "none.pt")
