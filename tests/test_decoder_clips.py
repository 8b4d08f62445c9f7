"""Clips of any length: windows, cross-fades, missing frames, and live streams."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_decoder_nets import TINY, draw, every

from hmrcompress.decoder.clips import decode_clip, decode_streaming
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.windows import StreamingDecoder, check_stride, window_noise, window_starts
from hmrcompress.errors import ShapeError, UserError
from hmrcompress.evaluation.decoded import SequenceSettings, sequence_stages


@pytest.fixture(scope="module")
def decoder() -> TemporalDecoder:
    return TemporalDecoder(TINY, seed=3).eval()


class Transparent:
    """Stands in for a decoder: the pose of a frame is its features. Remembers the sizes of batches."""

    def __init__(self) -> None:
        self.config, self.pose_mean = TINY, torch.zeros(1)
        self.batches: list[int] = []

    def __call__(self, features: torch.Tensor, known: torch.Tensor, valid: torch.Tensor, **_: Any) -> torch.Tensor:
        self.batches.append(len(features))
        return features.masked_fill(~valid[..., None], float("nan"))


def test_windows_cover_a_clip_and_end_with_it() -> None:
    assert window_starts(243, 81, 27) == [0, 54, 108, 162]
    assert window_starts(81, 81, 27) == window_starts(5, 81, 27) == [0]
    assert window_starts(82, 81, 27) == [0, 1]
    assert window_starts(24, 12, 0) == [0, 12]
    for overlap in (-1, 12):
        with pytest.raises(UserError, match=f"overlap: got {overlap}, expected 0 to 11: windows have 12 frames"):
            window_starts(24, 12, overlap)


@pytest.mark.parametrize("total", [1, 5, 12, 13, 20, 31, 100])
@pytest.mark.parametrize("overlap", [None, 0, 5, 11])
def test_weights_add_up_to_one(total: int, overlap: int | None) -> None:
    """Windows that agree give what they agree on; padding (NaN here) never gets in."""
    features = draw(total, 8)
    out = decode_clip(Transparent(), features, overlap=overlap)  # type: ignore[arg-type]
    torch.testing.assert_close(out, features, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_cross_fades_by_a_loop(decoder: TemporalDecoder) -> None:
    """Windows 0..11, 8..19, 16..27, 18..29: frame by frame, how far inside each window it is."""
    features, noise = draw(30, 8), window_noise(decoder, 4)
    starts = [0, 8, 16, 18]
    windows = [
        decoder(features[None, start : start + 12], every(1, 12), every(1, 12), noise=noise)[0] for start in starts
    ]
    expected = np.zeros((30, 133))
    for frame in range(30):
        mass = 0.0
        for number, start in enumerate(starts):
            if not start <= frame < start + 12:
                continue
            weight = 1.0
            if number > 0:
                shared = starts[number - 1] + 12 - start
                weight *= min(1.0, (frame - start + 1) / (shared + 1))
            if number + 1 < len(starts):
                shared = start + 12 - starts[number + 1]
                weight *= min(1.0, (start + 12 - frame) / (shared + 1))
            expected[frame] += weight * windows[number][frame - start].double().numpy()
            mass += weight
        expected[frame] /= mass
    out = decode_clip(decoder, features, seed=4)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, decode_clip(decoder, features, seed=4, max_batch=1), rtol=1e-4, atol=1e-5)
    assert (out - decode_clip(decoder, features, seed=5)).abs().max() > 1e-3


@torch.no_grad()
def test_a_short_clip_is_a_window_under_a_mask(decoder: TemporalDecoder) -> None:
    features = draw(7, 8)
    alone = decoder(features[None], every(1, 7), every(1, 7), noise=window_noise(decoder, 0))[0]
    torch.testing.assert_close(decode_clip(decoder, features), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lookahead", [None, 3])
def test_missing_frames_are_never_read(decoder: TemporalDecoder, lookahead: int | None) -> None:
    features, known = draw(30, 8), torch.arange(30) % 4 == 0
    holes = features.masked_fill(~known[:, None], float("nan"))

    def run(given: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        if lookahead is None:
            return decode_clip(decoder, given, known)
        return decode_streaming(decoder, given, known, lookahead=lookahead)

    out = run(holes, known)
    assert out.shape == (30, 133) and torch.equal(out, run(features, known)) and out.isfinite().all()
    assert (out - run(features, None)).abs().max() > 1e-3
    torch.testing.assert_close(run(features, None), run(features, torch.ones(30, dtype=torch.bool)))


@pytest.mark.parametrize("lookahead", [0, 4, 11])
def test_a_stream_does_not_see_the_future(decoder: TemporalDecoder, lookahead: int) -> None:
    """Changing all frames from one on leaves alone what was due before it came, and moves what was not."""
    features = draw(30, 8)
    out = decode_streaming(decoder, features, lookahead=lookahead)
    for first in (6, 19):
        changed = features.clone()
        changed[first:] = draw(30 - first, 8, seed=1)
        other = decode_streaming(decoder, changed, lookahead=lookahead)
        due = max(0, first - lookahead)
        torch.testing.assert_close(out[:due], other[:due], rtol=1e-5, atol=1e-6)
        assert ((out - other)[due:].abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("lookahead", [0, 4, 11])
@pytest.mark.parametrize("total", [3, 30])
def test_a_live_stream_equals_the_clip(decoder: TemporalDecoder, lookahead: int, total: int) -> None:
    features, known = draw(total, 8), torch.arange(total) % 3 != 1
    live = StreamingDecoder(decoder, lookahead=lookahead, seed=2)
    expected = decode_streaming(decoder, features, known, lookahead=lookahead, seed=2)
    for _ in range(2):  # a flushed stream begins anew
        poses: list[torch.Tensor] = []
        for frame in range(total):
            done = live.push(features[frame] if known[frame] else None)
            assert len(done) == (frame >= lookahead)
            poses += done
        poses += live.flush()
        torch.testing.assert_close(torch.stack(poses), expected, rtol=1e-4, atol=1e-5)
        assert live.flush() == []
    assert live.latency_ms(fps=30.0) == pytest.approx(lookahead * 33.3333, abs=0.01)


def test_a_clip_of_one_window_with_all_to_come_is_the_whole_clip(decoder: TemporalDecoder) -> None:
    features = draw(10, 8)
    streamed = decode_streaming(decoder, features, lookahead=11)
    torch.testing.assert_close(streamed, decode_clip(decoder, features), rtol=1e-4, atol=1e-5)


def test_windows_go_in_batches() -> None:
    counting = Transparent()
    decode_clip(counting, draw(100, 8), overlap=6, max_batch=4)  # type: ignore[arg-type]
    assert counting.batches == [4, 4, 4, 4]


def test_inputs_stay_as_they_are_and_outputs_are_plain(decoder: TemporalDecoder) -> None:
    features, known = draw(20, 8).requires_grad_(True), torch.arange(20) % 2 == 0
    before = features.clone(), known.clone()
    out = decode_clip(decoder, features, known)
    assert not out.requires_grad and not out.is_inference() and out.dtype == torch.float32
    assert torch.equal(features, before[0]) and torch.equal(known, before[1])


def test_wrong_requests_are_refused(decoder: TemporalDecoder) -> None:
    with pytest.raises(ShapeError, match=r"features: got \(3, 9\), expected \(T,8\)"):
        decode_clip(decoder, draw(3, 9))
    with pytest.raises(ShapeError, match=r"features: got \(0, 8\)"):
        decode_clip(decoder, draw(0, 8))
    with pytest.raises(ShapeError, match="known: got"):
        decode_clip(decoder, draw(3, 8), torch.ones(2, dtype=torch.bool))
    with pytest.raises(UserError, match="no frame of the clip has features"):
        decode_clip(decoder, draw(3, 8), torch.zeros(3, dtype=torch.bool))
    for lookahead in (-1, 12):
        with pytest.raises(UserError, match=f"lookahead: got {lookahead}, expected 0 to 11"):
            decode_streaming(decoder, draw(3, 8), lookahead=lookahead)
        with pytest.raises(UserError, match="lookahead"):
            StreamingDecoder(decoder, lookahead=lookahead)


def test_a_stride_longer_than_a_window_is_refused() -> None:
    """A window without any frame that the network ran on would be made up."""
    check_stride(TINY.frames, TINY.frames)
    with pytest.raises(UserError, match=f"--stride: the network runs on every {TINY.frames + 1}th step, and the deco"):
        check_stride(TINY.frames + 1, TINY.frames)
    timeline: Any = SimpleNamespace(every=lambda stride: None)
    settings = SequenceSettings(strides=(TINY.frames + 1,))
    decoder: Any = SimpleNamespace(config=TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmrcompress.evaluation.decoded.interpolated", lambda *given, **more: None)
        with pytest.raises(UserError, match="--stride: the network runs on every"):
            sequence_stages([timeline], settings, fps=30.0, decoder=decoder, codec=decoder)
