"""Fetches TinyStories: short stories in the words of a small child, written by GPT-4.

Source: Eldan and Li, "TinyStories: How Small Can Language Models Be and Still Speak Coherent English?",
arXiv:2305.07759; the second version of the data, https://huggingface.co/datasets/roneneldan/TinyStories.
"""

from pathlib import Path

from llamatui.export.hub import Progress, fetch, look_up

REPO = "datasets/roneneldan/TinyStories"
TRAIN = "TinyStoriesV2-GPT4-train.txt"  # 2.2 GB
VALID = "TinyStoriesV2-GPT4-valid.txt"  # 22 MB


def download(
    folder: Path, *, valid_only: bool = False, progress: Progress = lambda done, total: None
) -> list[Path]:
    """Brings the texts into `folder`, the small one first. What is there, whole or in part, is kept.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        ModelError, LlamatuiError: As `fetch`.
    """
    repository = look_up(REPO, extra="train")
    files = [repository.file(name) for name in ([VALID] if valid_only else [VALID, TRAIN])]
    return [file.path for file in fetch(repository, files, folder, progress=progress)]
