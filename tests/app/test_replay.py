"""Replay files: recorded, read back, computed again; and what a hostile one may say."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamatui.app.engine import Limits, Session
from llamatui.app.model import LoadedModel, load_model
from llamatui.app.replay import MAX_BYTES, Change, Recorder, Replay, Step
from llamatui.app.replay_check import Watched, verify
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.app.text_stream import StopMatcher, stream_text
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.registry import BUILTIN, create_backend
from llamatui.errors import ContextOverflowError, LlamatuiError, ModelError, UsageError
from tests.tiny import TINY, random_weights

WARM = Sampling(temperature=1.0, seed=7)
PROMPT = [1, 280, 290, 5]
TWENTY = Limits(20, alternatives=0)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model, backend="numpy", threads=1)


def generated(
    session: Session,
    model: LoadedModel,
    prompt: Sequence[int],
    sampler: Sampler,
    limits: Limits = TWENTY,
    stops: Sequence[str] = (),
    act: Callable[[int, Any], object] = lambda count, generation: None,
) -> Step:
    """One step. `act(tokens so far, generation)` is called after each."""
    generation = session.start(prompt, sampler, limits)
    recorder = Recorder(generation, stops=stops)
    text = ""
    try:
        for record, piece in stream_text(generation, model.tokenizer, StopMatcher(stops)):
            text += piece
            if record is not None:
                recorder.add(record)
                act(len(generation.new_tokens), generation)
    except ContextOverflowError:
        pass
    return recorder.step(text)


def recorded(
    model: LoadedModel, sampling: Sampling = WARM, prompt: Sequence[int] = PROMPT, **options: Any
) -> Replay:
    return Replay.of(model, [generated(Session(model.backend), model, prompt, Sampler(sampling), **options)])


def reread(replay: Replay) -> Replay:
    return Replay.from_json(json.loads(json.dumps(replay.to_json())))


def changed(replay: Replay, number: int = 0, **values: Any) -> Replay:
    steps = list(replay.steps)
    steps[number] = replace(steps[number], **values)
    return replace(replay, steps=tuple(steps))


def content(replay: Replay) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(replay.to_json()))
    return found


@pytest.mark.parametrize("backend", sorted(BUILTIN))
def test_what_each_backend_recorded_is_identical(backend: str, tiny_model: Path, tmp_path: Path) -> None:
    if backend != "numpy":
        pytest.importorskip("numba")
    model = load_model(tiny_model, backend=backend, threads=2)
    recorded(model).write(tmp_path / "r.json")
    replay = Replay.read(tmp_path / "r.json")
    assert replay.backend["name"] == replay.steps[0].backend == backend
    verdict = verify(replay, model)
    assert verdict.identical
    assert verdict.notes == []
    assert verdict.tokens == len(replay.steps[0].output_ids) > 10
    assert verdict.largest is not None
    assert verdict.largest.difference == 0
    assert verdict.backends == [backend]


def test_a_file_says_what_decided_the_text(model: LoadedModel, tmp_path: Path) -> None:
    replay = recorded(model)
    assert reread(replay) == replay
    found = content(replay)
    assert list(found) == [
        "schema", "created_at", "model", "tokenizer", "backend", "versions", "machine", "steps",
    ]  # fmt: skip
    assert found["schema"] == "llamatui.replay/1"
    assert found["model"] | {"sha256": ""} == {
        "name": "tiny", "sha256": "", "format": "v0", "params": TINY.n_params,
    }  # fmt: skip
    assert set(found["versions"]) == {"llamatui", "python", "numpy", "numba"}
    step = found["steps"][0]
    assert step["prompt_ids"] == PROMPT
    assert (step["rng_state"], step["sampling"]["seed"]) == (7, 7)
    assert step["limits"] == {
        "stop_ids": [], "stop": [], "context": 64, "overflow": "stop", "keep": 1, "max_new_tokens": 20,
    }  # fmt: skip
    assert len(step["output_ids"]) == len(step["logprobs"]) == 20


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(temperature=0.8, top_p=0.5),
        Sampling(top_p=0, top_k=5, min_p=0.01),
        Sampling(repeat_penalty=1.5),
        Sampling(temperature=0, repeat_penalty=1.5),
    ],
)
def test_any_settings_are_identical(sampling: Sampling, model: LoadedModel) -> None:
    replay = reread(recorded(model, sampling))  # without a seed: the one that was picked is recorded
    assert replay.steps[0].sampling.seed == replay.steps[0].rng_state > 0
    assert verify(replay, model).identical


@pytest.mark.parametrize("overflow", ["stop", "shift", "error"])
def test_a_full_context_is_identical(overflow: Any, model: LoadedModel) -> None:
    replay = reread(recorded(model, limits=Limits(100, overflow=overflow, keep=2, alternatives=0)))
    expected = 100 if overflow == "shift" else 64 + 1 - len(PROMPT)
    assert len(replay.steps[0].output_ids) == expected
    verdict = verify(replay, model)
    assert verdict.identical
    assert verdict.tokens == expected


def test_a_prompt_that_was_cut_is_identical(model: LoadedModel) -> None:
    replay = reread(recorded(model, prompt=[1, *range(3, 100)], limits=Limits(10, overflow="shift")))
    assert len(replay.steps[0].prompt_ids) == 32
    assert verify(replay, model).tokens == 10


def test_a_prompt_that_did_not_fit_has_nothing_to_differ(model: LoadedModel) -> None:
    replay = reread(recorded(model, prompt=[1, *range(3, 100)]))
    assert replay.steps[0].finish_reason == "context"
    assert verify(replay, model).identical


def test_special_ids_in_a_prompt_are_identical(model: LoadedModel) -> None:
    assert verify(reread(recorded(model, prompt=[1, 2, 0, 1])), model).identical


def test_stop_ids_and_stop_sequences_end_it_again(model: LoadedModel) -> None:
    ids = recorded(model).steps[0].output_ids
    replay = reread(recorded(model, limits=Limits(20, frozenset({ids[4]}), alternatives=0)))
    assert replay.steps[0].finish_reason == "eos"
    assert verify(replay, model).tokens == ids.index(ids[4])
    text = recorded(model).steps[0].text
    replay = reread(recorded(model, stops=[text[5:7]]))
    assert replay.steps[0].finish_reason == "stop"
    assert replay.steps[0].text == text[: text.index(text[5:7])]
    assert verify(replay, model).identical
    late = verify(changed(replay, stops=()), model)
    assert late.identical  # as if somebody else had stopped it there


def test_one_that_was_cancelled_is_identical_as_far_as_it_went(model: LoadedModel) -> None:
    def act(count: int, generation: Any) -> None:
        if count == 6:
            generation.cancel()

    replay = reread(recorded(model, act=act))
    assert replay.steps[0].finish_reason == "cancelled"
    assert verify(replay, model).tokens == 6


def test_a_changed_id_is_named(model: LoadedModel) -> None:
    replay = recorded(model)
    ids = list(replay.steps[0].output_ids)
    was, ids[9] = ids[9], (ids[9] + 1) % 300
    verdict = verify(changed(replay, output_ids=tuple(ids)), model)
    found = verdict.difference
    assert not verdict.identical
    assert found is not None
    assert (found.step, found.index, found.recorded, found.computed) == (0, 9, ids[9], was)
    assert verdict.tokens == 9
    assert found.computed_logprob == replay.steps[0].logprobs[9] == found.logprob_then
    assert found.logprob_now != found.logprob_then


def test_it_tells_how_near_the_choice_was(model: LoadedModel) -> None:
    replay = recorded(model, Sampling(top_p=0, seed=7))
    logprobs = replay.steps[0].logprobs
    other = verify(changed(replay, rng_state=8), model).difference
    assert other is not None
    assert other.nudge is not None
    assert 0 < other.nudge < 1
    greedy = verify(changed(replay, sampling=Sampling(temperature=0, seed=7)), model).difference
    assert greedy is not None
    assert greedy.nudge is None
    assert greedy.logprob_now == logprobs[greedy.index]
    assert greedy.computed_logprob is not None
    assert greedy.computed_logprob > greedy.logprob_now


@pytest.mark.parametrize(
    ("top_p", "ends"),
    [(0.0, {0: (0.0, 0.2), 1: (0.2, 0.7), 2: (0.7, 1.0)}), (0.6, {1: (0, 0.625), 2: (0.625, 1)})],
)
def test_how_near_a_random_number_was(top_p: float, ends: dict[int, tuple[float, float]]) -> None:
    sampler = Watched(Sampling(top_p=top_p, seed=7))
    logits = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    for _ in range(10):
        other = Sampler(sampler.settings)
        other.state = sampler.state
        coin = float(other.random_f32())
        chosen = sampler.sample(logits)
        assert sampler.nudge(chosen) == 0
        for token, (begin, end) in ends.items():
            assert sampler.nudge(token) == pytest.approx(max(begin - coin, coin - end, 0), abs=1e-6)
        assert (sampler.nudge(0) is None) == (0 not in ends)
        assert sampler.state == other.state  # it may go on


def test_a_missing_and_an_additional_token_are_differences(model: LoadedModel) -> None:
    replay = recorded(model)
    step = replay.steps[0]
    short = changed(replay, output_ids=step.output_ids[:-1], logprobs=step.logprobs[:-1])
    found = verify(short, model).difference
    assert found is not None
    assert (found.index, found.recorded, found.computed) == (19, None, step.output_ids[-1])
    assert found.recorded_end == "length"
    long = changed(replay, max_new_tokens=19)
    found = verify(long, model).difference
    assert found is not None
    assert (found.index, found.recorded, found.computed) == (19, step.output_ids[-1], None)
    assert found.computed_end == "length"
    found = verify(changed(replay, finish_reason="eos"), model).difference
    assert found is not None
    assert (found.recorded_end, found.computed_end) == ("eos", "length")


def test_a_changed_logprob_is_told(model: LoadedModel) -> None:
    replay = recorded(model)
    logprobs = list(replay.steps[0].logprobs)
    assert logprobs[3] is not None
    logprobs[3] -= 0.25
    verdict = verify(changed(replay, logprobs=tuple(logprobs)), model)
    assert verdict.identical
    assert verdict.largest is not None
    assert (verdict.largest.step, verdict.largest.index) == (0, 3)
    assert verdict.largest.difference == pytest.approx(0.25)
    unmeasured = recorded(model, limits=Limits(20))
    assert unmeasured.steps[0].logprobs == (None,) * 20
    assert verify(reread(unmeasured), model).largest is None


def test_another_model_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other.bin", TINY, 0, random_weights(TINY, seed=2))
    other = load_model(tmp_path / "other.bin", tokenizer=model.tokenizer_path, backend="numpy")
    replay = recorded(model)
    with pytest.raises(ModelError, match=f"{replay.model['sha256']}.*found [0-9a-f]{{64}}"):
        verify(replay, other)


def test_another_tokenizer_is_noted(model: LoadedModel) -> None:
    replay = recorded(model)
    replay = replace(replay, tokenizer={"kind": "x", "sha256": "0" * 64})
    verdict = verify(replay, model)
    assert verdict.identical
    assert verdict.notes == [f"another tokenizer than the recorded one: {model.tokenizer_path}"]


def test_a_text_that_its_tokens_do_not_say_is_noted(model: LoadedModel) -> None:
    verdict = verify(changed(recorded(model), text="other words"), model)
    assert verdict.identical
    assert verdict.notes == ["step 0: the recorded text is not what its tokens say"]


def test_steps_share_a_session_as_they_did(model: LoadedModel) -> None:
    session, sampler = Session(model.backend), Sampler(WARM)
    first = generated(session, model, PROMPT, sampler)
    second = generated(session, model, [*PROMPT, *first.output_ids[:9], 4], sampler)
    third = generated(session, model, PROMPT, Sampler(WARM))
    assert second.cached_tokens == len(PROMPT) + 9
    assert second.rng_state != 7
    replay = reread(Replay.of(model, [first, second, third]))
    verdict = verify(replay, model)
    assert verdict.identical
    assert verdict.tokens == 60
    wrong = changed(replay, 1, rng_state=99)
    found = verify(wrong, model).difference
    assert found is not None
    assert found.step == 1


def test_a_sampling_that_was_changed_in_mid_text_changes_again(model: LoadedModel) -> None:
    def act(count: int, generation: Any) -> None:
        if count in (5, 12):
            generation.sampler.settings = Sampling(temperature=0.0 if count == 5 else 2.0)

    replay = reread(recorded(model, act=act))
    cold, hot = (Sampling(temperature=t, seed=7) for t in (0.0, 2.0))
    assert replay.steps[0].changes == (Change(5, cold), Change(12, hot))
    assert verify(replay, model).identical
    assert not verify(changed(replay, changes=()), model).identical


@pytest.mark.parametrize(("old", "new"), [("numpy", "numba"), ("numpy", "q8_0"), ("q8_0", "numba")])
def test_a_backend_that_took_over_takes_over_again(old: str, new: str, tiny_model: Path) -> None:
    pytest.importorskip("numba")
    model = load_model(tiny_model, backend=old, threads=1)
    began = model.backend

    def act(count: int, generation: Any) -> None:
        if count == 60:  # while the context is full
            began.replacement = create_backend(new, model.checkpoint, 1)

    session = Session(began)
    step = generated(
        session, model, PROMPT, Sampler(WARM), Limits(80, overflow="shift", alternatives=0), act=act
    )
    assert (step.backend, step.changes) == (old, (Change(60, backend=new),))
    replay = reread(Replay.of(model, [step]))
    model = load_model(tiny_model, backend=old, threads=1)
    verdict = verify(replay, model)
    assert verdict.identical
    assert verdict.tokens == 80
    assert verdict.largest is not None
    assert verdict.largest.difference == 0
    assert verdict.backends == [old, new]
    assert model.backend.name == old  # as it was
    assert verify(replay, model, backend=old).backends == [old]


Spoil = Callable[[dict[str, Any]], object]


def first(content: dict[str, Any]) -> Any:
    return content["steps"][0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.update(schema="llamatui.chat/1"), "schema: expected llamatui.replay/1, found llama"),
        (lambda c: c.pop("model"), "model: expected an object, found nothing"),
        (lambda c: c["model"].update(name="../x"), "model.name: expected a model's name, found ../x"),
        (lambda c: c["model"].update(sha256="A" * 64), "model.sha256: expected a SHA-256"),
        (lambda c: c["backend"].update(threads=10**9), "backend.threads: expected an integer in 1..1024"),
        (lambda c: c.update(steps=[]), "steps: expected at least one, found none"),
        (lambda c: c.update(steps={}), "steps: expected a list, found an object"),
        (lambda c: first(c).update(prompt_ids=[]), "steps[0].prompt_ids: expected at least one id"),
        (lambda c: first(c)["prompt_ids"].append(-1), "steps[0].prompt_ids[4]: expected an integer in"),
        (lambda c: first(c)["prompt_ids"].append(True), "steps[0].prompt_ids[4]: expected an integer in"),
        (lambda c: first(c)["output_ids"].append(1.5), "steps[0].output_ids[20]: expected an integer"),
        (lambda c: first(c).update(output_ids=[5] * 21, logprobs=[0] * 21), "expected at most 20 ids"),
        (lambda c: first(c).update(logprobs=[0]), "steps[0].logprobs: expected 20 of them, found 1"),
        (lambda c: first(c)["logprobs"].__setitem__(2, 1e999), "logprobs[2]: expected a number, found inf"),
        (lambda c: first(c)["logprobs"].__setitem__(2, 10**999), "logprobs[2]: expected a number"),
        (lambda c: first(c).update(rng_state=1 << 64), "rng_state: expected an integer in"),
        (lambda c: first(c).update(rng_state="7"), "rng_state: expected an integer in"),
        (lambda c: first(c)["sampling"].update(top_p=2), "steps[0].sampling: top_p must be in 0.0..1.0"),
        (lambda c: first(c)["sampling"].update(top_p="2"), "sampling.top_p: expected a number, found '2'"),
        (lambda c: first(c)["sampling"].update(temperature=1e-9), "temperature must be 0 or at least"),
        (lambda c: first(c)["limits"].update(overflow="x" * 99), "overflow: expected one of stop, shift, er"),
        (lambda c: first(c)["limits"].update(context=0), "limits.context: expected an integer in 2.."),
        (lambda c: first(c).update(changes=[{"at": 21}]), "changes[0].at: expected an integer in 0..20"),
        (lambda c: first(c).update(text=None), "steps[0].text: expected a text, found nothing"),
        (lambda c: c.update(versions={"a": ["x"]}), "versions.a: expected a text, found a list"),
        (lambda c: c.update(versions=dict.fromkeys(map(str, range(101)))), "versions: expected at most 100"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(spoil: Spoil, message: str, model: LoadedModel) -> None:
    spoiled = content(recorded(model))
    spoil(spoiled)
    with pytest.raises(UsageError) as caught:
        Replay.from_json(spoiled, "r.json")
    assert caught.value.message.startswith("r.json: ")
    assert message in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 200_000, b"[]", b"1" * 5000, b"nul", b'{"schema": 1e999}']
)
def test_what_is_no_replay_is_told(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="expected"):
        Replay.read(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UsageError, match="of at most 33,554,432 bytes"):
        Replay.read(path)
    with pytest.raises(UsageError, match="found a folder"):
        Replay.read(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        Replay.read(tmp_path / "none.json")


def test_what_this_model_cannot_have_is_told(model: LoadedModel) -> None:
    replay = recorded(model)
    ids = replay.steps[0].output_ids
    with pytest.raises(UsageError, match=r"steps\[0\]: expected ids below 300, found 300"):
        verify(changed(replay, output_ids=(*ids[:3], 300, *ids[4:])), model)
    with pytest.raises(UsageError, match="expected a context of at most 64, found 65"):
        verify(changed(replay, context=65), model)
    with pytest.raises(UsageError, match="no backend is called 'x'"):
        verify(changed(replay, backend="x"), model)


def test_a_prompt_that_its_own_policy_refuses_is_told(model: LoadedModel) -> None:
    replay = recorded(model, prompt=[1, *range(3, 100)])
    with pytest.raises(ContextOverflowError):
        verify(changed(replay, overflow="error"), model)


def test_half_a_surrogate_pair_is_no_text(model: LoadedModel) -> None:
    spoiled = content(recorded(model))
    spoiled["steps"][0]["text"] = "a\ud800b"
    assert Replay.from_json(spoiled).steps[0].text == "a\ufffdb"


def test_what_is_no_utf_8_is_written_as_a_sign(model: LoadedModel, tmp_path: Path) -> None:
    replay = recorded(model)
    (step,) = replay.steps
    whole = replace(replay, steps=(replace(step, shown="a\ud800b\udcffc", text="\udcc3\udca9"),))
    whole.write(tmp_path / "r.json")
    (read,) = Replay.read(tmp_path / "r.json").steps
    assert (read.shown, read.text) == ("a\ufffdb\ufffdc", "é")


def test_a_file_is_written_whole_or_not_at_all(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay, path = recorded(model), tmp_path / "r.json"
    path.write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        replay.write(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(LlamatuiError, match=r"r\.json: cannot be written: full"):
            replay.write(path, force=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]
    replay.write(path, force=True)
    assert Replay.read(path) == replay
    with pytest.raises(UsageError, match="found a folder"):
        replay.write(tmp_path, force=True)
    with pytest.raises(UsageError, match="expected a folder, found none"):
        replay.write(tmp_path / "none" / "r.json")
    with pytest.raises(LlamatuiError, match="a replay file has at most"):
        changed(replay, text="x" * MAX_BYTES).write(tmp_path / "large.json")
    assert list(tmp_path.iterdir()) == [path]


def full(self: Path, target: Path) -> None:
    raise OSError(28, "full")
