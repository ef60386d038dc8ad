"""`llamatui pull`: from a name to a model that runs.

    look up -> download into downloads/<owner>--<name>/ -> export into models/.<name>.part/ -> move to models/

Until the last move nothing of it is listed, and that moves the model file last: what is listed is whole.
Downloads are kept until then, so a pull that failed or was stopped goes on where it was.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llamatui.app import catalogue, store
from llamatui.backends.checkpoint import Checkpoint, ModelConfig
from llamatui.errors import LlamatuiError, MissingExtraError, ModelError, UsageError
from llamatui.export.hub import FetchedFile, HubFile, Progress, Repository, fetch, keep_only, look_up
from llamatui.tokenizers.file_names import TOKENIZER_ENDS

REPO = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?::(?P<file>.+))?", re.ASCII)

FOLDER_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
WEIGHTS = (
    (r"model(-\d+-of-\d+)?\.safetensors", "model.safetensors.index.json"),
    (r"pytorch_model(-\d+-of-\d+)?\.bin", "pytorch_model.bin.index.json"),
)
"""Names of weight files and of their index, the better kind first."""

TOKENIZER_BESIDE = re.compile(r"(.+\.)?tok[^/]*\.(bin|model|json)")
"""Files beside a .bin that may be its tokenizer, as `find_tokenizer` looks for them."""

MAX_TOKENIZER = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Target:
    """What to pull, and what it will be called."""

    name: str
    repo: str
    file: str
    """In the repository; "" for a repository of safetensors."""
    tokenizer: catalogue.Tokenizer | None = None
    """Fetched too where the repository has none."""


@dataclass(frozen=True, slots=True)
class Pulled:
    name: str
    path: Path
    is_new: bool
    notes: tuple[str, ...] = ()
    """What the user should know."""


def parse(target: str) -> Target | catalogue.Tokenizer:
    """What a NAME, OWNER/NAME or OWNER/NAME:FILE stands for.

    Raises:
        UsageError: It is none of them, or the file is of no kind that can be pulled.
    """
    if "/" not in target:
        entry = catalogue.find(target)
        if isinstance(entry, catalogue.Model):
            return _from_entry(entry)
        if entry:
            return entry
        near = catalogue.near(target, catalogue.names())
        raise UsageError(
            f"the catalogue has no {target!r}",
            f"did you mean {' or '.join(near)}?" if near else "llamatui pull lists what it has",
        )
    match = REPO.fullmatch(target)
    if match is None:
        raise UsageError(f"expected NAME or OWNER/NAME[:FILE], found {target!r}", "llamatui pull --help")
    repo, file = match["repo"], match["file"] or ""
    if known := _in_catalogue(repo, file):
        return known
    if not file:
        return Target(_as_name(repo.partition("/")[2]), repo, "")
    if re.fullmatch(WEIGHTS[1][0], file) or not file.endswith((".bin", ".gguf")):
        raise UsageError(
            f"{file}: expected a .gguf or a llama2.c .bin",
            f"for the safetensors of a repository name no file: llamatui pull {repo}",
        )
    return Target(_as_name(Path(file).stem), repo, file)


def _in_catalogue(repo: str, file: str) -> Target | None:
    """A repository (and file) that the catalogue has a name and a tokenizer for."""
    for entry in catalogue.MODELS:
        if (entry.repo, entry.file) == (repo, file):
            return _from_entry(entry)
    return None


def _from_entry(entry: catalogue.Model) -> Target:
    return Target(entry.name, entry.repo, entry.file, entry.tokenizer)


def _as_name(text: str) -> str:
    name = re.sub(r"[^\w.+-]+", "-", text).strip(".-")
    # `foo.bin` would pass for foo, and `foo.tokenizer.bin` for its tokenizer.
    name = re.sub(r"(\.(bin|tokenizer))+$", "", name, flags=re.IGNORECASE)
    if not name:
        raise UsageError(
            f"expected the name of a file, found {text!r}", "name a .gguf or .bin of the repository"
        )
    return name


def pull(
    target: str,
    *,
    version: int | None = None,
    group_size: int | None = None,
    force: bool = False,
    progress: Progress = lambda done, total: None,
    step: Callable[[str], None] = lambda name: None,
) -> Pulled:
    """Brings a model (or a tokenizer) from the hub, ready to run under its name.

    Args:
        target: NAME of the catalogue, OWNER/NAME, or OWNER/NAME:FILE.
        version, group_size: Of the .bin file, see `export_bin`. Without them a .bin is kept as it is.
        force: Also where a model of this name is here already.
        progress: Told the bytes that are done, and those of the whole step.
        step: Told the step that begins: "downloading", then "exporting" where there is something to convert.

    Raises:
        UsageError: `target` is nothing that can be pulled.
        ModelError: There is no such model, it is damaged, or it is no Llama.
        LlamatuiError: No connection, no room, or it must be licensed first. What came so far is kept.
    """
    wanted = parse(target)
    with _alone(wanted.name):
        if isinstance(wanted, catalogue.Tokenizer):
            return _pull_tokenizer(wanted, force, progress, step)
        return _here(wanted, force) or _pull_model(wanted, version, group_size, progress, step)


@contextmanager
def fetched_repository(repo: str, *, progress: Progress = lambda done, total: None) -> Iterator[Path]:
    """A Hugging Face model of the hub, as it is: the folder it is in, for as long as the block lasts.

    Where the block fails, what was fetched is kept for the next time.

    Raises:
        UsageError, ModelError, LlamatuiError: As `pull`.
    """
    wanted = parse(repo)
    if not isinstance(wanted, Target) or wanted.file:
        raise UsageError(f"expected a repository of safetensors, found {repo!r}", f"llamatui pull {repo}")
    with _alone(wanted.name):
        download = _begin(wanted)
        fetch(download.repository, download.files, download.folder, progress=progress)
        yield download.folder
        shutil.rmtree(download.folder, ignore_errors=True)


def _here(wanted: Target, force: bool) -> Pulled | None:
    """The model if it is here already; None where it is to be pulled.

    Raises:
        ModelError: Another one has its name.
    """
    model = store.find(wanted.name)
    if model is None or force:
        return None
    origin = model.origin()
    if (origin.get("repo"), origin.get("file")) != (wanted.repo, wanted.file):
        raise ModelError(
            f"{model.path}: another model of this name is here, from {origin.get('repo', 'elsewhere')}",
            f"llamatui models rm {model.name}, or --force to put this one in its place",
        )
    return Pulled(model.name, model.path, is_new=False)


def _pull_model(
    wanted: Target,
    version: int | None,
    group_size: int | None,
    progress: Progress,
    step: Callable[[str], None],
) -> Pulled:
    step("downloading")
    download = _begin(wanted)
    folder = download.folder
    is_kept_as_it_is = wanted.file.endswith(".bin") and version is None and group_size is None
    room = 0 if is_kept_as_it_is else _size_of_export(download, version)
    fetched = fetch(download.repository, download.files, folder, room=room, progress=progress)
    if wanted.tokenizer:
        fetched.append(_bring_tokenizer(wanted.tokenizer, folder / wanted.file))
    # Beside where it goes, which may be another disk than that of the downloads.
    staged = store.models_folder() / f".{wanted.name}.part"
    with _disk(staged):
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
    model = staged / f"{wanted.name}.bin"
    try:
        if is_kept_as_it_is:
            notes = _take_bin(folder / wanted.file, model)
        else:
            step("exporting")
            notes = _export(folder, wanted.file, model, version, group_size, progress)
        with _disk(staged):
            _write_origin(model.with_suffix(".json"), wanted, download.repository, fetched)
            path = _install(staged, wanted.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    return Pulled(wanted.name, path, is_new=True, notes=tuple(notes))


@dataclass(frozen=True, slots=True)
class Download:
    """What is to be fetched, and the folder that it comes into."""

    repository: Repository
    files: list[HubFile]
    folder: Path
    config: ModelConfig | None
    """Of a Hugging Face model, whose config.json is here already."""


def _begin(wanted: Target) -> Download:
    """Looks up what there is. A model that cannot be exported is refused before its large files come.

    Raises:
        ModelError, LlamatuiError: As `pull`.
    """
    repository = look_up(wanted.repo)
    files = choose(repository, wanted.file)
    folder = _download_folder(wanted.repo, wanted.file)
    with _disk(folder):
        keep_only(folder, files)
    config = None
    if not wanted.file:
        from llamatui.export.hf_config import read_config

        fetch(repository, [repository.file("config.json")], folder)
        config, _ = read_config(folder)
    return Download(repository, files, folder, config)


def _download_folder(repo: str, file: str) -> Path:
    name = re.sub(r"[^\w.+-]+", "--", f"{repo}/{file}".removesuffix("/"))
    return store.downloads_folder() / name


def _size_of_export(download: Download, version: int | None) -> int:
    """Bytes that the exported file will take, about."""
    from llamatui.export.to_bin import LARGEST_FP32

    if download.config is None:
        # A GGUF file of four bits a weight becomes Q8_0; a .bin seldom grows.
        return 2 * sum(file.size for file in download.files)
    fp32 = 4 * download.config.n_params
    if version == 2 or (version is None and fp32 > LARGEST_FP32):
        return fp32 * 17 // 64  # a byte for each weight, four for each group of 64
    return fp32


def choose(repository: Repository, file: str) -> list[HubFile]:
    """The files of a repository that are needed, the small ones first.

    Args:
        file: The one to run, or "" for all that make up a Hugging Face model.

    Raises:
        ModelError: They are not there.
    """
    if file.endswith(".gguf"):
        return [repository.file(file)]
    if file:
        folder = file.rpartition("/")[0]
        beside = [
            other
            for other in repository.files
            if other.name != file
            and other.name.rpartition("/")[0] == folder
            and TOKENIZER_BESIDE.fullmatch(other.name.rpartition("/")[2])
            and other.size <= MAX_TOKENIZER
        ]
        return [*beside, repository.file(file)]
    by_name = {other.name: other for other in repository.files}
    for pattern, index in WEIGHTS:
        weights = [other for other in repository.files if re.fullmatch(pattern, other.name)]
        whole = [other for other in weights if "-of-" not in other.name]
        if weights and "config.json" in by_name:
            names = FOLDER_FILES if whole else (*FOLDER_FILES, index)
            return [*(by_name[name] for name in names if name in by_name), *(whole or weights)]
    offered = [name for name in sorted(by_name) if name.endswith((".gguf", ".bin"))][:6]
    raise ModelError(
        f"{repository.repo}: expected config.json and model.safetensors, found none",
        f"name one file: {', '.join(f'{repository.repo}:{name}' for name in offered)}"
        if offered
        else "choose another repository: this one has no model that can be run",
    )


def _export(
    folder: Path, file: str, target: Path, version: int | None, group_size: int | None, progress: Progress
) -> list[str]:
    """Writes `target` from what was downloaded; gives what the user should know."""
    from llamatui.export.open import open_model
    from llamatui.export.to_bin import export_bin

    source = open_model(folder / file)
    export_bin(source, target, version=version, group_size=group_size, progress=progress)
    return source.notes


def _take_bin(model: Path, target: Path) -> list[str]:
    """Puts a checkpoint and its tokenizer at `target` too, as they are; gives what the user should know.

    Raises:
        CheckpointError: It is no checkpoint.
    """
    from llamatui.tokenizers.loading import find_tokenizer

    vocab_size = Checkpoint(model).config.vocab_size
    tokenizer = find_tokenizer(model, vocab_size)
    with _disk(target):
        if tokenizer:
            _link(tokenizer, target.with_name(f"{target.stem}.tokenizer{tokenizer.suffix}"))
        _link(model, target)
    if tokenizer or find_tokenizer(target, vocab_size, own=store.tokenizers_folder()):
        return []
    known = catalogue.tokenizer_for(vocab_size)
    remedy = f"llamatui pull {known.name}" if known else "name one with -z"
    return [f"no tokenizer of {vocab_size} tokens came with it: {remedy}"]


def _link(path: Path, target: Path) -> None:
    try:
        target.hardlink_to(path)
    except OSError:  # a disk that has no links, or another disk
        shutil.copyfile(path, target)


def _bring_tokenizer(entry: catalogue.Tokenizer, model: Path) -> FetchedFile:
    """Puts a tokenizer of the catalogue beside a model, named for it."""
    repository = look_up(entry.repo)
    fetched = fetch(repository, [repository.file(entry.file)], model.parent / entry.name)[0]
    with _disk(model):
        shutil.copyfile(fetched.path, model.with_name(f"{model.stem}.tokenizer{fetched.path.suffix}"))
    return fetched


def _pull_tokenizer(
    entry: catalogue.Tokenizer, force: bool, progress: Progress, step: Callable[[str], None]
) -> Pulled:
    from llamatui.tokenizers.loading import load_tokenizer

    path = store.tokenizers_folder() / f"{entry.name}{Path(entry.file).suffix}"
    if path.is_file() and not force:
        return Pulled(entry.name, path, is_new=False)
    step("downloading")
    repository = look_up(entry.repo)
    folder = _download_folder(entry.repo, entry.file)
    (fetched,) = fetch(repository, [repository.file(entry.file)], folder, progress=progress)
    load_tokenizer(fetched.path, entry.vocab_size)
    with _disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")  # the downloads may be on another disk
        try:
            shutil.copyfile(fetched.path, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return Pulled(entry.name, path, is_new=True)


def _write_origin(path: Path, wanted: Target, repository: Repository, fetched: Sequence[FetchedFile]) -> None:
    sources = [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in fetched]
    content = {
        "name": wanted.name,
        "repo": wanted.repo,
        "file": wanted.file,
        "revision": repository.commit,
        "sources": sources,
        "pulled_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _install(staged: Path, name: str) -> Path:
    """Moves all that was staged into the models folder, the model itself last."""
    models = store.models_folder()
    replaced = store.find(name)
    if replaced:  # gone first: where the rest fails, no old weights are listed with new companions
        store.remove(replaced)
    # A tokenizer that is here without a model belongs to another one.
    store.delete([models / f"{name}{end}" for end in TOKENIZER_ENDS])
    model = f"{name}.bin"
    for path in sorted(staged.iterdir(), key=lambda path: path.name == model):
        path.replace(models / path.name)
    return models / model


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Keeps others from pulling what is called so: two that write to one file would ruin it.

    Raises:
        LlamatuiError: Another process is at it.
        MissingExtraError: The extra that `pull` needs is not installed.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError:
        raise MissingExtraError("pulling models", "export") from None

    lock = FileLock(store.downloads_folder() / f".{name.casefold()}.lock")
    with _disk(store.downloads_folder()):
        store.downloads_folder().mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LlamatuiError(f"{name}: another pull of it is running", "wait for it to end") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise LlamatuiError(
            f"{where}: cannot be written: {error.strerror or error}", "make room there"
        ) from error
