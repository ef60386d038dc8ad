"""A conversation's turns, and what the session sees of them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llamatui.app.conversation import Conversation
from llamatui.app.engine import Limits
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.errors import UsageError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.chat_formats import CHATML


class Characters(Tokenizer):
    """An id per character; two control tokens."""

    format = "test"
    vocab_size = 130
    bos_id = -1
    eos_ids = frozenset({129})
    special_tokens = {"<|im_start|>": 128, "<|im_end|>": 129}  # noqa: RUF012
    adds_bos = False

    def encode_ordinary(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 128 else b""


class Echo:
    """Answers "ok" and ends its turn."""

    prefill_chunk = 64
    replacement = None
    config = SimpleNamespace(max_seq_len=256, n_layers=1, n_kv_heads=1, head_dim=1)

    @property
    def latest(self):
        return self

    def forward(self, tokens, cache):
        cache.length += len(tokens)
        logits = np.zeros(130, np.float32)
        logits[{ord("\n"): ord("o"), ord("o"): ord("k")}.get(tokens[-1], 129)] = 9
        return logits


@pytest.fixture
def chat() -> Conversation:
    model = SimpleNamespace(
        tokenizer=Characters(),
        backend=Echo(),
        chat_format=CHATML,
        stop_ids=frozenset({129}),
        path=Path("m.bin"),
    )
    return Conversation(model, "be kind")


def answer(chat: Conversation, limits: Limits | None = None) -> str:
    generation = chat.start(Sampler(Sampling(temperature=0)), limits)
    text = "".join(chr(record.id) for record in generation)
    chat.finish(generation.new_tokens, text)
    return text


def test_turns_alternate_and_the_cache_is_used(chat):
    chat.ask("hi")
    assert answer(chat) == "ok"
    chat.ask("and?")
    generation = chat.start(Sampler(Sampling(temperature=0)))
    assert generation.cached_tokens >= len("be kind") + len("ok")
    assert [(m.role, m.content) for m in chat.messages] == [
        ("system", "be kind"), ("user", "hi"), ("assistant", "ok"), ("user", "and?"),
    ]  # fmt: skip
    assert chat.turns[1].ids == (ord("o"), ord("k"))


@pytest.mark.parametrize(
    ("taken", "text"), [(["a"], ""), (["a", "é"], "aé"), (["a", "é", "\ufffd"], "aé\ufffd")]
)
def test_an_answer_that_is_left_early_ends_with_a_whole_character(chat, monkeypatch, taken, text):
    """Its ids say its text, also where its last one is half a character."""
    heard = {"o": b"a\xc3", "k": b"\xa9\xc3"} if len(taken) > 2 else {"o": b"a\xc3", "k": b"\xa9"}
    monkeypatch.setattr(chat.model.tokenizer, "decode_bytes", lambda token: heard[chr(token)])
    pieces = chat.stream("hi")
    assert [next(pieces) for _ in taken] == taken
    pieces.close()
    said = chat.turns[-1]
    assert (said.content, chat.model.tokenizer.decode(said.ids)) == (text, text)


def test_limits_are_completed_not_replaced(chat):
    chat.ask("hi")
    generation = chat.start(Sampler(Sampling()), Limits(max_new_tokens=1, overflow="shift"))
    assert generation.limits.max_new_tokens == 1
    assert generation.limits.overflow == "shift"
    assert generation.limits.stop_ids == frozenset({129})
    kept = Characters().decode(generation.prompt[: generation.limits.keep])
    assert kept == "system\nbe kind\n"


def test_regenerate_and_withdraw(chat):
    chat.ask("hi")
    answer(chat)
    chat.regenerate()
    assert [message.role for message in chat.turns] == ["user"]
    assert answer(chat) == "ok"
    chat.ask("never mind")
    assert chat.withdraw() == "never mind"
    assert len(chat.turns) == 2


def test_new_system_prompt_holds_from_the_next_answer_on(chat):
    chat.system = ""
    chat.ask("hi")
    assert "be kind" not in Characters().decode(chat.start(Sampler(Sampling())).prompt)


def test_turns_out_of_order_are_refused(chat):
    for wrong in (chat.regenerate, chat.withdraw, lambda: chat.start(Sampler(Sampling()))):
        with pytest.raises(UsageError):
            wrong()
    chat.ask("one")
    with pytest.raises(UsageError):
        chat.ask("two")


def test_a_full_context_forgets_whole_turns_once_and_grows_again(chat: Conversation) -> None:
    cached, dropped = [], []
    for number in range(12):
        chat.ask(f"question {number}")
        generation = chat.start(Sampler(Sampling(0.0)), Limits(overflow="shift"))
        ids = [record.id for record in generation]
        chat.finish(ids, chat.model.tokenizer.decode(ids))
        told = chat.model.tokenizer.decode(generation.prompt)
        assert told.startswith("system\nbe kind\nuser\nquestion")
        assert f"question {number}\n" in told
        cached.append(generation.cached_tokens)
        dropped.append(generation.dropped_tokens)
    assert any(dropped)
    # Most questions after the first overflow go on from the cache: it is not cut anew each time.
    after = cached[dropped.index(next(filter(None, dropped))) :]
    assert sum(n > 60 for n in after) >= len(after) // 2


def test_a_long_system_prompt_leaves_room_for_the_question(chat: Conversation) -> None:
    chat.system = "be kind " * 40
    chat.ask("who are you?")
    generation = chat.start(Sampler(Sampling(0.0)), Limits(overflow="shift"))
    assert "who are you?" in chat.model.tokenizer.decode(generation.prompt)
    assert generation.dropped_tokens > 0


def words(chat: Conversation) -> list[str]:
    return [turn.content for turn in chat.turns]


def test_a_stopped_answer_grows_on(chat: Conversation) -> None:
    chat.ask("hi")
    chat.start(Sampler(Sampling(0.0)))
    chat.finish([ord("o")], "o", stopped=True)
    assert chat.tree.path[1].stopped
    chat.resume()
    generation = chat.start(Sampler(Sampling(0.0)))
    assert chat.model.tokenizer.decode(generation.prompt).endswith("assistant\no")
    chat.finish([record.id for record in generation], "k")
    assert words(chat) == ["hi", "ok"]
    assert chat.turns[1].ids == (ord("o"), ord("k"))
    assert not chat.tree.path[1].stopped
    assert chat.versions(1) == (1, 1)


def test_an_answer_that_was_talked_about_grows_in_a_copy(chat: Conversation) -> None:
    for question in ("one", "two"):
        chat.ask(question)
        answer(chat)
    chat.tree.cut(2)
    chat.resume()
    chat.give_up()  # nothing came
    assert words(chat) == ["one", "ok"]
    assert chat.versions(1) == (1, 1)
    chat.resume()
    chat.finish([33], "!")
    assert words(chat) == ["one", "ok!"]
    assert chat.flip(1, 1)
    assert words(chat) == ["one", "ok", "two", "ok"]


def test_what_gets_no_answer_leaves_no_trace(chat: Conversation) -> None:
    chat.ask("hi")
    assert chat.give_up() == "hi"
    assert words(chat) == []
    chat.ask("hi")
    answer(chat)
    chat.regenerate()
    assert chat.give_up() == ""
    assert words(chat) == ["hi", "ok"]
    chat.edit(0, "ho")
    assert chat.give_up() == "ho"
    assert words(chat) == ["hi", "ok"]
    assert chat.versions(0) == chat.versions(1) == (1, 1)
    assert not chat.tree.can_redo


def test_a_question_without_an_answer_gets_one_again(chat: Conversation) -> None:
    for begin in (chat.regenerate, chat.resume, lambda: chat.regenerate(1)):
        chat.tree.cut(0)
        chat.ask("hi")
        begin()
        assert words(chat) == ["hi"]
        assert not chat.growing
        answer(chat)
        assert words(chat) == ["hi", "ok"]


def test_the_last_question_as_a_prompt(chat: Conversation) -> None:
    chat.ask("hi")
    before = chat.question(Limits(overflow="shift"))
    answer(chat)
    assert chat.question(Limits(overflow="shift")) == before
    assert before is not None
    prompt, limits = before
    assert chat.model.tokenizer.decode(prompt).endswith("user\nhi\nassistant\n")
    assert limits.stop_ids == frozenset({129})
    assert limits.overflow == "shift"


def test_another_model_gets_the_words_not_the_ids(chat: Conversation) -> None:
    chat.ask("hi")
    answer(chat)
    chat.regenerate()
    chat.finish([], "hm", stopped=True)
    model = SimpleNamespace(**vars(chat.model))
    other = chat.told_to(model)
    assert other.model is model
    assert (words(other), other.system, other.versions(1)) == (["hi", "hm"], "be kind", (2, 2))
    assert all(turn.message.ids is None for turn in other.tree.walk())
    assert other.tree.undo()
    assert words(other) == ["hi", "ok"]
