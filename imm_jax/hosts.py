"""What the processes of one run tell one another. With one process nothing is sent.

All processes run the same program. Where they must agree (is there a file?) the primary looks and
the others are told; where each does a share, the shares are gathered. What goes wrong in one is
raised in all of them, so that none waits for an answer that will not come.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from imm_jax.errors import InputError, Interrupted

RAISED = {"Interrupted": Interrupted}  # by name; anything else comes back as an InputError


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def index() -> int:
    """This process's number, from 0."""
    return jax.process_index()


def is_primary() -> bool:
    """Whether this process writes the files."""
    return index() == 0


def from_primary(make: Callable[[], Any]) -> Any:
    """What ``make`` gives in the primary, JSON, in all processes; it is not called in others.

    Raises:
      InputError, Interrupted: it failed; in the primary whatever it raised.
    """
    return gather(lambda: make() if is_primary() else None)[0]


def gather(make: Callable[[], Any]) -> list:
    """What ``make`` gives in each process, JSON, by the process's number.

    Raises:
      InputError, Interrupted: it failed in another process; in this one whatever it raised.
    """
    if count() == 1:
        return [make()]
    failed = None
    try:
        mine = {"value": make()}
    except Exception as error:
        failed, mine = error, {"error": str(error), "kind": type(error).__name__}
    everyone = [json.loads(text) for text in _gather_bytes(json.dumps(mine).encode())]
    if failed is not None:
        raise failed
    for number, one in enumerate(everyone):
        if "error" in one:
            kind = RAISED.get(one["kind"], InputError)
            raise kind(f"process {number}: {one['error']}")
    return [one["value"] for one in everyone]


def share(items: Sequence, make: Callable[[Sequence], list]) -> list:
    """``make(items)``, of which each process makes the part for every so-manyth item.

    Args:
      items: the same in all processes.
      make: gives the same number of JSON values for each item, in the order of its items.

    Raises:
      InputError, Interrupted: as :func:`gather`.
    """
    shares = gather(lambda: make(items[index() :: count()]))
    each = len(shares[0]) // max(1, len(items[:: count()]))
    made: list = []
    for number in range(len(items)):
        at, who = divmod(number, count())
        made += shares[who][at * each : (at + 1) * each]
    return made


def agreed(question: Callable[[], bool], every: int) -> Callable[[], bool]:
    """``question``, true in all processes as soon as it is in one, asked at every so-manyth call.

    For loops that all processes run in step. With one process it is ``question`` itself.
    """
    if count() == 1:
        return question
    calls = itertools.count(1)
    return lambda: next(calls) % every == 0 and any(gather(question))


def wait() -> None:
    """Returns once all processes are here."""
    gather(lambda: None)


def fetch(tree: Any) -> Any:
    """The arrays of a tree; those that are spread over processes whole, on the host of each."""
    from jax.experimental import multihost_utils

    def whole(x: Any) -> Any:
        alone = not isinstance(x, jax.Array) or x.is_fully_addressable
        return x if alone else multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


def fingerprint(params: Any) -> str:
    """A hash of about a thousand numbers of each array, which differ from one model to the next."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        flat = leaf.reshape(-1)
        found.update(np.asarray(fetch(flat[:: max(1, flat.size // 1000)])).tobytes())
    return found.hexdigest()


def _gather_bytes(mine: bytes) -> list[bytes]:
    from jax.experimental import multihost_utils

    lengths = multihost_utils.process_allgather(np.int32(len(mine)))
    padded = np.zeros(
        1 << (int(max(lengths)) - 1).bit_length(), np.uint8
    )  # few sizes, few programs
    padded[: len(mine)] = np.frombuffer(mine, np.uint8)
    everyone = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(everyone, lengths)]
