"""Makes the pictures in docs/images again, from made chips: a run watched on a terminal, and its page in a browser.

    make screenshots

Everything shown is real: the commands run on a pseudo terminal, and what stands on its screen is drawn.
"""

from __future__ import annotations

import contextlib
import fcntl
import html
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import pyte
from PIL import Image

from tests.browser import MISSING, Browser, browser
from tests.conftest import REPOSITORY

WORK = REPOSITORY / "build" / "screenshots"
IMAGES = REPOSITORY / "docs" / "images"
COLUMNS, ROWS = 132, 26
MOST_BYTES = 300_000
TRAIN = (
    "accelerate launch --config_file launch/cpu.yaml planet_dist/train.py --recipe small-resnet-32 "
    "--data build/screenshots/dataset --out build/screenshots/runs/{name} data.split=tail:500 phases.0.batch_size=64"
)
_COLOURS = {
    **{"default": "#d7dce1", "black": "#14171a", "red": "#ff8c4d", "green": "#2cc492", "brown": "#e6b450"},
    **{"blue": "#56b4e9", "magenta": "#dc93bb", "cyan": "#5ccfe6", "white": "#ffffff"},
}


class Terminal:
    """A pseudo terminal with its screen."""

    def __init__(self, rows: int = ROWS) -> None:
        self.screen = pyte.Screen(COLUMNS, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.live: list[str] = []

    def run(self, command: str) -> None:
        """Types a command and runs it to its end; `live` keeps the last screen of its fifth epoch."""
        self._stream.feed(f"\x1b[1m$ {command}\x1b[0m\r\n".encode())
        main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", self.screen.lines, COLUMNS, 0, 0))
        hidden = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(command.split(), cwd=REPOSITORY, stdin=side, stdout=side, stderr=side, env=environment)
        os.close(side)
        with contextlib.suppress(OSError):
            while data := os.read(main, 4096):
                self._stream.feed(data)
                if any("\u2501" in line and "left" in line and "epoch 5/" in line for line in self.screen.display):
                    self.live = self.drawn()
        os.close(main)
        if child.wait():
            raise SystemExit("\n".join(self.screen.display))

    def drawn(self) -> list[str]:
        """The screen's lines as HTML, without the empty ones below."""
        lines = []
        for row in range(self.screen.lines):
            cells = [self.screen.buffer[row][column] for column in range(COLUMNS)]
            parts, at = [], 0
            while at < COLUMNS:
                end = at + 1
                while end < COLUMNS and cells[end][1:] == cells[at][1:]:
                    end += 1
                colour = _COLOURS.get(cells[at].fg, f"#{cells[at].fg}")
                weight = 600 if cells[at].bold else 400
                text = html.escape("".join(cell.data for cell in cells[at:end]))
                parts.append(f'<span style="color:{colour};font-weight:{weight}">{text}</span>')
                at = end
            lines.append("".join(parts))
        last = max(row for row, line in enumerate(self.screen.display) if line.strip())
        return lines[: last + 1]


def chips() -> None:
    """Made chips and their dataset, unless they're there."""
    if (WORK / "dataset" / "manifest.json").exists():
        return
    shutil.rmtree(WORK, ignore_errors=True)
    made = str(WORK / "chips")
    run("planet-shard", "synth", "--out", made, "--count", "2000", "--kind", "jpg", "--seed", "1")
    words = ["--images", f"{made}/train-jpg", "--labels", f"{made}/train.csv", "--out", str(WORK / "dataset")]
    run("planet-shard", "build", *words)


def run(*words: str) -> None:
    """A command to its end."""
    subprocess.run(words, cwd=REPOSITORY, check=True)


def killed_run(name: str) -> None:
    """A run that is killed after its first epoch, with all its processes."""
    command = [*TRAIN.format(name=name).split(), "phases.0.epochs=8"]
    child = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (WORK / "runs" / name / "report.html").exists():
        if child.poll() is not None:
            raise SystemExit(f"{name} ended by itself")
        time.sleep(0.2)
    child.send_signal(signal.SIGKILL)  # the ranks die with their parent
    child.wait()


def saved(shown: Browser, name: str, height: int | None = None) -> None:
    """A picture of the page that is open, in few colours so that it's small."""
    path = shown.picture(WORK / name, height)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(200, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(IMAGES / name, optimize=True)
    size = (IMAGES / name).stat().st_size
    print(f"docs/images/{name}: {size:,} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"docs/images/{name}: {size:,} bytes; at most {MOST_BYTES:,}: show less of it")


def terminal_picture(shown: Browser, name: str, lines: list[str]) -> None:
    """A screen as a picture."""
    style = (
        "body{margin:0;background:#14171a;padding:18px 20px;width:max-content}"
        "pre{font:14px/1.45 'DejaVu Sans Mono',monospace;margin:0;color:#d7dce1}"
    )
    page = WORK / "terminal.html"
    page.write_text(f'<meta charset="utf-8"><style>{style}</style><pre>{chr(10).join(lines)}</pre>')
    shown.open(page, 1190, 10)
    saved(shown, name)


def main() -> None:
    """Trains, and takes the pictures."""
    if MISSING:
        raise SystemExit(MISSING)
    IMAGES.mkdir(exist_ok=True)
    chips()
    shutil.rmtree(WORK / "runs", ignore_errors=True)
    killed_run("cut-off")
    Terminal().run(TRAIN.format(name="short") + " phases.0.epochs=2 seed=1")
    training = Terminal()
    training.run(TRAIN.format(name="first") + " phases.0.epochs=6")
    lists = Terminal()
    lists.run("planet-dist runs build/screenshots/runs")
    compared = Terminal(rows=42)
    compared.run("planet-dist compare build/screenshots/runs/short build/screenshots/runs/first")
    page = WORK / "runs" / "first" / "report.html"
    with browser() as shown:
        terminal_picture(shown, "terminal-training.png", training.live)
        terminal_picture(shown, "terminal-runs.png", lists.drawn())
        terminal_picture(shown, "terminal-compare.png", compared.drawn())
        shown.open(page, 1280)
        saved(shown, "report-desktop.png", 1330)
        shown.open(page, 1280, dark=True)
        saved(shown, "report-dark.png", 900)
        shown.open(page, 360, scale=2)
        saved(shown, "report-phone.png", 1500)


if __name__ == "__main__":
    sys.exit(main())
