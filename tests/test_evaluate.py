"""The table of stages against direct forward passes, and what an evaluation refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import DataMasks
from hmrcompress.errors import UserError
from hmrcompress.evaluation.evaluate import Evaluation, evaluate, leaked_frames, stages_of
from hmrcompress.evaluation.forced import ForcedMerges
from hmrcompress.evaluation.sizes import sizes
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.metrics.pose import mpjpe
from hmrcompress.models.network import HMR2
from hmrcompress.plan import Plan, trivial_groups
from hmrcompress.records import BodyParams

TOKENS = {"keep": 150, "per_layer": 20, "size_weighted": True, "attention_bias": False, "metric": "keys"}


def plan(data: dict[str, str] | None = None, tokens: dict[str, Any] | None = None) -> Plan:
    found = {
        "method": "eclm", "tau_mm": 0.1, "frames": 6, "base_mpjpe_mm": 1.0, "final_mpjpe_mm": 1.0,
        "evaluations": 3, "seed": 0, "data": data,
    }  # fmt: skip
    return Plan.from_dict(
        {
            "schema": 1,
            "checkpoint": {"family": "hmr2", "sha256": "a" * 64, "layers": tiny.CONFIG.depth},
            "groups": trivial_groups(tiny.CONFIG.depth),
            "merge_rule": "eq4",
            "tokens": tokens,
            "search": found if data else None,
        }
    )


def measured(network: HMR2, made: Plan | None, crops: CropSet, body: BodyModel, **options: Any) -> Evaluation:
    against = options.pop("against", None)
    dtype = options.pop("dtype", torch.float32)
    options = {"masks": DataMasks(), "batch_size": 5} | options
    return evaluate(stages_of(network, made, against=against, dtype=dtype), crops, body=body, plan=made, **options)


def direct(network: HMR2, crops: CropSet, body: BodyModel) -> float:
    (batch,) = crops.batches(batch_size=len(crops), masks=DataMasks())
    with torch.no_grad():
        params = network(batch.images, batch.person_mask).params
    return mpjpe(body.joints(params), body.joints(batch.params)).mean().item()


def test_every_stage_is_what_its_name_says(tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    other, made = tiny.network(seed=3), plan(tokens=TOKENS)
    result = measured(tiny_network, made, tiny_crops, tiny_body, against=other)
    assert list(result.stages) == ["mean_pose", "baseline", "merged", "merged_tokens"]
    expected = {
        "baseline": direct(other, tiny_crops, tiny_body),
        "merged": direct(tiny_network, tiny_crops, tiny_body),
        "merged_tokens": direct(with_token_merging(tiny_network, made.tokens), tiny_crops, tiny_body),
    }
    for stage, value in expected.items():
        assert result.stages[stage].mpjpe_mm == pytest.approx(value, rel=1e-6)
    assert len({round(value, 3) for value in expected.values()}) == 3


def test_tokens_alone_are_merged_at_all_layers_of_the_network_as_it_came(
    tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel
) -> None:
    whole = tiny.network(seed=3)
    made = plan(tokens=TOKENS)
    depth = tiny.CONFIG.depth
    merged = made.model_copy(update={"groups": (*((i,) for i in range(depth - 2)), (depth - 2, depth - 1))})
    result = measured(tiny_network, merged, tiny_crops, tiny_body, against=whole)
    assert list(result.stages) == ["mean_pose", "baseline", "merged", "tokens_alone", "merged_tokens"]
    expected = direct(with_token_merging(whole, made.tokens), tiny_crops, tiny_body)
    assert result.stages["tokens_alone"].mpjpe_mm == pytest.approx(expected, rel=1e-6)


def test_distance_to_the_baseline_is_that_of_a_loop(
    tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel
) -> None:
    """Joints of both networks by hand, pelvis on pelvis, one frame and one joint after the other."""
    other = tiny.network(seed=3)
    figures = measured(tiny_network, plan(), tiny_crops, tiny_body, against=other).to_json()["stages"]
    assert "distance_mm" not in figures["baseline"] and "distance_mm" not in figures["mean_pose"]
    (batch,) = tiny_crops.batches(batch_size=len(tiny_crops))
    with torch.no_grad():
        ours, theirs = (tiny_body.joints(each(batch.images).params).double() for each in (tiny_network, other))
    distances = []
    for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
        apart = [
            sum((p[i] - a[0][i] - q[i] + b[0][i]) ** 2 for i in range(3)) ** 0.5 for p, q in zip(a, b, strict=True)
        ]
        distances.append(1000 * sum(apart) / len(apart))
    assert figures["merged"]["distance_mm"] == pytest.approx(sum(distances) / len(distances), rel=1e-4)
    assert figures["merged"]["distance_p95_mm"] == pytest.approx(np.percentile(distances, 95), rel=1e-4)


def test_the_mean_pose_is_that_of_the_network(tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    """Mean parameters of a quarter turn at every joint and betas of one half, set by hand."""
    network = tiny.network()
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    network.smpl_head.init_body_pose.copy_(torch.tensor([0.0, 1, 0, -1, 0, 0]).repeat(24))
    network.smpl_head.init_betas.fill_(0.5)
    turned = quarter.expand(1, 24, 3, 3)
    mean = tiny_body.joints(BodyParams(turned[:, :1], turned[:, 1:], torch.full((1, 10), 0.5)))
    (batch,) = tiny_crops.batches(batch_size=12)
    expected = mpjpe(mean.expand(12, -1, -1), tiny_body.joints(batch.params)).mean().item()
    result = measured(network, None, tiny_crops, tiny_body)
    assert list(result.stages) == ["mean_pose", "baseline"]
    assert result.stages["mean_pose"].mpjpe_mm == pytest.approx(expected, rel=1e-6)
    assert result.stages["mean_pose"].to_json()["n_clips"] == 2


def test_stages_follow_the_plan(tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    assert list(measured(tiny_network, plan(), tiny_crops, tiny_body).stages) == ["mean_pose", "merged"]
    result = measured(tiny_network, plan(tokens=TOKENS), tiny_crops, tiny_body)
    assert list(result.stages) == ["mean_pose", "merged", "merged_tokens"]
    assert result.tokens["counts"] == [192, 172, 152, 150]
    assert result.tokens["forced_person_merges_per_frame"] == 0


def test_forced_merges_are_counted(tiny_network: HMR2, tiny_body: BodyModel) -> None:
    """Where everything is person, all 42 merges take person tokens: on 5 of 12 frames, all of which are counted."""
    arrays = tiny.crop_arrays()
    arrays["masks"][1:6] = 255
    crops = CropSet(arrays, tiny.crop_meta())
    result = measured(tiny_network, plan(tokens=TOKENS), crops, tiny_body, batch_size=1)
    assert result.tokens["forced_person_merges_per_frame"] == 42 * 5 / 12
    assert result.tokens["forced_counted_on_frames"] == 12


def test_forced_merges_are_those_of_the_frames_asked_for() -> None:
    """Of three frames counted, as where clips are decoded whole and a few of their frames are scored."""
    counted = ForcedMerges({(0, 0): 3, (0, 1): 5, (1, 0): 90})
    assert counted.to_json([(0, 0), (0, 1), (2, 0)]) == {
        "forced_person_merges_per_frame": 4.0, "forced_counted_on_frames": 2,
    }  # fmt: skip
    assert counted.to_json([(2, 0)]) == ForcedMerges().to_json([(0, 0)]) == {}


def test_masks_are_needed_only_for_tokens(tiny_network: HMR2, tiny_body: BodyModel) -> None:
    bare = CropSet({k: v for k, v in tiny.crop_arrays().items() if k != "masks"}, tiny.crop_meta())
    measured(tiny_network, plan(), bare, tiny_body)
    with pytest.raises(UserError, match="--masks none"):
        measured(tiny_network, plan(tokens=TOKENS), bare, tiny_body)


def test_figures_are_json_with_the_names_of_the_contract(
    tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel
) -> None:
    figures = json.loads(json.dumps(measured(tiny_network, None, tiny_crops, tiny_body).to_json(), allow_nan=False))
    assert list(figures) == ["stages"]
    assert set(figures["stages"]["baseline"]) == {
        "mpjpe_mm", "pa_mpjpe_mm", "pve_mm", "accel_mm_per_frame2", "n_frames", "n_clips", "protocol", "mpjpe_ci95_mm",
        "accel_m_per_s2", "accel_published_m_per_s2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "tiny", "split": "calib", "sha256": "b" * 64}, False),
        ({"name": "tiny", "split": "test", "sha256": "b" * 64}, True),  # fewer clips of the same split
        ({"name": "else", "split": "calib", "sha256": "own"}, True),
        (None, False),
    ],
)
def test_a_leak_is_marked(
    tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, data: dict[str, str] | None, expected: bool
) -> None:
    if data and data["sha256"] == "own":
        data = data | {"sha256": tiny_crops.sha256}
    made = plan(data=data)
    assert (leaked_frames(made, (), tiny_crops, tiny_crops.stretches()) == 12) == expected
    assert measured(tiny_network, made, tiny_crops, tiny_body).to_json().get("leak", False) == expected


def test_limit_and_progress(tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    told: list[tuple[int, int]] = []
    result = measured(
        tiny_network,
        None,
        tiny_crops,
        tiny_body,
        limit=8,
        progress=lambda what, done, total: told.append((done, total)),
    )
    assert result.stages["baseline"].n_frames == 8 and result.stages["baseline"].n_clips == 2
    assert result.stages["baseline"].accel_mm_per_frame2 is not None
    assert told == [(5, 8), (8, 8)]


def test_half_precision_is_close(tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    full = measured(tiny_network, None, tiny_crops, tiny_body).stages["baseline"].mpjpe_mm
    half = measured(tiny_network, None, tiny_crops, tiny_body, dtype=torch.bfloat16).stages["baseline"].mpjpe_mm
    assert full != half and half == pytest.approx(full, rel=0.02)


def test_a_network_that_predicts_nan_is_refused(tiny_crops: CropSet, tiny_body: BodyModel) -> None:
    network = tiny.network()
    network.smpl_head.decshape.bias.data[0] = torch.nan
    with pytest.raises(UserError, match=r"clip 0, frame 0: .*NaN.*stage baseline"):
        measured(network, None, tiny_crops, tiny_body)


def test_ground_truth_of_another_body_is_refused(tiny_network: HMR2, tiny_body: BodyModel) -> None:
    crops = CropSet(tiny.crop_arrays(), tiny.crop_meta() | {"body": {"name": "x", "faces_sha256": "0" * 64}})
    with pytest.raises(UserError, match="ground truth of tiny"):
        measured(tiny_network, None, crops, tiny_body)


def test_sizes_before_and_after() -> None:
    made = plan(tokens=TOKENS)
    plain, merged = sizes(tiny.CONFIG, None), sizes(replace(tiny.CONFIG, depth=3), made)
    assert plain["layers"] == {"before": 4} and merged["layers"] == {"before": 4, "after": 3}
    assert (
        plain["params"]["before"] == merged["params"]["before"] == sum(p.numel() for p in tiny.network().parameters())
    )
    block = sum(p.numel() for p in tiny.network().backbone.blocks[0].parameters())
    assert merged["params"]["before"] - merged["params"]["after"] == block
    assert plain["macs"]["before"] == merged["macs"]["before"] > merged["macs"]["after"]
    assert merged["macs_with_attention"]["after"] > merged["macs"]["after"]
