"""Checkpoint files of tests: sound ones, hostile ones built by hand, and damaged copies."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarnet import Checkpointer
from cifarnet.checkpoint.file import decode, encode
from cifarnet.checkpoint.state_tree import flatten
from cifarnet.errors import CheckpointError

STATE = {"model": {"w": torch.arange(24.0).reshape(2, 12), "n": torch.tensor(7)}, "epoch": 3, "lr": [0.1, 0.2]}

#: Content of a sound file of 800 bytes.
SOUND = encode(*flatten(STATE), kind="last")


def refuse(content: bytes) -> CheckpointError:
    """Return the error that reading these bytes raises."""
    with pytest.raises(CheckpointError, match=r"^last\.safetensors") as caught:
        decode(content, name="last.safetensors")
    return caught.value


def build(header: Any, data: bytes = b"") -> bytes:
    """Return a file with this header, which is JSON text or a value."""
    text = (header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    """Return the entry of a tensor in a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Return a copy that is damaged at random: a bit, a cut, a replaced part, the header's length, or a number."""
    data = bytearray(content)
    kind = draw.randrange(5)
    place = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(min(len(data), 4096))
    if kind == 0:
        data[place] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place : place + draw.randrange(64)] = draw.randbytes(draw.randrange(64))
    elif kind == 3:
        data[:8] = draw.choice([0, 1, 8, 2**31, 2**63, 2**64 - 1, len(data), len(data) - 8]).to_bytes(8, "little")
    else:
        digit = draw.choice([i for i in range(8, min(len(data), 4096)) if chr(data[i]).isdigit()])
        data[digit : digit + 1] = draw.choice([b"-1", b"1e999", b"NaN", b"18446744073709551616", b'"x"', b"[]"])
    return bytes(data)


def numbered(number: int, size: int = 50) -> dict[str, Any]:
    """Return a state whose number is in every weight."""
    return {"number": number, "weights": torch.full((size,), float(number))}


def read_number(directory: Path) -> int:
    """Return the number of the state that a fresh process would resume from."""
    state = Checkpointer(directory).read_last()
    assert state is not None
    assert state["weights"].tolist() == [state["number"]] * 50
    return int(state["number"])


def lock_once(directory: Path) -> None:
    """Lock and release the directory of a run."""
    with Checkpointer(directory):
        pass
