"""Data and a model for runs of the training loop. PyTorch is needed only where `not_measured` is used."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llamatui.backends.checkpoint_writer import write_checkpoint
from tests.tiny import TINY, random_weights
from tests.train.tiny_runs import write_data


@pytest.fixture(scope="module")
def not_measured() -> Iterator[None]:
    """How fast matrix products are here is not measured anew for each run."""
    from llamatui.train import machine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "matmul_flops", lambda device, dtype: 1e9)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to begin from."""
    path = tmp_path_factory.mktemp("model") / "tiny.bin"
    write_checkpoint(path, TINY, 1, random_weights(TINY, std=None))
    return path
