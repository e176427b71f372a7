"""A source archive comes as it is: found by pip, checked, and never built."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from kasmina_edge.errors import LinkError
from kasmina_trainer.datasets.fetching import Member, Package, read
from kasmina_trainer.datasets.package_clients import download


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its index, with one source archive whose setup.py leaves a mark when it runs."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    files = {
        "setup.py": f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\nraise SystemExit('built')\n",
        "PKG-INFO": "Metadata-Version: 1.0\nName: poems\nVersion: 0.3\n",
        "poems.txt": "roses are red\n",
    }
    with tarfile.open(folder / "poems-0.3.tar.gz", "w:gz") as tar:
        for name, body in files.items():
            told = tarfile.TarInfo(f"poems-0.3/{name}")
            told.size = len(body)
            tar.addfile(told, io.BytesIO(body.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_nothing_of_a_source_archive_runs(shelf: Path, tmp_path: Path) -> None:
    body = b"roses are red\n"
    package = Package(
        client="pypi",
        name="poems",
        version="0.3",
        archives=(hashlib.sha256((shelf / "poems-0.3.tar.gz").read_bytes()).hexdigest(),),
        max_archive_bytes=10_000,
        max_content_bytes=100_000,
        members=(Member("poems", "poems-0.3/poems.txt", hashlib.sha256(body).hexdigest(), len(body)),),
    )
    assert read(package, tmp_path / "cache") == {"poems": body}
    assert not (tmp_path / "ran").exists()


def test_the_setup_of_that_archive_would_leave_its_mark(shelf: Path, tmp_path: Path) -> None:
    """The negative control of the test above."""
    script = tmp_path / "setup.py"
    with tarfile.open(shelf / "poems-0.3.tar.gz") as tar:
        found = tar.extractfile("poems-0.3/setup.py")
        assert found is not None
        script.write_bytes(found.read())
    assert subprocess.run([sys.executable, str(script)], capture_output=True, check=False).returncode == 1
    assert (tmp_path / "ran").exists()


def test_a_version_that_is_not_there_is_a_sentence(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    with pytest.raises(LinkError, match=r"no source archive of poems 9\.9"):
        download("pypi", "poems", "9.9", [], tmp_path / "into")
