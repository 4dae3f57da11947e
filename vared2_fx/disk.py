"""Files that are there as a whole, or not at all."""

import hashlib
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Let the file reach the disk before its name says that it has."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
