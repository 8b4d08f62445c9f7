"""Flags that commands had, and what takes their place. They do nothing any more: whoever gives one is told so."""

from __future__ import annotations

MASK_VALUE = "--masks files:DIR,value=N"
_TOKENS = {
    "--merge-per-layer": "tokens.per_layer=N",
    "--token-metric": "tokens.metric=features",
    "--size-weighted": "tokens.size_weighted=true",
    "--no-size-weighted": "tokens.size_weighted=false",
    "--attention-bias": "tokens.attention_bias=self (or cross, or true for both)",
    "--protect": "tokens.protect=N",
    "--token-schedule": "tokens.schedule=[12,12,12]",
    "--drop-background": "tokens.drop_background={}",
    "--background-ring": "tokens.drop_background.ring=N",
    "--background-coarse": "tokens.drop_background.coarse=N",
}
_RUN = {
    "--tokens": "buckets=auto (or [48,96,192])",
    "--compile": "compile=true",
    "--graphs": "graphs=true",
    "--no-graphs": "graphs=false",
}
_PREDICT = {
    "--box-scale": "box_scale=1.5",
    "--steps": "steps=N",
    "--no-antialias": "antialias=false",
    **_RUN,
}


def _set(section: str, keys: dict[str, str], *kept: str) -> dict[str, str]:
    return {flag: f"--set {section}.{key}" for flag, key in keys.items() if flag not in kept}


MOVED: dict[str, dict[str, str]] = {
    "search": {
        **_set("search", _TOKENS, "--merge-per-layer"),
        **_set(
            "search",
            {
                "--target": "target=teacher",
                "--paper": "tokens={}",
                "--no-tokens": "tokens=null",
                "--as-printed": "as_printed=true",
                "--no-cache": "cache=false",
                "--cache-gb": "cache_gb=4",
                "--cache-dtype": "cache_dtype=bfloat16",
                "--no-early-rejection": "reject_early=false",
                "--protocol": "protocol=NAME",
                "--layers": "layers=N",
                "--for-live": "tokens.read=restored",
            },
        ),
        "--mask-value": MASK_VALUE,
    },
    "finetune": {
        **_set(
            "finetune",
            {
                "--clips": "clips=N",
                "--clip-frames": "clip_frames=N",
                "--preset": "preset=paper",
                "--objective": "decoder=regress",
                "--decoder": "decoder=regress",
                "--readout": "readout=true",
                "--no-readout": "readout=false",
                "--steps": "steps=N",
                "--probe-layer": "probe_layer=N",
                "--rank": "rank=N",
                "--reach": "reach=N",
                "--full": "full=true",
                "--with-head": "with_head=true",
                "--rate": "rate=0.001",
                "--workers": "workers=N",
            },
        ),
        "--mask-value": MASK_VALUE,
    },
    "eval": {
        **_set("eval", _RUN),
        **_set(
            "eval",
            {
                "--steps": "steps=N",
                "--lookahead": "lookahead=N",
                "--filter": "filters=[one-euro,savgol]",
                "--median-shape": "median_shape=true",
            },
        ),
        "--mask-value": MASK_VALUE,
    },
    "bench": {
        **_set("bench", _TOKENS),
        **_set("bench", _RUN),
        **_set(
            "bench",
            {
                "--paper": "tokens={}",
                "--only": "only=[NAME]",
                "--max-seconds": "max_seconds=60",
                "--decoder": "decoder=paper",
                "--strides": "strides=[1,2,4]",
                "--steps": "steps=N",
                "--measured-frames": "measured_frames=N",
                "--runtime": "runtime=onnxruntime",
            },
        ),
    },
    "predict": {
        **_set("predict", _PREDICT),
        "--serial": "--set predict.overlapped=false",
        "--mask-value": MASK_VALUE,
    },
    "profile": {**_set("predict", _PREDICT), "--mask-value": MASK_VALUE},
    "export": {"--mask-value": MASK_VALUE},
}
"""By command and flag: what to give instead."""
