"""The log of a training run: JSON lines of losses and validation figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hmrcompress.io.figures import json_line
from hmrcompress.io.jsons import parse_json
from hmrcompress.io.texts import read_bytes

KIND = "log"
LOG_FILE = "log.jsonl"
SHIPPED_LOG = "training_log.jsonl"


class Log:
    """JSON lines, one a record; appended to by every run in the same folder.

    before: crops that the network had seen when the run's own count began; records count them in.
    """

    def __init__(self, path: Path, before: int = 0) -> None:
        self.path, self.before = path, before

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append a record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_line(record))
        return record

    def losses(self, seen: int, stage: str, parts: dict[str, float], rate: float, minutes: float) -> None:
        """Record the parts of a step's loss."""
        values = {name: round(value, 4) for name, value in parts.items()}
        at = {"seen": self.before + seen, "stage": stage, "minutes": round(minutes, 2), "rate": round(rate, 6)}
        self.write(at | {"loss": values})

    def validation(self, seen: int, figures: dict[str, float], minutes: float) -> dict[str, Any]:
        """Record the figures of a validation."""
        return self.write({"seen": self.before + seen, "minutes": round(minutes, 2), "val": figures})


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, in order."""
    return [parse_json(line, path, "a line") for line in read_bytes(path).splitlines()]


def training_minutes(records: list[dict[str, Any]]) -> float:
    """Minutes over all runs of a log (the clock of each run starts at zero)."""
    total = last = 0.0
    for record in records:
        if record["minutes"] < last:
            total += last
        last = record["minutes"]
    return total + last
