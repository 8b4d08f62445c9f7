"""Runs the tables of `recipes/ablations.yaml`: every row once, whatever tables it stands in, and never again.

In the results' folder there is a JSON file for each table, and in `work/` what they were made from: the plan and the
journal of every search, the errors of the baseline, a file for every row and one for the rates of every table, named by
the hash of all they depend on. All rates of a table come from one measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmrcompress.api import merge, opening, opening_decoder, search
from hmrcompress.data.masks import masks_sha256
from hmrcompress.errors import UserError, tell
from hmrcompress.io.atomic import room
from hmrcompress.io.hashes import sha256_json
from hmrcompress.io.keys import Key, earlier, listed
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.seals import read_sealed
from hmrcompress.merging.describe import network_cost
from hmrcompress.merging.layers import FITTED
from hmrcompress.metrics.bootstrap import LEVEL, RESAMPLES, paired_interval
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.plan import KIND as PLAN
from hmrcompress.plan import Plan, TokenSettings
from hmrcompress.recipe.ablations import Ablations, Setting, TableSpec
from hmrcompress.recipe.bed import CODE, Bed, Case
from hmrcompress.recipe.folder import WORDS
from hmrcompress.runtime import Progress, environment, no_progress, record
from hmrcompress.searching.search import SearchSettings

COMMAND = "ablate"
DRAWS = 5
"""How many random sets of groups a control is the mean of."""
ROW, RATES = "ablate row", "ablate rates"
WORK = "work"
RowDone = Callable[[str, str, dict[str, Any], bool], None]
"""Told after every row: table, row, its figures, and whether an earlier run's were taken over."""


class Ablation:
    """One run over a folder. `only`: these tables. `timed`: measure speed-ups where a table has none yet; `retimed`:
    measure them all anew."""

    def __init__(
        self,
        recipe: Ablations,
        out: Path | str,
        *,
        only: Sequence[str] = (),
        limit: int | None = None,
        timed: bool = True,
        retimed: bool = False,
        device: str = "auto",
        overwrite: bool | OutputRule = False,
        progress: Progress = no_progress,
    ) -> None:
        self.number = {table.name: number for number, table in enumerate(recipe.tables)}
        self.recipe = recipe.only(only) if only else recipe
        self.out, self.timed, self.retimed = Path(out), timed, retimed
        self.rule = OutputRule.of(overwrite, *inputs_of(self.recipe))
        if self.out.exists() and not self.out.is_dir():
            raise UserError("is a file, expected the name of a folder", self.out)
        for table in self.recipe.tables:
            self.rule.check_file(self.out / f"{table.name}.json", COMMAND)
        for name in self.recipe.searches:
            self.rule.check_file(self.out / WORK / "searches" / f"{name}.yaml", PLAN, "plan")
        self.bed = Bed(recipe, self.out / WORK, limit=limit, device=device, progress=progress)
        every = recipe.model_copy(update={"frames_per_clip": None})
        self.whole = Bed(every, self.out / WORK, limit=limit, device=device, progress=progress)
        self._plans: dict[str, Plan] = {}

    def check(self) -> None:
        """Opens all models and data, so that nothing begins that cannot end. Raises UserError."""
        for name, options in self.recipe.searches.items():
            self._search_settings(name, options)
        for model in {setting.model for _, setting in self.recipe.rows() if setting.model}:
            self.bed.model(model)
        for _, setting in self.recipe.rows():
            masks = opening.open_masks(setting.masks)
            if masks.name == "self":
                opening.probe_for(self.bed.model(setting.model), masks)
            if setting.decode is not None and setting.decode.by == "decoder":
                opening_decoder.decoder_for(self.bed.model(setting.model))
            _require_measurable(setting, self.bed.model(setting.model))
        opening.open_protocol(self.recipe.protocol)
        _ = self.bed.checkpoint, self.bed.frames

    def run(self, row_done: RowDone = lambda table, row, figures, reused: None) -> list[Path]:
        """Measures what is not measured yet and writes the tables; gives their files."""
        self.check()
        written = []
        for table in self.recipe.tables:
            rows, keys, told = [], {}, []
            for setting in table.settings:
                key, figures, reused = self.row(setting, self._bed(table))
                keys[setting.name] = key.sha256
                reference = setting.reference or table.reference
                compared = {"reference": reference} if reference else {}
                rows.append({"name": setting.name, **compared, **figures, **answers(setting, figures)})
                told.append(reused)
            for row in rows:
                row |= beside(row, rows, self.recipe.seed)
            rates = self.rates(table, keys)
            for row, reused in zip(rows, told, strict=True):
                row |= rates.get(str(row["name"]), {})
                row_done(table.name, str(row["name"]), row, reused)
            written.append(self.out / f"{table.name}.json")
            self.rule.write_json(written[-1], self._table(table, rows), COMMAND)
        return written

    def _bed(self, table: TableSpec) -> Bed:
        return self.whole if table.whole_clips else self.bed

    def row(self, setting: Setting, bed: Bed) -> tuple[Key, dict[str, Any], bool]:
        """What a setting's figures depend on, the figures, and whether they had been measured before."""
        plans = self._plans_of(setting)
        plan = plans[0]
        key = Key.of("row", CODE, **bed.common, **self._depends_on(setting, plans, bed))
        file = self._work("rows") / f"{key.short}.json"
        if (known := read_sealed(file, ROW)) is not None:
            return key, known["figures"] | _found(plan), True
        named = {"setting": sha256_json(setting.model_dump(mode="json", exclude={"name", "reference", "asked"}))}
        if (fresh := earlier(sorted(file.parent.glob("*.json")), key, named)) is not None:
            tell(f"measured anew, as {listed(fresh)} changed since it was", f"row {setting.name}")
        with ExitStack() as merged:
            figures = bed.scored(*(merged.enter_context(self._case(setting, each)) for each in plans))
        self.rule.write_json(file, {"named": named, "inputs": dict(key.inputs), "figures": figures}, ROW)
        return key, figures | _found(plan), False

    def rates(self, table: TableSpec, rows: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """{speedup, …} of every row of a table (rows: hashes of what each depends on), from one measurement; empty
        where there is none and none is to be made."""
        bed = self._bed(table)
        machine = {name: value for name, value in environment(bed.device).items() if name != "commit"}
        machine["threads"] = torch.get_num_threads()
        key = Key.of("rates", CODE, rows=dict(rows), bench=self.recipe.bench, machine=machine)
        file = self._work("rates") / f"{key.short}.json"
        if (known := read_sealed(file, RATES)) is not None and not (self.timed and self.retimed):
            return known["rates"]
        if not self.timed:
            return {}
        named = {"table": table.name}
        if (fresh := earlier(sorted(file.parent.glob("*.json")), key, named)) is not None and not self.retimed:
            tell(f"timed anew, as {listed(fresh)} changed since it was", f"table {table.name}")
        with ExitStack() as merged:
            cases = {
                setting.name: merged.enter_context(self._case(setting, self._plans_of(setting)[0]))
                for setting in table.settings
            }
            found = bed.timed(cases)
        self.rule.write_json(file, {"named": named, "inputs": dict(key.inputs), "rates": found}, RATES)
        return found

    def _work(self, *parts: str) -> Path:
        folder = self.out.joinpath(WORK, *parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _search_settings(self, name: str, options: dict[str, Any]) -> SearchSettings:
        common = {"frames_per_clip": self.recipe.search_frames_per_clip, "limit": self.bed.limit}
        common |= {"batch_size": self.recipe.batch_size, "seed": self.recipe.seed}
        if options.get("tokens"):
            options = options | {"tokens": TokenSettings.paper().changed(**options["tokens"])}
        try:
            return SearchSettings(**{**common, **options})
        except TypeError as error:
            fault = str(error).rpartition("got an ")[2]
            raise UserError(fault, f"searches.{name}") from error

    def _searched(self, name: str) -> Plan:
        """The plan of a named search; searches that measure the same error share a journal and its evaluations."""
        if name in self._plans:
            return self._plans[name]
        work = self._work("searches")
        settings = self._search_settings(name, self.recipe.searches[name])
        measured = [settings.merge_rule, settings.frames_per_clip, settings.limit, settings.batch_size, settings.target]
        measured += [settings.with_tokens and settings.tokens and settings.tokens.model_dump(mode="json")]
        result = search.search(
            self.bed.checkpoint,
            self.bed.calib,
            journal=work / f"{settings.merge_rule}-{sha256_json(measured)[:8]}.jsonl",
            settings=settings,
            masks=self.recipe.masks,
            protocol=self.recipe.protocol,
            body=self.bed.body,
            device=str(self.bed.device),
            overwrite=self.rule.fresh(),
            progress=self.bed.progress,
        )
        result.plan.write(work / f"{name}.yaml", overwrite=self.rule)
        self._plans[name] = result.plan
        return result.plan

    def _plan(self, setting: Setting) -> Plan | None:
        """What is merged, token settings left out; None where nothing is, or a compressed model says it itself."""
        if setting.groups is None and setting.search is None:
            return None
        if setting.search is not None:
            plan = self._searched(setting.search)
        else:
            plan = Plan.from_dict({"checkpoint": self.bed.checkpoint.reference.model_dump(), "groups": setting.groups})
        rule = setting.merge_rule or plan.merge_rule
        return plan.model_copy(update={"merge_rule": rule, "tokens": None})

    def _plans_of(self, setting: Setting) -> list[Plan | None]:
        """The plans whose mean a row is: several for a control that is drawn, else one."""
        if setting.control is None:
            return [self._plan(setting)]
        assert setting.layers is not None
        depth = self.bed.model(setting.model).config.depth
        drawn = controls(depth, setting.layers, setting.control, self.recipe.seed)
        return [self._plan(setting.model_copy(update={"control": None, "groups": groups})) for groups in drawn]

    @contextmanager
    def _case(self, setting: Setting, plan: Plan | None) -> Iterator[Case]:
        """A setting's network while the block runs; layers are merged in a folder that is gone afterwards."""
        model = self.bed.model(setting.model)
        tokens, masks = _tokens(setting, model), opening.open_masks(setting.masks)
        if plan is None:
            yield Case(model, tokens, masks, setting.decode)
            return
        if model.plan is not None:
            raise UserError("is compressed already: give neither search nor groups", f"{setting.name}: {model.name}")
        fitted = plan.merge_rule == FITTED
        with room(self._work() / "merged") as made:
            folder = made / "model"
            merge.merge(
                model,
                plan,
                folder,
                force=True,
                data=self.bed.calib if fitted else None,
                masks=self.recipe.masks if fitted else None,
                body=self.bed.body,
                device=str(self.bed.device),
                progress=self.bed.progress,
            )
            yield Case(opening.load(folder, verify=False), tokens, masks, setting.decode)

    def _depends_on(self, setting: Setting, plans: Sequence[Plan | None], bed: Bed) -> dict[str, Any]:
        model = bed.model(setting.model)
        tokens, plan = _tokens(setting, model), plans[0]
        fitted_on = None
        if plan is not None and (plan.merge_rule == FITTED or plan.patch):
            frames, source = bed.calib.sample(merge.frames_to_fit(plan)), opening.open_masks(self.recipe.masks)
            fitted_on = [bed.calib.contents_sha256(frames), masks_sha256(source, bed.calib, frames)]
        return {
            "model": model.contents(),
            "merged": [each and _layers_of(each) for each in plans],
            "fitted_on": fitted_on,
            "tokens": tokens,
            "masks": bed.masks_sha256(opening.open_masks(setting.masks)) if tokens else None,
            "decode": setting.decode,
        }

    def _table(self, table: TableSpec, rows: list[dict[str, Any]]) -> dict[str, Any]:
        own = {
            "name": table.name,
            "number": self.number[table.name],
            "title": table.title,
            "note": table.note,
            "columns": list(table.columns),
        }
        checkpoint = self.bed.checkpoint
        untouched = {"model": checkpoint.name, "sha256": checkpoint.sha256, **self._bed(table).baseline.means}
        macs = network_cost(checkpoint.config).macs_with_attention
        figures = {
            "table": own,
            "baseline": untouched | {"macs_with_attention": macs},
            "data": {"name": self.bed.test.name, "split": self.bed.test.split, "sha256": self.bed.test.sha256},
            "protocol": self.recipe.protocol,
            "interval": {"level": LEVEL, "resamples": RESAMPLES, "over": "clips"},
            "bench": {"batch_size": self.recipe.bench.batch_size, "rounds": self.recipe.bench.rounds,
                      "threads": torch.get_num_threads()},
            "rows": rows,
        }  # fmt: skip
        return record(COMMAND, figures, seed=self.recipe.seed, device=self.bed.device)


def beside(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """{difference_mm, difference_ci95_mm}: how much more error a row has than its reference, paired frame by frame,
    with the interval over clips; empty where there is none, or it is not of the same frames."""
    reference = next((each for each in rows if each["name"] == row.get("reference") and each is not row), None)
    if reference is None or not {"clip_increase_mm"} <= row.keys() & reference.keys():
        return {}
    if [each[0] for each in row["clip_increase_mm"]] != [each[0] for each in reference["clip_increase_mm"]]:
        return {}
    mean, interval = paired_interval(reference["clip_increase_mm"], row["clip_increase_mm"], seed=seed)
    return {"difference_mm": mean, "difference_ci95_mm": interval}


def answers(setting: Setting, figures: Mapping[str, Any]) -> dict[str, Any]:
    """{asked: {figure: {max, found, holds}}} for what the recipe asks of a row; empty where it asks nothing. Where the
    interval cannot be had, what is asked of it does not hold."""
    if setting.asked is None:
        return {}
    interval = figures.get("increase_ci95_mm")
    found = {"increase_upper_mm": interval[1] if interval else None, "distance_mm": figures["distance_mm"]}
    asked = {name: most for name, most in setting.asked.model_dump().items() if most is not None}
    return {
        "asked": {
            name: {"max": most, "found": found[name], "holds": found[name] is not None and found[name] <= most}
            for name, most in asked.items()
        }
    }


def controls(depth: int, layers: int, control: str, seed: int) -> list[tuple[tuple[int, ...], ...]]:
    """Groups of `depth` layers that leave `layers` of them and that no search chose: `even`, groups of one size as far
    as that goes, or `random`, five sets of cuts, all equally likely. Raises UserError where there are not so many."""
    if not 1 <= layers <= depth:
        raise UserError(f"got {layers}, expected 1 … {depth}", "layers")
    if control == "even":
        cuts = [np.arange(1, layers) * depth // layers]
    else:
        rng = np.random.default_rng(seed)
        cuts = [np.sort(rng.choice(np.arange(1, depth), layers - 1, replace=False)) for _ in range(DRAWS)]
    return [tuple(tuple(part.tolist()) for part in np.split(np.arange(depth), each)) for each in cuts]


def inputs_of(recipe: Ablations) -> list[str]:
    """What a recipe of tables reads, by name."""
    found = [recipe.model, recipe.data.search, recipe.data.eval]
    found += [setting.model for _, setting in recipe.rows() if setting.model is not None]
    found += [setting.masks for _, setting in recipe.rows() if ":" in setting.masks]
    return found + [each for each in (recipe.masks, recipe.body) if each not in WORDS]


def _require_measurable(setting: Setting, model: Checkpoint) -> None:
    """UserError where a row would not be what its model was made to run as: tables are of float32, and a stride is that
    of `decode`."""
    run = None if model.plan is None else model.plan.run
    if run is None:
        return
    where = f"{setting.name}: {model.name}"
    if run.dtype != "float32" or run.int8 or run.buckets:
        fault = f"runs as its plan says ({', '.join(run.changed)}), and tables are of float32 and one number of tokens"
        raise UserError(fault, where, "Measure it with eval and bench")
    if run.stride > 1 and (setting.decode is None or setting.decode.stride != run.stride):
        fault = f"runs on one of {run.stride} frames"
        raise UserError(fault, where, f"Give the row decode: {{by: interpolation, stride: {run.stride}}}")


def _tokens(setting: Setting, model: Checkpoint) -> TokenSettings | None:
    """Those of the setting if it names any (or none at all), else the model's own."""
    return setting.tokens if "tokens" in setting.model_fields_set else model.tokens


def _found(plan: Plan | None) -> dict[str, Any]:
    """{search: …}, how a plan was found. Not kept with a row: other searches may have found the same groups."""
    if plan is None or plan.search is None:
        return {}
    found = plan.search
    increase = found.final_mpjpe_mm - found.base_mpjpe_mm
    return {
        "search": {"method": found.method, "evaluations": found.evaluations, "calib_increase_mm": increase},
    }


def _layers_of(plan: Plan) -> list[Any]:
    """What a plan does to layers, for the key of a row."""
    found: list[Any] = [[list(group) for group in plan.groups], plan.merge_rule]
    if plan.removed:
        found += [[each.model_dump() for each in plan.removed], plan.patch and plan.patch.model_dump()]
    return found
