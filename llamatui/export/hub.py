"""Files from the Hugging Face hub: resumed where a download stopped, verified before they get their name.

The library says what a repository holds, logs in, follows redirects and names what goes wrong. The bytes are
received here: since huggingface_hub 1.18 its own downloads start from nothing in each run (its issue 4196).
A file is `NAME.<hash>.part` until its size and hash are the hub's, so its name alone says that it is whole.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from importlib.util import find_spec
from pathlib import Path, PurePosixPath, PureWindowsPath
from time import sleep
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from llamatui import __version__
from llamatui.backends.checkpoint_writer import check_room
from llamatui.errors import LlamatuiError, MissingExtraError, ModelError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo
    from huggingface_hub.hf_api import RepoSibling

Progress = Callable[[int, int], None]
"""(bytes here, bytes in all), of all files together."""

RETRIES = 4  # in a row without a new byte
TIMEOUT = 30.0  # seconds without a byte
BUSY = (408, 429, 500, 502, 503, 504)  # worth another try
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What the library raises where the answer is no JSON, or JSON of another shape."""
USER_AGENT = {"user-agent": f"llamatui/{__version__}"}  # the library's own tells what else is installed
DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
DATASETS = "datasets/"
AGAIN = "repeat the command: it goes on where it stopped"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository, as the hub describes it."""

    name: str
    """Path in the repository."""
    size: int
    sha256: str
    """Of a file in large file storage, else ""."""
    git_sha1: str
    """Of a file in git, as git names its contents, else ""."""

    @property
    def digest(self) -> str:
        return self.sha256 or self.git_sha1


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A file that is here, whole and verified."""

    path: Path
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Repository:
    """What a repository holds at one commit."""

    repo: str
    """OWNER/NAME of a model, datasets/OWNER/NAME of a dataset, as in its address."""
    commit: str
    files: tuple[HubFile, ...]

    def file(self, name: str) -> HubFile:
        """The file of this name.

        Raises:
            ModelError: There is none.
        """
        for file in self.files:
            if file.name == name:
                return file
        near = sorted(file.name for file in self.files if Path(file.name).suffix == Path(name).suffix)
        raise ModelError(
            f"{self.repo}: expected a file {name!r}, found none",
            f"it has {', '.join(near[:8])}" if near else f"see {endpoint()}/{self.repo}/tree/main",
        )


def endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, or huggingface.co.

    Raises:
        UsageError: HF_ENDPOINT is no address.
    """
    address = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"HF_ENDPOINT: expected an address, found {address!r}", "unset it")
    return address


def look_up(repo: str, revision: str = "main", *, extra: str = "export") -> Repository:
    """What is in a repository, with sizes and hashes.

    Args:
        repo: OWNER/NAME of a model, or datasets/OWNER/NAME.
        extra: Which of ours to install where huggingface_hub is not.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        ModelError: No such repository, or not for us.
        LlamatuiError: The hub cannot be reached, or does not answer as it should.
    """
    _require_library(extra)
    with _told(repo):
        info = _repo_info(repo, revision)
    return Repository(repo, info.sha or revision, tuple(map(_hub_file, info.siblings or ())))


def _repo_info(repo: str, revision: str) -> "ModelInfo | DatasetInfo":
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(endpoint=endpoint(), headers=USER_AGENT)
    kind, name = _kind_and_name(repo)
    for attempt in range(1, RETRIES + 1):
        try:
            return api.repo_info(
                name, repo_type=kind, revision=revision, files_metadata=True, timeout=TIMEOUT
            )
        except HfHubHTTPError as error:
            if error.response.status_code not in BUSY or attempt == RETRIES:
                raise
        except HFValidationError:
            raise
        except UNREADABLE as error:
            raise LlamatuiError(
                f"{repo}: {endpoint()} does not answer as a hub does", "is HF_ENDPOINT right?"
            ) from error
        sleep(min(2.0**attempt, 10))
    raise AssertionError("the last attempt returns or raises")


def _kind_and_name(repo: str) -> tuple[str, str]:
    """ "model" or "dataset", and OWNER/NAME."""
    if repo.startswith(DATASETS) and repo.count("/") == 2:
        return "dataset", repo.removeprefix(DATASETS)
    return "model", repo


def _hub_file(sibling: "RepoSibling") -> HubFile:
    if sibling.lfs is None:
        return HubFile(str(sibling.rfilename), sibling.size, "", str(sibling.blob_id or ""))
    return HubFile(str(sibling.rfilename), sibling.lfs.size, str(sibling.lfs.sha256), "")


def fetch(
    repository: Repository,
    files: Sequence[HubFile],
    folder: Path,
    *,
    room: int = 0,
    progress: Progress = lambda done, total: None,
) -> list[FetchedFile]:
    """Brings files into `folder`, under their paths in the repository. What is there already is not fetched.

    Args:
        room: Bytes that will be needed on the same disk when the files are here.
        progress: Called as bytes arrive.

    Raises:
        ModelError: A file is not what the hub says it is (what came is deleted), or is not for us.
        LlamatuiError: No room, no connection. What came so far is kept, and the next call goes on from there.
    """
    _require_library()
    for file in files:
        _check(repository.repo, file)
    with _told(repository.repo):
        headers = _headers()
        folder.mkdir(parents=True, exist_ok=True)
        check_room(folder, room + _missing(folder, files), f", then {AGAIN}")
        total = sum(file.size for file in files)
        fetched: list[FetchedFile] = []
        before = 0
        for file in files:

            def step(size: int, before: int = before) -> None:
                progress(before + size, total)

            fetched.append(_bring(repository, file, folder / file.name, headers, step))
            before += file.size
    return fetched


def _bring(
    repository: Repository, file: HubFile, path: Path, headers: dict[str, str], step: Callable[[int], None]
) -> FetchedFile:
    if not path.is_file() or _problem(path, file):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(path, file)
        _receive(repository, file, part, headers, step)
        if problem := _problem(part, file):
            part.unlink()
            raise ModelError(f"{repository.repo}: {file.name}: {problem}", "try again")
        part.replace(path)
    step(file.size)
    return FetchedFile(path, file.name, file.size, file.sha256 or _sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def part_of(path: Path, file: HubFile) -> Path:
    """Where a file is until it is whole. Another version of it has another name, so the two never mix."""
    return path.with_name(f"{path.name}.{file.digest[:12]}.part")


def keep_only(folder: Path, files: Sequence[HubFile]) -> None:
    """Deletes all in `folder` that is none of `files`, whole or begun: no commit's files mix with another's.

    Raises:
        OSError: Something cannot be deleted.
    """
    paths = [folder / file.name for file in files]
    kept = {*paths, *map(part_of, paths, files)}
    for path in folder.rglob("*"):
        if path not in kept and not path.is_dir():
            path.unlink()


def _check(repo: str, file: HubFile) -> None:
    parts = file.name.split("/")
    inside = (
        all(part.isprintable() and part not in ("", ".", "..") for part in parts)
        and not PurePosixPath(file.name).is_absolute()
        and not any(PureWindowsPath(part).anchor or "\\" in part for part in parts)
    )
    if not inside:
        raise ModelError(f"{repo}: expected file names inside the repository, found {file.name!r}")
    if not (isinstance(file.size, int) and file.size >= 0 and DIGEST.fullmatch(file.digest)):
        raise LlamatuiError(
            f"{repo}: the hub does not say the size and hash of {file.name}", "is HF_ENDPOINT right?"
        )


def _missing(folder: Path, files: Iterable[HubFile]) -> int:
    """Bytes of `files` that are not in `folder` yet."""
    missing = 0
    for file in files:
        path = folder / file.name
        here = next((p.stat().st_size for p in (path, part_of(path, file)) if p.is_file()), 0)
        missing += max(file.size - here, 0)
    return missing


def _receive(
    repository: Repository, file: HubFile, part: Path, headers: dict[str, str], step: Callable[[int], None]
) -> None:
    """Adds to `part` until it has the size of `file`; a connection that is cut is taken up again."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    kind, name = _kind_and_name(repository.repo)
    url = hf_hub_url(name, file.name, repo_type=kind, revision=repository.commit, endpoint=endpoint())
    if part.is_file() and part.stat().st_size > file.size:
        part.unlink()
    with part.open("ab") as output:
        furthest = output.tell()
        failures = 0
        step(furthest)
        while output.tell() < file.size:
            problem: Exception | None = None
            try:
                _receive_once(url, headers, output, file.size, step)
            except HTTPError as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code not in BUSY:
                    raise
                problem = error
            # A server that knows no ranges begins anew each time: only bytes beyond the furthest count.
            failures = 0 if output.tell() > furthest else failures + 1
            furthest = max(furthest, output.tell())
            if failures > RETRIES:
                raise problem or LlamatuiError(
                    f"{repository.repo}: {file.name}: expected {file.size:,} bytes, found {furthest:,}",
                    "try again later",
                )
            if failures:
                sleep(min(2.0**failures, 10))


def _receive_once(
    url: str, headers: dict[str, str], output: BinaryIO, size: int, step: Callable[[int], None]
) -> None:
    from huggingface_hub.utils import get_session, hf_raise_for_status

    offset = output.tell()
    ranges = {"Range": f"bytes={offset}-"} if offset else {}
    with get_session().stream("GET", url, headers={**headers, **ranges}, timeout=TIMEOUT) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            output.seek(0)
            output.truncate()
        for chunk in response.iter_bytes():
            # One byte too many is enough to tell a wrong file, without filling the disk.
            output.write(chunk[: size + 1 - output.tell()])
            step(min(output.tell(), size))
            if output.tell() > size:
                return


def _problem(path: Path, file: HubFile) -> str:
    """What is wrong with a file; "" for nothing."""
    size = path.stat().st_size
    if size != file.size:
        return f"expected {file.size:,} bytes, found {'more' if size > file.size else f'{size:,}'}"
    kind = "sha256" if file.sha256 else "sha1"
    digest = hashlib.new(kind, usedforsecurity=False)
    if not file.sha256:
        digest.update(b"blob %d\0" % size)  # git's name of a file's contents
    with path.open("rb") as content:
        hashlib.file_digest(content, lambda: digest)
    found = digest.hexdigest()
    return "" if found == file.digest else f"expected {kind} {file.digest}, found {found}"


def _require_library(extra: str = "export") -> None:
    if find_spec("huggingface_hub") is None:
        raise MissingExtraError("fetching from the hub", extra)
    from huggingface_hub.utils import logging

    logging.set_verbosity(logging.CRITICAL)  # what it warns of is retried, or told as our error


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    # Compressed, a file could not be taken up at a byte.
    return {**build_hf_headers(headers=USER_AGENT), "Accept-Encoding": "identity"}


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """What goes wrong with the hub or the disk, as our errors."""
    from huggingface_hub import errors

    address = endpoint()
    try:
        yield
    except errors.GatedRepoError as error:
        raise LlamatuiError(
            f"{repo} is gated: its licence is not accepted yet, or you are not logged in",
            f"accept the licence at {address}/{repo}, then log in: hf auth login (or set HF_TOKEN)",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{repo}: no such repository on {address}, or it is private",
            "check its name; to see a private one, log in: hf auth login (or set HF_TOKEN)",
        ) from error
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise ModelError(
            f"{repo}: the file or revision is not there any more", f"see {address}/{repo}/tree/main"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise LlamatuiError(f"{repo}: HF_HUB_OFFLINE is set: nothing is fetched", "unset it") from error
    except errors.HFValidationError as error:
        raise UsageError(f"{repo!r} is no name of a repository", "names are owner/name") from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo, address, error.response.status_code) from error
    except errors.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise LlamatuiError(
            f"{repo}: {address} cannot be reached: {reason}", f"check the connection, then {AGAIN}"
        ) from error
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise LlamatuiError(f"{repo}: the disk is full", f"make room, then {AGAIN}") from error
        raise LlamatuiError(f"{repo}: cannot be written: {error.strerror or error}") from error


def _refused(repo: str, address: str, status: int) -> LlamatuiError:
    if status == 401:
        return LlamatuiError(
            f"{repo}: {address} does not know your token (401)", "log in again: hf auth login"
        )
    if status == 403:
        return LlamatuiError(
            f"{repo}: your token does not reach this repository (403)",
            f"accept its licence at {address}/{repo}, or log in with a token that may read it: hf auth login",
        )
    if status == 416:
        return LlamatuiError(f"{repo}: the hub has less of a file than it says", "try again later")
    return LlamatuiError(f"{repo}: {address} answers with HTTP {status}", f"wait a while, then {AGAIN}")
