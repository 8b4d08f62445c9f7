"""Clips in time: which frames a network runs on, what lies in between, and stages that look at whole clips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scipy.spatial.transform import Rotation, Slerp
from test_evaluate import TOKENS, plan

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import DataMasks
from hmrcompress.decoder.clips import decode_streaming
from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.decoder.windows import window_noise
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.evaluation.decoded import FILTERS, SequenceSettings, decode
from hmrcompress.evaluation.evaluate import Evaluation, evaluate, stages_of
from hmrcompress.evaluation.timelines import (
    LONGEST_HOLE,
    Timeline,
    betas_in_time,
    interpolated,
    neighbours,
    observe,
    sequence_predict,
    spans,
)
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.metrics.pose import mpjpe
from hmrcompress.models.network import HMR2
from hmrcompress.records import BodyParams, FrameBatch, HMROutput

SIZES = DecoderConfig(
    frames=6, feature_dim=tiny.CONFIG.head_width, latents=3, latent_dim=8, vae_width=16, vae_layers=3, vae_heads=2,
    vae_mlp=16, width=16, layers=3, heads=2, mlp=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def decoder() -> TemporalDecoder:
    made = TemporalDecoder(SIZES, seed=3).eval()
    made.set_statistics(pose_std=torch.tensor(0.3))
    return made


def crops_at(frames: list[list[int]]) -> CropSet:
    """Crops with these frame numbers, a list a clip, in an order of their own."""
    count = sum(map(len, frames))
    order = np.random.default_rng(0).permutation(count)
    arrays = {name: values for name, values in tiny.crop_arrays(1, count).items() if name != "masks"}
    arrays["clip"] = np.repeat(np.arange(len(frames)), [len(each) for each in frames])[order]
    arrays["frame"] = np.concatenate(frames)[order]
    return CropSet(arrays, tiny.crop_meta())


def echo(batch: FrameBatch) -> HMROutput:
    """Tells clip and frame instead of looking at the images."""
    said = torch.stack([batch.clip, batch.frame], 1).double()
    params = batch.params
    return HMROutput(params.global_orient, params.body_pose, params.betas, torch.zeros(len(said), 3), said)


def timeline(length: int, positions: list[int], seed: int = 0) -> Timeline:
    rotations = torch.from_numpy(Rotation.random(24 * len(positions), random_state=seed).as_matrix()).float()
    rotations = rotations.view(len(positions), 24, 3, 3)
    betas = torch.randn(len(positions), 10, generator=torch.Generator().manual_seed(seed))
    params = BodyParams(rotations[:, :1], rotations[:, 1:], betas)
    return Timeline(4, 100, length, torch.tensor(positions), betas[:, :3], params)


def test_spans_are_whole_stretches() -> None:
    crops = crops_at([[3, 4, 5, 9, 10], [0, 1, 2, 3], [7, 8]])
    places = {(int(c), int(f)): i for i, (c, f) in enumerate(zip(crops.clip, crops.frame, strict=True))}
    found = spans(crops, np.array([places[0, 9], places[0, 4], places[1, 2]]))
    assert [(crops.clip[i], crops.frame[i]) for i in found] == [(0, 4), (0, 5), (0, 9), (1, 2)]


def test_a_network_is_observed_once_and_put_in_its_place() -> None:
    crops = crops_at([[3, 4, 6], [0, LONGEST_HOLE + 1, 2 * LONGEST_HOLE + 3]])
    told: list[tuple[int, int]] = []
    seen = observe(
        echo, crops, crops.stretches(), batch_size=4, progress=lambda _, done, total: told.append((done, total))
    )
    assert [(t.clip, t.first, t.length, t.positions.tolist()) for t in seen] == [
        (0, 3, 4, [0, 1, 3]),
        (1, 0, LONGEST_HOLE + 2, [0, LONGEST_HOLE + 1]),  # 30 frames missing is the most; 31 cut the clip
        (1, 2 * LONGEST_HOLE + 3, 1, [0]),
    ]
    for each in seen:
        assert each.features.dtype == torch.float32
        assert each.features.tolist() == [[each.clip, each.first + p] for p in each.positions.tolist()]
    assert seen[0].known.tolist() == [True, True, False, True]
    assert seen[0].spread(seen[0].features).tolist() == [[0, 3], [0, 4], [0, 0], [0, 6]]
    assert told == [(4, 6), (6, 6)]


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7, 20])
def test_every_kth_frame_costs_a_kth(stride: int) -> None:
    sparse = timeline(13, list(range(13))).every(stride)
    assert sparse.positions.tolist() == list(range(0, 13, stride)) and len(sparse.positions) == -(-13 // stride)
    assert sparse.length == 13 and len(sparse.features) == len(sparse.params.betas) == len(sparse.positions)
    holes = timeline(13, [0, 1, 4, 12]).every(stride)
    assert holes.positions.tolist() == [p for p in (0, 1, 4, 12) if p % stride == 0]
    with pytest.raises(UserError, match="--stride"):
        holes.every(0)


def test_interpolation_is_scipys_slerp_and_numpys_interp() -> None:
    """Between predictions at uneven distances; after the last one it stands still."""
    known, length = [0, 3, 4, 9], 12
    made = timeline(length, known)
    found = interpolated(made)
    time = np.minimum(np.arange(length), known[-1])
    for joint in range(24):
        slerp = Slerp(known, Rotation.from_matrix(made.params.rotations[:, joint].double().numpy()))
        np.testing.assert_allclose(found.rotations[:, joint].numpy(), slerp(time).as_matrix(), atol=2e-6)
    for shape in range(10):
        expected = np.interp(time, known, made.params.betas[:, shape].numpy())
        np.testing.assert_allclose(found.betas[:, shape].numpy(), expected, atol=1e-6)
    assert torch.equal(found.rotations[known], made.params.rotations)
    median = interpolated(made, median_shape=True).betas
    np.testing.assert_allclose(median.numpy(), np.tile(np.median(made.params.betas.numpy(), 0), (length, 1)), atol=1e-6)


@pytest.mark.parametrize("lookahead", [0, 1, 2, 3])
def test_interpolation_waits_no_longer_than_it_may(lookahead: int) -> None:
    """What comes after t + lookahead cannot change frame t, and what is there in time is used."""
    made = timeline(13, [0, 3, 6, 9, 12])
    full, live = interpolated(made), interpolated(made, lookahead=lookahead)
    for t in range(13):
        kept = made.positions <= t + lookahead
        params = made.params
        cut = replace(
            made,
            positions=made.positions[kept],
            features=made.features[kept],
            params=BodyParams(params.global_orient[kept], params.body_pose[kept], params.betas[kept]),
        )
        assert torch.equal(interpolated(cut, lookahead=lookahead).rotations[t], live.rotations[t])
        following = -t % 3
        if following <= lookahead:
            assert torch.equal(live.rotations[t], full.rotations[t])
            assert torch.equal(live.betas[t], full.betas[t])
        else:
            assert torch.equal(live.rotations[t], made.params.rotations[t // 3])
    assert neighbours(made, lookahead)[2].max() <= 1


def test_predictions_are_looked_up_by_clip_and_frame() -> None:
    first, second = timeline(3, [0, 1, 2]), replace(timeline(2, [0, 1], seed=1), first=103)
    predict = sequence_predict([first, second], [first.params, second.params])
    (batch,) = crops_at([[0]] * 3).batches(batch_size=3)
    asked = replace(batch, clip=torch.tensor([4, 4, 4]), frame=torch.tensor([104, 101, 103]))
    expected = [second.params.betas[1], first.params.betas[1], second.params.betas[0]]
    assert torch.equal(predict(asked).betas, torch.stack(expected))
    with pytest.raises(UserError, match="clip 4, frame 105"):
        predict(replace(asked, frame=torch.tensor([104, 105, 106])))
    with pytest.raises(ShapeError, match="2 bodies for 3 frames"):
        sequence_predict([first], [second.params])


def run(network: HMR2, crops: CropSet, body: BodyModel, made: Any = None, **options: Any) -> Evaluation:
    options = {"masks": DataMasks(), "batch_size": 5} | options
    return evaluate(stages_of(network, made), crops, body=body, plan=made, **options)


def directly(
    network: HMR2, crops: CropSet, body: BodyModel, decoder: TemporalDecoder, stride: int, median: bool
) -> np.ndarray:
    """MPJPE (clips, frames) of clips that are one window each: the decoder itself, on what the network itself says."""
    errors = []
    for clip in crops.clip_ids:
        (batch,) = crops.batches(crops.frames_of(clip), 6, DataMasks())
        with torch.no_grad():
            output = network(batch.images, batch.person_mask)
            known = torch.tensor([frame % stride == 0 for frame in range(6)])
            features = torch.where(known[:, None], output.features, torch.full((), 7.0))
            noise = window_noise(decoder, 5 + clip)
            pose = decoder(features[None], known[None], torch.ones(1, 6, dtype=torch.bool), noise=noise)[0]
        seen, betas = output.betas.numpy()[::stride], np.empty((6, 10), np.float32)
        for shape in range(10):
            betas[:, shape] = np.interp(range(6), range(0, 6, stride), seen[:, shape])
        if median:
            betas[:] = np.median(seen, 0)
        joints = body.joints(PoseCodec(body).decode(pose, torch.from_numpy(betas)))
        errors.append(mpjpe(joints, body.joints(batch.params)).numpy())
    return np.stack(errors)


@pytest.mark.parametrize(("stride", "median"), [(1, False), (1, True), (2, False), (4, True)])
def test_decoded_is_the_decoder_on_the_merged_network(
    tiny_network: HMR2,
    tiny_crops: CropSet,
    tiny_body: BodyModel,
    decoder: TemporalDecoder,
    stride: int,
    median: bool,
) -> None:
    made = plan(tokens=TOKENS)
    settings = SequenceSettings(strides=(stride,), median_shape=median, seed=5)
    result = run(tiny_network, tiny_crops, tiny_body, made, decoder=decoder, sequences=settings)
    between = [] if stride == 1 else ["interpolated"]
    assert list(result.stages) == ["mean_pose", "merged", "merged_tokens", *between, "decoded"]
    merged = with_token_merging(tiny_network, made.tokens)
    expected = directly(merged, tiny_crops, tiny_body, decoder, stride, median)
    np.testing.assert_allclose(result.stages["decoded"].per_frame, expected.flatten(), rtol=1e-4)
    without = run(tiny_network, tiny_crops, tiny_body, made)
    for stage, scores in without.stages.items():
        np.testing.assert_allclose(scores.per_joint, result.stages[stage].per_joint, rtol=1e-5)
    assert result.tokens == without.tokens
    figures = result.to_json()
    assert figures["sequence"]["strides"] == [stride] and figures["sequence"]["seed"] == 5
    assert "accel_ci95_mm_per_frame2" in figures["stages"]["decoded"] and "sequence" not in without.to_json()


def test_several_strides_in_one_table(
    tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, decoder: TemporalDecoder
) -> None:
    many = run(tiny_network, tiny_crops, tiny_body, decoder=decoder, sequences=SequenceSettings(strides=(1, 2, 4)))
    assert list(many.stages) == [
        "mean_pose", "baseline", "interpolated_stride_2", "interpolated_stride_4",
        "decoded", "decoded_stride_2", "decoded_stride_4",
    ]  # fmt: skip
    for stride in (2, 4):
        one = run(tiny_network, tiny_crops, tiny_body, decoder=decoder, sequences=SequenceSettings(strides=(stride,)))
        for stage in ("decoded", "interpolated"):
            assert one.stages[stage].mpjpe_mm == many.stages[f"{stage}_stride_{stride}"].mpjpe_mm
    assert many.stages["interpolated_stride_2"].mpjpe_mm != many.stages["baseline"].mpjpe_mm


def test_frames_that_are_not_scored_are_still_looked_at(
    tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, decoder: TemporalDecoder
) -> None:
    """Three frames a clip, 1, 3 and 5: what is decoded runs from 1 to 5, so its network saw 2 and 4 as well."""
    few = run(tiny_network, tiny_crops, tiny_body, decoder=decoder, frames_per_clip=3)
    assert few.stages["decoded"].frame.tolist() == [1, 3, 5] * 2
    arrays = {name: values[tiny_crops.frame >= 1] for name, values in tiny.crop_arrays().items()}
    rest = CropSet(arrays, tiny.crop_meta())
    whole = run(tiny_network, rest, tiny_body, decoder=decoder).stages
    for stage in ("decoded", "baseline"):
        chosen = np.isin(whole[stage].frame, (1, 3, 5))
        np.testing.assert_allclose(few.stages[stage].per_joint, whole[stage].per_joint[chosen], rtol=1e-5)


def test_live_decoding_is_the_streaming_decoder(tiny_body: BodyModel, decoder: TemporalDecoder) -> None:
    made = timeline(9, list(range(9)))
    made = replace(made, features=torch.randn(9, SIZES.feature_dim, generator=torch.Generator().manual_seed(1)))
    sparse, codec = made.every(2), PoseCodec(tiny_body)
    found = decode(sparse, decoder, codec, lookahead=1, seed=2)
    pose = decode_streaming(decoder, sparse.spread(sparse.features), sparse.known, lookahead=1, seed=2 + 4)
    expected = codec.decode(pose, betas_in_time(sparse, lookahead=1))
    assert torch.equal(found.rotations, expected.rotations) and torch.equal(found.betas, expected.betas)
    assert not torch.allclose(found.rotations, decode(sparse, decoder, codec, seed=2).rotations, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (SequenceSettings(strides=(0,)), "--stride"),
        (SequenceSettings(strides=()), "--stride"),
        (SequenceSettings(steps=0), "eval.steps"),
        (SequenceSettings(lookahead=-1), "eval.lookahead"),
        (SequenceSettings(filters=("median",)), "one-euro, savgol"),
        (SequenceSettings(median_shape=True, lookahead=3), "eval.median_shape"),
    ],
)
def test_settings_that_make_no_sense(
    tiny_network: HMR2,
    tiny_crops: CropSet,
    tiny_body: BodyModel,
    decoder: TemporalDecoder,
    settings: SequenceSettings,
    sentence: str,
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(tiny_network, tiny_crops, tiny_body, decoder=decoder, sequences=settings)


@pytest.mark.parametrize("name", ["one-euro", "savgol"])
def test_filters_smooth_each_clip_by_itself(
    tiny_network: HMR2, tiny_crops: CropSet, tiny_body: BodyModel, name: str
) -> None:
    """The stage is the filter, called once over the network's own predictions for all frames of all clips."""
    found = run(tiny_network, tiny_crops, tiny_body, sequences=SequenceSettings(filters=(name,)))
    stage, smooth = FILTERS[name]
    assert list(found.stages) == ["mean_pose", "baseline", stage]
    (batch,) = tiny_crops.batches(batch_size=12)
    with torch.no_grad():
        params = tiny_network(batch.images, None).params
    joints = tiny_body.joints(smooth(params, batch.clip, 30.0))
    expected = mpjpe(joints, tiny_body.joints(batch.params)).numpy()
    np.testing.assert_allclose(found.stages[stage].per_frame, expected, rtol=1e-6)
    assert found.stages[stage].mpjpe_mm != pytest.approx(found.stages["baseline"].mpjpe_mm, rel=1e-5)
