"""The JSON that every command writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SCHEMA = 1


def make_record(
    command: str, figures: dict[str, Any], *, device: torch.device | str = "cpu", seed: int | None = None
) -> dict[str, Any]:
    """{schema, command, the figures, seed, versions, device, cpu, commit}; whatever is None (not measured) is left out."""
    from hmrcompress.runtime import environment

    entries = {"schema": SCHEMA, "command": command, **figures, "seed": seed, **environment(device)}
    return {key: value for key, value in entries.items() if value is not None}
