"""planet_dist/train.py, and a record of which chips each rank took in which step.

ranks_recording.py RECORDS ...words of train.py
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from planet_dist.learner import Learner
from planet_dist.stream import Batch
from planet_dist.train import main


def record_steps(records: Path) -> None:
    """Notes every step that this rank begins, on disk at once: a kill takes nothing of it."""
    step = Learner.step
    rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    file = (records / f"ranks-{ranks}-rank-{rank}-{os.getpid()}.jsonl").open("a", buffering=1)

    def recorded(self: Learner, batch: Batch, done_steps: int, *args: Any) -> None:
        file.write(json.dumps({"step": done_steps, "rank": int(rank), "ids": batch.ids_B.tolist()}) + "\n")
        step(self, batch, done_steps, *args)

    Learner.step = recorded  # type: ignore[method-assign]


if __name__ == "__main__":
    record_steps(Path(sys.argv.pop(1)))
    main()
