"""Names of pulled models, wherever a path may stand."""

import json
from pathlib import Path

import pytest

from llamatui.app import catalogue, store
from llamatui.app.gguf_cache import cache_folder
from llamatui.errors import ModelError


def put(name: str, *ends: str) -> Path:
    folder = store.models_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for end in (*ends, ".bin"):
        (folder / f"{name}{end}").write_bytes(b"{}")
    return folder / f"{name}.bin"


def test_models_are_listed_by_name() -> None:
    assert store.list_models() == []
    put("b", ".tokenizer.bin", ".json")
    put("A.1")
    (store.models_folder() / ".c.bin").touch()
    (store.models_folder() / "d.txt").touch()
    assert [model.name for model in store.list_models()] == ["A.1", "b"]


def test_a_name_stands_for_its_model() -> None:
    path = put("Llama-3.2-1B")
    for name in ("Llama-3.2-1B", "llama-3.2-1b", "LLAMA-3.2-1B.bin"):
        assert store.resolve(name) == path


def test_a_file_that_exists_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = put("mine")
    monkeypatch.chdir(tmp_path)
    assert store.resolve("mine") == pulled
    Path("mine").mkdir()
    assert store.resolve("mine") == pulled
    Path("mine").rmdir()
    Path("mine").touch()
    assert store.resolve("mine") == Path("mine")


@pytest.mark.parametrize("name", ["nowhere/model", "./m", "model.bin", "model.gguf", "m.pt", ""])
def test_what_looks_like_a_path_stays_one(name: str) -> None:
    assert store.resolve(name) == Path(name)


@pytest.mark.parametrize("name", ["stories15M", "STORIES15m", "stories15M.bin"])
def test_a_model_of_the_catalogue_that_is_not_here(name: str) -> None:
    with pytest.raises(ModelError, match="stories15M is not here yet") as caught:
        store.resolve(name)
    assert caught.value.hint == "llamatui pull stories15M"


def test_a_tokenizer_is_no_model() -> None:
    with pytest.raises(ModelError, match="llama2-tokenizer is a tokenizer"):
        store.resolve("llama2-tokenizer")


def test_an_unknown_name_suggests_those_like_it() -> None:
    put("my-own-model")
    with pytest.raises(ModelError, match="my-own-modle: no such file, and no pulled model") as caught:
        store.resolve("my-own-modle")
    assert caught.value.hint == "did you mean my-own-model? llamatui models lists what is here"
    with pytest.raises(ModelError) as caught:
        store.resolve("storys")
    assert "stories" in caught.value.hint
    with pytest.raises(ModelError) as caught:
        store.resolve("Llama-3.2-7B")
    assert "Llama-3.2-1B" in caught.value.hint
    with pytest.raises(ModelError) as caught:
        store.resolve("Once upon a time")
    assert caught.value.hint.startswith("a text to go on from is given with -i; ")
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(ModelError, match="no such file"):
            store.resolve(name)


def test_removal_takes_all_that_belongs_to_a_model_and_nothing_else() -> None:
    put("a", ".tokenizer.model", ".tokenizer_config.json", ".json")
    kept = put("a.tokenizers")
    store.remove(store.stored("A")[0])
    assert list(store.models_folder().iterdir()) == [kept]


def put_converted(folder: str, name: str) -> Path:
    path = cache_folder() / folder / f"{name}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    for end in (".tokenizer.json", ".tokenizer.bin", ".tokenizer_config.json", ".bin"):
        path.with_name(name + end).touch()
    return path


def test_what_gguf_files_became_is_listed() -> None:
    paths = [put_converted("1f-1", "m"), put_converted("1f-1", "n"), put_converted("2f-1", "m")]
    (cache_folder() / "2f-1" / ".m.bin.x.part").touch()
    assert [model.path for model in store.list_converted()] == [paths[0], paths[2], paths[1]]
    assert store.list_models() == []
    assert store.find("m") is None


def test_a_converted_model_goes_with_its_folder_and_a_pulled_one_of_its_name_goes_first() -> None:
    put_converted("1f-1", "m")
    put_converted("1f-1", "n")
    put_converted("2f-1", "m")
    put("m")
    for model in store.stored("M"):
        store.remove(model)
    assert store.list_models() == []
    assert store.models_folder().is_dir()
    assert len(store.list_converted()) == 3
    for model in store.stored("M"):
        store.remove(model)
    assert [path.name for path in cache_folder().rglob("*") if "m." in path.name or path.is_dir()] == ["1f-1"]
    assert [model.name for model in store.list_converted()] == ["n"]


@pytest.mark.parametrize("name", ["../a", "models/a", "..", ".", "", "\x1b[31m", "a\n", "/etc/passwd", "*"])
def test_only_names_of_models_are_removed(name: str) -> None:
    path = put("a")
    (store.models_folder().parent / "a.bin").touch()
    with pytest.raises(ModelError, match="no pulled model is called"):
        store.stored(name)[0]
    assert path.exists()


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, "{", '"x"', '{"repo": 1, "file": ""}'])
def test_an_origin_that_cannot_be_read_is_none(content: str) -> None:
    path = put("a")
    path.with_suffix(".json").write_text(content)
    assert store.stored("a")[0].origin() == {}
    path.with_suffix(".json").write_text(json.dumps({"repo": "x/y", "file": ""}))
    assert store.stored("a")[0].origin() == {"repo": "x/y", "file": ""}


def test_completion_of_names() -> None:
    put("Stories")
    put("other")
    assert store.complete_names("St") == ["Stories"]
    assert store.complete_names("") == ["other", "Stories", "stories"]


def test_the_catalogue_is_sound() -> None:
    names = [name.casefold() for name in catalogue.names()]
    assert len(set(names)) == len(names)
    for entry in (*catalogue.MODELS, *catalogue.TOKENIZERS):
        assert catalogue.find(entry.name.upper()) is entry
        assert entry.repo.count("/") == 1
        assert entry.gated == entry.repo.startswith("meta-llama/")
        # A name is also that of a file, and must not look like a path.
        assert Path(entry.name).name == entry.name
        assert not entry.name.endswith(store.FILE_ENDS)
    assert catalogue.tokenizer_for(32000) is catalogue.LLAMA2
    assert catalogue.tokenizer_for(128256) is catalogue.LLAMA3
    assert catalogue.tokenizer_for(7) is None
    assert catalogue.find("nothing") is None
