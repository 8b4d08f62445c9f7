"""The protocol of hands: what distances to the untouched network are measured on, as no data set of hands is read."""

from __future__ import annotations

from hmrcompress.metrics.points import Protocol

HAND16 = Protocol("hand16", tuple(range(16)), (0,), "MANO's 16 joints, aligned at the wrist")
