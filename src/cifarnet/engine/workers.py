"""Whether the parts of a ``DataLoader`` can be sent to its workers."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor
from torch.utils.data import DataLoader

from cifarnet.errors import SettingError

__all__ = ["check_workers"]


def check_workers(loader: DataLoader[Any]) -> None:
    """Refuse a loader that would fail where its workers start, which may be an epoch later.

    Only what is sent to workers is tried (the sampler stays here), and nothing where they are forked. Pixels are left
    out, so that it costs less than the start of one worker.

    Args:
        loader: Of any data set.

    Raises:
        SettingError: Naming what cannot be pickled, and why.
    """
    if not loader.num_workers or _start_method(loader) == "fork":
        return
    for name in ("dataset", "collate_fn", "worker_init_fn"):
        part = getattr(loader, name)
        try:
            _Trial().dump(part)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            called = getattr(part, "__qualname__", type(part).__qualname__)
            raise SettingError(
                f"the {name} of the DataLoader ({called}) cannot be sent to its workers: {error}; workers that are not "
                "forked take functions and classes from the top level of a module, and no open files. Or give "
                "num_workers=0"
            ) from error
        except RuntimeError:  # a lock or a queue can tell only a worker that starts whether it goes along
            pass


def _start_method(loader: DataLoader[Any]) -> str:
    context: Any = loader.multiprocessing_context or torch.multiprocessing
    # The first of all is the default; to ask without allow_none would settle on it.
    chosen: str = context.get_start_method(allow_none=True) or torch.multiprocessing.get_all_start_methods()[0]
    return chosen


class _Trial(ForkingPickler):
    """Pickles as the start of a worker does, to nowhere, without the contents of tensors and arrays."""

    def __init__(self) -> None:
        super().__init__(self, pickle.HIGHEST_PROTOCOL)

    def write(self, data: bytes) -> int:
        return len(data)

    def reducer_override(self, thing: Any) -> Any:
        is_array = isinstance(thing, np.ndarray) and not thing.dtype.hasobject
        if is_array or isinstance(thing, Tensor | torch.UntypedStorage | torch.TypedStorage):
            return list, ()
        return NotImplemented
