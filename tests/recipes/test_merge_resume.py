"""Merges that are cut off: the same command goes on, and ends with the same bytes."""

import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imm_jax import merge_files
from imm_jax.cli import main
from imm_jax.errors import Interrupted
from tests.answering import snapshot
from tests.processes import PATIENCE
from tests.recipes.model_folders import ENVIRONMENT, LINEAR, read_tensors

SMALL = ("--out-shard-size", "9K")  # about as many files as tensors

# The command, and what is to happen when a function of os is called for a file of that name (or
# any): a kill at once or after some seconds, or a wait until another file is gone.
AT = """
import os, signal, sys, threading, time
function, file, what = sys.argv[1:4]
real = getattr(os, function)
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
timer = None

def patched(*args, **kwargs):
    global timer
    name = os.path.basename(args[-1])
    if file in ("", name) and what == "kill":
        kill()
    elif file in ("", name) and what.startswith("0."):
        timer = timer or threading.Timer(float(what), kill)
        if not timer.is_alive():
            timer.start()
        if name == "out":  # no kill comes too late
            time.sleep(60)
    elif file in ("", name):
        open(what, "w").close()
        while os.path.exists(what):
            time.sleep(0.01)
    return real(*args, **kwargs)

setattr(os, function, patched)
from imm_jax.cli import main
sys.exit(main(sys.argv[4:]))
"""


@pytest.fixture(scope="module")
def models(models, tmp_path_factory):
    """``base`` is without a tokenizer, whose library takes long to import."""
    folder = tmp_path_factory.mktemp("quick") / "models"
    shutil.copytree(models, folder)
    for path in folder.glob("base/*token*"):
        path.unlink()
    return folder


def shard(number: int) -> str:
    return f"model-{number:05d}-of-00017.safetensors"


def start(argv, function: str, file: str, what) -> subprocess.Popen:
    command = [sys.executable, "-c", AT, function, file, what, *map(str, argv)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def shards(folder: Path) -> dict[str, tuple]:
    """The finished ones, with what would change if they were written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.safetensors")}


def kills(chance):
    """Moments to kill at: some calls, and random times after the first shard."""
    yield "replace", ".plan.json", "kill"
    yield "rename", "out", "kill"  # nothing is known of what is there, and all is done again
    for _ in range(2):
        yield "rename", "", f"{chance.random() / 20:.4f}"
    yield "replace", "model.safetensors.index.json", "kill"
    yield "unlink", ".plan.json", "kill"  # past the last shard and all else


def test_a_killed_merge_ends_as_one_that_was_not(recipe, tmp_path):
    path = recipe(LINEAR)
    argv = ("merge", path, tmp_path / "out", *SMALL)
    beside, seen = tmp_path / ".out.part", []
    for moment in kills(random.Random(1)):
        before = shards(beside) if (beside / ".plan.json").exists() else {}
        process = start(argv, *moment)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL, errors
        assert not (tmp_path / "out").exists()
        after = shards(beside)
        assert before.items() <= after.items()  # none was written twice
        seen.append(len(after))
    assert seen[0] == 0 and seen[1] == 17 and seen[-2:] == [17, 17]
    assert main(list(map(str, argv))) == 0
    (tmp_path / "whole").mkdir()
    assert main(["merge", str(path), str(tmp_path / "whole/out"), *SMALL]) == 0
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole/out")
    left = {"out", "whole", "recipe.yaml"}
    assert {p.name for p in tmp_path.iterdir()} == left


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), ("twice", 130)]
)
def test_a_signal_keeps_what_is_finished(number, code, recipe, tmp_path, monkeypatch, capfd):
    """One line, and finished shards stay; a second Ctrl-C does not wait for the tensor."""
    argv = ["merge", str(recipe(LINEAR)), str(tmp_path / "out"), *SMALL]
    real = os.rename

    def rename(one, other):
        real(one, other)
        if Path(other).name.startswith("model-00004"):
            for _ in range(2 if number == "twice" else 1):
                os.kill(os.getpid(), signal.SIGINT if number == "twice" else number)

    monkeypatch.setattr(os, "rename", rename)
    # Processes that are started in the background may ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(argv) == code
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    *_, stopping, last = capfd.readouterr().err.splitlines()
    assert stopping == "stopping at the next step; once more to stop at once"
    ends = {True: "interrupted", False: "out: stopped; the same command goes on from here"}
    assert last.endswith(ends[number == "twice"])
    finished = shards(tmp_path / ".out.part")
    assert len(finished) == 4 and not (tmp_path / "out").exists()


def test_what_is_finished_is_kept_after_a_signal(recipe, tmp_path):
    stop_after(recipe(LINEAR), tmp_path / "out", 5)
    finished = shards(tmp_path / ".out.part")
    merge_files(recipe(LINEAR), tmp_path / "out", max_shard_bytes=1)
    assert finished.items() <= shards(tmp_path / "out").items() and len(finished) == 5


def stop_after(path, folder, count, **kwargs):
    asked = []
    should_stop = lambda: asked.append(None) or len(asked) > count
    with pytest.raises(Interrupted):
        merge_files(path, folder, max_shard_bytes=1, should_stop=should_stop, **kwargs)


def other_values(path: Path) -> None:
    save_file({n: x + 1 for n, x in load_file(path).items()}, path, {"format": "pt"})


def other_words(path: Path) -> None:
    text = path.read_text()
    first, second = re.findall(r'"(\w+)": 30[01]\b', text)
    for one, other in ((first, "\0"), (second, first), ("\0", second)):
        text = text.replace(f'"{one}": 3', f'"{other}": 3')
    path.write_text(text)


FISHER = """
merge_method: fisher
models:
  - {model: FOLDER/one, parameters: {fisher: FOLDER/f.safetensors}}
  - {model: FOLDER/two, parameters: {fisher: FOLDER/f.safetensors}}
"""
UNION = LINEAR.replace("base", "FOLDER/one").replace("model: one", "model: FOLDER/two")
CHANGES = {
    "recipe": (UNION, lambda folder: None, {}),
    "seed": (UNION, lambda folder: None, {"seed": 1}),
    "weights": (UNION, lambda folder: other_values(folder / "two/model.safetensors"), {}),
    "Fisher information": (FISHER, lambda folder: other_values(folder / "f.safetensors"), {}),
    "tokenizer": (
        UNION + "tokenizer_source: base\n",
        lambda folder: other_words(folder / "two/tokenizer.json"),
        {},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_begun_otherwise_is_begun_anew(name, models, recipe, tmp_path):
    text, change, options = CHANGES[name]
    for model in ("one", "two"):
        shutil.copytree(models / model, tmp_path / model)
    tensors = read_tensors(tmp_path / "one")
    save_file({n: np.abs(x) for n, x in tensors.items()}, tmp_path / "f.safetensors")
    text = text.replace("FOLDER", str(tmp_path))
    stop_after(recipe(text), tmp_path / "out", 5)
    begun = shards(tmp_path / ".out.part")
    assert len(begun) == 5
    change(tmp_path)
    path = recipe(text + "# another\n" if name == "recipe" else text)
    merge_files(path, tmp_path / "out", max_shard_bytes=1, **options)
    written = shards(tmp_path / "out")
    assert all(written[file] != begun[file] for file in begun)
    (tmp_path / "fresh").mkdir()
    merge_files(path, tmp_path / "fresh/out", max_shard_bytes=1, **options)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh/out")


def test_two_at_once(recipe, tmp_path, capsys):
    argv = ["merge", str(recipe(LINEAR)), str(tmp_path / "out"), *SMALL]
    waiting = tmp_path / "waiting"
    process = start(argv, "rename", shard(3), waiting)
    try:
        while not waiting.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        before = shards(tmp_path / ".out.part")
        assert main(argv) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == f"error: {tmp_path}/out: another process is writing it"
        assert shards(tmp_path / ".out.part") == before and len(before) == 2
        waiting.unlink()
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    finally:
        process.kill()
    assert len(shards(tmp_path / "out")) == 17


def test_a_lock_that_nobody_holds_is_none(recipe, tmp_path):
    """A killed process leaves its lock's file, which another may have opened since."""
    (tmp_path / ".out.part/old").mkdir(parents=True)
    (tmp_path / ".out.part/old/file").write_text("of a version that made folders")
    with open(tmp_path / ".out.part/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    merge_files(recipe(LINEAR), tmp_path / "out")
    assert not (tmp_path / "out/old").exists() and not (tmp_path / "out/.lock").exists()
