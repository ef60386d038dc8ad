"""What the system says of its memory."""

import sys

import pytest

from llamatui.app import memory


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="they have no /proc")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("MemTotal: 100 kB\nMemFree:  5 kB\nMemAvailable:   42 kB\n", 42 * 1024),
        ("MemTotal: 100 kB\n", None),
        ("MemAvailable: many\n", None),
        (None, None),
    ],
)
def test_linux_says_what_is_available(content, expected, monkeypatch, tmp_path):
    path = tmp_path / "meminfo"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(memory, "MEMINFO", path)
    assert memory.available_memory() == expected


def test_this_machine_has_some():
    available = memory.available_memory()
    assert available is None or 1 << 20 < available < 1 << 50
