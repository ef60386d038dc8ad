"""What lies in a run's folder, without PyTorch."""

from pathlib import Path

from llamatui.errors import CheckpointError

LAST, BEST = "last.pt", "best.pt"
CONFIG = "config.toml"


def checkpoint_path(path: Path) -> Path:
    """The best checkpoint of a run's folder, the last where there is no best; a file is itself.

    Raises:
        CheckpointError: There is none.
    """
    if not path.is_dir():
        return path
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path}: expected {BEST} or {LAST}, found neither",
        "give the folder of a run that has been evaluated",
    )
