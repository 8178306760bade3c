"""What many tests share: one thread, a home of their own, a tiny CLIP, and a few drawn fruits."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sweeplab.clip_model import Architecture, SmallCLIP, tokenizer
from sweeplab.data.fruit_stall import FruitStall, FruitStallTest
from sweeplab.data.tables import LabelledImages, PairTable


def pytest_configure() -> None:
    """Signals that whoever started pytest ignores (`nohup`, a background job) would be ignored by every command."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for this test run, so that no test reads or writes the user's own."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEPLAB_HOME", str(folder))
        torch.set_num_threads(1)
        yield folder


@pytest.fixture(scope="session")
def tiny() -> Architecture:
    """A ResNet CLIP of 1.1 million parameters, most of them token embeddings; 32 pixels, 16 tokens."""
    sizes = SmallCLIP(image_size=32, width=8, embed_dim=16, text_width=16, text_layers=1, context_length=16)
    return sizes.architecture()


@pytest.fixture(scope="session")
def tokenize(tiny: Architecture) -> Callable[[list[str]], Tensor]:
    """The tiny CLIP's tokeniser, which takes a tenth of a second to make."""
    return tokenizer(tiny)


@pytest.fixture(scope="session")
def stall_pairs(home: Path) -> PairTable:
    """64 pairs of 32 pixels."""
    return FruitStall(num_pairs=64, image_size=32).read(home / "data")


@pytest.fixture(scope="session")
def stall_test(home: Path) -> LabelledImages:
    """48 test images of 32 pixels, three a class."""
    return FruitStallTest(num_images=48, image_size=32).read(home / "data")
