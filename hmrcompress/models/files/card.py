"""The README.md of a compressed model, from what its config.json knows."""

from __future__ import annotations

from hmrcompress.models.files.config import FolderConfig
from hmrcompress.plan import RunSettings, TokenSettings


def model_card(name: str, config: FolderConfig, parameters: int) -> str:
    """Markdown text; `parameters` counts the numbers in the weights file."""
    gone = [each.layer for each in config.removed if each.part == "all"]
    before = sum(len(group) for group in config.groups) + len(gone)
    merged = [group for group in config.groups if len(group) > 1]
    lines = [
        f"# {name}",
        "",
        f"A `{config.family}` network in the compressed-model format of hmrcompress (`hmrcompress.load`).",
        "",
        "| | |",
        "|---|---|",
        f"| backbone layers | {len(config.groups)} of {before} |",
        f"| parameters | {parameters:,} ({config.dtype}) |",
    ]
    if merged:
        lines.append(f"| merged ({config.merge_rule}) | {', '.join(f'{group[0]}–{group[-1]}' for group in merged)} |")
    if gone:
        lines.append(f"| layers removed | {', '.join(map(str, gone))} |")
    if halves := [f"{each.part} of {each.layer}" for each in config.removed if each.part != "all"]:
        lines.append(f"| halves removed | {', '.join(halves)} |")
    if config.tokens is not None:
        lines.append(f"| tokens | {_tokens(config.tokens)} |")
    if config.run is not None:
        lines.append(f"| runs, if nobody says otherwise | {_run(config.run)} |")
    if config.body.name is not None:
        lines.append(f"| body | {config.body.name} |")
    made_from = config.provenance.get("checkpoint", {})
    if made_from:
        lines.append(f"| made from | `{made_from.get('sha256')}` |")
    if healed := config.provenance.get("heal"):
        lines.append(f"| healed | {healed['images']:,} crops of {healed['data']}, without labels |")
    if fitted := config.provenance.get("probe"):
        lines.append(f"| person mask | `--masks self`: a saliency probe, fitted on {fitted['fitted_on']} |")
    if config.decoder is not None:
        frames, objective = config.decoder.get("frames"), config.decoder.get("objective")
        lines.append(f"| temporal decoder | windows of {frames} frames, objective `{objective}` |")
    lines += ["", "Measured figures: `hmrcompress eval` writes them for the data you have.", ""]
    return "\n".join(lines)


def _run(run: RunSettings) -> str:
    parts = [f"runtime {run.runtime}", run.dtype]
    parts += [f"layers {', '.join(map(str, run.int8))} in int8"] if run.int8 else []
    parts += [f"{', '.join(map(str, run.buckets))} tokens to choose from"] if run.buckets else []
    parts += [f"on every frame whose number {run.stride} divides"] if run.stride > 1 else []
    return ", ".join(parts)


def _tokens(settings: TokenSettings) -> str:
    if settings.drop_background is not None:
        return f"{settings.keep} kept, background dropped before the first layer"
    if settings.schedule is not None:
        return f"{settings.keep} kept, {', '.join(map(str, settings.schedule))} merged in the first layers"
    return f"{settings.keep} kept, at most {settings.per_layer} merged per layer"
