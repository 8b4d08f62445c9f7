"""The tables of `hmrcompress ablate` as Markdown: nothing in it that is not in their JSON files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hmrcompress.errors import UserError, first_line
from hmrcompress.io.jsons import read_json

COMMAND = "ablate"
INTRODUCTION = """# Results

Measured by `hmrcompress ablate` and written by `hmrcompress report`; every figure stands in a JSON file of the
results' folder. Errors are in millimetres. **increase** is the mean difference of MPJPE to the untouched network on
the same frames, **interval** its {level:.0%} interval: a percentile bootstrap over clips ({resamples} resamples of the
paired differences). **distance** is how far a frame's joints are from the untouched network's (mean over frames, and
the 95th percentile): an error may stay as it was while the bodies change. **MACs** is how many times fewer
multiply-accumulates there are (products of attention included), **speed-up** the median ratio of frames per second with
its middle half, original and compressed by turns on the same crops, a mask's own cost counted where the network finds
it by itself. **more than** is the paired difference to the row named, with its interval. **asked** is what was written
down before the measurement, and whether it holds.
"""

Row = dict[str, Any]
Cell = Callable[[Row, dict[str, Any]], str]
NONE = "–"
WORDS = {"increase_upper_mm": "interval's upper end", "distance_mm": "distance"}
"""The figures that a recipe may ask a bound of."""


def read_tables(folder: Path | str) -> list[dict[str, Any]]:
    """The tables of a folder of results, in the order of the recipe that made them. Raises UserError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("no such folder of results", folder, "`hmrcompress ablate` writes one")
    tables = []
    for path in sorted(folder.glob("*.json")):
        found = read_json(path)
        if isinstance(found, dict) and found.get("command") == COMMAND and "table" in found:
            require_complete(lambda table: (table["table"]["number"] + 0, markdown([table])), found, path)
            tables.append(found)
    if not tables:
        raise UserError("holds no tables", folder, "`hmrcompress ablate` writes them")
    require_one_network(tables, folder)
    return sorted(tables, key=lambda table: (table["table"]["number"], table["table"]["name"]))


def require_one_network(tables: Sequence[dict[str, Any]], where: object) -> None:
    """UserError where tables cannot stand on one page: they are of several networks, or of code that nobody can look
    up, because it was changed after its last commit. It names those that have to be measured again."""
    name = {id(table): table["table"]["name"] for table in tables}
    dirty = [name[id(table)] for table in tables if str(table.get("commit", "")).endswith("-dirty")]
    if dirty:
        raise UserError(
            "were measured with uncommitted changes, so that nobody can tell by which code",
            f"{where}: {', '.join(dirty)}",
            f"Commit, then `hmrcompress ablate{_only(dirty)}` measures them again",
        )
    networks = [table["baseline"].get("sha256", "a network that is not named") for table in tables]
    usual = max(set(networks), key=networks.count)
    others = [name[id(table)] for table, network in zip(tables, networks, strict=True) if network != usual]
    if others:
        raise UserError(
            f"are of another network than the other tables ({usual[:12]}…)",
            f"{where}: {', '.join(others)}",
            f"`hmrcompress ablate{_only(others)}` measures them again",
        )


def _only(tables: Sequence[str]) -> str:
    return "".join(f" --only {name}" for name in tables)


def require_complete(make: Callable[[dict[str, Any]], object], found: dict[str, Any], path: Path) -> None:
    """UserError where what a file holds (`found`) is not enough for its part of the text, which `make` writes."""
    try:
        make(found)
    except KeyError as error:
        raise UserError(f"there is no {error} where one is expected", path, "Measure it again") from error
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise UserError(
            f"holds other values than were written ({first_line(error)})", path, "Measure it again"
        ) from error


def markdown(tables: Sequence[dict[str, Any]]) -> str:
    """The whole text, one section a table."""
    interval = tables[0]["interval"]
    sections = [INTRODUCTION.format(level=interval["level"], resamples=interval["resamples"])]
    sections += [section(table) for table in tables]
    return "\n".join(sections)


def section(table: dict[str, Any]) -> str:
    """Title, note, table, and what it was measured on."""
    about, rows = table["table"], table["rows"]
    heads, cells = _columns(table)
    lines = [f"## {about['title']}", ""]
    if about["note"]:
        lines += [about["note"].strip(), ""]
    lines.append(f"| {' | '.join(heads)} |")
    lines.append("|---|" + "---:|" * (len(heads) - 1))
    lines += [f"| {' | '.join(cell(row, table) for cell in cells)} |" for row in rows]
    return "\n".join([*lines, "", _measured_on(table), ""])


def _columns(table: dict[str, Any]) -> tuple[list[str], list[Cell]]:
    about, rows = table["table"], table["rows"]
    chosen: list[tuple[str, Cell]] = [
        ("", lambda row, _: row["name"].replace("|", "\\|")),
        ("layers", lambda row, _: str(row["layers"])),
        ("tokens", lambda row, _: str(row["tokens"])),
        ("MPJPE", lambda row, _: f"{row['mpjpe_mm']:.2f}"),
        ("PA-MPJPE", lambda row, _: _millimetres(row, "pa_mpjpe_mm")),
        ("PVE", lambda row, _: _millimetres(row, "pve_mm")),
        ("increase", lambda row, _: f"{row['increase_mm']:+.2f}"),
        ("interval", lambda row, _: _range(row.get("increase_ci95_mm"), "+.2f")),
    ]
    if references := {row["reference"] for row in rows if "reference" in row}:
        head = f"share of {min(references)}" if len(references) == 1 else "share of the reference"
        chosen.append((head, _share))
        if any("difference_mm" in row for row in rows):
            chosen.append((head.replace("share of", "more than"), _difference))
    chosen += [MORE[name] for name in about["columns"] if name not in ONCE_CHOSEN]
    chosen += [
        ("distance", lambda row, _: _millimetres(row, "distance_mm")),
        ("95th percentile", lambda row, _: _millimetres(row, "distance_p95_mm")),
        ("GMACs", lambda row, _: f"{row['macs_with_attention'] / 1e9:.3f}" if "macs_with_attention" in row else NONE),
        ("MACs", lambda row, _: f"{row['macs_ratio']:.2f}x"),
    ]
    if any("asked" in row for row in rows):
        chosen.append(("asked", _asked))
    if any("speedup" in row for row in rows):
        chosen += [
            ("speed-up", lambda row, _: f"{row['speedup']:.2f}x" if "speedup" in row else NONE),
            ("middle half", lambda row, _: _range(row.get("speedup_quartiles"), ".2f")),
        ]
    return [head for head, _ in chosen], [cell for _, cell in chosen]


def _range(values: Sequence[float] | None, form: str) -> str:
    return NONE if values is None else f"{values[0]:{form}} to {values[1]:{form}}"


def _asked(row: Row, _: dict[str, Any]) -> str:
    """What was asked of the row, in words, and the answer."""
    asked = row.get("asked", {})
    answers = [f"{WORDS[name]} ≤ {each['max']:g}: {'yes' if each['holds'] else 'no'}" for name, each in asked.items()]
    return "; ".join(answers) or NONE


def _millimetres(row: Row, name: str) -> str:
    return f"{row[name]:.2f}" if name in row else NONE


def _ends(values: Sequence[float] | None) -> Sequence[float] | None:
    return None if values is None else (min(values), max(values))


def _share(row: Row, table: dict[str, Any]) -> str:
    """The row's increase as a share of its reference's; no figure where that one costs nothing."""
    reference = next((each for each in table["rows"] if each["name"] == row.get("reference")), None)
    if reference is None or reference["increase_mm"] <= 0:
        return NONE
    return f"{row['increase_mm'] / reference['increase_mm']:.0%}"


def _difference(row: Row, _: dict[str, Any]) -> str:
    """How much more error than the reference, with the interval of the paired difference."""
    if "difference_mm" not in row:
        return NONE
    return f"{row['difference_mm']:+.2f} ({_range(row.get('difference_ci95_mm'), '+.2f')})"


def _groups(row: Row, _: dict[str, Any]) -> str:
    return ", ".join(f"{group[0]}–{group[-1]}" for group in row["groups"]) or NONE


def _of_search(name: str, form: str) -> Cell:
    return lambda row, _: f"{row['search'][name]:{form}}" if "search" in row else NONE


ONCE_CHOSEN = ("pa_mpjpe_mm",)
"""Columns that earlier tables name and every table has by now."""
MORE: dict[str, tuple[str, Cell]] = {
    "groups": ("merged", _groups),
    "evaluations": ("evaluations", _of_search("evaluations", "d")),
    "calib_increase_mm": ("increase on calib", _of_search("calib_increase_mm", "+.2f")),
    "forced": ("forced", lambda row, _: f"{row['forced']:.2f}" if "forced" in row else NONE),
    "draws": ("of the draws", lambda row, _: _range(_ends(row.get("draws")), ".1f")),
    "accel": (
        "Accel",
        lambda row, _: f"{row['accel_mm_per_frame2']:.2f}" if "accel_mm_per_frame2" in row else NONE,
    ),
}


def _measured_on(table: dict[str, Any]) -> str:
    baseline, data, bench = table["baseline"], table["data"], table["bench"]
    first = table["rows"][0]
    text = (
        f"Baseline {baseline['mpjpe_mm']:.2f} mm (`{baseline['model']}`); N = {first['n_frames']} frames of "
        f"{first['n_clips']} clips of {data['name']}:{data['split']}, protocol {table['protocol']}"
    )
    if any("speedup" in row for row in table["rows"]):
        threads = f", {bench['threads']} threads" if table["device"] == "cpu" else ""
        place = table["cpu"] if table["device"] == "cpu" else table["device"]
        text += f"; speed at batch {bench['batch_size']}, {bench['rounds']} rounds, on {place}{threads}"
    return text + "."
