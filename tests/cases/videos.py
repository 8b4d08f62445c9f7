"""Videos as telephones, browsers, taggers and broken downloads leave them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from cases.isobmff import display_matrices, set_display_matrix, with_cover
from cases.scenes import jpeg, person

SIZE = (192, 256)
UNEVEN = [*range(0, 200, 20), *range(200, 1400, 120)]
"""Times of 20 frames in 1/600 s: ten at 30 a second, then ten at 5 a second."""


def encode(
    path: Path,
    count: int = 20,
    *,
    rate: int | Fraction = 30,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = SIZE,
    times: list[int] | None = None,
    base: Fraction | None = None,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    form: str | None = None,
    picture: Callable[[int], np.ndarray] | None = None,
) -> Path:
    """A video of the drawn person, who drifts to the right. times: of the frames, in units of `base`."""
    picture = picture or (lambda number: person(*size, shift=number % 8))
    with av.open(str(path), "w", format=form, options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.options = options or {}
        if base:
            stream.time_base = stream.codec_context.time_base = base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], base
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return path


def noisy(number: int) -> np.ndarray:
    """The person under noise, so that the file has bytes to lose."""
    rng = np.random.default_rng(number)
    return np.clip(person().astype(int) + rng.integers(-40, 40, (256, 192, 3)), 0, 255).astype(np.uint8)


def cut(source: Path, target: Path, share: float) -> Path:
    """The first part of a file, as a download that broke."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def make(out: Path) -> None:
    """plain.mp4 is the person; 20 frames at 30 a second."""
    out.mkdir(parents=True, exist_ok=True)
    plain = encode(out / "plain.mp4").read_bytes()
    for name in ("hflip", "transpose", "rot90"):
        (out / f"matrix_{name}.mp4").write_bytes(set_display_matrix(plain, display_matrices(*SIZE)[name]))
    green = np.zeros((100, 100, 3), np.uint8)
    green[..., 1] = 255
    (out / "cover_first.mp4").write_bytes(with_cover(plain, jpeg(green), first=True))
    steady = {"bf": "0", "g": "10"}
    encode(out / "uneven.mp4", times=UNEVEN, base=Fraction(1, 600), options=steady)
    encode(out / "uneven.mkv", times=UNEVEN, base=Fraction(1, 600), options=steady)
    encode(out / "wide_pixels.mp4", size=(96, 256), aspect=Fraction(2, 1), picture=lambda n: person(192, 256)[:, ::2])
    whole = out / "whole"
    whole.mkdir(exist_ok=True)
    encode(whole / "a.mkv", 40, options=steady, picture=noisy)
    encode(whole / "a.ts", 40, form="mpegts", options=steady, picture=noisy)
    encode(whole / "a.mp4", 40, container={"movflags": "faststart"}, options=steady, picture=noisy)
    for suffix in ("mkv", "ts", "mp4"):
        cut(whole / f"a.{suffix}", out / f"truncated.{suffix}", 0.6)
    one = encode(whole / "one.ts", 10, form="mpegts").read_bytes()
    two = encode(whole / "two.ts", 10, form="mpegts", size=(256, 192)).read_bytes()
    (out / "size_changes.ts").write_bytes(one + two)
    (out / "clip:1.mp4").write_bytes(plain)

    play = out / "playlists"
    play.mkdir(exist_ok=True)
    (out / "elsewhere").mkdir(exist_ok=True)
    for place in (out / "elsewhere" / "secret.ts", play / "beside.ts"):
        place.write_bytes(one)
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n../elsewhere/secret.ts\n#EXT-X-ENDLIST\n"
    (play / "video.m3u8").write_text(text)
    (play / "concat.mp4").write_text("ffconcat version 1.0\nfile 'beside.ts'\n")
    (out / "huge.y4m").write_bytes(b"YUV4MPEG2 W30000 H30000 F10:1 C420jpeg\nFRAME\n" + bytes(1000))
