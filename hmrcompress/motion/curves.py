"""Smooth curves in time: the raw material of every procedural motion. Times are seconds, all values float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hmrcompress.motion.arrays import Array


def ease(u: Array) -> Array:
    """Minimum-jerk step (Flash & Hogan 1985): 0 up to u = 0, 1 from u = 1, at rest at both ends."""
    u = np.clip(u, 0.0, 1.0)
    return u * u * u * (10 + u * (6 * u - 15))


def keyed(t: Array, times: Sequence[float] | Array, values: Array) -> Array:
    """Values (K,...) at increasing times (K,), each reached and left at rest by minimum-jerk moves -> (len(t),...)."""
    times, values = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(times) == 1:
        return np.repeat(values, len(t), axis=0)
    index = np.clip(np.searchsorted(times, t, side="right") - 1, 0, len(times) - 2)
    u = ease((t - times[index]) / np.maximum(times[index + 1] - times[index], 1e-6))
    u = u.reshape((-1,) + (1,) * (values.ndim - 1))
    return values[index] + u * (values[index + 1] - values[index])


def flowing(t: Array, times: Sequence[float] | Array, values: Array) -> Array:
    """Like `keyed`, but passing through the inner keys without stopping (cubic Hermite, finite-difference tangents)."""
    times, values = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(times) < 3:
        return keyed(t, times, values)
    shape = (-1,) + (1,) * (values.ndim - 1)
    slope = np.zeros_like(values)
    slope[1:-1] = (values[2:] - values[:-2]) / (times[2:] - times[:-2]).reshape(shape)
    index = np.clip(np.searchsorted(times, t, side="right") - 1, 0, len(times) - 2)
    span = (times[index + 1] - times[index]).reshape(shape)
    u = np.clip((t - times[index]).reshape(shape) / span, 0.0, 1.0)
    a, b = values[index], values[index + 1]
    return (
        (1 + 2 * u) * (1 - u) ** 2 * a
        + u * (1 - u) ** 2 * span * slope[index]
        + u * u * (3 - 2 * u) * b
        - u * u * (1 - u) * span * slope[index + 1]
    )


def wander(rng: np.random.Generator, t: Array, channels: int, slowest: float, fastest: float) -> Array:
    """Band-limited noise of unit variance: (len(t), channels), frequencies between slowest and fastest in Hz."""
    waves = 5
    frequency = np.exp(rng.uniform(np.log(slowest), np.log(fastest), (waves, channels)))
    phase = rng.uniform(0, 2 * np.pi, (waves, channels))
    gain = rng.uniform(0.5, 1.0, (waves, channels))
    gain *= np.sqrt(2.0) / np.linalg.norm(gain, axis=0)
    return (gain * np.sin(2 * np.pi * frequency * np.asarray(t)[:, None, None] + phase)).sum(axis=1)


def phase(rng: np.random.Generator, t: Array, hertz: float, unevenness: float = 0.04) -> Array:
    """A phase in radians that advances at about `hertz`, from a random start, with a slowly varying tempo."""
    swing = unevenness * wander(rng, t, 1, 0.1, 0.4)[:, 0] / 0.5
    return 2 * np.pi * (hertz * np.asarray(t) + rng.uniform()) + swing


def bump(angle: Array, centre: float, width: float) -> Array:
    """A periodic bump of height 1 at `centre`, both as shares of the cycle; `width` is about its half width."""
    sharpness = 1.0 / (2 * np.pi * width) ** 2
    return np.exp(sharpness * (np.cos(angle - 2 * np.pi * centre) - 1))


def blur(values: Array, sigma: float) -> Array:
    """Gaussian smoothing along the first axis, sigma in samples, ends extended by their value."""
    if sigma <= 0:
        return values
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.concatenate([np.repeat(values[:1], reach, 0), values, np.repeat(values[-1:], reach, 0)])
    total = np.zeros(values.shape, dtype=np.float64)
    for shift, weight in enumerate(kernel):
        total += weight * padded[shift : shift + len(values)]
    return total
