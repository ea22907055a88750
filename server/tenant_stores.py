"""What is remembered for each caller apart: nobody finds what another's key has stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from server.keys import Caller

StoreT = TypeVar("StoreT")


class TenantStores(Generic[StoreT]):
    """One store for each tenant, made when it is first wanted.

    Args:
        kind: makes one, of that fraction of the room (1 / n).
        num_tenants: who share the room evenly, so that nobody can push out what another keeps.
    """

    def __init__(self, kind: Callable[[int], StoreT], num_tenants: int) -> None:
        self._kind = kind
        self._num_tenants = num_tenants
        self._stores: dict[str, StoreT] = {}

    def of(self, caller: Caller) -> StoreT:
        """Give the store of a caller."""
        store = self._stores.get(caller.tenant)
        if store is None:
            store = self._stores[caller.tenant] = self._kind(self._num_tenants)
        return store
