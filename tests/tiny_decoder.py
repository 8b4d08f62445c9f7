"""A temporal decoder of a few thousand numbers, on the tiny body, and motions for it without a background process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.starter.motion import procedural
from hmrcompress.training import motions
from hmrcompress.training.motions import MotionBank, MotionSettings, make_shard

CONFIG = DecoderConfig(
    frames=12, feature_dim=tiny.CONFIG.head_width, latents=3, latent_dim=16,
    vae_width=32, vae_layers=2, vae_heads=2, vae_mlp=64, width=32, layers=3, heads=2, mlp=64, dropout=0.1,
)  # fmt: skip


def fill_bank(home: Path, monkeypatch: pytest.MonkeyPatch, *, frames: int = 18, seed: int = 0) -> None:
    """Writes the first shard of the bank that `fit_decoder(home=home, workers=0)` looks for."""
    monkeypatch.setattr(motions, "MOTIONS_A_SHARD", 6)
    settings = MotionSettings(frames=frames)
    bank = MotionBank(home / "motions", settings, generate=procedural.generate, seed=seed, workers=0)
    np.savez(bank.folder / "0000.npz", poses=make_shard(seed, 0, settings, (), procedural.generate))
