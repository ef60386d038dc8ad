"""`llamatui web`: what is told in the shell, and what is served."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamatui.app.cli import web as command
from llamatui.app.cli.main import run
from llamatui.app.conversation import Conversation
from llamatui.app.history.recorder import Recorder
from llamatui.app.history.snapshot import Document
from llamatui.app.model import load_model
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """call(...): (exit code, stdout, stderr) of `llamatui web ...`."""

    def called(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llamatui", "web", *map(str, args)])
        code = run()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


@pytest.fixture
def served(call: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, ...]]:
    """served(...): what the command would serve: ((command, host, port, origin), stderr)."""
    web = pytest.importorskip("textual_serve") and __import__("llamatui.app.web", fromlist=["web"])

    def call_it(*args: object) -> tuple[Any, ...]:
        found: list[tuple[Any, ...]] = []
        monkeypatch.setattr(web, "serve", lambda *given: found.append(given))
        code, out, err = call(*args)
        assert (code, out) == (0, ""), err
        return found[0], err

    return call_it


def test_the_room_and_its_options_are_passed_on(served: Any, tiny_model: Path) -> None:
    (line, *where), err = served("story", tiny_model, "-t", "0.5", "-i", "a 'b' $(c); d", "--port", 9000)
    assert line == [
        sys.executable, "-m", "llamatui", "story", str(tiny_model), "-t", "0.5", "-i", "a 'b' $(c); d",
    ]  # fmt: skip
    assert where == ["127.0.0.1", 9000, None]
    assert err == ""
    (line, *_), _ = served()
    assert line[3:] == ["story"]
    (line, *_), _ = served("chat", "some-model", "--", "-y", "--port")
    assert line[3:] == ["chat", "some-model", "-y", "--port"]


def test_other_addresses_are_warned_about(served: Any) -> None:
    (_, host, *_), err = served("--host", "0.0.0.0")
    assert host == "0.0.0.0"
    assert "warning: nothing is encrypted: whoever reads the address" in err


def test_what_the_browser_calls_it(served: Any, call: Call) -> None:
    (*_, origin), _ = served("--public-url", "https://Tales.example:444/")
    assert str(origin) == "https://tales.example:444"
    (*_, origin), _ = served("--public-url", "https://tales.example:443")
    assert str(origin) == "https://tales.example"  # as browsers say it
    for url in (
        "tales.example", "ftp://x", "https://x/path", "https://", "http://[", "http://user@x", "http://a:b",
        "http://x:99999", "http://a b", "http://x?y",
    ):  # fmt: skip
        code, _, err = call("--public-url", url)
        assert (code, "expected http(s)://name[:port]" in err) == (2, True)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("story", "--nonsense"), 2, "No such option"),
        (("story", "-t", "warm"), 2, "'warm' is not a valid float"),
        (("story", "-t", "-1"), 2, "temperature must be in"),
        (("story", "a", "b"), 2, "unexpected extra argument"),
        (("story", "--overflow", "x"), 2, "--overflow must be"),
        (("chat",), 3, "chat needs an instruct model"),
        (("chat", "x", "--json"), 2, "--json is for pipes"),
        (("--port", "0"), 2, "0 is not in the range"),
    ],
)
def test_a_wrong_option_is_told_in_the_shell(
    args: tuple[str, ...], code: int, message: str, call: Call
) -> None:
    found, out, err = call(*args)
    assert (found, out) == (code, "")
    assert message in err


def test_without_its_extra(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    code, _, err = call()
    assert code == 1
    assert 'pip install "llamatui[web]"' in err


@pytest.fixture
def kept(tiny_model: Path) -> list[str]:
    """uids of a chat and a story in the user's history."""
    model = load_model(tiny_model, backend="numpy", threads=1, chat_format="llama2")
    chat, story = Conversation(model), Story(model, None, "stop")
    chat.ask("Who are you?")
    chat.finish([], "A hen.")
    story.write("Once")
    documents = [Document(chat, Sampling()), Document(story, Sampling())]
    recorder = Recorder()
    for document in documents:
        recorder.save(document)
        assert recorder.flush()
    recorder.close()
    return [document.uid for document in documents]


def test_a_text_is_opened_again_in_a_browser(kept: list[str], served: Any) -> None:
    for args in (("chat", "--continue"), ("chat", "--open", kept[0]), ("story", "-c"), ("--open", kept[1])):
        (line, *_), err = served(*args)
        assert (tuple(line[-len(args) :]), err) == (args, "")


def test_what_cannot_be_opened_again_is_told_in_the_shell(kept: list[str], call: Call) -> None:
    for args, message in (
        (("chat", "-c", "-i", "Hi"), "--prompt begins something new"),
        (("chat", "--open", kept[1]), "is a story"),
        (("story", "-c", "--open", kept[1]), "two ways to say which"),
        (("--open", "nonsense"), "nothing in the history begins with nonsense"),
    ):
        code, out, err = call(*args)
        assert (code, out, message in err) == (2, "", True), err


def test_a_chat_whose_model_is_gone_is_told_in_the_shell(
    kept: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    code, _, err = call("chat", "-c")
    assert (code, "the model that wrote it is gone" in err) == (3, True)


def test_a_port_that_is_taken(call: Call, tiny_model: Path) -> None:
    pytest.importorskip("textual_serve")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = call("story", tiny_model, "--port", port)
    assert (code, out) == (1, "")
    assert f"port {port} of 127.0.0.1 is taken" in err
    assert f"--port {port + 1}" in err
    code, _, err = call("story", tiny_model, "--host", "192.0.2.77")
    assert (code, "cannot listen on port 8000 of 192.0.2.77" in err) == (1, True)
