"""The command line holds still, what it says of itself is true, and settings mean what flags meant."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any, get_args

import command_line as surface
import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from hmrcompress.errors import UserError
from hmrcompress.plan import DropBackground, MergeRule, TokenSettings
from hmrcompress.recipe.chosen import buckets_of, heal_settings, run_path, search_settings, sequence_settings
from hmrcompress.recipe.listing import settings_of
from hmrcompress.recipe.reading import read_section
from hmrcompress.recipe.schema import SECTIONS, Eval, Finetuning, Recipe, Search
from hmrcompress_cli.common import SafeCommand
from hmrcompress_cli.help import EXAMPLES, PANELS
from hmrcompress_cli.main import app
from hmrcompress_cli.moved import MOVED
from hmrcompress_cli.settings import takes_settings
from hmrcompress_cli.tokens import changed_tokens

COMMON = {
    "--overwrite", "--json", "--device", "--dtype", "--batch-size", "--body", "--limit", "--seed", "--quiet", "--debug",
    "--set", "--settings",
}  # fmt: skip
"""Flags that every command has for which they mean anything; the others are counted."""
MOST = 16
COMMANDS = dict(surface.commands())
SAID = {"N": "2", "NAME": "starter24"}


def hmr(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_commands_and_flags_are_those_of_the_file() -> None:
    """Meant to be changed? `make commands` writes the file anew."""
    assert json.loads(surface.FILE.read_text()) == surface.command_line()


def test_help_names_every_merge_rule() -> None:
    (option,) = (each for each in COMMANDS["search"].params if "--merge-rule" in each.opts)
    assert option.help == f"How layers become one: {', '.join(get_args(MergeRule))}."


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_few_flags_and_an_example_that_parses(name: str) -> None:
    command = COMMANDS[name]
    options = [each for each in command.params if each.param_type_name == "option"]
    assert len({each.opts[0] for each in options} - COMMON) <= MOST
    assert {each.rich_help_panel for each in options} <= set(PANELS)
    program, *words = shlex.split(EXAMPLES[name])
    assert program == "hmrcompress" and words[: len(name.split())] == name.split()
    typer.main.get_command(app).make_context("hmrcompress", words)
    command.make_context(name, words[len(name.split()) :])
    shown = hmr(*name.split(), "--help").output
    assert EXAMPLES[name] in " ".join(shown.split()) and shown.rstrip().splitlines()[-1].strip()


def test_the_version_and_completion() -> None:
    from hmrcompress import __version__

    assert hmr("--version").output == f"hmrcompress {__version__}\n"
    asked = {"_HMRCOMPRESS_COMPLETE": "complete_bash", "COMP_WORDS": "hmrcompress sea", "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, [], prog_name="hmrcompress", env=asked)
    assert done.output.split() == ["search"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--what"], ("o such option", "--what", "`hmrcompress --help`")),
        (["serch"], ("o such command", "serch")),
        (
            ["search", "starter", "-o", "p", "--what"],
            ("o such option", "--what", "--data", "`hmrcompress search --help`"),
        ),
        (["search", "starter"], ("issing option", "--out")),
        (["bench", "--rounds", "0"], ("nvalid value for '--rounds'",)),
        (["starter", "train", "--workers", "x"], ("'--workers'", "`hmrcompress starter train --help`")),
    ],
)
def test_misuse_is_one_sentence(words: list[str], says: tuple[str, ...]) -> None:
    """The words are typer's, which change; that it is one sentence, what was wrong and where help is do not."""
    done = hmr(*words)
    assert done.exit_code == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("hmrcompress: ") and all(each in done.stderr for each in says), done.stderr


MOVES = [(command, flag, instead) for command, table in MOVED.items() for flag, instead in table.items()]


@pytest.mark.parametrize(("command", "flag", "instead"), MOVES)
def test_a_flag_that_moved_names_a_setting_that_there_is(command: str, flag: str, instead: str) -> None:
    assert not any(flag in (*each.opts, *each.secondary_opts) for each in COMMANDS[command].params)
    done = hmr(command, flag)
    assert done.exit_code == 2 and done.stderr == f"hmrcompress: {flag}: is no flag any more, give {instead}\n"
    given = re.fullmatch(r"--set (\w+)(\.[\w.]+)=(\S+)( \(or .*\))?", instead)
    assert (given is not None) == (flag != "--mask-value")
    if given is not None:
        read_section(given[1], [f"{given[1]}{given[2]}={SAID.get(given[3], given[3])}"])


@pytest.mark.parametrize("name", ["search", "finetune", "eval", "bench", "predict", "profile"])
def test_settings_are_listed_with_type_default_and_meaning(name: str) -> None:
    done = hmr(name, "--settings")
    assert done.exit_code == 0, done.output
    section = "predict" if name == "profile" else name
    listed = re.findall(r"^(\S+?)=(.*?)  \((.+?)(?:; also (--[a-z-]+))?\)\n    (\S.*)$", done.output, re.MULTILINE)
    keys = [each.key for each in settings_of(SECTIONS[section], section)]
    hidden = {
        "profile": {"predict.overlapped", "predict.workers", "predict.worker_cpus"},
        "finetune": {"finetune.stages"},
        "bench": {"bench.batch_size"},
    }
    assert [each[0] for each in listed] == [key for key in keys if key not in hidden.get(name, ())]
    flags = {opt for each in COMMANDS[name].params for opt in each.opts}
    assert {each[3] for each in listed} - {""} <= flags
    for key, default, *_ in listed:
        if default not in ("as below", "needed") and key.count(".") == 1:  # what is shown is what `--set` takes
            field = key.partition(".")[2]
            read = read_section(section, [f"{key}={default}"])
            assert getattr(read, field) == SECTIONS[section].model_fields[field].default, key


def test_a_recipes_settings_are_listed() -> None:
    listed = hmr("run", "--settings").output
    assert all(f"{each.key}={each.default}" in listed for each in settings_of(Recipe))


def test_types_are_told_in_words() -> None:
    told = {each.key: (each.type, each.default) for each in settings_of(Finetuning)}
    assert told["max_minutes"] == ("number > 0 or null", "null") and told["reach"] == ("int >= 0", "1")
    assert told["stages"] == ("list of heal, vae, decoder or all", '["all"]')
    told = {each.key: (each.type, each.default) for each in settings_of(Eval)}
    assert told["buckets"] == ("auto, list of int > 0 or null", "null")
    assert told["filters"][0] == "list of one-euro or savgol" and told["graphs"][0] == "true or false or null"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["search.tau=1"], "--set search.tau: no such setting"),
        (["eval.steps=2"], "--set: got 'eval', expected search.KEY. `--settings` lists"),
        (["search=3"], "--set: got 3, expected search.KEY=VALUE"),
        (["search.tau_mm"], "--set: got 'search.tau_mm', expected a.b=c"),
        (["search.tau_mm=-2"], "--set search.tau_mm: got -2: input should be greater than 0"),
        (["search.tau_mm=1e-4"], "write 1.0e-4"),
        (["search.tau_mm=.nan"], "not a finite number"),
        (["search.tau_mm=["], "--set search.tau_mm: not valid YAML"),
        (["search.tau_mm=" + "[" * 99], "not valid YAML"),
        (["search.layers=" + "9" * 500], "beyond 64 bits"),
        (["search" + ".a" * 99 + "=1"], "expected a.b=c"),
        (["search.tokens.attention_bias=maybe"], "attention_bias: got 'maybe': expected true or false, self or cross"),
        (["search.tokens.schedule=7"], "schedule: got 7: expected a list such as [1, 2]"),
        (["search.tokens.schedule=[7, -1]"], "schedule.1: got -1"),
        (["search.tokens={drop_background: {}, protect: 2}"], "search.tokens: drop_background merges nothing"),
        (["search.tau_mm=x", "search.layers=0"], "(and 1 more faults)"),
    ],
)
def test_wrong_settings(given: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_section("search", given)


def test_a_union_s_fault_is_counted_once() -> None:
    with pytest.raises(UserError) as caught:
        read_section("eval", ["eval.buckets=[0, -1]"])
    assert str(caught.value) == "--set eval.buckets: got [0, -1]: expected auto, list of int > 0 or null"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], TokenSettings()),
        (["null"], None),
        (["{}"], TokenSettings.paper()),
        ([".keep=70", ".size_weighted=true"], TokenSettings(keep=70, size_weighted=True)),
        ([".schedule=[12, 0, 12]"], TokenSettings(schedule=(12, 0, 12))),
        ([".attention_bias=true", ".metric=features"], TokenSettings(attention_bias=True, metric="features")),
        ([".attention_bias=cross", ".protect=4"], TokenSettings(attention_bias="cross", protect=4)),
        ([".drop_background={}"], TokenSettings(drop_background=DropBackground(ring=1, coarse=4))),
        ([".drop_background.ring=0", ".drop_background.coarse=3"],
         TokenSettings(drop_background=DropBackground(ring=0, coarse=3))),
    ],
)  # fmt: skip
def test_token_settings(given: list[str], expected: TokenSettings | None) -> None:
    words = [f"search.tokens{each}" if each.startswith(".") else f"search.tokens={each}" for each in given]
    read = read_section("search", words)
    assert isinstance(read, Search) and read.tokens == expected


def test_flags_of_tokens_change_the_settings() -> None:
    base = TokenSettings(keep=70, size_weighted=True)
    assert changed_tokens(base, None) is base and changed_tokens(None, None) is None
    assert changed_tokens(base, 50, 61) == TokenSettings(keep=50, per_layer=61, size_weighted=True)
    with pytest.raises(UserError, match="--merge-per-layer and tokens.schedule"):
        changed_tokens(TokenSettings(schedule=(60,)), None, 3)


def test_sections_reach_the_functions_whole() -> None:
    """Every field is another value than its default, and arrives."""
    given = Search.model_validate(yaml.safe_load(
        "{method: eclm, tau_mm: 0.3, frames_per_clip: 3, limit: 4, merge_rule: mean, with_tokens: true, layers: 5, "
        "target: teacher, protocol: p, as_printed: true, cache: false, cache_gb: 8.0, "
        "cache_dtype: bfloat16, reject_early: false, tokens: {keep: 9}}"
    ))  # fmt: skip
    assert given.model_fields_set == set(Search.model_fields)
    import torch

    made = search_settings(given, batch_size=2, dtype=torch.float16, seed=3)
    assert made.method == "eclm"  # there is no other
    for name in set(Search.model_fields) - {"protocol", "cache_dtype", "method"}:
        assert getattr(made, name) == getattr(given, name) != Search.model_fields[name].default, name
    assert (made.cache_dtype, made.batch_size, made.dtype, made.seed) == (torch.bfloat16, 2, torch.float16, 3)
    clips = read_section("eval", [f"eval.{each}" for each in (
        "fast=true", "compile=true", "graphs=false", "buckets=[3,4]", "steps=2", "filters=[savgol]",
        "median_shape=true", "lookahead=5",
    )])  # fmt: skip
    assert isinstance(clips, Eval)
    path = run_path(clips, int8=True)
    assert (path.fast, path.int8, path.compiled, path.graphs) == (True, True, True, False)
    assert (
        buckets_of(clips) == (3, 4) and buckets_of(Eval()) is None and len(buckets_of(Eval(buckets="auto")) or ()) > 2
    )
    how = sequence_settings(clips, (1, 2), seed=6)
    assert (how.strides, how.steps, how.lookahead, how.filters) == ((1, 2), 2, 5, ("savgol",))
    assert how.median_shape and how.seed == 6
    healed = heal_settings(Finetuning(rank=2, reach=3, full=True, with_head=True), dtype=torch.float16, seed=7)
    assert (healed.rank, healed.reach, healed.full, healed.with_head, healed.seed) == (2, 3, True, True, 7)


class TestFlagsThatAreSettings:
    """A command with one setting that has a flag, `--steps`, and one that is written otherwise, `--stride`."""

    @staticmethod
    def run(*words: str) -> tuple[Result, list[Any]]:
        seen: list[Any] = []
        talks = typer.Typer(cls=type(typer.main.get_command(app)))

        @talks.command("eval", cls=SafeCommand)
        @takes_settings("eval", flags={"steps": "steps", "stride": "stride"}, without={"limit": "Give --limit"})
        def command(steps: int | None = None, stride: str = "1", settings: Any = None) -> None:
            seen.append((steps, stride, settings.median_shape))

        talks.command("other")(lambda: None)
        return CliRunner().invoke(talks, ["eval", *words]), seen

    def test_either_way(self) -> None:
        for words in (["--steps", "3", "--stride", "2"], ["--set", "eval.steps=3", "--set", "eval.stride=2"]):
            done, seen = self.run(*words, "--set", "eval.median_shape=true")
            assert done.exit_code == 0 and seen == [(3, "2", True)], done.output
        assert self.run()[1] == [(None, "1", False)]

    def test_not_both_ways_and_not_without_meaning(self) -> None:
        done, seen = self.run("--steps", "3", "--set", "eval.steps=3")
        assert done.exit_code == 2 and not seen
        assert done.stderr == "hmrcompress: --set eval.steps: says the same as --steps. Give one of them\n"
        done, seen = self.run("--set", "eval.limit=3")
        assert done.exit_code == 2 and not seen and "eval.limit: has no meaning here. Give --limit" in done.stderr


def test_defaults_of_flags_are_those_of_the_settings() -> None:
    """Where a flag has a default of its own at all."""
    for name in ("search", "eval", "bench", "predict", "profile"):
        section = "predict" if name == "profile" else name
        listed = re.findall(r"^(\S+?)=(.*?)  \(.+?; also (--[a-z-]+)\)$", hmr(name, "--settings").output, re.MULTILINE)
        assert listed
        for key, default, flag in listed:
            parameter = next(each for each in COMMANDS[name].params if flag in each.opts)
            if parameter.default is not None:
                assert str(parameter.default).lower() == default, (section, key)
