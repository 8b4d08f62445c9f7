"""Protocols of bodies that no data set is read for: what distances to the untouched network are measured on."""

from __future__ import annotations

from hmrcompress.metrics.points import Protocol

HAND16 = Protocol("hand16", tuple(range(16)), (0,), "MANO's 16 joints, aligned at the wrist")
WHOLE55 = Protocol("whole55", tuple(range(55)), (0,), "SMPL-X's 55 joints, aligned at the pelvis")
UNSCORED = {16: HAND16, 55: WHOLE55}
"""By the number of joints of a body: its only protocol, which compares predictions with predictions."""
