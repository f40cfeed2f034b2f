"""Wrong input through the command line: one clear line, exit code 2, and nothing is changed.

Except where a case says otherwise the mistake is found before any weights are read.
"""

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys

import pytest
import yaml

from imm_jax.cli import main
from imm_jax.config import load_config, save_config
from imm_jax.files import read_jsonl
from tests.answering import SECONDS, results_of, run_settings, save_answering, save_gguf, snapshot
from tests.processes import PATIENCE
from tests.wrong_inputs import CASES, CONVERT, EVALUATE, GENERATE, MERGE, MODELS, RUN, Q, write


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    """A folder in which everything is right."""
    folder = tmp_path_factory.mktemp("whole")
    save_answering(folder / "model", tiny_config, random_params, tiny_tokenizer)
    config = tiny_config("llama", tie_word_embeddings=False)
    save_gguf(folder / "model.gguf", config, random_params(config), tiny_tokenizer)
    # Relative names: every test has its copy.
    settings = run_settings(folder / "model", folder)
    text = yaml.safe_dump(settings).replace(f"{folder}/", "")
    (folder / "run.yaml").write_text(text)
    return folder


@pytest.fixture
def no_weights(monkeypatch):
    """Reading weights is a failure."""
    from imm_jax.models.gguf import weights as gguf_weights
    from imm_jax.models.huggingface import weights as huggingface

    def forbidden(*args, **kwargs):
        pytest.fail("the weights were read before the mistake was found")

    monkeypatch.setattr(huggingface, "read_params", forbidden)
    monkeypatch.setattr(gguf_weights, "read_params", forbidden)


def test_the_table_is_long_enough():
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_wrong_input(name, place, refused, request):
    wrong = CASES[name]
    if wrong.spoil is not None:
        wrong.spoil(place)
    if not wrong.reads_weights:
        request.getfixturevalue("no_weights")
    message = refused(wrong.argv)
    for part in wrong.says:
        assert part in message


def test_a_folder_that_cannot_be_made(place, refused, no_weights, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    assert refused(RUN) == "out: Permission denied"
    assert refused((*RUN[:-1], "a/b/out")) == "a/b/out: Permission denied"
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)
    for argv in (
        MERGE,
        CONVERT,
        (*GENERATE, "--output", "out/x.jsonl"),
        (*EVALUATE, "--output", "out.json"),
        (*RUN, "--profile", "traces"),
    ):
        assert f"cannot be written (no permission in {place})" in refused(argv)


def test_what_is_in_a_folder_stays_even_if_hidden(place, refused, no_weights):
    """A run begun, and a user's own version history in its folder: only our leavings are swept."""
    shutil.copytree(place / "model", place / "out/.git")
    save_config(load_config("run.yaml", ["model=run.yaml"]), place / "out/config.yaml")
    write("out/.metrics.jsonl.a1b2c3d4.part", "half")(place)
    before = snapshot(place / "out")
    refused((*RUN, "model=run.yaml"), unchanged=False)
    del before[".metrics.jsonl.a1b2c3d4.part"]
    assert snapshot(place / "out") == before | {".lock": b""}


def test_an_empty_folder_stays_and_new_ones_go(place, refused, no_weights):
    (place / "out").mkdir()
    refused((*RUN, "data.in_domain=missing.jsonl"))
    refused((*RUN[:-1], "deep/down/out", "data.in_domain=missing.jsonl"))


def test_kill_before_the_config_is_whole(place, refused, no_weights):
    """What a kill in the first moments leaves is a new folder, not somebody's files."""
    (place / "out").mkdir()
    write("out/.lock", "")(place)
    write("out/.config.yaml.a1b2c3d4.part", "mod")(place)
    message = refused((*RUN, "data.in_domain=missing.jsonl"), unchanged=False)
    assert "missing.jsonl" in message


def test_zero_correct_samples(place, refused):
    text = (place / "train.jsonl").read_text().replace('"answer": 7', '"answer": 11')
    (place / "train.jsonl").write_text(text.replace('"answer": 1}', '"answer": 11}'))
    message = refused((*RUN, "data.out_of_domain=[]"), unchanged=False)
    assert "select: none of 16 samples passes the rule 'correct'" in message
    samples = (place / "out/seed-0/round-1/shared/samples/00000.jsonl").read_text()
    assert len(samples.splitlines()) == 16
    assert refused((*RUN, "data.out_of_domain=[]")) == message


class FullDisk:
    """No file can grow past ``size`` bytes, as on a disk that is full."""

    def __init__(self, size: int):
        self.size = size

    def __enter__(self):
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.limits[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


# Orbax's threads call into its event loop after a failed write has closed it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_at_every_stage(place, refused, capsys):
    """Each failure names the file; with room again the same command ends as a run that had it."""
    run = (*RUN, "training.save_every_steps=50")
    assert main([*run, "--output", "whole"]) == 0
    whole = snapshot(place / "whole")
    capsys.readouterr()
    named = {
        100: "out/config.yaml: File too large",
        1_800: "out/seed-0/round-1/shared/samples/00000.jsonl: File too large",
        20_000: "out/seed-0/round-1/shared/tuned: the checkpoint could not be written (File too ",
    }
    for size, names in named.items():
        with FullDisk(size):
            message = refused(run, unchanged=False)
        assert names in message
        assert (place / "out").exists() == (size > 100)
    assert main(list(run)) == 0
    ours = snapshot(place / "out")
    assert not [name for name in ours if name.endswith(".part")]
    for name in ("model/model.safetensors", "config.yaml"):
        assert ours[name] == whole[name]
    rows, others = (read_jsonl(place / name / "metrics.jsonl") for name in ("out", "whole"))
    assert results_of(rows) == results_of(others)


def test_no_room_for_a_checkpoint(place, refused, monkeypatch):
    usage = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = refused(RUN, unchanged=False)
    assert "out/seed-0/round-1/shared/" in message and "not enough room on the disk" in message


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (CONVERT, "out: cannot be written (File too large)"),
        (("merge", "model", "model", "--output", "out"), "out: cannot be written (File too large)"),
        ((*GENERATE, "--max-new-tokens", "16", "--output", "out"), "out: File too large"),
        ((*EVALUATE, "--max-new-tokens", "16", "--output", "out"), "out: File too large"),
    ],
)
def test_a_full_disk_leaves_no_part_of_the_output(argv, says, place, refused):
    with FullDisk(100):
        assert says in refused(argv, silent=False)


PROCESSES = {
    "unknown key": ((*RUN, "trainig.epochs=1"), "unknown key trainig (did you mean 'training'?)"),
    "NaN": (RUN, f"tensor {Q} has NaN or infinite values"),
    "another run": (RUN, "out: another process is running there"),
}


def seconds_of_children() -> float:
    """Processor time of those that have ended, so that others at work do not count."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


@pytest.mark.parametrize("name", PROCESSES)
def test_in_a_process_of_its_own(name, place):
    argv, says = PROCESSES[name]
    command = [sys.executable, "-m", "imm_jax.cli", *argv]
    if name == "NaN":
        MODELS["NaN"].spoil(place)
    before, start = snapshot(place), seconds_of_children()
    if name == "another run":
        (place / "out").mkdir()
        before = snapshot(place) | {"out/.lock": b""}
        with open(place / "out/.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=place, timeout=PATIENCE
            )
    else:
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=PATIENCE)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("error: ") and says in lines[-1]
    assert "Traceback" not in done.stderr and not done.stdout
    assert snapshot(place) == before
    assert seconds_of_children() - start < 3 * SECONDS
