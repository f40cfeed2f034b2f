"""The ``report`` command: runs as one HTML page."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from imm_jax.inputs import check_output

REPORT = "report.html"


def report(args: argparse.Namespace) -> None:
    """Runs the command."""
    print(write_report(args.runs, args.output, examples=args.examples))


def write_report(
    folders: Sequence[str | Path], output: str | Path | None = None, *, examples: int = 20
) -> Path:
    """Writes what runs hold as one self-contained HTML page.

    Args:
      folders: the runs', finished or not.
      output: the page; ``report.html`` in the first folder by default.
      examples: questions of each task whose answers are shown, at most.

    Returns:
      Where the page is.

    Raises:
      InputError: a folder is no run's, has no results yet or is damaged, or the page cannot be
        written.
    """
    from imm_jax.analysis.report import page
    from imm_jax.files import atomic_write
    from imm_jax.report_data import read_report

    output = Path(folders[0]) / REPORT if output is None else Path(output)
    runs = [read_report(folder) for folder in folders]
    check_output(str(output))
    atomic_write(output, page(runs, examples))
    return output
