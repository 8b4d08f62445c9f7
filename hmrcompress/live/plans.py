"""Plans of live networks: made by a search, read from a file, or written by hand without any hash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.live.structure import FAMILY, Network
from hmrcompress.plan import SCHEMA, Plan, read_fields, trivial_groups

LivePlan = Plan | Mapping[str, Any] | Path | str
"""A plan, its fields, or its file. Of fields, `checkpoint` may be left out, and `groups` where no layer is merged."""


def plan_for(plan: LivePlan, network: Network | None, *, force: bool = False) -> Plan:
    """The plan, completed by what is known of the network. UserError where it is none, or was made by a search in
    other blocks than these (`force`: let it pass)."""
    if isinstance(plan, str | Path):
        fields, where = read_fields(plan), plan
    elif isinstance(plan, Plan):
        fields, where = plan.to_dict(), "plan"
    else:
        fields, where = dict(plan), "plan"
    if network is not None:
        fields.setdefault("schema", SCHEMA)
        if fields.get("checkpoint") is None:
            fields["checkpoint"] = network.reference.model_dump()
        fields.setdefault("groups", trivial_groups(network.depth))
    made = Plan.from_dict(fields, where)
    # Hashes of other families are of files, which say nothing about blocks.
    if network is not None and not force and made.checkpoint and made.checkpoint.family.startswith(FAMILY):
        if made.checkpoint.sha256 != network.sha256:
            raise UserError(
                f"checkpoint.sha256: the plan was made for {made.checkpoint.sha256[:12]}…, these blocks are "
                f"{network.sha256[:12]}…",
                where,
                "Load the weights that it was made for, or give force",
            )
    return made
