"""The flags of token merging become settings."""

from __future__ import annotations

from typing import Any

import pytest

from hmrcompress.errors import UserError
from hmrcompress.plan import DropBackground, TokenSettings
from hmrcompress_cli.tokens import token_settings

BASE = TokenSettings(keep=70, size_weighted=True, schedule=(60, 62))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, BASE),
        ({"keep_tokens": 50}, BASE.model_copy(update={"keep": 50})),
        ({"merge_per_layer": 61}, BASE.model_copy(update={"per_layer": 61, "schedule": None})),
        ({"paper": True}, TokenSettings(keep=90, per_layer=40)),
        ({"paper": True, "protect": 4}, TokenSettings(keep=90, per_layer=40, protect=4)),
        ({"token_schedule": "12,0, 12"}, BASE.model_copy(update={"schedule": (12, 0, 12)})),
        ({"size_weighted": False, "token_metric": "features"},
         BASE.model_copy(update={"size_weighted": False, "metric": "features"})),
        ({"attention_bias": "none"}, BASE),
        ({"attention_bias": "both"}, BASE.model_copy(update={"attention_bias": True})),
        ({"attention_bias": "cross"}, BASE.model_copy(update={"attention_bias": "cross"})),
        ({"paper": True, "drop_background": True}, TokenSettings(drop_background=DropBackground(ring=1, coarse=4))),
        ({"paper": True, "drop_background": True, "background_ring": 0, "background_coarse": 3},
         TokenSettings(drop_background=DropBackground(ring=0, coarse=3))),
    ],
)  # fmt: skip
def test_what_flags_say(flags: dict[str, Any], expected: TokenSettings) -> None:
    assert token_settings(BASE, **flags) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"merge_per_layer": 40, "token_schedule": "12"}, "--merge-per-layer and --token-schedule"),
        ({"background_ring": 2}, "--background-ring needs --drop-background"),
        ({"drop_background": True, "protect": 2}, "tokens: drop_background merges nothing"),
        ({"token_schedule": "12;12"}, "--token-schedule: got '12;12', expected numbers"),
        ({"token_schedule": "12,-1"}, "tokens: schedule.1: got -1"),
    ],
)
def test_flags_that_contradict_each_other(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        token_settings(**flags)


def test_without_flags_the_defaults_hold() -> None:
    assert token_settings() == TokenSettings()
