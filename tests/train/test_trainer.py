"""The loop: what is resumed is what was, the same seed is the same run, and a run that diverges says so."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamatui.errors import LlamatuiError, UsageError  # noqa: E402
from llamatui.train import checkpoints, machine, optimizer, run, trainer  # noqa: E402
from llamatui.train.config import TrainConfig  # noqa: E402
from llamatui.train.events import Evaluation, Event, Finished, Saved, Started, Step  # noqa: E402
from llamatui.train.run import train  # noqa: E402
from tests.train.tiny_runs import SETTINGS, evaluations, losses, train_until, write_data  # noqa: E402

LORA = {"lora_rank": 2, "lora_alpha": 8.0}
LOUD = {**SETTINGS, "learning_rate": 0.2, "min_lr": 0.2, "warmup_iters": 0, "eval_interval": 3}
"""The validation loss is at its lowest after step 9."""


pytestmark = pytest.mark.usefixtures("not_measured")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """A run without a break, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    return out, list(train(data, out, LOUD))


def state(out: Path, name: str = "last.pt") -> dict[str, Any]:
    return checkpoints.load(out / name)


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit, tensors and all that holds them."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b


def take(events: Any, last: int) -> list[Event]:
    """Events up to that step; then the run is gone, as if it had been killed."""
    taken = []
    for event in events:
        taken.append(event)
        if isinstance(event, Step) and event.iteration == last:
            break
    events.close()
    return taken


@pytest.mark.parametrize("last", [1, 6, 9, 11])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    data: Path, whole: tuple[Path, list[Event]], tmp_path: Path, last: int
) -> None:
    first = train_until(last, data, tmp_path, LOUD)
    end = first[-1]
    assert isinstance(end, Finished)
    assert end.stopped
    assert end.iteration == last == state(tmp_path)["iter_num"]
    assert isinstance(first[-2], Saved)
    second = list(train(data, tmp_path, {}, resume=True))
    assert losses(first + second) == losses(whole[1])
    assert evaluations(first + second) == evaluations(whole[1])
    assert_same(state(tmp_path), state(whole[0]))
    assert_same(state(tmp_path, "best.pt"), state(whole[0], "best.pt"))


@pytest.mark.parametrize("last", [2, 8])
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    data: Path, whole: tuple[Path, list[Event]], tmp_path: Path, last: int
) -> None:
    take(train(data, tmp_path, LOUD), last)
    events = list(train(data, tmp_path, {}, resume=True))
    assert isinstance(events[0], Started)
    assert events[0].iteration == last // 3 * 3
    expected = {step: value for step, value in losses(whole[1]).items() if step > last // 3 * 3}
    assert losses(events) == expected
    assert_same(state(tmp_path), state(whole[0]))


def test_a_run_killed_in_its_first_step_can_be_resumed(data: Path, tmp_path: Path) -> None:
    take(train(data, tmp_path, LOUD), 1)
    assert next(e.iteration for e in train(data, tmp_path, {}, resume=True) if isinstance(e, Step)) == 1


def test_low_rank_additions_are_resumed_too(data: Path, model: Path, tmp_path: Path) -> None:
    settings = {
        **LORA,
        **{k: v for k, v in SETTINGS.items() if k not in ("dim", "n_layers", "n_heads", "n_kv_heads")},
    }
    expected = losses(train(data, tmp_path / "whole", settings, init_from=model))
    first = train_until(5, data, tmp_path / "cut", settings, init_from=model)
    assert losses([*first, *train(data, tmp_path / "cut", {}, resume=True)]) == expected
    assert_same(state(tmp_path / "cut"), state(tmp_path / "whole"))


def test_other_evaluations_change_no_step(
    data: Path, whole: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    first = train_until(5, data, tmp_path, LOUD)
    more = {"eval_interval": 5, "eval_iters": 1, "sample_tokens": 5}
    assert losses([*first, *train(data, tmp_path, more, resume=True)]) == losses(whole[1])


def test_a_resumed_run_may_be_longer(data: Path, tmp_path: Path) -> None:
    list(train(data, tmp_path, {**SETTINGS, "max_iters": 4}))
    events = list(train(data, tmp_path, {"max_iters": 6}, resume=True))
    assert losses(events).keys() == {5, 6}
    rates = [optimizer.learning_rate(TrainConfig(**{**SETTINGS, "max_iters": 6}), step) for step in (4, 5)]
    assert [rate for _, _, rate in losses(events).values()] == rates


def test_a_finished_run_says_so(data: Path, whole: tuple[Path, list[Event]]) -> None:
    with pytest.raises(UsageError, match="finished: 12 of 12 steps") as error:
        list(train(data, whole[0], {}, resume=True))
    assert "--max-iters above 12" in error.value.hint


@pytest.mark.parametrize("at", [0, 3])
def test_a_stop_in_an_evaluation_does_not_wait_for_it(
    data: Path, whole: tuple[Path, list[Event]], tmp_path: Path, at: int
) -> None:
    asked = iter([False] * (at + (2 * 2 if at else 0)) + [True] * 100)  # an evaluation asks for each batch
    first = list(train(data, tmp_path, LOUD, stop=lambda: next(asked)))
    assert isinstance(first[-1], Finished)
    assert first[-1].stopped
    assert first[-1].iteration == at == state(tmp_path)["iter_num"]
    assert at not in evaluations(first)
    second = list(train(data, tmp_path, {}, resume=True))
    assert losses(first + second) == losses(whole[1])
    assert evaluations(first + second) == evaluations(whole[1])


def test_a_request_to_stop_in_the_last_step_is_the_end(data: Path, tmp_path: Path) -> None:
    events = train_until(12, data, tmp_path, LOUD)
    assert 12 in evaluations(events)
    assert isinstance(events[-1], Finished)
    assert not events[-1].stopped


@pytest.mark.parametrize(
    ("name", "value"),
    [("dim", 32), ("n_layers", 2), ("n_heads", 4), ("n_kv_heads", 2), ("hidden_dim", 96), ("max_seq_len", 4),
     ("rope_theta", 5e5), ("tied", False), ("lora_rank", 2)],
)  # fmt: skip
def test_a_resumed_run_keeps_its_architecture(
    data: Path, whole: tuple[Path, list[Event]], name: str, value: object
) -> None:
    before = {path: path.read_bytes() for path in whole[0].iterdir()}
    with pytest.raises(UsageError, match=f"{name}: expected .* that of the checkpoint, found {value}"):
        list(train(data, whole[0], {name: value, "max_iters": 99}, resume=True))
    assert {path: path.read_bytes() for path in whole[0].iterdir()} == before


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [("weight_decay", 0.5, "weight_decay"), ("beta2", 0.5, "betas"), ("beta1", 0.5, "betas")],
)
def test_new_settings_of_the_optimizer_count_in_a_resumed_run(
    data: Path, tmp_path: Path, name: str, value: float, key: str
) -> None:
    train_until(3, data, tmp_path, LOUD)
    list(train(data, tmp_path, {name: value, "max_iters": 4}, resume=True))
    group = state(tmp_path)["optimizer"]["param_groups"][0][key]
    assert value in (group if isinstance(group, tuple | list) else [group])


def test_a_resumed_run_refuses_data_of_another_tokenizer(
    data: Path, whole: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    other = write_data(tmp_path)
    content = bytearray((other / "tokenizer.bin").read_bytes())
    content[4:8] = b"\0\0\0\x40"  # a score
    (other / "tokenizer.bin").write_bytes(content)
    with pytest.raises(UsageError, match="expected the tokenizer that the run was begun with"):
        list(train(other, whole[0], {"max_iters": 99}, resume=True))


def test_a_run_without_its_tokenizer_is_not_resumed(data: Path, tmp_path: Path) -> None:
    train_until(1, data, tmp_path, SETTINGS)
    (tmp_path / "tokenizer.bin").rename(tmp_path / "tokenizer.old")
    with pytest.raises(UsageError, match=r"the tokenizer that the run was begun with, .*found none"):
        list(train(data, tmp_path, {}, resume=True))


def test_a_resumed_run_refuses_other_text(data: Path, tmp_path: Path) -> None:
    train_until(1, data, tmp_path / "out", SETTINGS)
    other = write_data(tmp_path / "data", train=(60, 46))
    with pytest.raises(UsageError, match=r"data that the run was begun with, .*105.*found .*106") as error:
        list(train(other, tmp_path / "out", {}, resume=True))
    assert "--init-from" in error.value.hint


def test_what_was_evaluated_is_not_evaluated_again(
    data: Path, whole: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    take(train(data, tmp_path, LOUD), 7)
    events = list(train(data, tmp_path, {}, resume=True))
    assert sorted(evaluations(events)) == [9, 12]
    assert [event.iteration for event in events if isinstance(event, Saved)] == [9, 12]
    assert_same(state(tmp_path), state(whole[0]))


def test_a_run_killed_between_its_checkpoints_has_the_best(
    data: Path, whole: tuple[Path, list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After step 9, whose evaluation is the best."""
    events = train(data, tmp_path, LOUD)
    while not (isinstance(event := next(events), Step) and event.iteration == 9):
        pass

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "copy", killed)
    with pytest.raises(KeyboardInterrupt):
        list(events)
    monkeypatch.undo()
    monkeypatch.setattr(machine, "matmul_flops", lambda device, dtype: 1e9)
    list(train(data, tmp_path, {}, resume=True))
    assert_same(state(tmp_path), state(whole[0]))
    assert_same(state(tmp_path, "best.pt"), state(whole[0], "best.pt"))


def test_the_same_seed_is_the_same_run(data: Path, whole: tuple[Path, list[Event]], tmp_path: Path) -> None:
    assert losses(train(data, tmp_path / "again", LOUD)) == losses(whole[1])
    other = losses(train(data, tmp_path / "other", {**LOUD, "seed": 1 << 30}))
    assert set(other.values()).isdisjoint(losses(whole[1]).values())


@pytest.mark.parametrize("setting", ["dropout", "seed"])
def test_the_order_of_data_and_dropout_follow_the_seed(data: Path, tmp_path: Path, setting: str) -> None:
    """Of the same weights, the first loss differs by what is dropped, or by what is read."""
    values = (0.0, 0.5) if setting == "dropout" else (1, 2)
    first = []
    for value in values:
        settings = {**SETTINGS, "max_iters": 1, setting: value}
        first.append(losses(train(data, tmp_path / str(value), settings))[1][0])
    assert first[0] != first[1]


def test_threads_change_rounding_at_most(data: Path, whole: tuple[Path, list[Event]], tmp_path: Path) -> None:
    other = losses(train(data, tmp_path, {**LOUD, "threads": 2}))
    for step, values in losses(whole[1]).items():
        assert other[step] == pytest.approx(values, rel=1e-4)


def test_grad_accumulation_is_one_large_batch(data: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "dropout": 0.0}
    parts = losses(train(data, tmp_path / "parts", settings))
    one = losses(train(data, tmp_path / "one", {**settings, "batch_size": 4, "grad_accumulation": 1}))
    for step, values in parts.items():
        assert one[step] == pytest.approx(values, rel=1e-4)


def test_it_learns(data: Path, tmp_path: Path) -> None:
    events = list(train(data, tmp_path, {**SETTINGS, "max_iters": 40, "eval_interval": 40}))
    valid = [loss for _, loss in evaluations(events).values()]
    assert valid[0] == pytest.approx(math.log(300), abs=0.1)  # of a uniform guess
    assert valid[-1] < 4.2  # 40 ids occur: log 40 is 3.7


def test_bfloat16_learns_and_is_resumed(data: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "dtype": "bfloat16", "max_iters": 20, "eval_interval": 20}
    expected = list(train(data, tmp_path / "whole", settings))
    valid = [loss for _, loss in evaluations(expected).values()]
    assert valid[-1] < valid[0] - 1
    first = train_until(3, data, tmp_path / "cut", settings)
    assert losses([*first, *train(data, tmp_path / "cut", {}, resume=True)]) == losses(expected)
    assert {w.dtype for w in state(tmp_path / "cut")["model"].values()} == {torch.float32}


def test_float16_scales_its_loss_and_is_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, but for the device: a step whose gradients are too large for float16 changes no weight."""
    here = machine.Machine(torch.device("cpu"), torch.float16, 1, 1e9)
    monkeypatch.setattr(run, "find_machine", lambda config: here)
    settings = {**SETTINGS, "dtype": "float16", "max_iters": 20, "eval_interval": 20}
    expected = list(train(data, tmp_path / "whole", settings))
    valid = [loss for _, loss in evaluations(expected).values()]
    assert valid[-1] < valid[0] - 1
    first = train_until(3, data, tmp_path / "cut", settings)
    assert state(tmp_path / "cut")["scaler"]["scale"] == 65536
    assert losses([*first, *train(data, tmp_path / "cut", {}, resume=True)]) == losses(expected)

    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **more: scaler(*args, 2.0**127, **more))
    (step,) = [
        e for e in train(data, tmp_path / "large", {**settings, "max_iters": 1}) if isinstance(e, Step)
    ]
    assert not math.isfinite(step.grad_norm)
    after, before = state(tmp_path / "large"), state(tmp_path / "large", "best.pt")
    assert (after["iter_num"], before["iter_num"]) == (1, 0)
    assert after["scaler"]["scale"] == 2.0**126
    assert_same(after["model"], before["model"])


def test_evaluation_is_of_the_whole_split_without_dropout(data: Path, tmp_path: Path) -> None:
    """50 ids are 6 windows; three batches of two are all of them, in any order."""
    exact = {**SETTINGS, "max_iters": 1, "eval_iters": 100}
    two = evaluations(list(train(data, tmp_path / "two", exact)))[0]
    three = evaluations(list(train(data, tmp_path / "three", {**exact, "batch_size": 3})))[0]
    many = evaluations(list(train(data, tmp_path / "many", {**exact, "batch_size": 100, "dropout": 0.0})))[0]
    assert two[1] == pytest.approx(three[1], rel=1e-5) == pytest.approx(many[1], rel=1e-5)


def test_evaluation_is_spread_over_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text has chapters: its first ones are no fair sample."""
    data = write_data(tmp_path / "data", valid=(801,))
    asked = []
    whole_batch = trainer.Windows.batch

    def batch(windows: Any, first: int, n: int) -> Any:
        if windows.seed is None and windows.n_windows == 100:
            asked.append(first)
        return whole_batch(windows, first, n)

    monkeypatch.setattr(trainer.Windows, "batch", batch)
    list(train(data, tmp_path / "out", {**SETTINGS, "max_iters": 1, "eval_iters": 4}))
    assert asked == [0, 25, 50, 75] * 2


def test_bits_per_byte_is_the_loss_of_the_text(data: Path, tmp_path: Path) -> None:
    """`write_data` says that each id is 4 bytes."""
    (first, *_) = [e for e in train(data, tmp_path, SETTINGS) if isinstance(e, Evaluation)]
    assert first.bits_per_byte == pytest.approx(first.valid_loss / math.log(2) / 4)


def test_events_come_in_order(data: Path, tmp_path: Path) -> None:
    names = [
        type(e).__name__ for e in train(data, tmp_path, {**SETTINGS, "max_iters": 3, "eval_interval": 2})
    ]
    checkpoint = ["Evaluation", "Saved"]
    assert names == ["Started", *checkpoint, "Step", "Step", *checkpoint, "Step", *checkpoint, "Finished"]


def test_best_is_the_checkpoint_of_the_lowest_loss(whole: tuple[Path, list[Event]]) -> None:
    seen = {e.iteration: e.valid_loss for e in whole[1] if isinstance(e, Evaluation)}
    best = min(seen, key=lambda step: seen[step])
    assert best == 9, "the run was to get worse again"
    assert state(whole[0], "best.pt")["iter_num"] == best
    assert state(whole[0])["best_val_loss"] == seen[best]
    assert [e.iteration for e in whole[1] if isinstance(e, Evaluation) and e.is_best][-1] == best


def test_the_first_checkpoint_is_there_before_the_first_step(data: Path, tmp_path: Path) -> None:
    take(train(data, tmp_path, SETTINGS), 1)
    assert state(tmp_path, "best.pt")["iter_num"] == 0


def test_eta_counts_no_first_evaluation_and_speed_none(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that only training (1 s a step) and evaluating (100 s) move."""
    clock = [0.0]
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: clock[0])

    def slow(name: str, seconds: float) -> None:
        method: Callable[..., Any] = getattr(trainer.Trainer, name)

        def wrapper(self: Any, *args: Any) -> Any:
            clock[0] += seconds
            return method(self, *args)

        monkeypatch.setattr(trainer.Trainer, name, wrapper)

    slow("_step", 1.0)
    slow("_evaluate", 100.0)
    train_until(3, data, tmp_path, SETTINGS)
    for first, events in (
        (3, train(data, tmp_path, {}, resume=True)),
        (0, train(data, tmp_path / "b", SETTINGS)),
    ):
        steps = {e.iteration: e for e in events if isinstance(e, Step)}
        assert {e.tokens_per_second for e in steps.values()} == {32.0}
        assert steps[first + 1].eta == 12 - first - 1
        assert steps[5].eta == 7 * (5 - first + 100) / (5 - first)
        assert steps[12].eta == 0


@pytest.mark.parametrize("poison", ["step", "evaluation"])
def test_a_loss_that_is_no_number_ends_the_run_and_leaves_good_checkpoints(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    """Step 8 makes weights of NaN; its own loss is still good, and an evaluation follows where one is due."""
    real = optimizer.AdamW.step

    def step(self: Any, *args: Any) -> Any:
        result = real(self, *args)
        parameter = self.param_groups[0]["params"][0]
        if self.state[parameter]["step"] == 8:
            torch.nn.init.constant_(parameter, math.nan)
        return result

    monkeypatch.setattr(optimizer.AdamW, "step", step)
    settings = {**SETTINGS, "eval_interval": 8 if poison == "evaluation" else 6}
    with pytest.raises(LlamatuiError, match="diverged") as error:
        list(train(data, tmp_path, settings))
    where = "evaluation after step 8: loss nan" if poison == "evaluation" else "step 9: loss nan"
    assert error.value.message.startswith(where)
    assert error.value.exit_code == 1
    assert "--learning-rate below 0.01" in error.value.hint
    for name in ("last.pt", "best.pt"):
        saved = state(tmp_path, name)
        assert saved["iter_num"] == (0 if poison == "evaluation" else 6)
        assert all(w.isfinite().all() for w in saved["model"].values())
        assert math.isfinite(saved["best_val_loss"])
    monkeypatch.undo()
    events = list(train(data, tmp_path, {"learning_rate": 1e-3}, resume=True))
    assert isinstance(events[-1], Finished)


def test_a_learning_rate_of_a_billion_diverges(data: Path, tmp_path: Path) -> None:
    with pytest.raises(LlamatuiError, match=r"step \d+.*diverged"):
        list(train(data, tmp_path, {**SETTINGS, "learning_rate": 1e30, "grad_clip": 0.0}))
    assert state(tmp_path, "best.pt")["iter_num"] == 0
