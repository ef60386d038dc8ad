"""metrics.jsonl: one object per event, cut and continued when a run is resumed."""

import json
import math
import time

import pytest

from llamatui.app.training.metrics import METRICS, read_metrics, recorded
from llamatui.errors import LlamatuiError
from llamatui.train.events import Evaluation, Step
from tests.app.training.runs import STORY, fake_run, loss_after, started


def record(out, **options):
    return list(recorded(fake_run(out, **options), out))


def contents(out):
    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    return [
        json.loads(line, parse_constant=refuse) for line in (out / METRICS).read_text("utf-8").splitlines()
    ]


def test_each_event_is_an_object_with_its_name_and_time(tmp_path):
    before = time.time()
    record(tmp_path, steps=4, eval_interval=2)
    lines = contents(tmp_path)
    assert [line["event"] for line in lines] == [
        "start", "evaluation", "step", "step", "evaluation", "saved",
        "step", "step", "evaluation", "saved", "end",
    ]  # fmt: skip
    assert all(before - 1 <= line["time"] <= time.time() + 1 for line in lines)
    assert lines[0]["tokens_per_iter"] == 2048
    assert lines[1]["sample"] == STORY
    assert lines[2] | {"time": 0} == {
        "event": "step", "time": 0, "iteration": 1, "loss": loss_after(1), "learning_rate": 1e-3 / 4,
        "grad_norm": 0.5, "tokens_per_second": 12345.6, "mfu": 0.315, "eta": 1.5,
    }  # fmt: skip
    assert lines[5]["path"] == str(tmp_path / "last.pt")
    assert lines[-1]["stopped"] is False


def test_a_line_is_there_before_its_event_is_shown(tmp_path):
    for n, _ in enumerate(recorded(fake_run(tmp_path, steps=3), tmp_path), start=1):
        assert len(contents(tmp_path)) == n


def test_what_is_no_number_is_null(tmp_path):
    events = iter([started(), Evaluation(0, math.inf, 2.0, math.nan, True, "\udce9")])
    list(recorded(events, tmp_path))
    assert contents(tmp_path)[1]["bits_per_byte"] is None
    assert contents(tmp_path)[1]["train_loss"] is None
    (read,) = read_metrics(tmp_path)
    assert isinstance(read, Evaluation)
    assert math.isnan(read.bits_per_byte)
    assert read.valid_loss == 2.0


def test_of_the_steps_every_log_interval_th_is_recorded_and_all_are_passed_on(tmp_path):
    events = record(tmp_path, steps=10, log_interval=3)
    assert sum(isinstance(event, Step) for event in events) == 10
    assert [line["iteration"] for line in contents(tmp_path) if line["event"] == "step"] == [3, 6, 9]


def test_a_resumed_run_goes_on_in_the_file_and_repeats_no_step(tmp_path):
    interrupted = recorded(fake_run(tmp_path, steps=20, eval_interval=5), tmp_path)
    for event in interrupted:
        if isinstance(event, Step) and event.iteration == 13:
            break
    interrupted.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"event": "step", "iteration": 14, "lo')  # the power fails
    record(tmp_path, first=10, steps=20, eval_interval=5)
    steps = [line["iteration"] for line in contents(tmp_path) if line["event"] == "step"]
    assert steps == list(range(1, 21))
    assert [line["iteration"] for line in contents(tmp_path) if line["event"] == "start"] == [0, 10]
    assert [event.iteration for event in read_metrics(tmp_path) if isinstance(event, Step)] == steps


def test_a_last_line_without_an_end_is_a_line(tmp_path):
    record(tmp_path, steps=10)
    lines = (tmp_path / METRICS).read_text()
    (tmp_path / METRICS).write_text(lines.removesuffix("\n"))
    record(tmp_path, first=10, steps=11)
    assert (tmp_path / METRICS).read_text().startswith(lines)
    assert [line["event"] for line in contents(tmp_path)][-5:] == [
        "start",
        "step",
        "evaluation",
        "saved",
        "end",
    ]


def test_a_run_from_the_beginning_has_a_new_file(tmp_path):
    record(tmp_path, steps=3)
    record(tmp_path, steps=2)
    assert [line["iteration"] for line in contents(tmp_path) if line["event"] == "step"] == [1, 2]


def test_reading_passes_over_what_it_does_not_know(tmp_path):
    assert list(read_metrics(tmp_path)) == []
    lines = [
        "",
        "[]",
        "7",
        '{"event": "step", "iteration": 1}',
        '{"event": "later", "iteration": 2}',
        '{"a": 1}',
        '{"event": [], "iteration": 1}',
        '{"event": {}, "iteration": 1}',
    ]
    (tmp_path / METRICS).write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    assert list(read_metrics(tmp_path)) == []


@pytest.mark.parametrize("resumed", [False, True])
def test_a_file_that_cannot_be_written_is_an_error_that_names_it(tmp_path, resumed):
    (tmp_path / METRICS).mkdir()
    with pytest.raises(LlamatuiError, match=r"metrics\.jsonl: cannot be written") as caught:
        record(tmp_path, first=10 * resumed)
    assert "--resume" in caught.value.hint
