"""Rows of tables and stages of `run --resume` are kept under all that they depend on."""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from kept import OF_THE_NETWORK, READ_WITH, Contents, Step, World, check, names_of
from pydantic import BaseModel

import hmrcompress as hc
from hmrcompress.api import search as opened
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import NoMasks
from hmrcompress.errors import Notice
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.plan import Plan
from hmrcompress.recipe import runner, stages
from hmrcompress.recipe.ablate import Ablation
from hmrcompress.recipe.ablations import Ablations, Decode, Setting
from hmrcompress.recipe.bed import Bed
from hmrcompress.recipe.reading import parse_recipe
from hmrcompress.recipe.runner import run_recipe
from hmrcompress.recipe.schema import Recipe
from hmrcompress.recipe.stages import FINETUNED, MODEL, OUTPUTS, PLAN, Line
from hmrcompress.runtime import environment, no_progress
from hmrcompress.searching.search import SearchSettings
from hmrcompress.training.features import CropClips, feature_key


def of_ablations(world: World) -> Iterator[Step]:
    """Rows, the baseline and the rates of tables."""
    row = {"name": "row", "groups": [[0], [1], [2, 3]], "tokens": {"keep": 150, "per_layer": 40}, "masks": "data"}
    base: dict[str, Any] = {
        "model": str(world.model), "body": str(world.body), "frames_per_clip": 3, "search_frames_per_clip": 2,
        "data": {"search": str(world.crops), "eval": str(world.crops)}, "batch_size": 4, "protocol": "starter24",
        "searches": {"one": {"tau_mm": 1e6}}, "tables": [{"name": "t", "title": "T", "settings": [row]}],
    }  # fmt: skip

    def made(values: Mapping[str, Any]) -> tuple[Ablation, Setting]:
        recipe = Ablations.model_validate(values)
        return Ablation(recipe, world.home / "ablation", device="cpu"), recipe.tables[0].settings[0]

    def of_row(values: Mapping[str, Any]) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bed, "scored", lambda self, *cases: {})
            patch.setattr(Ablation, "_case", lambda *arguments: nullcontext())
            run, setting = made(values)
            return dict(run.row(setting, run.bed)[0].inputs)

    def of_recipe(**given: Any) -> Any:
        return of_row({**base, **given})

    def with_row(**given: Any) -> Any:
        setting = {name: value for name, value in {**row, **given}.items() if value is not ...}
        return of_row({**base, "tables": [{"name": "t", "title": "T", "settings": [setting]}]})

    data = {"search": str(world.crops), "eval": str(world.pixel)}
    yield Step(
        Ablations,
        of_recipe,
        {},
        {
            "model": [str(world.model2)], "body": [str(world.body2)], "data": [data], "batch_size": [5], "seed": [1],
            "protocol": ["emdb24-regressed"], "frames_per_clip": [2],
            "tables": [[{"name": "t", "title": "T", "settings": [{**row, "merge_rule": "mean"}]}]],
        },
        {
            "masks": "of searches and fits: see below", "searches": "their plans: see below",
            "presets": "YAML's anchors",
            "search_frames_per_clip": "of searches, whose plans are in the key", "bench": "of the rates: see below",
            **dict.fromkeys(READ_WITH, OF_THE_NETWORK),
        },
    )  # fmt: skip
    for name, path in (("model", world.model), ("body", world.body), ("data", world.crops)):
        others = {"model": world.model2, "body": world.body2, "data": world.pixel}
        rest = {each: "see above" for each in names_of(Ablations) - {name}}
        yield Step(Ablations, of_recipe, {}, {name: [Contents(path, others[name])]}, rest)
    yield Step(
        Setting,
        with_row,
        {},
        {
            "groups": [[[0, 1], [2], [3]]], "merge_rule": ["mean"], "model": [str(world.model2), str(world.probe2)],
            "tokens": [None, {"keep": 160}], "masks": ["none", f"files:{world.masks}"], "decode": [{"by": "savgol"}],
        },
        {
            "name": "its name", "reference": "what is compared", "asked": "what is asked of the figures",
            "search": "its plan: see below", "control": "its plans: see below", "layers": "of its plans: see below",
        },
    )  # fmt: skip
    file = {**row, "masks": f"files:{world.masks}"}
    fitted = {**row, "merge_rule": "lstsq", "tokens": None}
    searched = {name: value for name, value in row.items() if name != "groups"} | {"search": "one"}
    drawn = {name: value for name, value in row.items() if name != "groups"} | {"control": "random", "layers": 2}
    others = [{**drawn, "layers": 3}, {**drawn, "control": "even"}]
    for setting, more in (
        (drawn, [{"tables": [{"name": "t", "title": "T", "settings": [other]}]} for other in others]),
        (file, [Contents(world.masks, world.masks2)]),
        (fitted, [Contents(world.crops, world.other_masks), {"masks": f"files:{world.masks}"}]),
        (searched, [{"searches": {"one": {"tau_mm": -1e6}}}]),
    ):
        yield Step(
            of_row,
            lambda values: of_row(values if isinstance(values, dict) else {}),
            {"values": {**base, "tables": [{"name": "t", "title": "T", "settings": [setting]}]}},
            {
                "values": [
                    {**base, "tables": [{"name": "t", "title": "T", "settings": [setting]}], **each}
                    if isinstance(each, dict)
                    else each
                    for each in more
                ]
            },
        )
    yield Step(
        Decode,
        lambda **given: with_row(groups=..., tokens=..., model=str(world.decoded), decode=given),
        {"by": "interpolation"},
        {"by": ["savgol"], "stride": [2], "steps": [2], "lookahead": [1], "median_shape": [True]},
    )
    yield Step(
        Setting,
        lambda **given: with_row(groups=..., tokens=..., model=str(world.decoded), **given),
        {"decode": {"by": "decoder"}},
        {"decode": [Contents(world.decoded, world.decoded2), {"by": "decoder", "stride": 2}]},
        {name: "see above" for name in names_of(Setting) - {"decode"}},
    )

    def baseline(**given: Any) -> Any:
        run, _ = made({**base, **given})
        return run.bed.common

    yield Step(
        Ablations,
        baseline,
        {},
        {
            "model": [str(world.model2), Contents(world.model, world.model2)], "body": [str(world.body2)],
            "data": [data, Contents(world.crops, world.pixel)], "protocol": ["emdb24-regressed"],
            "batch_size": [5], "frames_per_clip": [2], "seed": [1],
        },
        {
            **dict.fromkeys(("masks", "searches", "presets", "search_frames_per_clip", "bench", "tables"), "of rows"),
            **dict.fromkeys(READ_WITH, OF_THE_NETWORK),
        },
    )  # fmt: skip

    def rates(rows: Mapping[str, str], **given: Any) -> Any:
        """The names of the file that the rates are looked for in."""
        out = world.home / "rates"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bed, "timed", lambda self, cases: {})
            patch.setattr(Ablation, "_case", lambda *arguments: nullcontext())
            recipe = Ablations.model_validate({**base, **given})
            Ablation(recipe, out, device="cpu").rates(recipe.tables[0], rows)
        found = sorted(path.name for path in (out / "work" / "rates").iterdir())
        shutil.rmtree(out)
        return found

    yield Step(
        Ablation.rates,
        lambda rows, table: rates(rows, **table),
        {"rows": {"row": "a"}, "table": {}},
        {"rows": [{"row": "b"}], "table": [{"bench": {"rounds": 3}}, {"bench": {"batch_size": 3}}]},
    )


@pytest.mark.filterwarnings("ignore::hmrcompress.errors.Notice")
@pytest.mark.parametrize("steps", [of_ablations])
def test_every_input_is_in_the_key(steps: Callable[[World], Iterator[Step]], world: World) -> None:
    check(steps(world))


MACHINE = environment("cpu")
ALL = set(OUTPUTS)
SCORED = {"eval", "bench", "export"}
STAGES: dict[str, tuple[Any, set[str]]] = {
    "model": ("model2", ALL - {"finetune"}),
    "body": ("body2", ALL),
    **dict.fromkeys(READ_WITH, (None, set())),  # of the network, which is in the keys: see below
    "regressor": ("regressor2", {"search", "eval"}),
    "data.search": ("pixel", {"search"}),
    "data.eval": ("pixel", SCORED),
    "data.clips": (None, set()),  # of starter splits, whose crops are in the keys
    "masks": ("data", {"search", "finetune", *SCORED}),
    "seed": (1, ALL),
    "batch_size": (5, ALL),
    "search.method": ("eclm", set()),  # there is one
    "search.tau_mm": (0.5, {"search"}),
    "search.frames_per_clip": (3, {"search"}),
    "search.limit": (3, {"search"}),
    "search.merge_rule": ("mean", {"search"}),
    "search.with_tokens": (False, {"search"}),
    "search.layers": (3, {"search"}),
    "search.target": ("teacher", {"search"}),
    "search.tokens": ({"keep": 160}, {"search"}),
    "search.protocol": ("emdb24-kinematic", {"search"}),
    "search.as_printed": (True, {"search"}),
    "search.cache": (False, {"search"}),
    "search.cache_gb": (1.0, {"search"}),
    "search.cache_dtype": ("bfloat16", {"search"}),
    "search.reject_early": (False, {"search"}),
    "merge.plan": (None, set()),  # instead of the search: see below
    "merge.decoder": ("decoded2", {"merge"}),
    "finetune.stages": (["vae"], {"finetune"}),
    "finetune.data": ("pixel", {"finetune"}),
    "finetune.val": ("pose", {"finetune"}),
    "finetune.motions": ("motions2", {"finetune"}),
    "finetune.preset": ("paper", {"finetune"}),
    "finetune.decoder": ("noise", {"finetune"}),
    "finetune.clips": (1, {"finetune"}),
    "finetune.steps": (3, {"finetune"}),
    "finetune.images": (5, {"finetune"}),
    "finetune.max_minutes": (1.0, {"finetune"}),
    "finetune.clip_frames": (9, {"finetune"}),
    "finetune.readout": (False, {"finetune"}),
    "finetune.rate": (1e-5, {"finetune"}),
    "finetune.workers": (2, {"finetune"}),
    "finetune.rank": (4, {"finetune"}),
    "finetune.reach": (0, {"finetune"}),
    "finetune.full": (True, {"finetune"}),
    "finetune.with_head": (True, {"finetune"}),
    "eval.protocol": ("starter24", {"eval"}),
    "eval.limit": (3, {"eval"}),
    "eval.stride": (2, {"eval", "bench"}),
    "eval.steps": (2, {"eval"}),
    "eval.filters": (["savgol"], {"eval"}),
    "eval.frames_per_clip": (2, {"eval"}),
    "eval.lookahead": (1, {"eval"}),
    "eval.median_shape": (True, {"eval"}),
    "eval.buckets": ([90], {"eval"}),
    "eval.fast": (True, {"eval"}),
    "eval.compile": (True, {"eval"}),
    "eval.graphs": (True, {"eval"}),
    "bench.batch_size": (3, {"bench"}),
    "bench.rounds": (3, {"bench"}),
    "bench.strides": ([2], {"bench"}),
    "bench.measured_frames": (8, {"bench"}),
    "export.format": (None, set()),  # there is one
    "gates": ({"mpjpe_mm": {"max": 1.0}}, set()),  # looked at when all is measured
}
"""Fields of a recipe: another value (of `World`, where it has that), and the stages that are done again for it."""
CONTENTS: dict[str, tuple[str, set[str]]] = {
    "model": ("model2", {"search", "merge", *SCORED}),
    "body": ("body2", ALL),
    "regressor": ("regressor2", {"search", "eval"}),
    "masks": ("masks2", {"search", "finetune", *SCORED}),
    "crops": ("pixel", {"search", "finetune", *SCORED}),
    "decoded": ("decoded2", {"merge"}),
    "motions": ("motions2", {"finetune"}),
}
"""Files and folders that a recipe names, what then lies there instead, and the stages that are done again for it."""


def stage_values(world: World) -> dict[str, Any]:
    data = f"crops:{world.crops}"
    return {
        "model": str(world.model), "body": str(world.body), "data": {"search": data, "eval": data},
        "masks": f"files:{world.masks}", "batch_size": 4, "regressor": str(world.regressor),
        "search": {"frames_per_clip": 2, "tokens": {"keep": 150, "per_layer": 40}, "with_tokens": True},
        "merge": {"decoder": str(world.decoded)},
        "finetune": {"data": data, "val": data, "motions": f"amass:{world.motions}"},
        "eval": {}, "bench": {"batch_size": 2}, "export": {},
    }  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(world: World) -> Path:
    """What stages leave for those after them."""
    folder = world.home / "run"
    folder.mkdir()
    shutil.copy(world.plan, folder / PLAN)
    shutil.copytree(world.decoded, folder / MODEL)
    shutil.copytree(world.decoded, folder / FINETUNED)
    return folder


def stage_keys(values: Mapping[str, Any], folder: Path, **options: Any) -> dict[str, str]:
    """The key of every stage."""
    line = Line(parse_recipe(dict(values)), folder, **{"device": "cpu", "dtype": torch.float32, **options},
                progress=no_progress)  # fmt: skip
    return {stage: line.key(stage, MACHINE).sha256 for stage in OUTPUTS}


def recipe_fields(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, parts of the recipe opened up."""
    for name, info in model.model_fields.items():
        kinds = [info.annotation, *getattr(info.annotation, "__args__", ())]
        part = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if part is not None and part.__module__ == Recipe.__module__ and name != "gates":
            yield from recipe_fields(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_field_of_a_recipe_is_in_the_keys_of_its_stages(
    world: World, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(recipe_fields()) == set(STAGES)
    hashes, contents = dict[int, Any](), Checkpoint.contents

    def once(model: Checkpoint) -> Any:
        """No network changes here, and `load_once` gives the same one for the same files."""
        if id(model.network) not in hashes:
            hashes[id(model.network)] = contents(model)
        return hashes[id(model.network)]

    monkeypatch.setattr(Checkpoint, "contents", once)
    values = stage_values(world)
    before = stage_keys(values, run_folder)
    assert before == stage_keys(values, run_folder)
    found = {}
    for name, (value, _) in STAGES.items():
        if value is None:
            continue
        there = getattr(world, value, value) if isinstance(value, str) else value
        if isinstance(there, Path):
            kind = {"data": "crops:", "motions": "amass:", "val": "crops:"}.get(re.split(r"\.", f"{name}.")[-2], "")
            there = f"{'crops:' if name.startswith('data.') else kind}{there}"
        head, _, rest = name.partition(".")
        changed = {**values, head: {**values[head], rest: there} if rest else there}
        after = stage_keys(changed, run_folder)
        found[name] = {stage for stage in OUTPUTS if after[stage] != before[stage]}
    assert found == {name: stages for name, (value, stages) in STAGES.items() if value is not None}
    assert all(other != before[stage] for stage, other in stage_keys(values, run_folder, dtype=torch.bfloat16).items())


def test_every_file_of_a_recipe_is_in_the_keys_of_its_stages(world: World, run_folder: Path) -> None:
    values = stage_values(world)
    before = stage_keys(values, run_folder)
    found = {}
    for name, (by, _) in CONTENTS.items():
        with Contents(getattr(world, name), getattr(world, by)).there():
            after = stage_keys(values, run_folder)
        found[name] = {stage for stage in OUTPUTS if after[stage] != before[stage]}
    for name, by, again in ((PLAN, world.plan2, {"merge"}), (MODEL, world.model2, {"finetune"}),
                             (FINETUNED, world.decoded2, SCORED)):  # fmt: skip
        with Contents(run_folder / name, by).there():
            after = stage_keys(values, run_folder)
        assert {stage for stage in OUTPUTS if after[stage] != before[stage]} == again
    by_hand = {**values, "search": None, "merge": {"plan": str(world.plan)}}
    before_by_hand = stage_keys_of(by_hand, run_folder, "merge")
    with Contents(world.plan, world.plan2).there():
        assert stage_keys_of(by_hand, run_folder, "merge") != before_by_hand
    for plan in (fitted_plan(world), patched_plan(world)):
        fitted = {**by_hand, "merge": {"plan": str(plan)}}
        before_fitted = stage_keys_of(fitted, run_folder, "merge")
        for path, by in ((world.masks, world.masks2), (world.crops, world.pixel)):
            with Contents(path, by).there():
                assert stage_keys_of(fitted, run_folder, "merge") != before_fitted
    assert found == {name: stages for name, (_, stages) in CONTENTS.items()}


def test_how_a_file_is_read_is_in_the_keys(world: World, run_folder: Path) -> None:
    """Numbers of heads stand in no file, and a file may hold several sets of weights."""
    state, average = tiny.network().state_dict(), tiny.network(1).state_dict()
    bare, several = world.home / "bare.pth", world.home / "several.pth"
    torch.save(state, bare)
    torch.save({"state_dict": state, "state_dict_ema": average}, several)
    heads = {"num_heads": 2, "head_heads": 2}
    for file, more in ((bare, {"num_heads": 4}), (bare, {"head_heads": 4}), (several, {"weights": "state_dict_ema"})):
        given = {**stage_values(world), "model": str(file), **heads}
        given |= {"weights": "state_dict"} if file == several else {}
        options = {"device": "cpu", "dtype": torch.float32, "progress": no_progress}
        lines = [Line(parse_recipe(each), run_folder, **options) for each in (given, {**given, **more})]
        assert len({line.checkpoint.contents()["network"] for line in lines}) == 2, more


def fitted_plan(world: World) -> Path:
    Plan.read(world.plan).model_copy(update={"merge_rule": "lstsq"}).write(world.home / "fitted.yaml")
    return world.home / "fitted.yaml"


def patched_plan(world: World) -> Path:
    """It names the data and the masks that the patch is fitted on."""
    data = {"name": "tiny", "split": "test", "sha256": "d" * 64, "source": f"crops:{world.crops}"}
    patch = {"strength": 0.5, "fitted_on": {**data, "frames_per_clip": 3, "masks": f"files:{world.masks}"}}
    plan = Plan.read(world.plan).to_dict() | {"groups": [[0], [1], [2], [3]], "removed": [{"layer": 2}], "patch": patch}
    Plan.from_dict({name: value for name, value in plan.items() if name != "sha256"}).write(world.home / "patched.yaml")
    return world.home / "patched.yaml"


def stage_keys_of(values: Mapping[str, Any], folder: Path, stage: str) -> str:
    line = Line(parse_recipe(dict(values)), folder, device="cpu", dtype=torch.float32, progress=no_progress)
    return line.key(stage, MACHINE).sha256


def test_a_changed_input_is_told_and_its_stages_are_done_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Cases B3 and B4: the masks, then the regressor, become others between two runs with the same recipe."""
    for stage in ("merge", "eval"):
        monkeypatch.setattr(Line, stage, lambda self: {})
    monkeypatch.setattr(Line, "made", lambda self, stage: {})
    monkeypatch.setattr(Line, "compressed", property(lambda self: hc.load(world.decoded)))
    monkeypatch.setattr(runner, "OUTPUTS", {"search": (PLAN,), "eval": ()})
    values = {name: value for name, value in stage_values(world).items() if name not in ("bench", "export", "finetune")}
    recipe = parse_recipe(values)

    def resumed() -> dict[str, bool]:
        seen: dict[str, bool] = {}
        run_recipe(
            recipe, tmp_path / "r", resume=True, stage_done=lambda name, seconds, reused: seen.update({name: reused})
        )
        return {name: seen[name] for name in ("search", "eval")}

    assert resumed() == {"search": False, "eval": False} and not recwarn.list
    assert resumed() == {"search": True, "eval": True} and not recwarn.list
    for path, by, name in ((world.masks, world.masks2, "masks"), (world.regressor, world.regressor2, "regressor")):
        with Contents(path, by).there():
            assert resumed() == {"search": False, "eval": False}
        told = [str(warning.message) for warning in recwarn.list if issubclass(warning.category, Notice)]
        assert f"stage search: done again, as {name} changed" in told
        assert f"stage eval: done again, as {name} changed" in told
        assert any("search.jsonl" in each and f"{name} changed since" in each for each in told)
        assert resumed() == {"search": False, "eval": False}
        recwarn.clear()


def test_what_a_stage_left_is_looked_at(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """A folder that somebody put in the place of a stage's own is not what the stage's figures are of."""
    of_a_crop = dict.fromkeys(("layers", "tokens", "params", "macs"), 1)
    monkeypatch.setattr(stages, "_cost", lambda *given: of_a_crop)
    values = {name: stage_values(world)[name] for name in ("model", "body", "data")} | {
        "merge": {"plan": str(world.plan)}
    }
    seen: list[bool] = []

    def resumed() -> bool:
        run_recipe(parse_recipe(values), tmp_path / "r", resume=True, stage_done=lambda *told: seen.append(told[2]))
        return seen[-1]

    assert [resumed(), resumed()] == [False, True] and not recwarn.list
    with Contents(tmp_path / "r" / MODEL, world.model2).there():
        assert not resumed()
    assert [str(warning.message) for warning in recwarn.list] == [
        "stage merge: done again, as what it left is not what it was"
    ]


def test_devices_are_in_the_keys(world: World, run_folder: Path) -> None:
    """There is only one here, so that it cannot be changed: it is looked up."""
    given = {"settings": SearchSettings(frames_per_clip=2), "body": world.body, "device": "cpu"}
    given |= {"regressor": world.regressor}
    assert opened.search_key(world.model, world.crops, **given).inputs["device"] == "cpu"
    source = CropClips(CropSet.open(world.crops), NoMasks())
    assert feature_key(tiny.network(), source, batch_size=4, dtype=torch.float32).inputs["device"] == "cpu"
    line = Line(parse_recipe(stage_values(world)), run_folder, device="cpu", dtype=torch.float32,
                progress=no_progress)  # fmt: skip
    assert all(line.key(stage, MACHINE).inputs["machine"]["device"] == "cpu" for stage in OUTPUTS)
