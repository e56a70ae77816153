"""Output files: complete or not there at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from captum_lrp_tx.errors import InputError


def check_writable(path: Path, *suffixes: str) -> None:
    """Complains about an output file before the work is done rather than after it.

    Args:
        path (Path): File that will be written.
        *suffixes (str): How its name may end, if it has a suffix.

    Raises:
        InputError: If its folder does not exist or is not writable, it is a folder, or its name
            says that it is something else.
    """
    if suffixes and path.suffix and path.suffix.lower() not in suffixes:
        raise InputError(f"cannot write {path}: the name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {path}: the folder {folder} is not writable")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that no one ever sees half of it, not even after a power cut.

    Args:
        path (Path): File to write or to replace.
        content (bytes): All of it.

    Raises:
        OSError: If it cannot be written; an older file is then still there.
    """
    path = path.resolve()  # a link stays a link
    if path.exists() and not path.is_file():  # /dev/null, a pipe: not to be replaced by a file
        path.write_bytes(content)
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
