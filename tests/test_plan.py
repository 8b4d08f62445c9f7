"""plan.yaml: the same bytes out as in, and faults that name the field."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import get_args

import pytest
import yaml

from hmrcompress.errors import Notice, UserError
from hmrcompress.merging.layers import RULES
from hmrcompress.plan import CheckpointRef, DataRef, MergeRule, Plan, SearchRecord, TokenSettings, trivial_groups

SHA = "0123456789abcdef" * 4
PATCH = f"{{strength: 0.5, fitted_on: {{name: a, split: b, sha256: {SHA}, frames_per_clip: 8}}}}"


def plan() -> Plan:
    return Plan(
        checkpoint=CheckpointRef(family="hmr2", sha256=SHA, layers=6),
        groups=((0,), (1,), (2,), (3, 4, 5)),
        tokens=TokenSettings(),
        search=SearchRecord(
            method="eclm",
            tau_mm=1.0e-5,
            frames=12,
            base_mpjpe_mm=101.25,
            final_mpjpe_mm=101.3,
            evaluations=5,
            seed=0,
            data=DataRef(name="starter", split="calib", sha256=SHA),
        ),
    )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "plan.yaml"
    plan().write(path)
    assert Plan.read(path) == plan()
    first = path.read_bytes()
    Plan.read(path).write(path)
    assert path.read_bytes() == first and [p.name for p in path.parent.iterdir()] == ["plan.yaml"]
    assert yaml.safe_load(first)["tokens"] == {
        "keep": 90,
        "per_layer": 40,
        "size_weighted": False,
        "attention_bias": False,
        "metric": "keys",
        "schedule": None,
        "protect": 0,
        "drop_background": None,
        "read": "native",
    }


def test_a_plan_written_by_hand_needs_little() -> None:
    text = f"""
schema: 1
checkpoint: {{family: hmr2, sha256: {SHA}, layers: 4}}
groups: [[0], [1], [2, 3]]
"""
    read = Plan.from_yaml(text)
    assert read.merge_rule == "eq4" and read.tokens is None and read.search is None
    assert read.groups == ((0,), (1,), (2, 3))
    assert Plan.from_yaml(text + "tokens: {keep: 80}\n").tokens == TokenSettings(keep=80)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers: 6", "layers: 7", "groups: got 6 layers, expected the 7 of the checkpoint"),
        ("- [1]\n", "", "groups: layer 2 stands where layer 1 belongs"),
        ("- [0]\n- [1]", "- [1]\n- [0]", "groups: layer 1 stands where layer 0 belongs"),
        ("[3, 4, 5]", "[3, 4, 4]", "groups: layer 4 appears twice"),
        ("- [0]\n", "- [0]\n- []\n", "groups: group 1 is empty"),
        ("[3, 4, 5]", "[3, 4, five]", r"groups\.3\.2: got 'five'"),
        ("eq4", "eq5", "merge_rule: got 'eq5'.*keep_last"),
        ("keep: 90", "keep: 0", r"tokens\.keep: got 0: .*greater than or equal to 1"),
        ("keep: 90", "keeep: 90", r"tokens\.keeep: there is no such field"),
        ("size_weighted: false", "size_weighted: maybe", r"tokens\.size_weighted: got 'maybe'"),
        ("1.0e-05", "1e-5", r"search\.tau_mm: got '1e-5'.*valid number"),
        ("schema: 2", "schema: 3", "schema: got 3"),
        ("schema: 2", "schema: 1", "removed: plans of schema 1 have no such field. Write schema: 2"),
        ("removed: []", "removed: [{layer: 6}]", r"removed: got layer 6, the checkpoint has 0 … 5"),
        ("removed: []", "removed: [{layer: 4}]", r"removed: layer 4 is in a group of several; it has to stand alone"),
        ("removed: []", "removed: [{layer: 1, part: mlp}, {layer: 1, part: attention}]", r"layer 1 appears twice"),
        ("removed: []", "removed: [{layer: 1, part: head}]", r"removed\.0\.part: got 'head'"),
        ("removed: []", "removed: [{layer: -1}]", r"removed\.0\.layer: got -1"),
        (
            "merge_rule: eq4\nremoved: []",
            "merge_rule: lstsq\nremoved: [{layer: 1}]",
            r"removed: the rule lstsq fits groups",
        ),
        ("patch: null", f"patch: {PATCH}", r"patch: nothing is removed, so there is nothing to patch"),
        (
            "removed: []\npatch: null",
            f"removed: [{{layer: 1}}]\npatch: {PATCH.replace('0.5', '0')}",
            r"patch\.strength: got 0",
        ),
        ("run: null", "run: {int8: [3, 4]}", r"run\.int8: names some layers of the group \[3, 4, 5\]"),
        ("run: null", "run: {int8: [7]}", r"run\.int8: layer 7 is not in the compressed network"),
        ("run: null", "run: {stride: 0}", r"run\.stride: got 0"),
        ("run: null", "run: {buckets: [90, 64]}", r"run: buckets: expected rising numbers"),
        ("read: native", "read: twice", r"tokens\.read: got 'twice'"),
        (SHA, "abc", r"checkpoint\.sha256: got 'abc'"),
        ("family: hmr2, ", "", r"checkpoint\.family: Field required"),
        ("- [0]", "- [0", "not valid YAML"),
    ],
)
def test_a_wrong_plan_says_which_field_and_why(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = plan().to_yaml()
    assert old in text
    path = tmp_path / "plan.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        Plan.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_removed_stands_alone_in_its_group() -> None:
    text = "groups: [[0], [1], [2, 3], [4]]\nremoved: [{layer: 1}, {layer: 4, part: mlp}]\n"
    read = Plan.from_yaml(text)
    assert read.layers == 5 and read.checkpoint is None and read.kept_groups == ((0,), (2, 3), (4,))
    assert read.removed_parts == {1: "all", 4: "mlp"} and read.compresses_layers and read.first_change == 1
    assert Plan.from_yaml(f"{text}patch: {PATCH}").first_change == 0, "the layer below a cut takes the patch up"
    assert Plan.from_yaml("groups: [[0], [1]]").first_change is None
    with pytest.raises(UserError, match="removed: no layer would be left"):
        Plan.from_yaml("groups: [[0]]\nremoved: [{layer: 0}]")


def test_schema_1_is_read_and_means_the_same() -> None:
    text = f"schema: 1\ncheckpoint: {{family: hmr2, sha256: {SHA}, layers: 3}}\ngroups: [[0], [1, 2]]\n"
    old, new = Plan.from_yaml(text), Plan.from_yaml(text.replace("schema: 1", "schema: 2"))
    assert old == new and new.to_yaml().startswith("schema: 2\n")


def test_a_plan_without_a_checkpoint_is_told_not_refused() -> None:
    plan = Plan(groups=((0,), (1,)))
    with pytest.warns(Notice, match="my.yaml: does not name its checkpoint, so only the number of layers was compared"):
        plan.check("hmr2", SHA, 2, where="my.yaml")
    with pytest.raises(UserError, match="groups: the plan is for 2 layers, the model has 3"):
        plan.check("hmr2", SHA, 3)


def test_what_others_do_not_follow_is_told() -> None:
    run = {"dtype": "bfloat16", "stride": 4, "runtime": "compiled", "buckets": [90, 192]}
    plan = Plan.from_dict({"groups": [[0], [1]], "run": run})
    with pytest.warns(Notice, match="plan: run: dtype, stride, runtime, buckets is left to the code that calls"):
        plan.tell_run("the code that calls")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Plan.from_dict({"groups": [[0]], "run": {"runtime": "torch"}}).tell_run("it")
        Plan.from_dict({"groups": [[0]]}).tell_run("it")


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such plan"):
        Plan.read(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="holds a list, expected the fields of a plan"):
        Plan.read(tmp_path / "list.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid YAML .UTF-16"):
        Plan.read(tmp_path / "binary.yaml")


def test_a_plan_for_another_checkpoint_is_refused() -> None:
    plan().check("hmr2", SHA, 6)
    other = "f" * 64
    with pytest.raises(UserError, match=r"checkpoint\.sha256: the plan was made for 0123456789ab….*--force"):
        plan().check("hmr2", other, 6)
    with pytest.raises(UserError, match=r"checkpoint\.family: the plan is for hmr2, the model is hamer"):
        plan().check("hamer", SHA, 6)
    plan().check("hamer", other, 6, force=True)
    with pytest.raises(UserError, match=r"checkpoint\.layers: the plan is for 6 layers, the model has 5"):
        plan().check("hmr2", SHA, 5, force=True)


def test_rules_of_plans_are_those_that_exist() -> None:
    assert set(get_args(MergeRule)) == set(RULES)
    assert trivial_groups(3) == ((0,), (1,), (2,))
