"""planet_dist/train.py in a process that is killed once a step is in its log.

python tests/ranks_killed.py STEP [words of train.py]
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from planet_dist.runfolder import JsonLines
from planet_dist.train import main

STEP = int(sys.argv.pop(1))
append = JsonLines.append


def append_and_die(self: JsonLines, record: dict[str, Any]) -> None:
    append(self, record)
    if record["step"] == STEP:
        print(f"rank-0 killed at step {STEP}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    JsonLines.append = append_and_die  # type: ignore[method-assign]
    main()
