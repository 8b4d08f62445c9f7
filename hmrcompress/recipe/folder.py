"""The folder of a run: what is written into it, which of that must not be, and what goes before a new run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError
from hmrcompress.exporting.onnx import BESIDE, check_files
from hmrcompress.exporting.onnx import KIND as EXPORT
from hmrcompress.io import manifests
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.places import real
from hmrcompress.io.seals import read_seal
from hmrcompress.io.work import remove_work
from hmrcompress.models.files.folder import KIND as MODEL_KIND
from hmrcompress.plan import KIND as PLAN_KIND
from hmrcompress.recipe.schema import Recipe
from hmrcompress.recipe.stages import DECODER_ONNX, FINETUNED, JOURNAL, MODEL, ONNX, OUTPUTS, PLAN
from hmrcompress.searching.journal import KIND as JOURNAL_KIND
from hmrcompress.training.finetune import work_folder

RECIPE, SUMMARY, PAGE, JUNIT = "recipe.yaml", "summary.json", "summary.md", "junit.xml"
KIND = "run"
WORDS = ("data", "none", "self", "starter")
"""What masks, body and motions may be instead of the name of a file."""


def inputs_of(recipe: Recipe) -> list[str]:
    """What a recipe reads, by name."""
    found = [recipe.model, recipe.data.search, recipe.data.eval, recipe.regressor]
    found += [recipe.merge.plan, recipe.merge.decoder] if recipe.merge else []
    found += [recipe.finetune.data, recipe.finetune.val] if recipe.finetune else []
    found += [each for each in (recipe.masks, recipe.body) if each not in WORDS]
    found += [recipe.finetune.motions] if recipe.finetune and recipe.finetune.motions not in WORDS else []
    return [each for each in found if each is not None]


def stage_kind(stage: str) -> str:
    """The kind of a stage's record."""
    return f"run {stage}"


def check_run(folder: Path, recipe: Recipe, rule: OutputRule) -> None:
    """UserError where a run must not write: `folder` holds something else, or has files of others under names that the
    recipe's stages write."""
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file, expected the name of a folder", folder)
    rule.check_file(folder / RECIPE, KIND, "yaml")
    begun = read_seal(real(folder / RECIPE), "yaml")
    if folder.is_dir() and not manifests.is_empty(folder) and begun is None and not rule.overwrite:
        names = manifests.sentence(manifests.names(folder)[:3])
        raise UserError(f"is no run that hmrcompress wrote, and holds {names}", folder, "Choose another name with -o")
    for name in (SUMMARY, PAGE, JUNIT):
        rule.check_file(folder / name, KIND)
    wanted = [stage for stage in OUTPUTS if getattr(recipe, stage) is not None]
    for stage in wanted:
        rule.check_file(folder / f"{stage}.json", stage_kind(stage), "json")
    if "search" in wanted:
        rule.check_file(folder / PLAN, PLAN_KIND, "plan")
        rule.check_file(folder / JOURNAL, JOURNAL_KIND, "jsonl")
    if "merge" in wanted:
        rule.check_folder(folder / MODEL, MODEL_KIND)
    for name in finetuned(recipe):
        rule.check_folder(folder / name, MODEL_KIND)
    if "export" in wanted:
        check_files(folder / ONNX, rule)
        if recipe.finetune is not None or (recipe.merge is not None and recipe.merge.decoder is not None):
            check_files(folder / DECODER_ONNX, rule)


def finetuned(recipe: Recipe) -> list[str]:
    """Folders that the stage `finetune` writes: one for each training, the last one to stay."""
    if recipe.finetune is None:
        return []
    return [f"{FINETUNED}-{stage}" for stage in recipe.finetune.stages[:-1]] + [FINETUNED]


def clear_run(folder: Path, rule: OutputRule, *, resume: bool) -> None:
    """Removes what an earlier run left, as far as nobody changed it: with `resume` the summaries alone."""
    for name in (SUMMARY, PAGE, JUNIT):
        rule.remove_file(folder / name, KIND)
    if resume or not folder.is_dir():
        return
    for stage in OUTPUTS:
        rule.remove_file(folder / f"{stage}.json", stage_kind(stage), "json")
    rule.remove_file(folder / PLAN, PLAN_KIND, "plan")
    rule.remove_file(folder / JOURNAL, JOURNAL_KIND, "jsonl")
    for graph in (ONNX, DECODER_ONNX):
        for name in (graph, *(f"{graph}{more}" for more in BESIDE)):
            rule.remove_file(folder / name, EXPORT)
    for path in (folder / MODEL, *folder.glob(f"{FINETUNED}*")):
        rule.remove_folder(path, MODEL_KIND)
    for name in (FINETUNED, *(path.name for path in folder.glob(f"{FINETUNED}-*"))):
        remove_work(work_folder(folder / name))


def manifest(folder: Path, names: list[str]) -> dict[str, Any]:
    """{name: {bytes, sha256}} of these files of a run, and of all files in these folders."""
    files = [path for name in names for path in ([folder / name, *(folder / name).rglob("*")])]
    return {path.relative_to(folder).as_posix(): manifests.reference(path) for path in sorted(files) if path.is_file()}
