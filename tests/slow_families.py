"""The heads of CameraHMR, TokenHMR and HaMeR written out slowly in float64 numpy, from their descriptions alone.

No code of the package. `state` is a state dict of float64 arrays; tokens (M,D) are the backbone's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from slow_hmr2 import GELU, Arrays, columns, decode, linear, norm


def camera_head(tokens: np.ndarray, condition: np.ndarray, state: Arrays, config: Any) -> dict[str, np.ndarray]:
    """condition (3,): the query is (condition, mean pose, mean betas, mean camera)."""
    key = "smpl_head"
    pose, betas, cam = (state[f"{key}.init_{name}"][0] for name in ("body_pose", "betas", "cam"))
    x = decode(np.concatenate([condition, pose, betas, cam]), tokens, state, key, config)
    keypoints = linear(x, state, f"{key}.deckp")[0]
    return {
        "rotations": columns(pose + linear(x, state, f"{key}.decpose")[0]),
        "betas": betas + linear(x, state, f"{key}.decshape")[0],
        "cam": cam + linear(x, state, f"{key}.deccam")[0],
        "features": x[0],
        "keypoints": np.array([[keypoints[2 * k], keypoints[2 * k + 1]] for k in range(len(keypoints) // 2)]),
    }


def whole_head(tokens: np.ndarray, condition: np.ndarray, state: Arrays, config: Any) -> dict[str, np.ndarray]:
    """condition (3,): the query is nothing else. 22 rotations of the body, three of the face that stand still, 30 of
    the fingers."""
    key = "smplx_head"
    x = decode(condition, tokens, state, key, config)
    body = columns(state[f"{key}.init_body_pose"][0] + linear(x, state, f"{key}.decpose")[0])
    hands = columns(state[f"{key}.init_hand_pose"] + linear(x, state, f"{key}.dechandpose")[0])
    return {
        "rotations": np.stack([*body[:22], *(np.eye(3) for _ in range(3)), *hands]),
        "betas": state[f"{key}.init_betas"][0] + linear(x, state, f"{key}.decshape")[0],
        "cam": state[f"{key}.init_cam"][0] + linear(x, state, f"{key}.deccam")[0],
        "features": x[0],
    }


def mano_head(tokens: np.ndarray, state: Arrays, config: Any) -> dict[str, np.ndarray]:
    """The query is one zero."""
    key = "mano_head"
    x = decode(np.zeros(1), tokens, state, key, config)
    return {
        "rotations": columns(state[f"{key}.init_hand_pose"][0] + linear(x, state, f"{key}.decpose")[0]),
        "betas": state[f"{key}.init_betas"][0] + linear(x, state, f"{key}.decshape")[0],
        "cam": state[f"{key}.init_cam"][0] + linear(x, state, f"{key}.deccam")[0],
        "features": x[0],
    }


def convolve(x: np.ndarray, state: Arrays, key: str, dilation: int = 1) -> np.ndarray:
    """x (C,L) -> (O,L): at every place the taps of a centred window, zeros beyond the ends."""
    weight, bias = state[f"{key}.weight"], state[f"{key}.bias"]
    taps, length = weight.shape[2], x.shape[1]
    out = np.zeros((len(weight), length))
    for place in range(length):
        out[:, place] = bias
        for tap in range(taps):
            source = place + (tap - taps // 2) * dilation
            if 0 <= source < length:
                out[:, place] += weight[:, :, tap] @ x[:, source]
    return out


def nearest(x: np.ndarray, places: int) -> np.ndarray:
    """x (C,L) -> (C,places): place p is what stood at floor(p L / places)."""
    return np.stack([x[:, place * x.shape[1] // places] for place in range(places)], axis=1)


def body_tokens(features: np.ndarray, state: Arrays, places: list[int], dilations: list[int]) -> np.ndarray:
    """features (1,C) -> six numbers for each joint that tokens give, (6J,). `places` of the decoder's steps."""
    key = "smpl_head.decpose"
    hidden = len(state[f"{key}.class_pred_layer.weight"][0])
    flat = np.maximum(
        norm(linear(features, state, f"{key}.mixer_trans.ff.0"), state, f"{key}.mixer_trans.ff.1", 1e-5), 0
    )
    x = np.array([flat[0, hidden * t : hidden * (t + 1)] for t in range(flat.shape[1] // hidden)])
    layer = 0
    while f"{key}.mixer_head.{layer}.layernorm1.weight" in state:
        place = f"{key}.mixer_head.{layer}"
        across = norm(x, state, f"{place}.layernorm1", 1e-5)
        mixed = np.zeros_like(x)
        for channel in range(x.shape[1]):
            inner = GELU(linear(across[:, channel], state, f"{place}.MLP_token.ff.0"))
            mixed[:, channel] = linear(inner, state, f"{place}.MLP_token.ff.3")
        inner = norm(x + mixed, state, f"{place}.layernorm2", 1e-5)
        x = (
            x
            + mixed
            + linear(GELU(linear(inner, state, f"{place}.MLP_channel.ff.0")), state, f"{place}.MLP_channel.ff.3")
        )
        layer += 1
    x = linear(x, state, f"{key}.mixer_norm_layer.ff.0")
    x = np.maximum(norm(x, state, f"{key}.mixer_norm_layer.ff.1", 1e-5), 0)
    codebook = state[f"{key}.tokenizer.quantizer.codebook"]
    codes = []
    for token in x:
        scores = linear(token, state, f"{key}.class_pred_layer")
        shares = np.exp(scores - scores.max())
        codes.append(sum(share * code for share, code in zip(shares / shares.sum(), codebook, strict=True)))
    place = f"{key}.tokenizer.decoder.decoder"
    y = np.maximum(convolve(np.array(codes).T, state, f"{place}.0"), 0)
    for step, count in enumerate(places):
        y = np.maximum(convolve(nearest(y, count), state, f"{place}.{3 + 3 * step}"), 0)
    index = 2 + 3 * len(places)
    for unit, dilation in enumerate(dilations):
        inner = convolve(np.maximum(y, 0), state, f"{place}.{index}.0.model.{unit}.conv1", dilation)
        y = y + convolve(np.maximum(inner, 0), state, f"{place}.{index}.0.model.{unit}.conv2")
    y = convolve(convolve(y, state, f"{place}.{index}.1"), state, f"{place}.{index + 1}")
    return y.T.reshape(-1)


def token_head(
    tokens: np.ndarray, state: Arrays, config: Any, places: list[int], dilations: list[int]
) -> dict[str, np.ndarray]:
    """Root, tokens, hands are added to the mean pose; the rotations are the transposes of HMR2.0's."""
    key = "smpl_head"
    x = decode(np.zeros(1), tokens, state, key, config)
    root, hands = (linear(x, state, f"{key}.decpose_{name}")[0] for name in ("grot", "hands"))
    pose = state[f"{key}.init_body_pose"][0] + np.concatenate([root, body_tokens(x, state, places, dilations), hands])
    return {
        "rotations": columns(pose).transpose(0, 2, 1),
        "betas": state[f"{key}.init_betas"][0] + linear(x, state, f"{key}.decshape")[0],
        "cam": state[f"{key}.init_cam"][0] + linear(x, state, f"{key}.deccam")[0],
        "features": x[0],
    }
