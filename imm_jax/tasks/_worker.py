"""A process that judges answers, for ``verify``: run by path, reads JSON lines, answers each.

It imports nothing of this package, and dies by the kernel's alarm when a comparison hangs, so it
never outlives a parent that was killed.

    python -P _worker.py math             answers equal as mathematics, by math-verify
    python -P _worker.py reasoning_gym    answers scored by reasoning-gym
    python -P _worker.py make             the questions of a reasoning-gym task
"""

import builtins
import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator

MEMORY_LIMIT = 4 << 30  # bytes of address space; 9**9**9 ends in a MemoryError
FUNCTIONS = {"sqrt", "cbrt", "exp", "log", "ln", "sin", "cos", "tan", "sec", "csc", "cot", "asin",
             "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "Abs",
             "Integral"}  # fmt: skip


def equivalent(gold: str, answer: str) -> bool:
    """Whether math-verify takes two LaTeX or plain expressions as equal; no time limit here."""
    from math_verify import parse, verify

    sides = [
        parse(text if "$" in text else f"${text}$", parsing_timeout=None) for text in (gold, answer)
    ]
    return bool(verify(*sides, timeout_seconds=None))


def solved(question: str, answer: str) -> bool:
    """Whether the scorer of a reasoning-gym task gives an answer its full mark, 1.

    Args:
      question: as JSON, what ``_dataset`` takes, and the question's ``index``.
      answer: what a model said. It counts without a full stop at its end as well.
    """
    dataset, entry = _entry(question)
    for text in dict.fromkeys((answer, answer.removesuffix("."))):
        with guarded_eval(harmless(text)):
            if float(dataset.score_answer(text, entry)) >= 1.0:
                return True
    return False


def make(order: dict) -> dict:
    """The questions and answers (None where the task knows none) of a reasoning-gym task."""
    from reasoning_gym.factory import DATASETS

    if order["name"] not in DATASETS:
        return {"unknown": order["name"], "known": sorted(DATASETS)}
    known = [field.name for field in dataclasses.fields(DATASETS[order["name"]][1])]
    known = [name for name in known if name not in ("seed", "size")]
    for key in order["config"]:
        if key not in known:
            return {"unknown": key, "known": known}
    dataset = _dataset(json.dumps(order, sort_keys=True))
    entries = [dataset[index] for index in range(order["size"])]
    return {
        "rows": [
            [entry["question"], None if entry["answer"] is None else str(entry["answer"])]
            for entry in entries
        ]
    }


@functools.lru_cache(maxsize=8)
def _dataset(order: str):
    import reasoning_gym
    from reasoning_gym.composite import DatasetSpec

    order = json.loads(order)
    config = order["config"]
    if order["name"] == "composite" and "datasets" in config:
        config["datasets"] = [
            DatasetSpec(**({"weight": 1.0, "config": {}} | spec)) for spec in config["datasets"]
        ]
    return reasoning_gym.create_dataset(
        order["name"], seed=order["seed"], size=order["size"], **config
    )


@functools.lru_cache(maxsize=64)
def _entry(question: str):
    order = json.loads(question)
    index = order.pop("index")
    dataset = _dataset(json.dumps(order, sort_keys=True))
    return dataset, dataset[index]


def harmless(text: str) -> bool:
    """Whether evaluating ``text`` calls nothing but mathematics and reaches into no object.

    Some scorers of reasoning-gym hand what a model said to ``eval``, themselves or through SymPy.
    """
    if re.search(r"[^\w\s+\-*/%^,.()\[\]'\"]|\.\s*[^\W\d]|[)\]'\"]\s*\(", text):
        return False
    return set(re.findall(r"([^\W\d]\w*)\s*\(", text)) <= FUNCTIONS


@contextlib.contextmanager
def guarded_eval(allowed: bool) -> Iterator[None]:
    """Keeps reasoning-gym and SymPy from ``eval`` unless ``allowed``."""
    evaluate = builtins.eval

    def guarded(source, *scopes):
        frame = sys._getframe(1)
        caller = frame.f_globals.get("__name__", "")
        if not allowed and caller.partition(".")[0] in ("reasoning_gym", "sympy"):
            raise ValueError("the answer is not plain mathematics")
        return evaluate(source, *(scopes or (frame.f_globals, frame.f_locals)))

    builtins.eval = guarded
    try:
        yield
    finally:
        builtins.eval = evaluate


def limit_memory() -> None:
    """Caps the address space, so that a huge power fails instead of taking the machine."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    except (ImportError, ValueError, OSError):
        pass


def _start_math() -> None:
    equivalent("1", "1")


def _start_gym() -> None:
    import reasoning_gym  # noqa: F401


# By name: what imports all that is slow to import, and the judge of (gold, answer).
JUDGES: dict[str, tuple[Callable[[], None], Callable[[str, str], bool]]] = {
    "math": (_start_math, equivalent),
    "reasoning_gym": (_start_gym, solved),
}


def main(name: str) -> None:
    """Answers each line ``{"gold", "answer", "limit"}`` of standard input until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which closes us
    alarm = getattr(signal, "alarm", lambda seconds: None)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not a reply

    def reply(**fields) -> None:
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    try:
        if name == "make":
            for line in sys.stdin:
                reply(**make(json.loads(line)))
            return
        start, judge = JUDGES[name]
        start()
    except Exception as error:
        reply(error=f"{type(error).__name__}: {error}")
        return
    reply(ready=True)
    limit_memory()
    for line in sys.stdin:
        job = json.loads(line)
        alarm(int(job["limit"]) + 2)
        try:
            verdict = judge(job["gold"], job["answer"])
        except Exception:
            verdict = False
        alarm(0)
        reply(verdict=verdict)


if __name__ == "__main__":
    main(sys.argv[1])
