"""kill -9 at random moments, then the same command: the same samples and bit-equal weights."""

import random
import time
from pathlib import Path

import pytest
import yaml

from tests.processes import PATIENCE, start_command

KILLS = 14


def entries(folder: Path) -> set[str]:
    try:
        return {str(path) for path in folder.rglob("*")}
    except FileNotFoundError:  # something was renamed while it was listed
        return set()


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(whole, settings, result_files, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings.plain | {"keep": "all"}))

    killed = tmp_path / "killed"

    def start():
        argv = ["run", str(config), "--output", str(killed)]
        return start_command(argv, tmp_path / "log", cache=tmp_path / "xla")

    chance, stages = random.Random(0), []
    for _ in range(KILLS):
        process = start()
        before, wanted = entries(killed), chance.randint(1, 6)
        limit = time.monotonic() + PATIENCE
        # Wait for a few new files, so that the kills spread over all stages, then a random moment.
        while len(new := entries(killed) - before) < wanted and process.is_alive():
            assert time.monotonic() < limit
            time.sleep(0.02)
        time.sleep(chance.random() * 0.1)
        if process.is_alive():
            process.kill()  # -9
            stages.append(max(new, key=len, default=""))
        process.join()
        if (killed / "model").exists():
            break
    process = start()
    process.join(PATIENCE)
    assert process.exitcode == 0, (tmp_path / "log.err").read_text()
    assert len(stages) >= 10, f"only {len(stages)} kills before the run was done"
    assert result_files(killed) == result_files(whole[0])
    assert not [path for path in killed.rglob(".*") if path.name != ".lock"]
