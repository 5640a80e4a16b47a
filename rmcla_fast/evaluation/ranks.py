"""Evaluation by the processes that torchrun started: each attacks a share of the images, and rank 0 keeps the results.

The command is `torchrun --nproc-per-node 8 -m rmcla_fast.cli evaluate RUN ...`. The ranks need no collective operation.
They send what they find to rank 0 through torchrun's key-value store, and wait for one another only between the parts
of an attack. What an attack decides about an image depends on that image alone, so the verdicts are those of one
process.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from rmcla_fast.attacks.verdicts import Finding, Team, Verdicts
from rmcla_fast.errors import RunFailed, UserError
from rmcla_fast.training.distributed import world_size

SECONDS_BETWEEN_MESSAGES = 1.0
PATIENCE = timedelta(days=30)  # how long ranks wait for a slow one; torchrun stops all of them if one is lost


class Ranks(Team):
    """Ranks that share the images of an evaluation, image by image in turn."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._unsent: list[Finding] = []
        self._sent = time.monotonic()
        self._messages = [0] * size  # that have been sent by this rank or received from each other one, for this part
        self._parts = 0  # that are settled; the number tells the messages about one part from those about the next

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        return rows[self.rank :: self.size]

    def tell(self, found: Finding, verdicts: Verdicts) -> None:
        if self.rank:
            self._unsent.append(found)
        if time.monotonic() - self._sent < SECONDS_BETWEEN_MESSAGES:
            return
        self._sent = time.monotonic()
        if self.is_main:
            self._receive(verdicts)
        else:
            self._send()

    def settle(self, verdicts: Verdicts, kept: Callable[[], None]) -> None:
        if self.is_main:
            finished: set[int] = set()
            while len(finished) < self.size - 1:
                finished |= {rank for rank in range(1, self.size) if self._store.check([self._key("finished", rank)])}
                if self._receive(verdicts):
                    kept()
                time.sleep(0.05)
            self._receive(verdicts)
            self._set(self._key("settled", 0), verdicts)
        else:
            self._send()
            self._store.set(self._key("finished", self.rank), "")
            settled: Verdicts = self._get(self._key("settled", 0))
            vars(verdicts).update(vars(settled))
        self._parts += 1
        self._messages = [0] * self.size

    def agree(self, name: str, value: Any) -> Any:
        """Return rank 0's value in every rank."""
        if self.is_main:
            self._set(name, value)
            return value
        return self._get(name)

    def _key(self, kind: str, rank: int) -> str:
        return f"{self._parts}/{kind}/{rank}"

    def _send(self) -> None:
        if self._unsent:
            self._set(self._key(f"message {self._messages[self.rank]}", self.rank), self._unsent)
            self._messages[self.rank] += 1
            self._unsent = []

    def _receive(self, verdicts: Verdicts) -> bool:
        """Add what the other ranks have sent to the verdicts, and return whether there was anything."""
        before = list(self._messages)
        for rank in range(1, self.size):
            while self._store.check([key := self._key(f"message {self._messages[rank]}", rank)]):
                for found in self._get(key):
                    verdicts.add(found)
                self._store.delete_key(key)
                self._messages[rank] += 1
        return self._messages != before

    def _set(self, key: str, value: Any) -> None:
        self._store.set(key, pickle.dumps(value))  # type: ignore[arg-type]  # the stub knows text only

    def _get(self, key: str) -> Any:
        self._store.wait([key], PATIENCE)
        return pickle.loads(self._store.get(key))


@contextmanager
def ranks_of_torchrun() -> Iterator[Ranks | None]:
    """Join the processes that torchrun started; yield None in a process on its own.

    Raises:
        UserError: torchrun's environment variables are incomplete, or the ranks do not find one another.
        RunFailed: a rank was lost; what the ranks had found out is kept.
    """
    size = world_size()
    if size == 1:
        yield None
        return
    try:
        store, rank, size = next(rendezvous("env://"))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {size} processes did not find one another ({str(error).splitlines()[0]})") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        yield Ranks(PrefixStore(f"rmcla_fast/{attempt}", store), rank, size)
    except dist.DistError as error:
        raise RunFailed(f"rank {rank} of {size} lost a peer; the same command goes on from what is kept") from error
