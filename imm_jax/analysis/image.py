"""Plots as PNG files, without a display."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imm_jax.files import atomic_write


def save_png(draw: Callable[[Any], Any], path: str | Path, title: str = "") -> None:
    """Writes the figure that ``draw`` makes of ``matplotlib.pyplot``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = draw(plt)
    if title:
        figure.suptitle(title, fontsize=11)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    plt.close(figure)
    atomic_write(path, image.getvalue())
