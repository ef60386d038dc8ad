"""Exporting holds a block of rows, not the model: what the system counts as ours, mapped pages included."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from llamatui.backends.checkpoint import LEGACY_HEADER, ModelConfig, tensor_layout
from tests.export.hf_models import config_json

CONFIG = ModelConfig(1024, 4096, 6, 16, 16, 300, 64, bos_id=1, eos_ids=(2,))
"""100 M weights: 400 MB as fp32, 200 MB as bf16; the largest tensor has 16 MB."""

EXPORT = """
import re, sys
from pathlib import Path
from llamatui.export.{module} import {open}
from llamatui.export.to_bin import export_bin

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

source = {open}(Path(sys.argv[1]))
before = peak()
export_bin(source, Path(sys.argv[2]), version=2)
print(peak() - before)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


def peak_of_export(module: str, opener: str, source: Path, target: Path) -> int:
    """MiB that memory grew by at the most."""
    code = EXPORT.format(module=module, open=opener)
    command = [sys.executable, "-c", code, str(source), str(target)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def hf_folder(folder: Path) -> Path:
    """Zeros in a file with holes: nothing is written, but all of it is mapped and read."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json(CONFIG)))
    from llamatui.export.hf import hf_name

    header: dict[str, object] = {}
    offset = 0
    for spec in tensor_layout(CONFIG, 1):
        for layer in range(max(spec.n_layers, 1)):
            end = offset + spec.size // max(spec.n_layers, 1) * 2
            header[hf_name(spec.name, layer)] = {
                "dtype": "BF16", "shape": spec.shape, "data_offsets": [offset, end],
            }  # fmt: skip
            offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return folder


def test_safetensors(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf")
    assert peak_of_export("hf", "open_hf", folder, tmp_path / "m.bin") < 200


def test_bin(tmp_path: Path) -> None:
    c = CONFIG
    with (tmp_path / "v0.bin").open("wb") as file:
        file.write(
            LEGACY_HEADER.pack(c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, 64)
        )
        file.truncate(tensor_layout(c, 0)[-1].end)
    assert peak_of_export("bin_file", "open_bin", tmp_path / "v0.bin", tmp_path / "m.bin") < 300
