"""Several processes and machines, started by torchrun; a plain `python SCRIPT.py` is one rank alone."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from files import InputError, WriteError

LONGEST_WAIT = timedelta(days=7)  # a rank may wait that long for the others, while they collect or evaluate


class Ranks:
    """This process's place among those that work together.

    Args:
        device: the ranks' messages travel over gloo on the CPU, over nccl on CUDA.
    """

    def __init__(self, device: torch.device | None = None):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.n_local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # ranks on this machine
        self.is_first = self.rank == 0
        self.device = device or torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1 and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=LONGEST_WAIT)

    def share(self, items: list) -> list:
        """The items that are this rank's: every `size`-th one."""
        return items[self.rank :: self.size]

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank; the others wait for it."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def first_does(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on rank 0, None on the others; an error there ends every rank."""
        result, error = None, None
        if self.is_first:
            try:
                result = work()
            except Exception as raised:  # told to the others first, who would wait for ever, then raised again
                error = raised
        told = self.from_first(error and (isinstance(error, InputError), str(error)))
        if told is None:
            return result
        self.leave()
        if error:
            raise error
        is_input_error, message = told
        raise InputError(message) if is_input_error else WriteError(f"the first rank has failed: {message}")

    def gather(self, value: Any) -> list:
        """Every rank's value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def mean(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Scalars averaged over the ranks."""
        if self.size == 1:
            return values
        stacked = torch.stack([value.detach().float() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, stacked / self.size))

    def leave(self) -> None:
        """End the work together. Nothing that sends messages, such as DistributedDataParallel, may be held any more."""
        if self.size > 1:
            gc.collect()  # such objects refer to themselves; one that outlives its process group aborts the process
            dist.destroy_process_group()
