"""HMR2.0 written out slowly in float64 numpy, from its description alone: what the network's tests compare with.

Loops over samples, heads and layers; no code of the package. `state` is a state dict of float64 arrays.
"""

from __future__ import annotations

from math import erf, sqrt
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
GELU = np.vectorize(lambda x: 0.5 * x * (1 + erf(x / sqrt(2))))


def norm(x: np.ndarray, state: Arrays, key: str, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * state[f"{key}.weight"] + state[f"{key}.bias"]


def linear(x: np.ndarray, state: Arrays, key: str) -> np.ndarray:
    return x @ state[f"{key}.weight"].T + state.get(f"{key}.bias", 0.0)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """(Lq,C), (Lk,C), (Lk,C) -> (Lq,C), head by head."""
    out = np.zeros((len(q), v.shape[1]))
    size = q.shape[1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[:, part] @ k[:, part].T * size**-0.5
        weights = np.exp(logits - logits.max(1, keepdims=True))
        out[:, part] = weights / weights.sum(1, keepdims=True) @ v[:, part]
    return out


def patches(image: np.ndarray, state: Arrays) -> np.ndarray:
    """image (3,H,W) -> tokens (H/16*W/16,D): windows of 16x16 at stride 16 of the image padded by 2 zeros."""
    weight, bias = state["backbone.patch_embed.proj.weight"], state["backbone.patch_embed.proj.bias"]
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
    tokens = []
    for i in range(image.shape[1] // 16):
        for j in range(image.shape[2] // 16):
            window = padded[:, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
            tokens.append((weight * window).sum((1, 2, 3)) + bias)
    return np.array(tokens)


def backbone(image: np.ndarray, state: Arrays, depth: int, heads: int) -> list[np.ndarray]:
    """Inputs of all blocks, then the output after the last norm; image of the model's own size."""
    positions = state["backbone.pos_embed"][0]
    x = patches(image, state) + positions[1:] + positions[0]
    inputs = []
    for layer in range(depth):
        inputs.append(x)
        key = f"backbone.blocks.{layer}"
        q, k, v = np.split(linear(norm(x, state, f"{key}.norm1", 1e-6), state, f"{key}.attn.qkv"), 3, axis=1)
        x = x + linear(attend(q, k, v, heads), state, f"{key}.attn.proj")
        hidden = GELU(linear(norm(x, state, f"{key}.norm2", 1e-6), state, f"{key}.mlp.fc1"))
        x = x + linear(hidden, state, f"{key}.mlp.fc2")
    return [*inputs, norm(x, state, "backbone.last_norm", 1e-6)]


def decode(start: np.ndarray, tokens: np.ndarray, state: Arrays, key: str, config: Any) -> np.ndarray:
    """What the head `key` makes of tokens (M,D) and the numbers that its query starts from: features (1,C)."""
    x = linear(start[None], state, f"{key}.transformer.to_token_embedding")
    x = x + state[f"{key}.transformer.pos_embedding"][0]
    for layer in range(config.head_depth):
        place = f"{key}.transformer.transformer.layers.{layer}"
        normed = norm(x, state, f"{place}.0.norm", 1e-5)
        q, k, v = np.split(linear(normed, state, f"{place}.0.fn.to_qkv"), 3, axis=1)
        x = x + linear(attend(q, k, v, config.head_heads), state, f"{place}.0.fn.to_out.0")
        q = linear(norm(x, state, f"{place}.1.norm", 1e-5), state, f"{place}.1.fn.to_q")
        k, v = np.split(linear(tokens, state, f"{place}.1.fn.to_kv"), 2, axis=1)
        x = x + linear(attend(q, k, v, config.head_heads), state, f"{place}.1.fn.to_out.0")
        hidden = GELU(linear(norm(x, state, f"{place}.2.norm", 1e-5), state, f"{place}.2.fn.net.0"))
        x = x + linear(hidden, state, f"{place}.2.fn.net.3")
    return x


def head(tokens: np.ndarray, state: Arrays, config: Any) -> dict[str, np.ndarray]:
    """tokens (M,D) -> rotations (24,3,3), betas, cam, features."""
    key = "smpl_head"
    pose, betas, cam = (state[f"{key}.init_{name}"][0] for name in ("body_pose", "betas", "cam"))
    for _ in range(config.iterations):
        start = np.concatenate([pose, betas, cam]) if config.token_input == "mean_shape" else np.zeros(1)
        x = decode(start, tokens, state, key, config)
        pose = pose + linear(x, state, f"{key}.decpose")[0]
        betas = betas + linear(x, state, f"{key}.decshape")[0]
        cam = cam + linear(x, state, f"{key}.deccam")[0]
    return {"rotations": columns(pose), "betas": betas, "cam": cam, "features": x[0]}


def columns(pose: np.ndarray) -> np.ndarray:
    """Six numbers a joint (6J,) -> rotations (J,3,3) by Gram-Schmidt, the two vectors in the first two columns."""
    rotations = np.zeros((len(pose) // 6, 3, 3))
    for joint in range(len(rotations)):
        a1, a2 = pose[6 * joint : 6 * joint + 3], pose[6 * joint + 3 : 6 * joint + 6]
        b1 = a1 / np.linalg.norm(a1)
        b2 = a2 - b1 * (b1 @ a2)
        b2 = b2 / np.linalg.norm(b2)
        rotations[joint, :, 0], rotations[joint, :, 1], rotations[joint, :, 2] = b1, b2, np.cross(b1, b2)
    return rotations
