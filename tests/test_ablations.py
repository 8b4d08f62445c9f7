"""Tables of settings: what the recipe refuses, rows against figures computed by hand, resuming, and the Markdown."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from test_search import deep_network
from typer.testing import CliRunner, Result

from hmrcompress import runtime
from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, write_crops
from hmrcompress.data.masks import DataMasks
from hmrcompress.errors import UserError
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.merging.layers import merge_layers
from hmrcompress.metrics.bootstrap import clip_interval
from hmrcompress.metrics.pose import mpjpe
from hmrcompress.models.files.folder import write_model_folder
from hmrcompress.models.network import HMR2, from_state
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.recipe import ablate as driver
from hmrcompress.recipe.ablate import Ablation
from hmrcompress.recipe.ablations import Ablations, Decode, Setting, read_ablations
from hmrcompress.recipe.bed import Bed, Case
from hmrcompress.report.results import markdown, read_tables
from hmrcompress_cli.main import app

GROUPS = [[0], [1, 2], [3], [4, 5, 6]]
BESIDE = ("difference_mm", "difference_ci95_mm")
TOKENS = {"keep": 150, "per_layer": 30, "size_weighted": True, "attention_bias": "cross"}


def hmr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "deep"
    network = deep_network()
    return write_model_folder(folder, network.state_dict(), network.config).path


def settings(model: Path, crops: Path, body: Path) -> dict[str, Any]:
    return {
        "model": str(model), "body": str(body), "data": {"search": str(crops), "eval": str(crops)},
        "frames_per_clip": 4, "search_frames_per_clip": 2, "batch_size": 5, "bench": {"batch_size": 2, "rounds": 1},
        "searches": {"loose": {"tau_mm": 1000.0, "merge_rule": "mean"}, "five": {"layers": 5, "merge_rule": "lstsq"}},
        "tables": [
            {
                "name": "one", "title": "First", "note": "Made up.", "reference": "groups",
                "columns": ["groups", "evaluations", "calib_increase_mm", "forced", "draws"],
                "settings": [
                    {"name": "nothing"},
                    {"name": "groups", "groups": GROUPS},
                    {"name": "groups, mean", "groups": GROUPS, "merge_rule": "mean", "tokens": TOKENS},
                    {"name": "searched", "search": "loose", "tokens": None},
                    {"name": "drawn", "control": "random", "layers": 4, "merge_rule": "keep_last"},
                    {"name": "even", "control": "even", "layers": 4, "merge_rule": "keep_last",
                     "asked": {"increase_upper_mm": -1000.0, "distance_mm": 1e6}},
                ],
            },
            {
                "name": "two", "title": "Second",
                "settings": [
                    {"name": "again", "groups": GROUPS},
                    {"name": "no mask", "tokens": TOKENS, "masks": "none", "reference": "again"},
                    {"name": "fitted", "search": "five"},
                ],
            },
        ],
    }  # fmt: skip


@pytest.fixture
def recipe(model: Path, tiny_crops_file: Path, tiny_body_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tables.yaml"
    path.write_text(yaml.safe_dump(settings(model, tiny_crops_file, tiny_body_file)))
    return path


def joints(
    network: HMR2, crops: CropSet, body: BodyModel, masks: bool
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Predicted and true joints on four evenly spread frames of each clip, directly; and the clips."""
    chosen = crops.sample(4)
    (batch,) = crops.batches(chosen, len(chosen), DataMasks() if masks else None)
    with torch.no_grad():
        params = network(batch.images, batch.person_mask).params
    return body.joints(params), body.joints(batch.params), crops.clip[chosen]


def errors(network: HMR2, crops: CropSet, body: BodyModel, masks: bool) -> tuple[np.ndarray, np.ndarray]:
    """MPJPE by frame, and the clips."""
    found, true, clip = joints(network, crops, body, masks)
    return mpjpe(found, true).numpy(), clip


def merged(network: HMR2, groups: Sequence[Sequence[int]], rule: str) -> HMR2:
    state = merge_layers(network.state_dict(), groups, rule)
    return from_state(replace(network.config, depth=len(groups)), state)


def test_rows_are_what_they_say_and_are_measured_once(
    recipe: Path, tiny_crops: CropSet, tiny_body: BodyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_commit", lambda: "c" * 40)
    out = tmp_path / "results"
    done = hmr("ablate", recipe, "-o", out, "--no-bench", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["one.json", "two.json", "work"]
    assert not list((out / "work").glob("merged-*"))
    tables = {name: json.loads((out / f"{name}.json").read_text()) for name in ("one", "two")}
    rows = {row["name"]: row for table in tables.values() for row in table["rows"]}

    network = deep_network()
    base, clip = errors(network, tiny_crops, tiny_body, False)
    assert tables["one"]["baseline"]["mpjpe_mm"] == pytest.approx(base.mean(), rel=1e-5)
    assert rows["nothing"]["increase_mm"] == pytest.approx(0, abs=1e-9)
    for name, rule, tokens in (("groups", "eq4", None), ("groups, mean", "mean", TOKENS)):
        reduced = with_token_merging(merged(network, GROUPS, rule), TokenSettings(**tokens) if tokens else None)
        direct, _ = errors(reduced, tiny_crops, tiny_body, True)
        moved, was = (joints(each, tiny_crops, tiny_body, True)[0].double() for each in (reduced, network))
        moved, was = moved - moved[:, :1], was - was[:, :1]
        apart = (moved - was).norm(dim=-1).mean(1).numpy() * 1000
        assert rows[name]["distance_mm"] == pytest.approx(apart.mean(), rel=1e-4)
        assert rows[name]["distance_p95_mm"] == pytest.approx(np.percentile(apart, 95), rel=1e-4)
        assert rows[name]["mpjpe_mm"] == pytest.approx(direct.mean(), rel=1e-5)
        assert rows[name]["increase_mm"] == pytest.approx((direct - base).mean(), abs=1e-3)
        assert rows[name]["increase_ci95_mm"] == pytest.approx(clip_interval(direct - base, clip), abs=1e-3)
        assert (rows[name]["layers"], rows[name]["tokens"]) == (4, 150 if tokens else 192)
        assert (rows[name]["n_frames"], rows[name]["n_clips"]) == (8, 2)
        assert rows[name]["groups"] == [[1, 2], [4, 5, 6]] and "speedup" not in rows[name]
    for control, drawn in (("random", rows["drawn"]), ("even", rows["even"])):
        each = [merged(network, groups, "keep_last") for groups in driver.controls(7, 4, control, 0)]
        found = np.array([errors(one, tiny_crops, tiny_body, False)[0] for one in each])
        assert drawn["mpjpe_mm"] == pytest.approx(found.mean(), rel=1e-5) and drawn["layers"] == 4
        assert drawn["increase_ci95_mm"] == pytest.approx(clip_interval(found.mean(0) - base, clip), abs=1e-3)
        assert drawn.get("draws", [found.mean()]) == pytest.approx(found.mean(1), rel=1e-5)
    assert {name: each["holds"] for name, each in rows["even"]["asked"].items()} == {
        "increase_upper_mm": False, "distance_mm": True,
    }  # fmt: skip
    bare, _ = errors(with_token_merging(network, TokenSettings(**TOKENS)), tiny_crops, tiny_body, False)
    apart = rows["no mask"]["mpjpe_mm"] - rows["again"]["mpjpe_mm"]
    assert rows["no mask"]["difference_mm"] == pytest.approx(apart, abs=1e-3) and "difference_mm" not in rows["groups"]
    low, high = rows["no mask"]["difference_ci95_mm"]
    assert low <= rows["no mask"]["difference_mm"] <= high
    assert rows["no mask"]["mpjpe_mm"] == pytest.approx(bare.mean(), rel=1e-5) and "forced" not in rows["no mask"]
    assert rows["searched"]["layers"] == 1 and rows["searched"]["search"]["evaluations"] == 6
    assert rows["fitted"]["layers"] == 5 and rows["fitted"]["merge_rule"] == "lstsq"
    assert {key: rows["again"][key] for key in rows["groups"] if key not in ("name", "reference", *BESIDE)} == {
        key: value for key, value in rows["groups"].items() if key not in ("name", "reference", *BESIDE)
    }

    scored = []
    monkeypatch.setattr(driver.Bed, "scored", lambda *args: scored.append(args))
    again = hmr("ablate", recipe, "-o", out, "--no-bench", "--device", "cpu", "--only", "two")
    assert again.exit_code == 0 and again.stdout.count("(known)") == 3 and not scored
    timed = hmr("ablate", recipe, "-o", out, "--device", "cpu", "--only", "one")
    assert timed.exit_code == 0 and not scored, timed.output
    after = {row["name"]: row for row in json.loads((out / "one.json").read_text())["rows"]}
    assert all(row["speedup"] > 0 for row in after.values())
    assert {key: after["groups"][key] for key in rows["groups"]} == rows["groups"]

    text = tmp_path / "results.md"
    assert hmr("report", out, "-o", text).exit_code == 0
    assert text.read_text().index("## First") < text.read_text().index("## Second")


def test_person_tokens_lost_are_counted_for_every_draw_and_way_to_decode(
    tiny_model: Path, tiny_body_file: Path, tmp_path: Path
) -> None:
    """Where everything is person, every merge takes a person token: 42 leave 150 of 192 tokens, 12 leave 180."""
    arrays = tiny.crop_arrays(clips=1)
    arrays["masks"][1:] = 255
    write_crops(tmp_path / "crops", arrays, tiny.crop_meta())
    path = tmp_path / "tables.yaml"
    path.write_text(yaml.safe_dump(settings(tiny_model, tmp_path / "crops", tiny_body_file)))
    bed = Bed(read_ablations(path), tmp_path, limit=None, device="cpu", progress=runtime.no_progress)
    chosen = CropSet.open(tmp_path / "crops").sample(4)
    share = sum(row > 0 for row in chosen) / len(chosen)

    def case(keep: int, decode: Decode | None = None) -> Case:
        return Case(bed.checkpoint, TokenSettings(**TOKENS).changed(keep=keep), DataMasks(), decode)

    for decode in (Decode(by="interpolation"), Decode(by="interpolation", stride=2)):
        assert bed.scored(case(150, decode))["forced"] == pytest.approx(42 * share)
    assert bed.scored(case(150), case(180))["forced"] == pytest.approx((42 + 12) / 2 * share)


def test_what_is_refused(recipe: Path, tmp_path: Path) -> None:
    good = yaml.safe_load(recipe.read_text())

    def changed(**fields: Any) -> dict[str, Any]:
        return good | fields

    def row(**fields: Any) -> dict[str, Any]:
        return changed(tables=[{"name": "t", "title": "T", "settings": [{"name": "r", **fields}]}])

    for values, sentence in (
        (row(search="none"), "there is no search 'none'"),
        (row(search="loose", groups=GROUPS), "not both"),
        (row(control="even", groups=GROUPS, layers=3), "groups or control"),
        (row(control="random"), "belong together"),
        (row(reference="x"), "the reference 'x' is no row"),
        (row(tokens={"keep": 0}), "keep"),
        (row(colour=1), "colour"),
        (changed(tables=[]), "tables"),
        (changed(tables=[good["tables"][0]] * 2), "two tables 'one'"),
    ):
        recipe.write_text(yaml.safe_dump(values))
        with pytest.raises(UserError) as caught:
            read_ablations(recipe)
        assert sentence in str(caught.value) and str(recipe) in str(caught.value) and "\n" not in str(caught.value)
    for values, sentence in (
        (changed(searches={**good["searches"], "odd": {"speed": 1}}), "unexpected keyword argument 'speed'"),
        (row(model=str(tmp_path / "nowhere.ckpt")), "no such file"),
        (row(masks="self", tokens=TOKENS), "finetune"),
        (row(masks="red"), "--masks"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            Ablation(Ablations.model_validate(values), tmp_path / "out", device="cpu").run()
    assert not (tmp_path / "out").exists()
    for arguments, sentence in (
        (("ablate", tmp_path / "none.yaml", "-o", tmp_path / "out"), "no such recipe"),
        (("ablate", "ablations", "-o", tmp_path / "out", "--only", "taus"), "expected one of tau, rules"),
        (("report", tmp_path / "out", "-o", tmp_path / "r.md"), "no such folder of results"),
        (("report", tmp_path, "-o", tmp_path / "r.md"), "holds no tables"),
        (("report", tmp_path, "-o", tmp_path / "r.html"), "holds neither summary.json nor frontier.json"),
        (("report", tmp_path, "-o", tmp_path / "r.txt"), "expected a name ending in .html or .md"),
    ):
        done = hmr(*arguments)
        assert done.exit_code == 2 and sentence in done.stderr and done.stderr.count("\n") == 1, done.output


@pytest.mark.parametrize(
    ("run", "decode", "sentence"),
    [
        ({"stride": 2}, None, "runs on one of 2 frames. Give the row decode: {by: interpolation, stride: 2}"),
        ({"stride": 2}, {"by": "interpolation", "stride": 3}, "runs on one of 2 frames"),
        ({"stride": 2}, {"by": "interpolation", "stride": 2}, None),
        ({}, {"by": "interpolation", "stride": 2}, None),
        ({"dtype": "bfloat16"}, None, "tables are of float32"),
        ({}, None, None),
    ],
)
def test_a_row_is_what_its_model_runs_as(
    tiny_model: Path, tmp_path: Path, run: dict[str, Any], decode: dict[str, Any] | None, sentence: str | None
) -> None:
    plan = Plan.from_dict({"schema": 2, "groups": [[0], [1], [2], [3]], "removed": [{"layer": 1}], "run": run})
    model = SimpleNamespace(name="m", plan=plan)
    setting = Setting.model_validate({"name": "r", "decode": decode})
    if sentence is None:
        driver._require_measurable(setting, model)  # type: ignore[arg-type]
        return
    with pytest.raises(UserError, match=re.escape(sentence)):
        driver._require_measurable(setting, model)  # type: ignore[arg-type]


def test_controls_are_groups_that_nobody_chose() -> None:
    assert driver.controls(7, 3, "even", 5) == [((0, 1), (2, 3), (4, 5, 6))]
    assert driver.controls(12, 12, "even", 0) == [tuple((layer,) for layer in range(12))]
    seen = Counter(groups for seed in range(400) for groups in driver.controls(5, 3, "random", seed))
    assert len(seen) == 6 and all([layer for group in groups for layer in group] == list(range(5)) for groups in seen)
    assert sum(seen.values()) == 2000 and max(seen.values()) < 1.3 * min(seen.values())  # 333 +- 17 each
    assert driver.controls(12, 6, "random", 3) == driver.controls(12, 6, "random", 3)
    with pytest.raises(UserError, match="expected 1 … 4"):
        driver.controls(4, 5, "even", 0)


def test_one_page_is_of_one_network_and_of_committed_code(tmp_path: Path) -> None:
    def page(*tables: dict[str, Any]) -> Result:
        for number, each in enumerate(tables):
            about = each["table"] | {"number": number, "name": f"t{number}"}
            (tmp_path / f"{number}.json").write_text(json.dumps(each | {"table": about}))
        return hmr("report", tmp_path, "-o", tmp_path.parent / "page.md")

    def of(network: str, commit: str = "c" * 40) -> dict[str, Any]:
        return table(baseline=table()["baseline"] | {"sha256": network}, commit=commit)

    assert page(of("a" * 64), of("a" * 64, "d" * 40)).exit_code == 0
    for others, sentence in (
        ((of("a" * 64), of("a" * 64), of("b" * 64)), "t2: are of another network"),
        ((of("a" * 64), table(), of("a" * 64)), "--only t1"),
        ((of("a" * 64), of("a" * 64, "d" * 40 + "-dirty"), of("a" * 64)), "t1: were measured with uncommitted changes"),
    ):
        done = page(*others)
        assert done.exit_code == 2 and sentence in done.stderr and done.stderr.count("\n") == 1, done.output


def test_the_shipped_tables_answer_what_the_paper_leaves_open() -> None:
    shipped = read_ablations("ablations")
    assert read_ablations(Path(__file__).parents[1] / "recipes" / "ablations.yaml") == shipped
    assert {table.name for table in shipped.tables} == {
        "tau", "per_layer", "mask", "mask_sources", "rules", "rules_same_groups", "token_options",
        "tokens_kept", "drop_background", "layers_and_tokens", "healing", "decoder", "depth", "frontier",
    }  # fmt: skip
    paper = next(setting for _, setting in shipped.rows() if setting.name == "paper")
    assert paper.tokens == TokenSettings.paper()
    needed = {setting.search for _, setting in shipped.rows()}
    assert needed - {None} == set(shipped.searches)


def table(**fields: Any) -> dict[str, Any]:
    """A table as `ablate` writes it, with figures made up."""
    row = {"layers": 9, "groups": [[3, 4, 5], [8, 9]], "tokens": 90, "mpjpe_mm": 101.236, "increase_mm": 1.234,
           "increase_ci95_mm": [0.876, 1.595], "macs_ratio": 2.5177, "macs_with_attention": 434_000_000,
           "pa_mpjpe_mm": 70.004, "pve_mm": 111.116, "distance_mm": 33.456, "distance_p95_mm": 80.011,
           "n_frames": 720, "n_clips": 24}  # fmt: skip
    cheap = row | {"name": "b | c", "increase_mm": -0.456, "increase_ci95_mm": None, "reference": "a", "groups": []}
    return {
        "command": "ablate",
        "table": {"name": "t", "number": 1, "title": "A title", "note": "A note.", "columns": ["groups"]},
        "baseline": {"model": "starter", "mpjpe_mm": 100.002}, "data": {"name": "starter", "split": "val"},
        "protocol": "starter24", "interval": {"level": 0.95, "resamples": 2000, "over": "clips"},
        "bench": {"batch_size": 16, "rounds": 7, "threads": 2}, "device": "cpu", "cpu": "A chip, 2 cores",
        "rows": [
            row | {"name": "a", "speedup": 1.987, "speedup_quartiles": [1.951, 2.014]},
            {key: value for key, value in cheap.items() if value is not None},
        ],
    } | fields  # fmt: skip


def test_markdown_holds_exactly_the_numbers(tmp_path: Path) -> None:
    for name, number in (("z", 0), ("a", 1)):
        made = table() | {"table": table()["table"] | {"number": number, "title": name}}
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    (tmp_path / "other.json").write_text('{"command": "eval"}')
    read = read_tables(tmp_path)
    assert [each["table"]["title"] for each in read] == ["z", "a"]
    text = markdown([table()])
    assert [line for line in text.splitlines() if line.startswith(("|", "#", "A note", "Baseline"))] == [
        "# Results",
        "## A title",
        "A note.",
        "|  | layers | tokens | MPJPE | PA-MPJPE | PVE | increase | interval | share of a | merged | distance | 95th "
        "percentile | GMACs | MACs | speed-up | middle half |",
        "|---|" + 15 * "---:|",
        "| a | 9 | 90 | 101.24 | 70.00 | 111.12 | +1.23 | +0.88 to +1.59 | – | 3–5, 8–9 | 33.46 | 80.01 | 0.434 | "
        "2.52x | 1.99x | 1.95 to 2.01 |",
        "| b \\| c | 9 | 90 | 101.24 | 70.00 | 111.12 | -0.46 | – | -37% | – | 33.46 | 80.01 | 0.434 | 2.52x | – | – |",
        "Baseline 100.00 mm (`starter`); N = 720 frames of 24 clips of starter:val, protocol starter24; speed at "
        "batch 16, 7 rounds, on A chip, 2 cores, 2 threads.",
    ]
    assert "its 95% interval" in text and "(2000 resamples" in text
    slow = table(rows=[table()["rows"][1]])
    assert "speed-up |" not in markdown([slow]) and "rounds" not in markdown([slow])


def test_what_is_asked_of_the_sealed_split_is_written_down() -> None:
    shipped = read_ablations("evidence")
    assert shipped.data.eval == "starter:test" and shipped.data.search == "starter:calib"
    headline = {row.name: row for row in shipped.tables[0].settings}
    for name in ("layers alone", "tokens alone", "layers and tokens", "layers and tokens, healed"):
        asked, masks = headline[name].asked, headline[name].masks
        assert asked is not None and asked.increase_upper_mm == 1.0 and asked.distance_mm is not None
        assert masks == ("self" if headline[name].tokens else "data")
    assert {row.masks for row in shipped.tables[1].settings} == {
        "data", "data:box", "data:eroded", "data:dilated", "self", "none",
    }  # fmt: skip
    assert {row.control for row in shipped.tables[2].settings} == {None, "random", "even"}
