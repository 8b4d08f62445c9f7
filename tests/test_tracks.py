"""Clips and tracks that are fed piece by piece against the same taken whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_decoder
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.decoder.clips import decode_clip
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.decoder.windows import ClipStream
from hmrcompress.evaluation.decoded import decode
from hmrcompress.evaluation.timelines import Timeline, interpolated
from hmrcompress.geometry.rotations import axis_angle_to_matrix
from hmrcompress.pipeline.boxes import Box
from hmrcompress.pipeline.tracks import Prediction, Rows, Seen, TrackStream
from hmrcompress.records import BodyParams

D = tiny_decoder.CONFIG.feature_dim


@pytest.fixture(scope="module", params=[False, True], ids=["features", "read-outs too"])
def decoder(request: pytest.FixtureRequest) -> TemporalDecoder:
    return TemporalDecoder(replace(tiny_decoder.CONFIG, readout=request.param), seed=1).eval().requires_grad_(False)


@pytest.mark.parametrize("overlap", [None, 0, 11])
def test_a_clip_of_unknown_length_is_decoded_as_the_whole(decoder: TemporalDecoder, overlap: int | None) -> None:
    """Windows of 12 frames; every length up to three of them and a long one, in pieces of any size."""
    generator = torch.Generator().manual_seed(0)
    for total in (*range(1, 38, 2), 100):
        features = torch.randn(total, decoder.config.input_dim, generator=generator)
        known = torch.rand(total, generator=generator) < 0.6
        known[0] = True
        stream, made, held = ClipStream(decoder, overlap=overlap, seed=5), [], 0
        for part in torch.arange(total).split(int(torch.randint(1, 9, (1,), generator=generator))):
            made.append(stream.push(features[part], known[part]))
            held = max(held, len(stream.features), len(stream.windows))
        made.append(stream.flush())
        whole = decode_clip(decoder, features, known, overlap=overlap, seed=5)
        assert torch.allclose(torch.cat(made), whole, atol=1e-5) and held <= 3 * 12


FRAMES = np.array([4, 5, 6, 8, 9, 10, 11, 12, 15, 16, 17, 18, 19, 20])
"""Of a track; 7, 13 and 14 have no box."""
RUN = np.array([1, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0], bool)


def predictions() -> list[Prediction]:
    generator = torch.Generator().manual_seed(3)
    return [
        Prediction(
            torch.randn(D, generator=generator),
            axis_angle_to_matrix(0.4 * torch.randn(24, 3, generator=generator)),
            torch.randn(10, generator=generator),
            torch.randn(3, generator=generator),
        )
        for _ in FRAMES
    ]


def timeline() -> Timeline:
    made = [each for each, run in zip(predictions(), RUN, strict=True) if run]
    rotations = torch.stack([each.rotations for each in made])
    return Timeline(
        2,
        4,
        17,
        torch.from_numpy(FRAMES[RUN] - 4),
        torch.stack([each.features for each in made]),
        BodyParams(rotations[:, :1], rotations[:, 1:], torch.stack([each.betas for each in made])),
    )


def streamed(stream: TrackStream, piece: int, shift: int = 0, last: bool = True) -> list[Rows]:
    seen = [
        Seen(int(f) + shift, Box(2, (10.0 * f, 5.0), 100.0 + f), (640, 480), bool(r))
        for f, r in zip(FRAMES, RUN, strict=True)
    ]
    given = [each if run else None for each, run in zip(predictions(), RUN, strict=True)]
    made = []
    for start in range(0, len(seen), piece):
        made += stream.push(seen[start : start + piece], given[start : start + piece])
    return made + (stream.flush() if last else [])


@pytest.mark.parametrize("piece", [1, 3, 14])
def test_frames_in_between_are_interpolated_as_in_eval(piece: int) -> None:
    rows = streamed(TrackStream(2), piece)
    assert torch.cat([each.frame for each in rows]).tolist() == list(range(4, 21))
    expected = interpolated(timeline())
    assert torch.allclose(torch.cat([each.rotations for each in rows]), expected.rotations, atol=1e-5)
    assert torch.allclose(torch.cat([each.betas for each in rows]), expected.betas, atol=1e-5)
    frames = np.arange(4, 21)
    assert torch.cat([each.run for each in rows]).tolist() == np.isin(frames, FRAMES[RUN]).tolist()
    # Boxes and cameras are linear in between, boxes from frame to frame, cameras from prediction to prediction.
    assert np.allclose(torch.cat([each.centre for each in rows])[:, 0], 10.0 * frames)
    assert np.allclose(torch.cat([each.side for each in rows]), 100.0 + frames)
    cams = np.stack([each.cam.numpy() for each, run in zip(predictions(), RUN, strict=True) if run])
    linear = np.stack([np.interp(frames, FRAMES[RUN], column) for column in cams.T], 1)
    assert np.allclose(torch.cat([each.cam for each in rows]), linear, atol=1e-5)


@pytest.mark.parametrize("piece", [1, 5, 14])
def test_tracks_are_decoded_as_in_eval(decoder: TemporalDecoder, tiny_body: BodyModel, piece: int) -> None:
    codec = PoseCodec(tiny_body)
    rows = streamed(TrackStream(2, decoder=decoder, codec=codec, seed=9), piece)
    expected = decode(timeline(), decoder, codec, seed=9)
    assert torch.cat([each.frame for each in rows]).tolist() == list(range(4, 21))
    assert torch.allclose(torch.cat([each.rotations for each in rows]), expected.rotations, atol=1e-3)
    assert torch.allclose(torch.cat([each.betas for each in rows]), expected.betas, atol=1e-5)


def test_after_a_long_absence_a_track_begins_anew() -> None:
    """Nothing is made up for the 40 frames in which the person is away."""
    stream = TrackStream(2)
    rows = streamed(stream, 14, last=False) + streamed(stream, 14, shift=57)
    frames = torch.cat([each.frame for each in rows]).tolist()
    assert frames == [*range(4, 21), *range(61, 78)]
    half = len(frames) // 2
    rotations = torch.cat([each.rotations for each in rows])
    assert torch.equal(rotations[:half], rotations[half:])
