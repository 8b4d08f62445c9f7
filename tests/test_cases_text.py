"""Text files and numbers that nobody should write: every reader of JSON and YAML refuses them in one sentence."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import typer
import yaml
from typer.testing import CliRunner

from hmrcompress.errors import UserError
from hmrcompress.io.jsons import parse_json, read_json
from hmrcompress.io.texts import DEEPEST
from hmrcompress.io.yamls import MOST_VALUES, parse_yaml
from hmrcompress.models.files.folder import read_model_folder, write_model_folder
from hmrcompress.plan import Plan
from hmrcompress.recipe.ablations import read_ablations
from hmrcompress.recipe.benchmarks import read_suite
from hmrcompress.recipe.reading import read_recipe
from hmrcompress.searching.journal import Journal
from hmrcompress_cli.common import DebugOption, SafeGroup, inputs_of, unexpected
from hmrcompress_cli.main import app

JSON_FAULTS = {
    "nested": ("[" * 20_000, "nested deeper"),
    "nested in objects": ('{"a":' * 400 + "1" + "}" * 400, "nested deeper"),
    "brackets in a text": ('"' + "[" * 20_000, "Unterminated"),
    "not UTF-8": (b'{"a": "\xe9"}', "not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "UTF-16"),
    "twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' occurs twice"),
    "NaN": ('{"a": NaN}', "NaN is not a number"),
    "infinity": ("[-Infinity]", "Infinity is not a number"),
    "overflow": ("[1e999]", "too large"),
    "long": ("[" + "9" * 5000 + "]", "beyond 64 bits"),
    "beyond 64 bits": ('{"a": 99999999999999999999}', "beyond 64 bits"),
    "half a pair": (r'{"a": "\ud800"}', "characters that are none"),
    "NUL": (r'{"\u0000": 1}', "characters that are none"),
    "nothing": ("", "Expecting value"),
}
YAML_FAULTS = {
    "nested": ("a: " + "[" * 20_000, "nested deeper"),
    "nested in blocks": ("- " * 1000 + "x", "nested deeper"),
    "not UTF-8": (b"a: \xe9", "not UTF-8"),
    "UTF-16": (b"\xff\xfe\x00a: 1", "UTF-16"),
    "twice": ("a: 1\nb: 2\na: 3", "'a' occurs twice"),
    "NaN": ("a: .nan", "not a finite number"),
    "infinity": ("a: -.inf", "not a finite number"),
    "beyond 64 bits": ("a: 99999999999999999999999", "beyond 64 bits"),
    "sixties": ("a: 1" + ":59" * 5000, "beyond 64 bits"),
    "an alias in itself": ("a: &a [*a]", "contains itself"),
    "an object": ("a: !!python/object/apply:os.system [x]", "could not determine"),
    "bytes": ("a: !!binary eA==", "could not determine"),
    "a list as a name": ("? [1]\n: 2", "no text"),
    "a wrong tag": ("a: !!int ''", "its tag"),
    "long": ("# " + "x" * 300_000, "expected at most"),
    "many": ("[" + "x," * (MOST_VALUES + 1) + "]", "stands for more"),
    "NUL": ('a: "\\0"', "characters that are none"),
}


@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_json_that_is_refused(fault: str) -> None:
    text, why = JSON_FAULTS[fault]
    started = time.monotonic()
    with pytest.raises(UserError, match=why) as caught:
        parse_json(text, "a.json")
    assert str(caught.value).startswith("a.json: ") and len(str(caught.value)) < 500
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("fault", YAML_FAULTS)
def test_yaml_that_is_refused(fault: str) -> None:
    text, why = YAML_FAULTS[fault]
    with pytest.raises(UserError, match=why) as caught:
        parse_yaml(text, "a.yaml")
    assert str(caught.value).startswith("a.yaml: not valid YAML") and len(str(caught.value)) < 500


def test_what_is_read_is_what_the_libraries_read() -> None:
    content = {"a": [1, -2.5, "x", None, True, {"b": {}}], "é": 2**63, "deep": json.loads("[" * 60 + "]" * 60)}
    text = json.dumps(content)
    assert parse_json(text, "") == content == parse_json("\ufeff" + text, "") == parse_json(text.encode(), "")
    assert parse_json("[" * DEEPEST + "]" * DEEPEST, "") == json.loads("[" * DEEPEST + "]" * DEEPEST)
    with pytest.raises(UserError):
        parse_json("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "")
    assert parse_json(r'"\ud83d\ude00"', "") == "\U0001f600"
    for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml"):
        assert parse_yaml(path.read_bytes(), path) == yaml.safe_load(path.read_text()), path
    merged = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [*a, *a]"
    assert parse_yaml(merged, "") == yaml.safe_load(merged)
    assert parse_yaml("day: 2020-99-99\non: 1\n3: x", "") == {"day": "2020-99-99", "on": 1, "3": "x"}


def test_aliases_count_as_what_they_stand_for(cases: Callable[[str], Path]) -> None:
    def laughing(levels: int) -> str:
        return "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, levels))

    assert parse_yaml(laughing(5), "")["a4"][0][0][0][0] == ["x", "x"]
    started = time.monotonic()
    for text in (laughing(60), (cases("yaml") / "aliases.yaml").read_text()):
        with pytest.raises(UserError, match="stands for more"):
            parse_yaml(text, "")
    merges = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
    with pytest.raises(UserError, match="stands for more"):
        parse_yaml(merges, "")
    assert time.monotonic() - started < 5


YAML_READERS: dict[str, Callable[[Path], Any]] = {
    "plan": Plan.read,
    "recipe": read_recipe,
    "ablations": read_ablations,
    "suite": read_suite,
}


@pytest.mark.parametrize("name", ["aliases.yaml", "nested.yaml", "date.yaml", "not_utf8.yaml"])
@pytest.mark.parametrize("reader", YAML_READERS)
def test_every_reader_of_yaml(reader: str, name: str, cases: Callable[[str], Path]) -> None:
    """Cases C7 and D6."""
    with pytest.raises(UserError) as caught:
        YAML_READERS[reader](cases("yaml") / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("seed=2020-99-99", "valid integer"),
        ("seed=99999999999999999999999", "beyond 64 bits"),
        ("seed=4294967296", "less than or equal"),
        ("seed=-1", "greater than or equal"),
        ("search.frames_per_clip=3000000000", "less than or equal"),
        ("search.tau_mm=.inf", "finite"),
        ("body=" + "[" * 20_000, "nested deeper"),
        ("body=&a [*a]", "contains itself"),
        (".".join("a" * 10_000) + "=1", "expected a.b=c"),
        ("body=" + "x" * 300_000, "at most"),
    ],
)
def test_set(override: str, why: str, tmp_path: Path) -> None:
    """Cases D6 and D7: refused before anything is done."""
    done = CliRunner().invoke(app, ["run", "ci", "-o", str(tmp_path / "out"), "--set", override])
    assert done.exit_code == 2 and why in done.output and done.output.count("\n") == 1
    assert len(done.output) < 600 and not (tmp_path / "out").exists()


def test_set_of_laughing_aliases(cases: Callable[[str], Path], tmp_path: Path) -> None:
    """Case C7."""
    text = (cases("yaml") / "aliases.yaml").read_text()
    done = CliRunner().invoke(app, ["run", "ci", "-o", str(tmp_path / "out"), "--set", f"body={text}"])
    assert done.exit_code == 2 and done.output.count("\n") == 1


@pytest.mark.parametrize("command", [["search", "x", "--data", "y", "-o", "z"], ["inspect", "x"], ["run", "ci"]])
@pytest.mark.parametrize("seed", ["99999999999999999999999", "-1", "4294967296"])
def test_seeds_that_no_generator_takes(command: list[str], seed: str) -> None:
    done = CliRunner().invoke(app, [*command, f"--seed={seed}"])
    assert done.exit_code == 2 and "seed" in done.output and "Traceback" not in done.output


NESTED = (b"[" * 200_000, b'{"boxes":[{"frame":0,"box":' + b"[" * 60_000 + b"]" * 60_000 + b"}]}")


@pytest.mark.parametrize("data", NESTED, ids=["open", "closed"])
def test_the_same_json_everywhere(data: bytes, tmp_path: Path) -> None:
    """Case D5: as config.json where a model is to be written, as a file of results, as a journal."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_bytes(data)
    with pytest.raises(UserError, match=r"config\.json"):
        read_model_folder(folder)
    with pytest.raises(UserError):
        write_model_folder(folder, {}, tiny.CONFIG)
    assert (folder / "config.json").read_bytes() == data
    done = CliRunner().invoke(app, ["report", str(folder), "-o", str(tmp_path / "r.md")])
    assert done.exit_code == 2 and "config.json" in done.output and done.output.count("\n") == 1
    (tmp_path / "a.jsonl").write_bytes(data + b"\n")
    with pytest.raises(UserError, match=r"a\.jsonl"):
        Journal(tmp_path / "a.jsonl", {"a": 1})


TABLE = {"command": "ablate", "table": {"name": "a", "title": "A", "note": "", "number": 0, "columns": []}, "rows": []}
SUITE = {"command": "bench suite", "rows": [], "batch_size": 1, "dtype": "float32"}


@pytest.mark.parametrize("found", [TABLE, SUITE, TABLE | {"table": 3}, SUITE | {"settings": [], "batch_size": "x"}])
def test_results_that_lack_what_a_report_needs(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text(json.dumps(found))
    done = CliRunner().invoke(app, ["report", str(tmp_path), "-o", str(tmp_path / "r.md")])
    assert done.exit_code == 2 and "torn.json" in done.output and done.output.count("\n") == 1


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="is not a file"):
        read_json(tmp_path)
    with pytest.raises(UserError, match="is not a file"):
        Plan.read("/dev/zero")


# What is raised by nobody on purpose


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("deep"), OverflowError("large"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"),
        MemoryError(), ValueError("two\nlines"), struct.error("short"), ZeroDivisionError("by 0"),
        zlib.error("packed"), RuntimeError("torch"), OSError("no name"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_errors_of_values_end_with_two(error: Exception, tmp_path: Path) -> None:
    done = raising(error, str(tmp_path), "--name", "x")
    assert done.exit_code == 2 and done.output.startswith(f"hmrcompress: {tmp_path}: ")
    assert done.output.count("\n") == 1 and "Traceback" not in done.output
    assert raising(error, str(tmp_path), "--debug").exception is error


@pytest.mark.parametrize("error", [TypeError("a"), KeyError("a"), AssertionError(), NotImplementedError("a")])
def test_errors_of_ours_are_told_apart(error: Exception, tmp_path: Path) -> None:
    done = raising(error, str(tmp_path))
    assert done.exit_code == 1 and done.output.startswith("hmrcompress: internal error")
    assert str(tmp_path) in done.output
    assert done.output.count("\n") == 1 and "--debug" in done.output


def raising(error: Exception, *words: str) -> Any:
    """Runs a command that raises `error`."""
    one = typer.Typer(cls=SafeGroup, pretty_exceptions_enable=False)

    def fails(path: str, name: str = "", debug: DebugOption = False) -> None:
        raise error

    one.command("fails")(fails)
    one.command("other")(lambda: None)
    return CliRunner().invoke(one, ["fails", *words])


def test_the_inputs_of_a_command_line_are_named(tmp_path: Path) -> None:
    data, model = tmp_path / "data.npz", tmp_path / "model"
    data.touch(), model.mkdir()
    words = ["eval", str(model), "--data", f"crops:{data},fps=3", "-o", str(tmp_path), f"--masks=files:{model}", "x"]
    assert inputs_of(words) == [str(model), str(data), str(model)]
    assert unexpected(ValueError("x"), ["bench"])[0].startswith("what was given: ")


def test_sentences_stay_sentences(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", f"{tmp_path}/\x1b[31mred\nline{'x' * 5000}.ckpt"])
    assert done.exit_code == 2 and done.output.count("\n") == 1
    assert "\x1b" not in done.output and len(done.output) < 2000
