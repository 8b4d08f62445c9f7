"""A model that holds a temporal decoder, through eval, bench, export and a recipe; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_sequences import SIZES
from typer.testing import CliRunner, Result

import hmrcompress as hc
from hmrcompress.api import export, opening_decoder
from hmrcompress.api import export as exports
from hmrcompress.api import finetune as tuning
from hmrcompress.api import finetune_decoder as decoder_tuning
from hmrcompress.body.model import BodyModel
from hmrcompress.decoder.clips import decode_clip
from hmrcompress.decoder.files import decoder_part
from hmrcompress.decoder.model import TemporalDecoder, decoder_cost
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.decoder.windows import OVERLAP_SHARE, window_starts
from hmrcompress.errors import UserError
from hmrcompress.exporting.onnx import OnnxExport
from hmrcompress.exporting.parity import Parity
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import HMR2
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.recipe.reading import parse_recipe
from hmrcompress.recipe.runner import run_recipe
from hmrcompress.timing import pipeline_bench
from hmrcompress.timing.bench import BenchSettings, bench
from hmrcompress.timing.contenders import Contender, cut
from hmrcompress.timing.pipeline_bench import Pipeline, PipelineSettings
from hmrcompress_cli.main import app

TOKENS = TokenSettings(keep=150, per_layer=40)


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def made_up_decoder(**sizes: Any) -> TemporalDecoder:
    made = TemporalDecoder(replace(SIZES, **sizes), seed=3).eval()
    made.set_statistics(pose_std=torch.tensor(0.3))
    return made


def write_decoded(path: Path, checkpoint: Checkpoint, decoder: TemporalDecoder) -> Path:
    """The same model with a decoder."""
    return write_model_folder(
        path, checkpoint.state(), checkpoint.config, plan=checkpoint.plan, body="tiny", decoder=decoder_part(decoder)
    ).path


@pytest.fixture(scope="module")
def merged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = Plan(checkpoint=hc.load(tiny_model).reference, groups=((0,), (1,), (2, 3)), tokens=TOKENS)
    return hc.merge(tiny_model, plan, tmp_path_factory.mktemp("models") / "merged").path


@pytest.fixture(scope="module")
def decoded(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoded(tmp_path_factory.mktemp("models") / "decoded", hc.load(merged), made_up_decoder())


@pytest.fixture
def world(tiny_crops_file: Path, tiny_body_file: Path) -> tuple[object, ...]:
    return "--data", f"crops:{tiny_crops_file}", "--body", tiny_body_file


def test_eval(decoded: Path, tiny_model: Path, merged: Path, world: tuple[object, ...], tmp_path: Path) -> None:
    options = (*world, "--against", tiny_model, "--json", tmp_path / "e.json")
    settings = ("--set", "eval.filters=[savgol, one-euro]", "--set", "eval.steps=2")
    done = hmr("eval", decoded, *options, "--stride", "1,2", *settings)
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "e.json").read_text())
    assert list(figures["stages"]) == [
        "mean_pose", "baseline", "merged", "tokens_alone", "merged_tokens", "interpolated_stride_2",
        "filtered_savgol", "filtered_one_euro", "decoded", "decoded_stride_2",
    ]  # fmt: skip
    assert all({"accel_ci95_mm_per_frame2", "mpjpe_ci95_mm"} <= set(stage) for stage in figures["stages"].values())
    assert "mpjpe_increase_ci95_mm" in figures["stages"]["decoded_stride_2"]
    assert figures["sequence"]["steps"] == 2 and figures["sequence"]["strides"] == [1, 2]
    assert "decoded stride 2" in done.stdout and "every single, 2nd frame, 2 denoising steps" in done.stdout

    live = hmr("eval", decoded, *options, "--set", "eval.lookahead=3")
    assert live.exit_code == 0 and "3 frames late (100 ms)" in live.stdout
    assert json.loads((tmp_path / "e.json").read_text())["sequence"]["latency_ms"] == pytest.approx(100.0)
    plain = hmr("eval", merged, *options)
    assert plain.exit_code == 0 and "sequence" not in json.loads((tmp_path / "e.json").read_text())
    sparse = hmr("eval", merged, *options, "--stride", 3)
    assert sparse.exit_code == 0 and list(json.loads((tmp_path / "e.json").read_text())["stages"])[-1] == "interpolated"
    assert "every 3rd frame\n" in sparse.stdout


def test_what_eval_refuses(decoded: Path, merged: Path, world: tuple[object, ...], tmp_path: Path) -> None:
    for model, arguments, sentence in (
        (merged, ("--set", "eval.steps=2"), "holds no temporal decoder"),
        (decoded, ("--stride", "0"), "--stride: got '0'"),
        (decoded, ("--stride", "1,x"), "--stride"),
        (decoded, ("--set", "eval.lookahead=6"), "lookahead"),
        (decoded, ("--set", "eval.lookahead=2", "--set", "eval.median_shape=true"), "eval.median_shape"),
    ):
        done = hmr("eval", model, *world, *arguments)
        assert done.exit_code == 2 and sentence in done.stderr and done.stderr.count("\n") == 1, done.output
    other = write_decoded(tmp_path / "other", hc.load(merged), made_up_decoder(feature_dim=7))
    with pytest.raises(UserError, match="reads 7 features, its network has 32"):
        opening_decoder.temporal_decoder(hc.load(other))


class Clock:
    """Stands still but for what is timed: a second for each layer and crop, for each window, and for each rotation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.crops: list[int] = []
        backbone, decoder = type(tiny.network().backbone), TemporalDecoder

        def spend(owner: type, name: str, seconds: Any) -> None:
            original = getattr(owner, name)

            def call(module: Any, *args: Any, **kwargs: Any) -> Any:
                self.now += seconds(module, args[0])
                return original(module, *args, **kwargs)

            monkeypatch.setattr(owner, name, call)

        spend(backbone, "encode", lambda module, images: self.ran(len(images)) * module.depth)
        spend(decoder, "forward", lambda module, features: len(features))
        spend(PoseCodec, "decode", lambda module, pose: len(pose))

    def ran(self, crops: int) -> int:
        self.crops.append(crops)
        return crops

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("measured", [None, 6])
def test_a_pipeline_costs_the_sum_of_its_parts(
    tiny_network: HMR2, tiny_body: BodyModel, monkeypatch: pytest.MonkeyPatch, measured: int | None
) -> None:
    """4 layers before, 1 after, clips of 13 frames in batches of 4: scaled up or not, the seconds can be counted."""
    clock, frames, made = Clock(monkeypatch), 13, made_up_decoder()
    windows = len(window_starts(frames, 6, 6 // OVERLAP_SHARE))
    settings = PipelineSettings(strides=(1, 2, 4), measured=measured, clip_frames=frames)
    pipeline = Pipeline(made, PoseCodec(tiny_body), "made up", settings)
    result = bench(
        Contender(tiny_network),
        Contender(cut(tiny_network, 1)),
        settings=BenchSettings(batch_sizes=(4,), rounds=1, warmup=0, memory=False),
        pipeline=pipeline,
        clock=clock,
    )
    found = result.to_json()["pipeline"]
    assert found["batch_size"] == 4 and max(clock.crops) == 4
    assert found["before"]["seconds"] == pytest.approx(4 * frames)
    assert found["before"]["timed_on"] == (measured or frames)
    for stride, ran in ((1, 13), (2, 7), (4, 4)):
        each = found["strides"][str(stride)]
        assert (each["network_frames"], each["timed_on"]) == (ran, min(ran, measured or ran))
        assert each["seconds"] == pytest.approx({"network": ran, "decoder": windows, "pose": frames})
        assert each["fps"] == pytest.approx(frames / (ran + windows + frames))
        assert each["speedup"] == pytest.approx(4 * frames / (ran + windows + frames))
    assert found["decoder"]["share_of_backbone"] == pytest.approx(windows / (4 * frames))
    assert found["decoder"]["macs_with_attention"] == windows * decoder_cost(made.config).macs_with_attention
    assert found["decoder"]["params"] == sum(parameter.numel() for parameter in made.parameters())


def test_bench_runs_the_network_on_every_kth_frame(
    tiny_network: HMR2, tiny_body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks of known frames that decoders get are those that eval gives them."""
    seen: list[torch.Tensor] = []

    def note(decoder: TemporalDecoder, features: torch.Tensor, known: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(known)
        return decode_clip(decoder, features, known, **options)

    monkeypatch.setattr(pipeline_bench, "decode_clip", note)
    pipeline = Pipeline(made_up_decoder(), PoseCodec(tiny_body), "", PipelineSettings((1, 3), 2, clip_frames=8))
    pipeline_bench.time_pipeline({"before": tiny_network, "after": tiny_network}, pipeline, rounds=1, warmup=0)
    assert [known.tolist() for known in seen] == [[True] * 8, [frame % 3 == 0 for frame in range(8)]]
    for settings in (PipelineSettings(()), PipelineSettings((0,)), PipelineSettings(measured=0)):
        with pytest.raises(UserError, match="bench.strides|bench.measured_frames"):
            pipeline_bench.time_pipeline(
                {"before": tiny_network, "after": tiny_network}, replace(pipeline, settings=settings)
            )


def test_the_bench_command(decoded: Path, tiny_model: Path, tiny_body_file: Path, tmp_path: Path) -> None:
    base = ("--batch-sizes", "2", "--rounds", 1, "--no-memory", "--body", tiny_body_file, "--device", "cpu",
            "--set", "bench.measured_frames=4", "--json", tmp_path / "b.json")  # fmt: skip
    done = hmr("bench", decoded, "--against", tiny_model, *base, "--set", "bench.strides=[2,4]")
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "b.json").read_text())
    assert list(figures["pipeline"]["strides"]) == ["2", "4"] and figures["speedup"] > 0
    assert figures["pipeline"]["strides"]["4"]["network_frames"] == 61
    assert "stride 4" in done.stdout and "of the uncompressed backbone's" in done.stdout

    alone = hmr("bench", tiny_model, "--set", "bench.decoder=starter", *base)
    assert alone.exit_code == 0, alone.output
    figures = json.loads((tmp_path / "b.json").read_text())
    assert "speedup" not in figures and figures["bench"]["batch_sizes"] == {}
    assert figures["pipeline"]["decoder"]["name"] == "starter, random weights"
    assert "speed-up" in alone.stdout and "MAC ratio" not in alone.stdout
    for arguments, sentence in {
        (tiny_model,): "Give --layers or --keep-tokens",
        (tiny_model, "--set", "bench.decoder=large"): "bench.decoder: got 'large'",
        (decoded, "--set", "bench.strides=[0]"): "bench.strides",
    }.items():
        done = hmr("bench", *arguments, *base)
        assert done.exit_code == 2 and sentence in done.stderr, done.output


def test_export(
    decoded: Path, merged: Path, world: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written beside the network's file; the graphs have tests of their own."""
    written: list[tuple[str, int]] = []

    def network(model: Checkpoint, out: Path, **options: Any) -> OnnxExport:
        return OnnxExport(out, out, out, 1, Parity(1e-6, 1e-4, 5, (1, 5)))

    def decoder(given: TemporalDecoder, out: Path, *, steps: int, about: dict[str, Any], overwrite: Any) -> OnnxExport:
        assert given.config == SIZES and about["model"] == "decoded"
        written.append((out.name, steps))
        return OnnxExport(out, out.with_name("contract"), out, 2_000_000, Parity(2e-6, 3e-4, 5, (1, 5)))

    monkeypatch.setattr(hc, "export_onnx", network)
    monkeypatch.setattr(exports, "export_temporal_decoder", decoder)
    done = hmr("export", decoded, "-o", tmp_path / "net.onnx", *world, "--json", tmp_path / "x.json")
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["decoder"] == {"onnx_max_abs_diff": 2e-6, "onnx_joints_mm": 3e-4, "size_bytes": 2_000_000}
    assert written == [("net.decoder.onnx", 1)] and "net.decoder.onnx: 2.0 MB" in done.stdout
    assert hmr("export", merged, "-o", tmp_path / "net.onnx", *world).exit_code == 0 and len(written) == 1
    with pytest.raises(UserError, match="holds no temporal decoder"):
        export.export_decoder(merged, tmp_path / "none.onnx")


class Done:
    folder = Path()

    def to_json(self) -> dict[str, Any]:
        return {"loss": 1.0}


def test_a_recipe_finetunes_and_uses_the_decoder(
    tiny_model: Path, tiny_body_file: Path, tiny_crops_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training is made up here: it hands the model on with a decoder."""
    called: list[tuple[str, Any]] = []

    def heal(model: Checkpoint, out: Path, data: str, **options: Any) -> Done:
        called.append(("heal", options["images"]))
        write_model_folder(out, model.state(), model.config, plan=model.plan, body="tiny")
        return Done()

    def fit(model: Path, out: Path, data: str, **options: Any) -> Done:
        called.append((options["stage"], options["steps"]))
        write_decoded(out, hc.load(model), made_up_decoder())
        return Done()

    monkeypatch.setattr(tuning, "heal", heal)
    monkeypatch.setattr(decoder_tuning, "fit_decoder", fit)
    plan = Plan(checkpoint=hc.load(tiny_model).reference, groups=((0,), (1,), (2, 3)), tokens=TOKENS)
    plan.write(tmp_path / "plan.yaml")
    data = f"crops:{tiny_crops_file}"
    values = {
        "model": str(tiny_model), "body": str(tiny_body_file), "data": {"search": data, "eval": data}, "batch_size": 6,
        "merge": {"plan": str(tmp_path / "plan.yaml")},
        "finetune": {"stages": ["heal", "all"], "steps": 7, "images": 9},
        "eval": {"stride": 2, "filters": ["savgol"]}, "bench": {"batch_size": 2, "rounds": 1, "measured_frames": 3},
        "gates": {"mpjpe_ratio": {"max": 100.0}, "accel_ratio": {"max": 100.0, "stage": "decoded"}},
    }  # fmt: skip
    folder = tmp_path / "run"
    result = run_recipe(parse_recipe(values), folder)
    summary = result.summary
    assert called == [("heal", 9), ("all", 7)]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["finetuned", "model"]
    assert list(summary["stages"])[-3:] == ["interpolated", "filtered_savgol", "decoded"]
    stages = {gate.name: gate.value for gate in result.gates}
    ratio = summary["stages"]["decoded"]["mpjpe_mm"] / summary["stages"]["baseline"]["mpjpe_mm"]
    assert stages["mpjpe_ratio"] == pytest.approx(ratio) and all(gate.passed for gate in result.gates)
    assert set(summary["finetune"]) == {"heal", "all"}
    assert list(summary["pipeline"]["strides"]) == ["2", "1", "4"]
    fps = summary["bench"]["fps"]
    assert summary["speedup"] == summary["bench"]["speedup"]["decoded"]
    assert summary["fps"] == {"before": fps["baseline"], "after": fps["decoded"]}
    costs, cost = summary["costs"], decoder_cost(SIZES)
    windows = len(window_starts(243, 6, 2))
    assert costs["decoded"]["macs"] - costs["merged_tokens"]["macs"] == pytest.approx(windows * cost.macs / 243)
    assert costs["decoded"]["params"] - costs["merged_tokens"]["params"] == cost.parameters
    called.clear()
    run_recipe(parse_recipe(values), folder, resume=True)
    assert not called
    with pytest.raises(UserError, match="healing needs the stage merge"):
        parse_recipe({"finetune": {"stages": ["heal"]}})
    assert np.isfinite(summary["fps"]["after"])


def test_a_table_of_decoders(
    decoded: Path, tiny_model: Path, tiny_body_file: Path, tiny_crops_file: Path, tmp_path: Path
) -> None:
    """Rows are what `eval` says of the same model, on whole clips though the recipe scores two frames of each."""
    data = f"crops:{tiny_crops_file}"
    rows: dict[str, dict[str, Any]] = {
        "merged_tokens": {},
        "decoded": {"decode": {}},
        "decoded_stride_2": {"decode": {"stride": 2}},
        "interpolated_stride_2": {"decode": {"stride": 2, "by": "interpolation"}},
    }
    recipe = {
        "model": str(tiny_model), "body": str(tiny_body_file), "data": {"search": data, "eval": data},
        "frames_per_clip": 2, "batch_size": 5, "bench": {"batch_size": 2, "rounds": 1},
        "tables": [{
            "name": "decoder", "title": "Decoders", "whole_clips": True, "columns": ["accel"],
            "settings": [{"name": name, "model": str(decoded)} | options for name, options in rows.items()],
        }],
    }  # fmt: skip
    (tmp_path / "t.yaml").write_text(json.dumps(recipe))
    out = tmp_path / "results"
    done = hmr("ablate", tmp_path / "t.yaml", "-o", out, "--no-bench", "--device", "cpu")
    assert done.exit_code == 0, done.output
    table = {row["name"]: row for row in json.loads((out / "decoder.json").read_text())["rows"]}
    options = ("--data", data, "--body", tiny_body_file, "--against", tiny_model, "--batch-size", 5)
    assert hmr("eval", decoded, *options, "--stride", "1,2", "--json", tmp_path / "e.json").exit_code == 0
    stages = json.loads((tmp_path / "e.json").read_text())["stages"]
    for name, row in table.items():
        assert row["n_frames"] == 12
        assert row["mpjpe_mm"] == pytest.approx(stages[name]["mpjpe_mm"], rel=1e-5)
        assert row["accel_mm_per_frame2"] == pytest.approx(stages[name]["accel_mm_per_frame2"], rel=1e-5)
        assert row["increase_mm"] == pytest.approx(stages[name]["mpjpe_increase_mm"], abs=1e-3)
    again = hmr("ablate", tmp_path / "t.yaml", "-o", out, "--no-bench", "--device", "cpu")
    assert again.stdout.count("(known)") == 4
    assert hmr("report", out, "-o", tmp_path / "r.md").exit_code == 0
    assert "Accel" in (tmp_path / "r.md").read_text()
    recipe["tables"][0]["settings"][1]["model"] = str(tiny_model)  # type: ignore[index]
    (tmp_path / "t.yaml").write_text(json.dumps(recipe))
    done = hmr("ablate", tmp_path / "t.yaml", "-o", out, "--device", "cpu")
    assert done.exit_code == 2 and "holds no temporal decoder" in done.stderr
