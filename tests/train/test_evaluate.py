"""The losses that a checkpoint is told to have."""

import math

import pytest

pytest.importorskip("torch")

from llamatui.errors import UsageError
from llamatui.train.dataset import open_dataset
from llamatui.train.evaluate import evaluate
from llamatui.train.run import train
from tests.train.tiny_runs import SETTINGS, VOCAB, evaluations, write_data


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def test_it_says_what_the_run_said_of_its_best(data, tmp_path):
    events = evaluations(list(train(data, tmp_path / "run", SETTINGS)))
    best = min(events.values(), key=lambda losses: losses[1])
    found = evaluate(
        tmp_path / "run",
        open_dataset(data),
        batches=SETTINGS["eval_iters"],
        batch_size=SETTINGS["batch_size"],
    )
    assert (found.train, found.valid) == pytest.approx(best, abs=1e-6)
    assert found.bits_per_byte == pytest.approx(found.valid / math.log(2) / 4)


def test_all_of_the_text_is_the_mean_of_its_windows(data, tmp_path):
    list(train(data, tmp_path / "run", {**SETTINGS, "max_iters": 4}))
    dataset = open_dataset(data)
    one_by_one = evaluate(tmp_path / "run", dataset, batches=0, batch_size=1)
    together = evaluate(tmp_path / "run", dataset, batches=0, batch_size=6)
    assert together.valid == pytest.approx(one_by_one.valid, abs=1e-6)


def test_data_of_another_vocabulary_is_refused(data, tmp_path):
    list(train(data, tmp_path / "run", {**SETTINGS, "max_iters": 4}))
    other = write_data(tmp_path / "other", vocab_size=VOCAB + 1)
    with pytest.raises(UsageError, match="vocabulary of 300, found one of 301"):
        evaluate(tmp_path / "run", open_dataset(other), batches=1, batch_size=1)
