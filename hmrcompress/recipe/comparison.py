"""A run beside an earlier one: how much more or less every figure is, with paired intervals over the clips.

Both runs have to have scored the same frames under the same protocol: the difference of a clip is then a difference of
what was compared, and not of what it was compared on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hmrcompress.data.crops import CropSet
from hmrcompress.errors import UserError
from hmrcompress.evaluation.evaluate import chosen_frames
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.jsons import read_json
from hmrcompress.metrics.bootstrap import clip_interval
from hmrcompress.recipe.schema import Eval

COUNTS = {"mpjpe_mm": "n_frames", "pa_mpjpe_mm": "n_frames", "pve_mm": "n_frames", "accel_mm_per_frame2": "n_triples"}
"""The figures that are compared by clip, and what each of their means is over."""
PLAIN = ("speedup", "onnx_max_abs_diff", "onnx_joints_mm", "onnx_bytes")
"""Figures of the whole run that stand beside, without an interval."""
CHANGE = "change"
"""The key of a comparison in `summary.json`."""


def read_earlier(path: Path) -> dict[str, Any]:
    """The summary of an earlier run. UserError where it is none, or lacks the figures of single clips."""
    path = path / "summary.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError("no such summary", path, "Give the summary.json of an earlier run")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("command") != "run":
        raise UserError("is no summary that `hmrcompress run` wrote", path)
    clips = found.get("clips")
    try:
        assert isinstance(clips, dict) and isinstance(found["data"]["sha256"], str)
        lengths = {len(clips["ids"]), len(clips["n_frames"]), len(clips["n_triples"])}
        lengths |= {len(values) for each in clips["stages"].values() for values in each.values()}
        numbers = [value for each in clips["stages"].values() for values in each.values() for value in values]
        assert len(lengths) == 1 and all(isinstance(each, (int, float)) or each is None for each in numbers)
        assert all(isinstance(each, int) and each >= 0 for each in (*clips["n_frames"], *clips["n_triples"]))
    except (AssertionError, KeyError, TypeError, AttributeError) as error:
        fault = "holds no figures of single clips, with which a later run could be compared"
        raise UserError(
            fault, f"{path}: clips", "Run the earlier version anew with this one's `hmrcompress run`"
        ) from error
    return found | {"sha256": sha256_file(path)}


def check_same_frames(earlier: Mapping[str, Any], crops: CropSet, protocol: str, given: Eval, where: object) -> None:
    """UserError where an earlier run scored other frames than a recipe's eval is to, or under another protocol."""
    if earlier["data"]["sha256"] != crops.sha256:
        was = earlier["data"].get("name"), earlier["data"].get("split")
        raise UserError(f"was scored on other data ({':'.join(map(str, was))})", where, "Compare runs on the same data")
    frames = crops.clip[chosen_frames(crops, given.limit, given.frames_per_clip)]
    ids, counts = np.unique(frames, return_counts=True)
    clips = earlier["clips"]
    if clips["ids"] != ids.tolist() or clips["n_frames"] != counts.tolist():
        raise UserError(
            f"scored {sum(clips['n_frames'])} frames of {len(clips['ids'])} clips, and this recipe {len(frames)} of "
            f"{len(ids)}, or others",
            where,
            "Compare runs with the same data.clips, eval.limit and eval.frames_per_clip",
        )
    if clips["protocol"] != protocol:
        raise UserError(f"was scored by {clips['protocol']}, and this recipe says {protocol}", where)


def changes(summary: Mapping[str, Any], earlier: Mapping[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """{of: {sha256[, commit]}, stages: {stage: {figure: {before, now, change, ci95}}}, figures: {figure: {before,
    now}}} of all that both runs measured. ci95: the interval of the change over clips, None for a single clip."""
    now, before = summary.get("clips", {}), earlier["clips"]
    stages: dict[str, Any] = {}
    for stage, own in now.get("stages", {}).items():
        old = before["stages"].get(stage, {})
        rows = {
            figure: _change(own[figure], old[figure], now[COUNTS[figure]], now["ids"], seed)
            for figure in COUNTS
            if figure in own and figure in old
        }
        if rows:
            stages[stage] = rows
    figures = {
        name: {"before": earlier[name], "now": summary[name]}
        for name in PLAIN
        if isinstance(earlier.get(name), (int, float)) and isinstance(summary.get(name), (int, float))
    }
    for name in ("layers", "tokens", "params", "macs"):
        then, here = earlier.get(name), summary.get(name)
        if isinstance(then, dict) and isinstance(here, dict) and "after" in then and "after" in here:
            figures[name] = {"before": then["after"], "now": here["after"]}
    of = {"sha256": earlier["sha256"]} | ({"commit": earlier["commit"]} if "commit" in earlier else {})
    return {"of": of, "stages": stages, "figures": figures}


def _change(now: list[Any], before: list[Any], counts: list[int], ids: list[int], seed: int) -> dict[str, Any]:
    """Of one figure, from its means by clip (None where a clip has none)."""
    kept = [at for at, count in enumerate(counts) if count and now[at] is not None and before[at] is not None]
    weights = np.array([counts[at] for at in kept], dtype=np.int64)
    values = [np.array([each[at] for at in kept], dtype=np.float64) for each in (before, now)]
    means = [float(np.average(each, weights=weights)) if len(kept) else None for each in values]
    interval = clip_interval(
        np.repeat(values[1] - values[0], weights), np.repeat([ids[at] for at in kept], weights), seed=seed
    )
    change = None if means[0] is None or means[1] is None else means[1] - means[0]
    return {
        "before": means[0],
        "now": means[1],
        "change": change,
        "ci95": None if interval is None else list(interval),
    }
