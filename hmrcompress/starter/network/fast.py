"""The compressed starter network that is shipped: a plan and a temporal decoder; its layers come from `starter`.

Its merged weights would be most of `starter`'s once more, so they are made from it at the first use and kept in the
cache.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hmrcompress.errors import UserError, tell
from hmrcompress.io.hashes import sha256_file
from hmrcompress.io.home import cache_home
from hmrcompress.io.jsons import read_json
from hmrcompress.io.keys import KIND as KEY
from hmrcompress.io.keys import Key, earlier, listed
from hmrcompress.io.locks import alone_in
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.safetensors_file import read_safetensors, write_safetensors
from hmrcompress.merging.merge import merge_checkpoint
from hmrcompress.models.files.decoder_part import DecoderPart
from hmrcompress.models.files.load import Checkpoint, load_checkpoint
from hmrcompress.plan import KIND as PLAN_KIND
from hmrcompress.plan import Plan

KIND = "starter fast"
PLAN, WEIGHTS, SETTINGS = "plan.yaml", "decoder.safetensors", "decoder.json"


def write_parts(checkpoint: Checkpoint, out: Path | str, *, overwrite: bool | OutputRule = False) -> list[Path]:
    """Writes plan and decoder (float16 weights) of a compressed starter network into the folder `out`; gives the files.

    Raises UserError where it holds no plan or no temporal decoder, and as `io.outputs`.
    """
    if checkpoint.plan is None or checkpoint.decoder is None:
        raise UserError("holds no plan or no temporal decoder", checkpoint.name, "See `finetune --stage decoder`")
    out, outputs = Path(out), OutputRule.of(overwrite, checkpoint)
    outputs.check_file(out / PLAN, PLAN_KIND, "plan")
    outputs.check_file(out / WEIGHTS, KIND)
    outputs.check_file(out / SETTINGS, KIND)
    half = checkpoint.decoder.half()
    checkpoint.plan.write(out / PLAN, overwrite=outputs)
    with outputs.file(out / WEIGHTS, KIND) as temporary:
        write_safetensors(temporary, half.tensors, seal=KIND)
    outputs.write_json(out / SETTINGS, {"config": dict(half.config), "source": checkpoint.source}, KIND)
    return [out / PLAN, out / WEIGHTS, out / SETTINGS]


def fast_folder(starter: Path, parts: Path, home: Path | None = None) -> Path:
    """The compressed-model folder of `starter` (a model folder) by the plan and with the decoder of `parts`, in the
    cache below `home` (default: `cache_home`). Raises UserError where there are no such parts."""
    if not all((parts / name).is_file() for name in (PLAN, WEIGHTS, SETTINGS)):
        raise UserError("is not part of this installation", "starter-fast", "Take starter, and compress it")
    kept, key = (home or cache_home()) / "starter", fast_key(starter, parts)
    folder, named = kept / f"fast-{key.short}", {"model": "starter-fast"}
    if folder.is_dir():
        return folder
    with alone_in(kept):
        if folder.is_dir():  # another process has made it meanwhile
            return folder
        if (fresh := earlier(sorted(kept.glob("fast-*.json")), key, named)) is not None:
            tell(f"merged anew, as {listed(fresh)} changed since it was", "starter-fast")
        checkpoint = load_checkpoint(starter)
        settings = read_json(parts / SETTINGS)
        part = DecoderPart(settings["config"], read_safetensors(parts / WEIGHTS)[0])
        donor = replace(checkpoint, name="starter-fast", decoder=part)
        merge_checkpoint(checkpoint, Plan.read(parts / PLAN), folder, decoder_of=donor)
        about = {"named": named, "inputs": dict(key.inputs)}
        OutputRule().write_json(folder.with_suffix(".json"), about, KEY)
    return folder


def fast_key(starter: Path, parts: Path) -> Key:
    """What the folder is made of: the files of both."""
    files = {name: sha256_file(starter / name) for name in ("model.safetensors", "config.json")}
    files |= {f"fast {name}": sha256_file(parts / name) for name in (PLAN, WEIGHTS, SETTINGS)}
    return Key.of("starter-fast", ("starter.network.fast",), files=files)
