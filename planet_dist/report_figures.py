"""The papers' figures for a run's page."""

from __future__ import annotations

import io

from PIL import Image

from planet_dist.display import webp_bytes
from planet_dist.figures import Nothing, RunFigures, caption, certain_labels
from planet_dist.figures_style import png_bytes
from planet_dist.finished import FinishedRun
from shards.reader import Dataset

_FIGURE_PIXELS, _FIGURE_QUALITY = 1400, 80
# The page shows them itself.
_SHOWN_BY_THE_PAGE = ("mistakes", "losses")


def papers_figures(
    finished: FinishedRun, dataset: Dataset, most_bytes: int
) -> tuple[list[tuple[str, bytes]], dict[str, str]]:
    """Figures as WebP with their captions, and reasons of those left out by name.

    Args:
        finished: the run.
        dataset: that it was trained on.
        most_bytes: of the page.
    """
    figures, manifest = RunFigures(finished, dataset), dataset.manifest
    certain = certain_labels(manifest.vocabulary, manifest.label_counts, [])
    drawn: list[tuple[str, bytes]] = []
    left_out: dict[str, str] = {}
    room = most_bytes * 3 // 5  # base64 adds a third; the rest is for the other parts
    for name, make in figures.makers(certain).items():
        if name in _SHOWN_BY_THE_PAGE:
            continue
        try:
            with Image.open(io.BytesIO(png_bytes(make()))) as picture:
                picture.thumbnail((_FIGURE_PIXELS, 10 * _FIGURE_PIXELS), Image.Resampling.LANCZOS)
                data = webp_bytes(picture.convert("RGB"), _FIGURE_QUALITY)
        except Nothing as reason:
            left_out[name] = str(reason)
            continue
        except Exception as error:  # one figure that cannot be drawn costs no other
            left_out[name] = f"could not be drawn ({type(error).__name__}: {error})"
            continue
        if len(data) > room:
            left_out[name] = f"the page would be larger than {most_bytes >> 20} MiB; planet-dist figures draws it"
            continue
        room -= len(data)
        drawn.append((caption(name), data))
    return drawn, left_out
