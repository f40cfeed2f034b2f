"""Work on threads, whose results are taken in order while more is done."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from imm_jax.devices import cores

T = TypeVar("T")
R = TypeVar("R")

THREADS = min(4, cores())  # more would want more memory than they save time


def map_ahead(
    fn: Callable[[T], R], items: Iterable[T], cost: Callable[[T], int], limit: int
) -> Iterator[tuple[T, R]]:
    """Yields each item with ``fn(item)``, in order; ``fn`` runs on threads.

    Items are drawn as long as the ``cost`` of those begun and not yet yielded is at most ``limit``,
    and at least one at a time. ``fn`` must not call this function.
    """
    begun: deque[tuple[T, int, Future]] = deque()
    total = 0

    def take() -> tuple[T, R]:
        item, own, future = begun.popleft()
        return item, own, future.result()

    for item in items:
        own = cost(item)
        while begun and total + own > limit:
            done, freed, result = take()
            total -= freed
            yield done, result
            del result  # or it would stay in memory beside the next
        begun.append((item, own, _threads().submit(fn, item)))
        total += own
    while begun:
        done, _, result = take()
        yield done, result
        del result


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yields the items; a thread of its own draws the next one while one is used."""
    end, source = object(), iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS)
