"""flag > environment > config.toml > default."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamatui.app.cli.config import app
from llamatui.app.config import config_path, resolve
from llamatui.errors import UsageError


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("LLAMATUI_CONFIG", str(path))
    return path


def test_defaults_are_llama2c_s(config: Path) -> None:
    settings, sources = resolve()
    assert (settings.temperature, settings.top_p, settings.seed) == (1.0, 0.9, 0)
    assert set(sources.values()) == {"default"}


def test_each_source_wins_over_the_next(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('temperature = 0.1\ntop_p = 0.2\ntop_k = 3\nmodel = "a.bin"\n')
    monkeypatch.setenv("LLAMATUI_TOP_P", "0.5")
    monkeypatch.setenv("LLAMATUI_TOP_K", "5")
    settings, sources = resolve({"top_k": 7, "min_p": None})
    assert (settings.temperature, settings.top_p, settings.top_k, settings.min_p) == (0.1, 0.5, 7, 0.0)
    assert [sources[name] for name in ("temperature", "top_p", "top_k", "min_p")] == [
        "config", "environment", "flag", "default",
    ]  # fmt: skip
    assert settings.model == "a.bin"


def test_an_integer_will_do_for_a_float(config: Path) -> None:
    config.write_text("temperature = 1")
    assert resolve()[0].temperature == 1.0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("temprature = 1", "unknown setting 'temprature'"),
        ("temperature = ", "cannot be read"),
        ('temperature = "warm"', "temperature in .*: expected float, found 'warm'"),
        ("top_k = 1.5", "expected int, found 1.5"),
        ("top_k = true", "expected int, found True"),
        ("model = 3", "expected str, found 3"),
        ("[model]\nx = 1", "expected str, found"),
        ("keys = 3", "keys in .*: expected a table, found 3"),
        ("[keys]\n'story.retry' = 3", "story.retry in keys in .*: expected str, found 3"),
        ("\xff", "cannot be read"),
    ],
)
def test_a_config_that_is_wrong_is_told(content: str, problem: str, config: Path) -> None:
    config.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=problem) as caught:
        resolve()
    assert "config.toml" in caught.value.message


def test_the_bound_of_kept_caches_is_a_setting(config: Path) -> None:
    assert resolve()[0].kv_cache_mb == 2000
    config.write_text("kv_cache_mb = 0")
    assert resolve()[0].kv_cache_mb == 0


def test_the_history_is_on_or_off(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve()[0].history == "on"
    config.write_text('history = "off"')
    assert resolve()[0].history == "off"
    monkeypatch.setenv("LLAMATUI_HISTORY", "maybe")
    with pytest.raises(UsageError, match="expected on or off, found 'maybe'"):
        resolve()


def test_keys_are_a_table_with_and_without_quotes(config: Path) -> None:
    config.write_text('theme = "contrast"\n[keys]\n"story.retry" = "ctrl+y"\nchat.new = "f5"\n')
    settings, sources = resolve()
    assert settings.keys == {"story.retry": "ctrl+y", "chat.new": "f5"}
    assert (settings.theme, sources["keys"]) == ("contrast", "config")


def test_config_shows_keys_as_toml_has_them(config: Path) -> None:
    import tomllib

    config.write_text('[keys]\n"story.retry" = "ctrl+g"\n')
    shown = CliRunner().invoke(app, ["show"])
    assert tomllib.loads(shown.stdout)["keys"] == {"story.retry": "ctrl+g"}


def test_an_environment_that_is_wrong_is_told(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMATUI_SEED", "x")
    with pytest.raises(UsageError, match="LLAMATUI_SEED: expected int, found 'x'"):
        resolve()


def test_the_path_is_in_the_user_s_configuration_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMATUI_CONFIG", raising=False)
    assert config_path().name == "config.toml"
    assert home in config_path().parents
