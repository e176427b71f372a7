"""A bundle as a file that a device takes: signed with the desk key, the model card beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.storage import make_private_folder, write_durable
from kasmina_trainer.export import documents


def write_bundle(bundle: Bundle, out: Path | str = "build", *, clock: Callable[[], float] = time.time) -> Path:
    """Sign with the desk key and write ``OUT/NAME-VERSION.kasmina``, and its card, if it has papers, beside it.

    Args:
        bundle: What `export_bundle` gave; its card becomes ``OUT/NAME-VERSION.card.md``.
        out: Folder; made when missing.
        clock: Seconds since 1970, for the signatures' dates.

    Returns:
        The bundle's file.

    Raises:
        InputError: The desk key's folder is a fleet's.
        StorageError: The disk refused.
    """
    signed = Repository.desk(clock=clock).sign_bundle(bundle)
    path = Path(out) / signed.file_name
    make_private_folder(path.parent)
    write_durable(path, pack(signed))
    if documents.PATH in signed.files:
        write_durable(path.with_suffix(".card.md"), documents.markdown(signed.files[documents.PATH]).encode())
    return path
