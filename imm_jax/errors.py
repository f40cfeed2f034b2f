"""What a user causes, bad input and training that diverges, said in one line."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be used. The message is one line: which file or key, what it holds, what
    was expected. The command line prints it and exits with code 2.
    """


class Diverged(InputError):
    """A model whose loss, gradient or logits are not finite, as a step too large leaves it."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the closest of ``names``, or an empty string."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


class Interrupted(Exception):
    """Work stopped on request with all that was done saved; the same call goes on from there.

    Where ``saved`` is False there was nothing to save, and the same call begins anew.
    """

    saved = True
