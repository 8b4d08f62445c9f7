"""What each stage of a recipe does, in terms of the `hc` functions, and what its result depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress.api import evaluate, export, merge, opening, opening_decoder, search
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import masks_sha256
from hmrcompress.evaluation.decoded import DECODED
from hmrcompress.evaluation.evaluate import BASELINE, MERGED, MERGED_TOKENS, TOKENS_ALONE
from hmrcompress.io.keys import Key
from hmrcompress.io.onnx_file import sha256_onnx
from hmrcompress.io.outputs import OutputRule
from hmrcompress.merging.apply import token_counts, with_token_merging
from hmrcompress.merging.describe import network_cost
from hmrcompress.merging.layers import FITTED
from hmrcompress.metrics.measure import Measure
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2, NetworkConfig, share
from hmrcompress.plan import TokenSettings
from hmrcompress.recipe.chosen import buckets_of, run_path, search_settings, sequence_settings
from hmrcompress.recipe.finetuning import train_stages, training_contents
from hmrcompress.recipe.opened import Opened
from hmrcompress.recipe.schema import Recipe
from hmrcompress.runtime import Progress, pick_device
from hmrcompress.timing.contenders import AFTER, BEFORE
from hmrcompress.timing.pipeline_bench import Pipeline, PipelineSettings, time_pipeline
from hmrcompress.timing.row_bench import TimedRow, time_rows

PLAN, JOURNAL, MODEL, FINETUNED, ONNX = "plan.yaml", "search.jsonl", "model", "finetuned", "model.onnx"
DECODER_ONNX = "model.decoder.onnx"
OUTPUTS: dict[str, tuple[str, ...]] = {
    "search": (PLAN, JOURNAL),
    "merge": (MODEL,),
    "finetune": (FINETUNED,),
    "eval": (),
    "bench": (),
    "export": (ONNX, f"{ONNX}.json"),
}
"""Stages in the order in which they run, and the files or folders that each leaves beside its record."""
SAID_BY_ALL = ("code", "versions", "batch_size", "dtype")
"""Inputs of a search that every stage's key holds."""


class Line(Opened):
    """A recipe's stages over one folder. Every stage returns figures under the keys of `summary.json`."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        device: str,
        dtype: torch.dtype,
        rule: OutputRule | None = None,
        progress: Progress,
    ) -> None:
        super().__init__(recipe, progress)
        self.recipe, self.folder, self.rule = recipe, folder, rule or OutputRule()
        self.device, self.dtype = pick_device(device), dtype

    def check(self) -> None:
        """Opens everything that the recipe names, so that nothing begins that cannot end. Raises UserError."""
        recipe = self.recipe
        tokens = recipe.search.tokens if recipe.search else None
        if recipe.merge is not None and recipe.merge.plan is not None:
            tokens = opening.open_plan(recipe.merge.plan).tokens
        masks = opening.open_masks(recipe.masks) if tokens else None
        _ = self.checkpoint, self.body
        if recipe.eval is not None and recipe.eval.protocol is not None:
            opening.open_protocol(recipe.eval.protocol)
        if recipe.search is not None:
            self.calib.batches(masks=masks if recipe.search.with_tokens else None)
        if recipe.eval is not None or recipe.bench is not None or recipe.export is not None:
            self.test.batches(self.test.stretches(recipe.eval.limit if recipe.eval else None), masks=masks)

    def key(self, stage: str, machine: Mapping[str, Any]) -> Key:
        """All that a stage's result depends on; what earlier stages wrote counts by what is in it. machine: what it
        runs on."""
        recipe = self.recipe
        common = {"seed": recipe.seed, "batch_size": recipe.batch_size, "dtype": self.dtype, "machine": machine}
        more = {"search": self._search_inputs, "merge": self._merge_inputs, "finetune": self._finetune_inputs}
        inputs = more[stage]() if stage in more else self._scored_inputs(stage)
        return Key.of(f"stage {stage}", ("recipe",), settings=getattr(recipe, stage), **common, **inputs)

    def made(self, stage: str) -> dict[str, Any]:
        """What is in the files that a stage leaves for later ones; empty where they say so themselves, or for none."""
        where = {"merge": MODEL, "finetune": FINETUNED}
        if stage in where:
            return opening.load(self.folder / where[stage]).contents()
        return {"onnx": sha256_onnx(self.folder / ONNX)} if stage == "export" else {}

    def _search_inputs(self) -> dict[str, Any]:
        inputs = dict(search.search_key(**self._search_arguments()).inputs)
        return {name: inputs[name] for name in inputs if name not in SAID_BY_ALL}

    def _merge_inputs(self) -> dict[str, Any]:
        given = self.recipe.merge
        assert given is not None
        plan = opening.open_plan(given.plan or self.folder / PLAN)
        found: dict[str, Any] = {"model": self.checkpoint.contents(), "plan": plan.to_dict(), "body": self.body.sha256}
        if given.decoder is not None:
            found["decoder"] = opening.load(given.decoder).contents()
        if plan.merge_rule == FITTED:
            frames = self.calib.sample(merge.frames_to_fit(plan))
            found |= {"data": self.calib.contents_sha256(frames), "masks": self._masks(self.calib, frames)}
        if plan.patch is not None:  # which says itself what it is fitted on
            size, chosen = self.checkpoint.config.crop, plan.patch.fitted_on.masks
            crops = merge.crops_to_fit(plan, None, self.body, size, self.progress)
            frames = crops.sample(merge.frames_to_fit(plan))
            masks = None if chosen is None else masks_sha256(opening.open_masks(chosen), crops, frames)
            found |= {"data": crops.contents_sha256(frames), "masks": masks}
        return found

    def _finetune_inputs(self) -> dict[str, Any]:
        given = self.recipe.finetune
        assert given is not None
        contents = training_contents(given, self.recipe.masks, self.body, self.merged.config.crop, self.progress)
        return {"model": self.merged.contents(), "body": self.body.sha256, **contents}

    def _scored_inputs(self, stage: str) -> dict[str, Any]:
        """Those of the stages that look at the data of eval."""
        recipe, model = self.recipe, self.compressed
        found: dict[str, Any] = {"model": model.contents(), "original": self.checkpoint.contents()}
        if stage == "eval":
            assert recipe.eval is not None
            frames = self.test.stretches(recipe.eval.limit)
            found |= self._measure(recipe.eval.protocol).identity()
        else:
            frames = self._timed_frames if stage == "bench" else export.parity_frames(self.test)
            found["body"] = self.body.sha256
        if stage == "bench":
            found["stride"] = self._stride
        found["data"] = self.test.contents_sha256(frames)
        return found | {"masks": self._masks(self.test, frames) if model.tokens else None}

    @property
    def protocol(self) -> str:
        """The name of the protocol that eval scores by."""
        assert self.recipe.eval is not None
        return self._measure(self.recipe.eval.protocol).protocol.name

    def _measure(self, protocol: str | None) -> Measure:
        recipe = self.recipe
        return opening.open_measure(protocol, self.test, recipe.body, self.body, regressor=recipe.regressor)

    def _masks(self, crops: CropSet, frames: np.ndarray) -> str:
        return masks_sha256(opening.open_masks(self.recipe.masks), crops, frames)

    @cached_property
    def merged(self) -> Checkpoint:
        """The merged model, or the checkpoint itself where the recipe merges nothing."""
        return self.checkpoint if self.recipe.merge is None else opening.load(self.folder / MODEL)

    @cached_property
    def compressed(self) -> Checkpoint:
        """What the recipe makes in the end: the merged model, trained further where the recipe says so."""
        return self.merged if self.recipe.finetune is None else opening.load(self.folder / FINETUNED)

    def search(self) -> dict[str, Any]:
        """Writes plan and journal."""
        result = search.search(**self._search_arguments(), journal=self.folder / JOURNAL)
        result.plan.write(self.folder / PLAN)
        return {"search": result.to_json()["search"]}

    def _search_arguments(self) -> dict[str, Any]:
        given = self.recipe.search
        assert given is not None
        settings = search_settings(given, batch_size=self.recipe.batch_size, dtype=self.dtype, seed=self.recipe.seed)
        return {
            "model": self.checkpoint,
            "data": self.calib,
            "settings": settings,
            "masks": self.recipe.masks,
            "protocol": given.protocol,
            "regressor": self.recipe.regressor,
            "body": self.recipe.body,
            "device": str(self.device),
            "progress": self.progress,
        }

    def merge(self) -> dict[str, Any]:
        """Writes the compressed model; counts layers, tokens, parameters and MACs before and after."""
        given = self.recipe.merge
        assert given is not None
        plan = opening.open_plan(given.plan or self.folder / PLAN)
        fitted = plan.merge_rule == FITTED
        merge.merge(
            self.checkpoint,
            plan,
            self.folder / MODEL,
            data=self.calib if fitted else None,
            masks=self.recipe.masks if fitted else None,
            decoder=given.decoder,
            body=self.body,
            device=str(self.device),
            overwrite=self.rule.fresh(),
            progress=self.progress,
        )
        before, layers = self.checkpoint.config, self.merged.config
        tokens = self.merged.tokens
        costs = {BASELINE: _cost(before, None), MERGED: _cost(layers, None)}
        if tokens is not None:
            if layers.depth < before.depth:
                costs[TOKENS_ALONE] = _cost(before, tokens)
            costs[MERGED_TOKENS] = _cost(layers, tokens)
        last = costs[MERGED_TOKENS if tokens else MERGED]
        costs |= self._decoded_cost(self.merged)
        return {"costs": costs} | {
            name: {"before": costs[BASELINE][name], "after": last[name]}
            for name in ("layers", "tokens", "params", "macs")
        }

    def finetune(self) -> dict[str, Any]:
        """Trains on the frozen merged network, and writes it with its decoder; counts what a decoded frame costs."""
        given = self.recipe.finetune
        assert given is not None
        figures = train_stages(
            self.merged,
            given,
            self.folder / FINETUNED,
            masks=self.recipe.masks,
            body=self.body,
            device=str(self.device),
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            rule=self.rule,
            progress=self.progress,
        )
        decoded = self._decoded_cost(self.compressed)
        return figures | ({"costs": decoded} if decoded else {})

    def _decoded_cost(self, model: Checkpoint) -> dict[str, Any]:
        """{decoded: {…}}, what a decoded frame costs; empty without a decoder."""
        pipeline = opening_decoder.pipeline_of(model, self.body, torch.device("cpu"))
        if pipeline is None:
            return {}
        cost, sizes = _cost(model.config, model.tokens), pipeline.sizes()
        cost["params"] += sizes["params"]
        for name in ("macs", "macs_with_attention"):
            cost[name] += sizes[name] / pipeline.settings.clip_frames
        return {DECODED: cost}

    def eval(self) -> dict[str, Any]:
        """Scores mean pose, baseline, merged layers, merged tokens and decoded clips on the same frames."""
        given = self.recipe.eval
        assert given is not None
        result = evaluate.evaluate(
            self.compressed,
            self.test,
            against=None if self.recipe.merge is None else self.checkpoint,
            masks=self.recipe.masks,
            protocol=given.protocol,
            regressor=self.recipe.regressor,
            body=self.recipe.body,
            limit=given.limit,
            frames_per_clip=given.frames_per_clip,
            batch_size=self.recipe.batch_size,
            device=str(self.device),
            dtype=self.dtype,
            path=run_path(given),
            sequences=sequence_settings(given, (given.stride,), seed=self.recipe.seed),
            buckets=buckets_of(given),
            progress=self.progress,
        )
        data = {"name": self.test.name, "split": self.test.split, "sha256": self.test.sha256}
        return {"data": data, **result.to_json(), "clips": result.by_clip()}

    def bench(self) -> dict[str, Any]:
        """Frames per second of the stages on this machine, in turn."""
        given = self.recipe.bench
        assert given is not None
        networks: dict[str, HMR2] = {BASELINE: self.checkpoint.network}
        masks = None
        if self.recipe.merge is not None:
            networks[MERGED] = self.compressed.network
            if self.compressed.tokens is not None:
                masks = opening.open_masks(self.recipe.masks)
                if self.compressed.config.depth < self.checkpoint.config.depth:
                    probe = opening.probe_for(self.compressed, masks)
                    alone = with_token_merging(self.checkpoint.network, self.compressed.tokens, probe)
                    networks[TOKENS_ALONE] = alone.eval()
                networks[MERGED_TOKENS] = opening.compressed_network(self.compressed, masks)
        batch = next(self.test.batches(self._timed_frames, given.batch_size, masks)).to(self.device)
        rows = {name: TimedRow(opening.on_device(network, self.device), batch) for name, network in networks.items()}
        *_, compressed = networks.values()
        pipeline = opening_decoder.pipeline_of(self.compressed, self.body, self.device)
        if pipeline is not None:  # the stride of eval's is what the line as a whole is worth
            *_, last = rows.values()
            rows[DECODED] = replace(last, stride=self._stride, pipeline=pipeline)
        timing = time_rows(rows, dtype=self.dtype, device=self.device, rounds=given.rounds, progress=self.progress)
        by_stage = {name: timing.fps(name) for name in rows}
        ratios = {name: timing.speedup(name, over=BASELINE) for name in rows}
        about = {"batch_size": len(batch.images), "rounds": given.rounds, "threads": torch.get_num_threads()}
        figures: dict[str, Any] = {"bench": about | {"fps": by_stage, "speedup": ratios}}
        *_, end = rows
        if end != BASELINE:
            figures |= {"fps": {"before": by_stage[BASELINE], "after": by_stage[end]}, "speedup": ratios[end]}
        return figures if pipeline is None else figures | self._clips(pipeline, compressed)

    @property
    def _timed_frames(self) -> np.ndarray:
        """Indices of the crops that networks are timed on."""
        assert self.recipe.bench is not None
        return self.test.stretches(self.recipe.bench.batch_size)

    @property
    def _stride(self) -> int:
        """The network runs on every so manieth frame of a clip that is decoded."""
        return self.recipe.eval.stride if self.recipe.eval else 1

    def _clips(self, pipeline: Pipeline, network: HMR2) -> dict[str, Any]:
        """Whole clips through network and decoder by stride, a table of its own."""
        given = self.recipe.bench
        assert given is not None
        strides = tuple(dict.fromkeys((self._stride, *given.strides)))
        timing = time_pipeline(
            {
                when: opening.on_device(each, self.device).to(self.dtype)
                for when, each in ((BEFORE, share(self.checkpoint.network)), (AFTER, share(network)))
            },
            replace(pipeline, settings=PipelineSettings(strides, given.measured_frames)),
            batch_size=given.batch_size,
            dtype=self.dtype,
            device=self.device,
            rounds=given.rounds,
            progress=self.progress,
        )
        return {"pipeline": timing.to_json()}

    def export(self) -> dict[str, Any]:
        """Writes ONNX, of the decoder too where there is one."""
        made = export.export_onnx(
            self.compressed,
            self.folder / ONNX,
            data=self.test,
            masks=self.recipe.masks,
            body=self.body,
            overwrite=self.rule.fresh(),
        )
        gap, joints, size = made.parity.max_abs_diff, made.parity.joints_mm, made.size_bytes
        if self.compressed.decoder is not None:
            decoder = export.export_decoder(self.compressed, self.folder / DECODER_ONNX, overwrite=self.rule.fresh())
            gap, joints = max(gap, decoder.parity.max_abs_diff), max(joints, decoder.parity.joints_mm)
            size += decoder.size_bytes
        return {"onnx_max_abs_diff": gap, "onnx_joints_mm": joints, "onnx_bytes": size}


def _cost(config: NetworkConfig, tokens: TokenSettings | None) -> dict[str, Any]:
    """{layers, tokens, params, macs, …} of one crop."""
    rows, columns = config.grid
    counted = network_cost(config, tokens).to_dict()
    return {"layers": config.depth, "tokens": token_counts(tokens, rows * columns)[-1], **counted}
