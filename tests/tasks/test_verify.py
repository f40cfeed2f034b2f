import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from imm_jax.tasks.answers import grade_all, is_correct
from imm_jax.tasks.types import Example
from imm_jax.tasks.verify import Verifier, shared_verifier
from tests.processes import PATIENCE

# A stand-in that imports nothing: it hangs, dies, says nonsense, or answers "equal texts".
STAND_IN = """
import json, sys, time, os
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if job["answer"] == "hang":
        time.sleep(1000)
    if job["answer"] == "die":
        os._exit(3)
    print(json.dumps({"verdict": job["gold"] == job["answer"]}), flush=True)
"""


def stand_in(**options):
    return Verifier(command=(sys.executable, "-c", STAND_IN), **options)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(verifier):
    return [worker.process.pid for worker in verifier.workers if worker.process]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=1, time_limit=20.0) as made:
        yield made


EQUIVALENT = [
    ("1/2", "0.5", True),
    (r"\frac{1}{2}", "1/2", True),
    ("x^2+2x+1", "(x+1)^2", True),
    (r"2\sqrt{2}", r"\sqrt{8}", True),
    ("(1,2)", "(2,1)", False),
    ("3", "4", False),
    (r"\pi", "3.14", False),
    (r"\{1, 2\}", r"\{2, 1\}", True),
    ("5", "x = 5", True),
    ("", "3", False),
    ("}{", "3", False),
]


def test_equivalence(verifier):
    verdicts = verifier.equivalent([(gold, answer) for gold, answer, _ in EQUIVALENT])
    assert verdicts == [expected for *_, expected in EQUIVALENT]


def test_from_another_thread(verifier):
    verdicts = []
    thread = threading.Thread(
        target=lambda: verdicts.extend(verifier.equivalent([("1/2", "0.5"), ("1", "2")]))
    )
    thread.start()
    thread.join()
    assert verdicts == [True, False]


def test_grading_mathematics(verifier):
    half = Example(id="h", question="?", answer=r"\frac{1}{2}")
    root = Example(id="r", question="?", answer=r"2\sqrt{2}")
    pairs = [
        (half, "The answer is $0.5$."),
        (half, r"So \boxed{\frac{2}{4}}."),
        (half, "The answer is 2."),
        (half, "no idea"),
        (root, r"The answer is $\sqrt{8}$."),
    ]
    grades = grade_all("math", pairs, verifier=verifier)
    assert [g.correct for g in grades] == [True, True, False, False, True]
    assert grades[3].answer is None


def test_a_real_hang_counts_as_false_and_the_next_comparison_works():
    with Verifier(workers=1, time_limit=1.0) as made:
        made.equivalent([("1", "1")])
        start = time.perf_counter()
        assert made.equivalent([("2", "9^{9^{9^9}}")]) == [False]
        assert time.perf_counter() - start < 10


def test_hangs_and_crashes_are_false_logged_and_do_not_stop_the_rest(caplog):
    pairs = [("a", "a"), ("b", "hang"), ("c", "die"), ("d", "d"), ("e", "f"), ("a", "a")]
    with (
        caplog.at_level(logging.WARNING, logger="imm_jax"),
        stand_in(workers=2, time_limit=3.0) as made,
    ):
        assert made.equivalent(pairs) == [True, False, False, True, False, True]
        assert "no verdict within 3 s" in caplog.text and "its process died" in caplog.text
        assert made.equivalent([("z", "z")]) == [True]


def test_workers_are_kept_and_close_leaves_none():
    made = stand_in(workers=2)
    made.equivalent([("a", "a"), ("b", "b")])
    before = pids(made)
    made.equivalent([("c", "c"), ("d", "d")])
    assert pids(made) == before and len(before) >= 1
    made.close()
    assert not any(map(alive, before))
    assert made.equivalent([("a", "a")]) == [True]
    made.close()


def test_a_worker_killed_between_calls_is_replaced():
    with stand_in(workers=1) as made:
        made.equivalent([("a", "a")])
        made.workers[0].process.kill()
        made.workers[0].process.wait()
        assert made.equivalent([("a", "a")]) == [True]


def test_no_more_workers_than_there_is_work():
    with stand_in(workers=8) as made:
        assert made.equivalent([]) == []
        assert made.equivalent([("a", "a")] * 50) == [True] * 50
        assert len(made.workers) == 1


def test_calls_from_many_threads():
    with stand_in(workers=2) as made:
        results = {}

        def ask(number):
            pairs = [(str(number), str(number)), (str(number), "x")]
            results[number] = made.equivalent(pairs)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: [True, False] for number in range(8)}


@pytest.mark.parametrize(
    "program, message",
    [
        ("""print('{"error": "no math_verify"}', flush=True)""", "no math_verify"),
        ("raise SystemExit(1)", "its process died"),
    ],
)
def test_workers_that_cannot_start(program, message):
    with Verifier(command=(sys.executable, "-c", program)) as made:
        with pytest.raises(RuntimeError, match=message):
            made.equivalent([("a", "b")])
        assert pids(made) == []


def test_a_killed_parent_leaves_no_worker():
    code = (
        "from imm_jax.tasks.verify import Verifier; import sys, time\n"
        f"made = Verifier(workers=1, command=(sys.executable, '-c', {STAND_IN!r}))\n"
        "made.equivalent([('a', 'a')])\n"
        "print(made.workers[0].process.pid, flush=True); time.sleep(1000)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + PATIENCE
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def test_the_shared_verifier_is_one_and_not_needed_for_equal_numbers():
    assert shared_verifier() is shared_verifier()
    started = pids(shared_verifier())
    assert is_correct("math", r"\boxed{1,000}", Example(id="x", question="?", answer="1000"))
    assert pids(shared_verifier()) == started


def test_importing_the_room_imports_nothing_heavy():
    code = (
        "import sys, imm_jax.tasks\n"
        "heavy = {'torch', 'jax', 'sympy', 'math_verify', 'datasets', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert result.stdout.strip() in ("[]", "['jax']")
