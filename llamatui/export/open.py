"""Opens a model of any kind that the readers of this room know, by what lies at its path."""

from pathlib import Path

from llamatui.errors import CheckpointError
from llamatui.export.source import Source

TORCH = (".pt", ".pth", ".ckpt")


def open_model(path: Path) -> Source:
    """A `.bin`, a GGUF file, a checkpoint of llama2.c or of `train run`, Meta's folder or Hugging Face's.

    Raises:
        CheckpointError: Missing, damaged, or none of these.
        TokenizerError: The tokenizer beside it cannot be read.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: expected a model, found no such file or folder", "check the name")
    if path.is_dir():
        # A folder with both, as Mistral publishes, has the same model twice.
        if (path / "params.json").exists() and not (path / "config.json").exists():
            from llamatui.export.meta import open_meta

            return open_meta(path)
        from llamatui.export.hf import open_hf

        return open_hf(path)
    if path.suffix == ".gguf":
        from llamatui.export.gguf_file import open_gguf

        return open_gguf(path)
    if path.suffix in TORCH:
        from llamatui.export.llama2c_checkpoint import open_llama2c

        return open_llama2c(path)
    from llamatui.export.bin_file import open_bin

    return open_bin(path)
