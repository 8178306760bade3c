"""What torch.compile needs is looked for before anything runs."""

from pathlib import Path

import pytest

from sweeplab.specs import InvalidInput
from sweeplab.training.compilation import check_compiler


def test_without_a_compiler_a_compiled_step_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InvalidInput, match=r"resources.compile=true needs a compiler, and g\+\+ is not on the PATH"):
        check_compiler(for_gpu=False)
    with pytest.raises(InvalidInput, match=r"gcc or clang is not on the PATH; .* name it in CC"):
        check_compiler(for_gpu=True)


def test_the_compiler_may_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = tmp_path / "own-compiler"
    own.touch(mode=0o700)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", str(own))
    check_compiler(for_gpu=False)
