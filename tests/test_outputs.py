"""The rule for outputs, without commands: what is replaced, kept, refused; links, pipes, leftovers, seals."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from hmrcompress.errors import Notice, UserError
from hmrcompress.io import atomic, manifests, outputs, places
from hmrcompress.io.atomic import clear_leftovers, room, whole_file
from hmrcompress.io.hashes import sha256_json
from hmrcompress.io.manifests import FolderKind
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.places import is_stream
from hmrcompress.io.safetensors_file import write_safetensors
from hmrcompress.io.seals import Seal, read_seal, read_sealed, seal
from hmrcompress.io.torch_file import save_torch
from hmrcompress.io.work import remove_work

KIND = FolderKind("album", "about.json", ("*.txt", "more/*.txt"))
PLAN = "schema: 1\ncheckpoint: {family: hmr2}\ngroups: [[0]]\n"


def hashes(folder: Path) -> dict[str, str]:
    """Every file and folder below, links as what they name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def fill(folder: Path, text: str = "one", names: tuple[str, ...] = ("a.txt", "more/b.txt")) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "about.json").write_text(json.dumps({"title": text}))


def write_album(path: Path, text: str = "one", rule: OutputRule | None = None, **more: Any) -> None:
    with (rule or OutputRule()).folder(path, KIND) as folder:
        fill(folder, text, **more)


def picture(path: Path) -> None:
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path)


def archive(path: Path) -> None:
    np.savez(path, numbers=np.arange(5))


def video(path: Path) -> None:
    from hmrcompress.pipeline.drawing import video_writer

    with video_writer(path, 25.0) as write:
        for shade in range(3):
            write(np.full((64, 64, 3), 40 * shade, np.uint8))


def graph(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    shaped = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    onnx.save(helper.make_model(helper.make_graph([node], "g", shaped[:1], shaped[1:])), str(path))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.png": picture,
    "a.jpg": picture,
    "a.npz": archive,
    "a.ckpt": lambda path: save_torch({"state_dict": {"w": torch.arange(6.0)}}, path),
    "a.safetensors": lambda path: write_safetensors(path, {"w": torch.arange(6.0)}, {"note": "ü"}, seal="test"),
    "a.onnx": graph,
    "a.onnx.data": lambda path: path.write_bytes(bytes(range(256))),
    "a.mp4": video,
    "a.mkv": video,
    "a.md": lambda path: path.write_text("# Title\n"),
    "a.html": lambda path: path.write_text("<p>Ä</p>\n", encoding="utf-8"),
    "a.yaml": lambda path: path.write_text("a: 1\n"),
    "a.json": lambda path: path.write_text('{"schema": 1, "numbers": [1e-05, 0.1, null, "ü"]}'),
}


def content_of(path: Path) -> Any:
    """What a program that knows nothing of seals reads."""
    if path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).tolist()
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name].tolist() for name in file.files}
    if path.suffix == ".ckpt":
        mapped = torch.load(path, weights_only=True, mmap=True)["state_dict"]["w"].tolist()
        assert mapped == torch.load(path, weights_only=True)["state_dict"]["w"].tolist()
        return mapped
    if path.suffix == ".safetensors":
        with safe_open(str(path), "pt") as file:
            return [file.metadata()["note"], file.get_tensor("w").tolist()]
    if path.suffix == ".onnx":
        import onnx
        import onnxruntime

        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path))
        return session.run(None, {"x": np.array([-1, 2], np.float32)})[0].tolist()
    if path.suffix in (".mp4", ".mkv"):
        import av

        with av.open(str(path)) as file:
            return [frame.to_ndarray(format="rgb24").tolist() for frame in file.decode(video=0)]
    if path.suffix == ".yaml":
        import yaml

        return yaml.safe_load(path.read_text())
    if path.suffix == ".json":
        return {name: value for name, value in json.loads(path.read_text()).items() if name != "seal"}
    return path.read_bytes()[: {".md": 8, ".html": 9}.get(path.suffix, 256)]


@pytest.mark.parametrize("name", WRITERS)
def test_seals(tmp_path: Path, name: str) -> None:
    """Other programs read what they read before; the seal is found, and says whether anything was changed."""
    if name.endswith((".mp4", ".mkv")):
        pytest.importorskip("av")
    path = tmp_path / name
    WRITERS[name](path)
    assert read_seal(path) == (Seal("test", False) if name == "a.safetensors" else None)  # which has the room for it
    before = content_of(path)
    seal(path, "test")
    assert content_of(path) == before
    assert read_seal(path) == Seal("test", True)
    data = path.read_bytes()
    if name != "a.json":  # whose spaces and order do not count
        for place in (1, len(data) // 3, len(data) // 2):
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            found = read_seal(path)
            assert found is None or found != Seal("test", True), place
    path.write_bytes(data[: len(data) // 2])
    assert read_seal(path) is None
    again = tmp_path / "again" / name
    again.parent.mkdir()
    WRITERS[name](again)
    seal(again, "test")
    if not name.endswith(".mkv"):  # which has a random number in it
        assert again.read_bytes() == data, "the same content, the same bytes"


def test_a_seal_without_hash(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    seal(tmp_path / "a.npz", "shard", hashed=False)
    assert read_seal(tmp_path / "a.npz") == Seal("shard", True)
    with pytest.raises(ValueError, match="no whole file"):
        seal(tmp_path / "a.npz", "shard")  # it has one


def test_seal_hashes_are_what_they_say(tmp_path: Path) -> None:
    """Worked out anew from the bytes, by the description alone."""
    picture(tmp_path / "a.png")
    plain = (tmp_path / "a.png").read_bytes()
    seal(tmp_path / "a.png", "test")
    text = f"written by hmrcompress (test), sha256 {hashlib.sha256(plain[:-12]).hexdigest()}".encode()
    body = b"tEXt" + b"hmrcompress\0" + text
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    assert (tmp_path / "a.png").read_bytes() == plain[:-12] + chunk + plain[-12:]
    archive(tmp_path / "a.npz")
    plain = (tmp_path / "a.npz").read_bytes()
    seal(tmp_path / "a.npz", "test")
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        assert file.comment.decode().endswith(hashlib.sha256(plain[:-2]).hexdigest())
    value = {"schema": 1, "b": [1.5, None], "a": "ü"}
    (tmp_path / "a.json").write_text(json.dumps(value))
    seal(tmp_path / "a.json", "test")
    assert json.loads((tmp_path / "a.json").read_text())["seal"].endswith(sha256_json(value))
    (tmp_path / "plan.yaml").write_text(PLAN)
    seal(tmp_path / "plan.yaml", "plan", "plan")
    assert (tmp_path / "plan.yaml").read_text() == f"{PLAN}sha256: {hashlib.sha256(PLAN.encode()).hexdigest()}\n"


@pytest.mark.parametrize(
    ("content", "form", "expected"),
    [
        (b"", "json", None),
        (b"[1]", "json", None),
        (b'{"seal": 3}', "json", None),
        (b'{"seal": "written by hmrcompress (eval)"}', "json", None),
        (b'{"seal": "written by hmrcompress (eval), sha256 ' + b"0" * 64 + b'"}', "json", Seal("eval", False)),
        (b"[" * 100_000, "json", None),
        (PLAN.encode(), "plan", Seal("plan", False)),
        (PLAN.encode() + b"sha256: " + b"0" * 64 + b"\n", "plan", Seal("plan", False)),
        (b"checkpoint: mine\n", "plan", None),
        (b"\xff\xfe", "plan", None),
        (b"PK\x05\x06" + bytes(18), "zip", None),
        (b"written by hmrcompress (cka)", "png", None),
        (b"text\n<!-- written by hmrcompress (report), sha256 " + b"0" * 64 + b" -->\n", "md", Seal("report", False)),
        (
            b"text\n<!-- written by hmrcompress (report), sha256 " + b"0" * 64 + b" -->\n" + b"by hand\n" * 99,
            "md",
            Seal("report", False),
        ),
        (b"a: 1\n# written by hmrcompress (run)\nb: 2\n", "yaml", Seal("run", False)),
        (b"text: written by hmrcompress (report)\n", "md", None),
        (b"\x00" * 8, "safetensors", None),
        (struct.pack("<Q", 1 << 60) + b"{}", "safetensors", None),
        (b'{"schema": 1, "settings_sha256": "', "jsonl", Seal("journal", True)),
        (b'{"schema": 1, "sett', "jsonl", Seal("journal", True)),
        (b'{"step": 1, "minutes": 0.1}\n{"st', "jsonl", Seal("log", True)),
        (b'{"step": 1}\n', "jsonl", None),
        (b"dear diary\n", "jsonl", None),
    ],
)
def test_files_of_others_have_no_seal(tmp_path: Path, content: bytes, form: str, expected: Seal | None) -> None:
    (tmp_path / "a").write_bytes(content)
    assert read_seal(tmp_path / "a", form) == expected


class TestFiles:
    def test_new_ours_edited_and_another(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "er" / "a.md"
        OutputRule().write_text(path, "first\n", "report")
        OutputRule().write_text(path, "second\n", "report")
        assert path.read_text().startswith("second\n") and hashes(path.parent).keys() == {"a.md"}
        path.write_text(path.read_text().replace("second", "my own words"))
        mine = path.read_text()
        for number in ("", ".1"):
            with pytest.warns(Notice, match=rf"of an earlier version; it is kept as a\.md\.bak{number}"):
                OutputRule().write_text(path, "third\n", "report")
            path.write_text(mine)
        assert (path.parent / "a.md.bak").read_text() == mine == (path.parent / "a.md.bak.1").read_text()
        for text in ("of mine\n", ""):
            path.write_text(text)
            with pytest.raises(UserError, match="no report that hmrcompress wrote"):
                OutputRule().write_text(path, "fourth\n", "report")
            assert path.read_text() == text
        OutputRule(overwrite=True).write_text(path, "fourth\n", "report")
        assert path.read_text().startswith("fourth\n")
        with pytest.raises(UserError, match="no card that hmrcompress wrote"):  # ours, but of another kind
            OutputRule().write_text(path, "fifth\n", "card")

    def test_a_failure_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), OutputRule().file(tmp_path / "new" / "a.md", "report") as temporary:
            temporary.write_text("half")
            raise KeyError
        assert hashes(tmp_path) == {}

    def test_what_was_there_before_keeps_its_rights(self, tmp_path: Path) -> None:
        OutputRule().write_text(tmp_path / "a.md", "one\n", "report")
        (tmp_path / "a.md").chmod(0o640)
        OutputRule().write_text(tmp_path / "a.md", "two\n", "report")
        assert (tmp_path / "a.md").stat().st_mode & 0o777 == 0o640

    def test_inputs_are_never_written_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        OutputRule().write_text("a.md", "one\n", "report")
        Path("link.md").symlink_to("a.md")
        os.link("a.md", "hard.md")
        for name in ("a.md", "./a.md", "link.md", "hard.md", str(tmp_path / "a.md")):
            for overwrite in (False, True):
                for given in ("a.md", Path("a.md"), f"crops:{tmp_path}/a.md,split=val", ["x", {"y": "files:a.md"}]):
                    with pytest.raises(UserError, match="is an input"):
                        OutputRule(overwrite=overwrite, inputs=[given]).check_file(name, "report")
        OutputRule(inputs=["starter:test", "b.md", "data", 3, None]).check_file("a.md", "report")

    def test_one_name_for_two_outputs(self, tmp_path: Path) -> None:
        rule = OutputRule(overwrite=True)
        rule.check_file(tmp_path / "a.json", "eval", "json")
        with pytest.raises(UserError, match="to be written twice, as eval and as convert"):
            rule.check_file(tmp_path / "x" / ".." / "a.json", "convert", "json")
        with pytest.raises(UserError, match="to be written twice"):
            rule.check_folder(tmp_path / "a.json", KIND)
        with pytest.raises(UserError, match="to be written twice"):
            rule.write_json(tmp_path / "a.json", {}, "convert")
        with pytest.raises(UserError, match="to be written twice"), rule.folder(tmp_path / "a.json", KIND):
            pass

    def test_links_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        OutputRule().write_text(tmp_path / "there" / "a.md", "one\n", "report")
        for name, target in (("link.md", "there/a.md"), ("new.md", "there/new.md")):
            (tmp_path / name).symlink_to(target)
            OutputRule().write_text(tmp_path / name, "two\n", "report")
            assert (tmp_path / name).is_symlink() and (tmp_path / target).read_text().startswith("two\n")
        (tmp_path / "there" / "a.md").write_text("of mine\n")
        with pytest.raises(UserError, match="no report"):
            OutputRule().check_file(tmp_path / "link.md", "report")
        (tmp_path / "round.md").symlink_to("round.md")
        with pytest.raises(UserError, match="cannot be written to"):
            OutputRule().check_file(tmp_path / "round.md", "report")

    def test_pipes_and_devices_are_written_to(self, tmp_path: Path, capsysbinary: Any) -> None:
        pipe = tmp_path / "pipe.json"
        os.mkfifo(pipe)
        assert all(map(is_stream, (pipe, "/dev/null", "-", "/dev/fd/1"))) and not is_stream(tmp_path / "none")
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
        reader.start()
        OutputRule().write_json(pipe, {"schema": 1}, "eval")
        reader.join(timeout=20)
        assert json.loads(got[0])["schema"] == 1 and hashes(tmp_path).keys() == {"pipe.json"} and not pipe.is_file()
        OutputRule().write_json("/dev/null", {"schema": 1}, "eval")
        assert Path("/dev/null").is_char_device()
        OutputRule().write_json("-", {"schema": 2}, "eval")
        assert json.loads(capsysbinary.readouterr().out)["schema"] == 2
        for name in ("-", "/dev/null"):
            with pytest.raises(UserError, match="a folder is to be written"):
                OutputRule().check_folder(name, KIND)

    def test_stdout_of_a_shell_goes_on_behind_what_is_there(self, tmp_path: Path) -> None:
        code = (
            "import sys; from hmrcompress.io.outputs import OutputRule; print('before', flush=True);"
            "OutputRule().write_json('/dev/stdout', {'schema': 1}, 'eval'); print('after')"
        )
        with open(tmp_path / "said", "w") as said:
            subprocess.run([sys.executable, "-c", code], stdout=said, check=True)
        text = (tmp_path / "said").read_text()
        assert text.startswith("before\n{") and text.endswith("}\nafter\n") and '"schema": 1' in text

    def test_disks_and_sockets_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import socket

        with socket.socket(socket.AF_UNIX) as server:
            monkeypatch.chdir(tmp_path)
            server.bind("a.json")
            with pytest.raises(UserError, match="is a socket"):
                OutputRule(overwrite=True).check_file("a.json", "eval")
        monkeypatch.setattr("hmrcompress.io.places.stat.S_ISBLK", lambda mode: True)
        (tmp_path / "disk").touch()
        with pytest.raises(UserError, match="is a disk"):
            OutputRule(overwrite=True).check_file("disk", "eval")

    def test_places_where_nothing_can_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("x")
        (tmp_path / "folder").mkdir()
        with pytest.raises(UserError, match="is a folder, expected the name of a file"):
            OutputRule(overwrite=True).check_file(tmp_path / "folder", "report")
        with pytest.raises(UserError, match=r"cannot be written, for .*file is a file"):
            OutputRule().check_file(tmp_path / "file" / "a.md", "report")
        with pytest.raises(UserError, match="is the root"):
            OutputRule(overwrite=True).check_folder("/", KIND)
        monkeypatch.setattr(places.os, "access", lambda path, mode: False)
        with pytest.raises(UserError, match="is write-protected"):
            OutputRule(overwrite=True).check_file(tmp_path / "file", "report")
        with pytest.raises(UserError, match="nothing can be made in"):
            OutputRule().check_file(tmp_path / "new.md", "report")

    @pytest.mark.parametrize("before", [None, "ours"])
    def test_somebody_writes_there_while_the_command_runs(self, tmp_path: Path, before: str | None) -> None:
        path, rule = tmp_path / "a.md", OutputRule()
        if before:
            OutputRule().write_text(path, "earlier\n", "report")
        rule.check_file(path, "report")
        path.write_text("of mine\n")
        with pytest.raises(UserError, match=r"somebody wrote there .* What it made is a\.md\.new"):
            rule.write_text(path, "of days\n", "report")
        assert path.read_text() == "of mine\n" and (tmp_path / "a.md.new").read_text().startswith("of days\n")
        assert hashes(tmp_path).keys() == {"a.md", "a.md.new"}

    def test_earlier_versions(self, tmp_path: Path) -> None:
        (tmp_path / "e.json").write_text('{"schema": 1, "command": "eval"}')
        (tmp_path / "plan.yaml").write_text(PLAN)
        for path, kind, form in ((tmp_path / "e.json", "eval", "json"), (tmp_path / "plan.yaml", "plan", "plan")):
            with pytest.warns(Notice, match="kept as"):
                OutputRule().write_text(path, '{"schema": 1}' if form == "json" else PLAN, kind, form)
            assert path.with_name(f"{path.name}.bak").exists()
        with pytest.raises(UserError, match="no bench that"):
            OutputRule().check_file(tmp_path / "e.json.bak", "bench", "json")

    def test_reading_back(self, tmp_path: Path) -> None:
        OutputRule().write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]}, "row")
        assert read_sealed(tmp_path / "a.json", "row") == {"b": 1, "a": [1.5, None]}
        assert read_sealed(tmp_path / "a.json", "other") is None and read_sealed(tmp_path / "none", "row") is None
        (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("1.5", "1.6"))
        assert read_sealed(tmp_path / "a.json", "row") is None
        with pytest.warns(Notice, match="a: is not a finite number"):
            OutputRule().write_json(tmp_path / "b.json", {"a": float("inf")}, "row")
        assert read_sealed(tmp_path / "b.json", "row") == {"a": None}


class TestFolders:
    def test_new_again_and_the_manifest(self, tmp_path: Path) -> None:
        out = tmp_path / "deep" / "out"
        write_album(out)
        about = json.loads((out / "about.json").read_text())
        assert about["title"] == "one" and about["files"] == {
            name: {"bytes": 3, "sha256": hashlib.sha256(b"one").hexdigest()} for name in ("a.txt", "more/b.txt")
        }
        write_album(out, "other", names=("a.txt",))
        assert hashes(tmp_path).keys() == {"deep", "deep/out", "deep/out/a.txt", "deep/out/about.json"}
        with pytest.raises(KeyError), OutputRule().folder(out, KIND) as folder:
            fill(folder, "third")
            raise KeyError
        assert (out / "a.txt").read_text() == "other" and hashes(out.parent).keys() == hashes(out.parent).keys()

    @pytest.mark.parametrize(
        ("spoil", "named"),
        [
            (lambda out: (out / "notes.txt").write_text("mine"), "notes.txt"),
            (lambda out: (out / "empty").mkdir(), "empty/"),
            (lambda out: (out / "a.txt").write_text("eno"), "a.txt"),
            (lambda out: (out / "more" / "c.txt").write_text("mine"), "more/c.txt"),
            (lambda out: (out / ".hidden").write_text("mine"), ".hidden"),
            (lambda out: (out / "link").symlink_to("/etc/hosts"), "link"),
            (lambda out: ((out / "a.txt").rename(out / "was"), (out / "a.txt").symlink_to("was")), "a.txt, was"),
            (lambda out: os.mkfifo(out / "pipe"), "pipe"),
        ],
    )
    def test_anything_else_in_it(self, tmp_path: Path, spoil: Callable[[Path], Any], named: str) -> None:
        out = tmp_path / "out"
        write_album(out)
        spoil(out)
        before = hashes(out) if named != "pipe" else None
        with pytest.raises(UserError, match=rf"out: holds {named}, which this command did not write"):
            OutputRule().check_folder(out, KIND)
        if before is None:
            return
        assert hashes(out) == before
        write_album(out, "over", OutputRule(overwrite=True))
        after = hashes(out)
        assert (out / "a.txt").read_text() == "over" and json.loads((out / "about.json").read_text())["title"] == "over"
        assert {name: after[name] for name in before if name not in ("a.txt", "more/b.txt", "about.json", "was")} == {
            name: before[name] for name in before if name not in ("a.txt", "more/b.txt", "about.json", "was")
        }

    def test_an_edited_manifest(self, tmp_path: Path) -> None:
        write_album(tmp_path / "out")
        about = tmp_path / "out" / "about.json"
        about.write_text(about.read_text().replace('"one"', '"mine"'))
        with pytest.raises(
            UserError, match=r"is no album that this command wrote, and holds a\.txt, about\.json, more"
        ):
            OutputRule().check_folder(tmp_path / "out", KIND)

    def test_folders_of_others(self, tmp_path: Path) -> None:
        (tmp_path / "thesis").mkdir()
        OutputRule().check_folder(tmp_path / "thesis", KIND)  # empty
        (tmp_path / "thesis" / "about.json").write_text('{"title": "mine", "files": {}}')
        (tmp_path / "thesis" / "data").mkdir()
        (tmp_path / "thesis" / "data" / "points.csv").write_text("1,2")
        other = FolderKind("diary", "about.json", ())
        with OutputRule().folder(tmp_path / "diary", other) as folder:
            fill(folder)
        for name, said in (("thesis", "about.json, data/points.csv"), ("diary", "a.txt, about.json, more/b.txt")):
            before = hashes(tmp_path / name)
            with pytest.raises(UserError, match=f"is no album that this command wrote, and holds {said}"):
                write_album(tmp_path / name)
            assert hashes(tmp_path / name) == before
        write_album(tmp_path / "thesis", "over", OutputRule(overwrite=True))
        assert (tmp_path / "thesis" / "data" / "points.csv").read_text() == "1,2"
        assert json.loads((tmp_path / "thesis" / "about.json").read_text())["title"] == "over"
        (tmp_path / "file").write_text("x")
        with pytest.raises(UserError, match="is a file, expected the name of a folder"):
            OutputRule(overwrite=True).check_folder(tmp_path / "file", KIND)

    @pytest.mark.parametrize("way", ["folder for file", "file for folder"])
    def test_things_in_the_way_are_told_before(self, tmp_path: Path, way: str) -> None:
        if way == "folder for file":
            (tmp_path / "out" / "about.json").mkdir(parents=True)
        else:
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "more").write_text("mine")
        with pytest.raises(UserError, match="which is in the way"):
            OutputRule(overwrite=True).check_folder(tmp_path / "out", KIND)

    def test_what_file_managers_leave_is_left(self, tmp_path: Path) -> None:
        write_album(tmp_path / "out")
        (tmp_path / "out" / ".DS_Store").write_text("x")
        write_album(tmp_path / "out", "two", names=("a.txt",))
        assert hashes(tmp_path / "out").keys() == {".DS_Store", "a.txt", "about.json"}

    def test_inputs(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        write_album(out)
        (tmp_path / "link").symlink_to("out")
        for overwrite in (False, True):
            for given in (out, tmp_path / "link", f"images:{out}"):
                with pytest.raises(UserError, match="is an input"):
                    OutputRule(overwrite=overwrite, inputs=[given]).check_folder(out, KIND)
                with pytest.raises(UserError, match="is an input"):
                    OutputRule(overwrite=overwrite, inputs=[given]).check_folder(tmp_path / "link", KIND)
            with pytest.raises(UserError, match="is an input, and lies in the folder"):
                OutputRule(overwrite=overwrite, inputs=[out / "a.txt"]).check_folder(out, KIND)
        (out / "mine.csv").write_text("1")
        OutputRule(overwrite=True, inputs=[out / "mine.csv"]).check_folder(out, KIND)  # it stays where it is
        with pytest.raises(UserError, match="lies in the folder"):
            OutputRule(overwrite=True, inputs=[out / "a.txt"]).check_folder(out, KIND)

    def test_a_link_stays(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        for text in ("one", "two"):
            write_album(tmp_path / "link", text)
            assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "a.txt").read_text() == text

    def test_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        number = os.stat(".").st_ino
        for text, names in (("one", ("a.txt", "more/b.txt")), ("two", ("a.txt",))):
            write_album(Path("."), text, names=names)
            assert os.stat(tmp_path / "here").st_ino == number and Path("a.txt").read_text() == text
        assert hashes(tmp_path / "here").keys() == {"a.txt", "about.json"}
        Path("mine").write_text("x")
        with pytest.raises(UserError, match="holds mine"):
            write_album(Path("."))

    @pytest.mark.parametrize("able", [True, False])
    def test_where_folders_cannot_change_places(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: bool
    ) -> None:
        """Two renamings where the system knows no exchange, and file by file where folders can't be renamed."""
        monkeypatch.setattr(atomic, "exchange", lambda a, b: False)
        write_album(tmp_path / "out")
        if not able:
            rename = os.rename

            def refused(a: Path, b: Path) -> None:
                if Path(a) == tmp_path / "out":
                    raise OSError(18, "Invalid cross-device link", str(a))
                rename(a, b)

            monkeypatch.setattr(os, "rename", refused)
        write_album(tmp_path / "out", "two", names=("a.txt",))
        assert hashes(tmp_path).keys() == {"out", "out/a.txt", "out/about.json"}
        assert (tmp_path / "out" / "a.txt").read_text() == "two"

    def test_somebody_writes_there_while_the_command_runs(self, tmp_path: Path) -> None:
        write_album(tmp_path / "out")
        rule = OutputRule()
        with pytest.raises(UserError, match=r"What it made is out\.new"), rule.folder(tmp_path / "out", KIND) as folder:
            fill(folder, "of days")
            (tmp_path / "out" / "mine").write_text("x")
        assert hashes(tmp_path / "out").keys() == {"a.txt", "about.json", "mine", "more", "more/b.txt"}
        assert (tmp_path / "out.new" / "a.txt").read_text() == "of days"
        with pytest.raises(UserError, match=r"What it made is new\.new"), rule.folder(tmp_path / "new", KIND) as folder:
            fill(folder, "of days")
            (tmp_path / "new").mkdir()
            (tmp_path / "new" / "mine").write_text("x")
        assert hashes(tmp_path / "new").keys() == {"mine"}

    def test_at_the_very_last_moment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_album(tmp_path / "out")
        exchange = atomic.exchange

        def late(a: Path, b: Path) -> bool:
            if (b / "a.txt").read_text() == "one":
                (b / "mine").write_text("x")
            return exchange(a, b)

        monkeypatch.setattr(atomic, "exchange", late)
        with pytest.raises(UserError, match=r"out\.new"):
            write_album(tmp_path / "out", "two")
        assert (tmp_path / "out" / "mine").read_text() == "x" and (tmp_path / "out" / "a.txt").read_text() == "one"

    def test_additions(self, tmp_path: Path) -> None:
        write_album(tmp_path / "out")
        with OutputRule().additions(tmp_path / "out", KIND) as more:
            (more / "picture.png").write_text("x")
        assert manifests.strangers(tmp_path / "out", KIND) == []
        assert (tmp_path / "out" / "a.txt").read_text() == "one"
        (tmp_path / "plain").mkdir()
        with pytest.raises(UserError, match="is no album"), OutputRule().additions(tmp_path / "plain", KIND):
            pass

    def test_removing(self, tmp_path: Path) -> None:
        write_album(tmp_path / "a"), write_album(tmp_path / "b")
        (tmp_path / "b" / "mine").write_text("x")
        assert OutputRule().remove_folder(tmp_path / "a", KIND) and not (tmp_path / "a").exists()
        before = hashes(tmp_path)
        assert not OutputRule().remove_folder(tmp_path / "b", KIND) and hashes(tmp_path) == before
        OutputRule().write_text(tmp_path / "r.md", "x\n", "report")
        assert not OutputRule().remove_file(tmp_path / "r.md", "card")
        assert OutputRule().remove_file(tmp_path / "r.md", "report")
        (tmp_path / "r.md").write_text("mine")
        assert not OutputRule().remove_file(tmp_path / "r.md", "report") and (tmp_path / "r.md").exists()

    def test_a_folder_without_a_manifest(self, tmp_path: Path) -> None:
        kind = FolderKind("masks", None, ("*.png",))
        for _ in range(2):
            with OutputRule().folder(tmp_path / "out", kind) as folder:
                picture(folder / "a.png")
                seal(folder / "a.png", "masks")
        picture(tmp_path / "out" / "mine.png")
        with pytest.raises(UserError, match="holds mine.png"):
            OutputRule().check_folder(tmp_path / "out", kind)


def dies(folder: Path, point: str) -> None:
    """Replaces the album `out` in `folder`, in another process that is killed at this point."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(original: Any) -> Any:
        return lambda *arguments: (original(*arguments), die())

    os.chdir(folder)
    if point == "writing":
        with OutputRule().folder(Path("out"), KIND) as made:
            (made / "a.txt").write_text("half")
            die()
    elif point == "file":
        with OutputRule().file(Path("out.md"), "report") as temporary:
            temporary.write_text("half")
            die()
    elif point == "exchanged":
        atomic.exchange = dying(atomic.exchange)
    elif point == "renamed":
        atomic.exchange, os.rename = (lambda a, b: False), dying(os.rename)
    elif point == "filling":
        outputs._move = dying(outputs._move)
        os.chdir("out")
        write_album(Path("."), "two")
    write_album(Path("out"), "two")
    os._exit(1)


def rooms(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*.part")]


@pytest.mark.parametrize("point", ["writing", "file", "exchanged", "renamed", "filling"])
def test_leftovers_of_a_killed_process_go_with_the_next(tmp_path: Path, point: str) -> None:
    write_album(tmp_path / "out", "one")
    mine = tmp_path / ".out-hmrcompress-0123456789ab.part"
    mine.mkdir()
    (mine / "text").write_text("a name like that, but not of ours")
    dies(tmp_path, point)
    assert len(rooms(tmp_path)) == 2
    if point == "file":
        OutputRule().write_text(tmp_path / "out.md", "whole\n", "report")
    else:
        write_album(tmp_path / "out", "three")
        assert (tmp_path / "out" / "more" / "b.txt").read_text() == "three"
    assert rooms(tmp_path) == [mine.name] and (mine / "text").exists()
    assert manifests.strangers(tmp_path / "out", KIND) == []


def test_a_folder_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    """Killed between the two renamings there is none; looking at its place is enough to have it again."""
    write_album(tmp_path / "out", "one")
    dies(tmp_path, "renamed")
    assert not (tmp_path / "out").exists()
    OutputRule().check_folder(tmp_path / "out", KIND)
    assert (tmp_path / "out" / "a.txt").read_text() == "one" and rooms(tmp_path) == []


def test_what_a_running_process_has_stays(tmp_path: Path) -> None:
    with room(tmp_path / "a.md") as made:
        (made / "a.md").write_text("half")
        clear_leftovers(tmp_path / "a.md")
        assert (made / "a.md").exists()
        OutputRule().write_text(tmp_path / "a.md", "whole\n", "report")
        assert (made / "a.md").read_text() == "half"
    assert hashes(tmp_path).keys() == {"a.md"}


@pytest.mark.parametrize("name", ["x" * 240, "体" * 80, "🏃" * 60])
def test_long_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.md"
    OutputRule().write_text(path, "x\n", "report")
    with room(path) as made:
        assert len(os.fsencode(made.parent.name)) <= 255
    path.chmod(0o640)
    with whole_file(path) as temporary:
        temporary.write_text("y")
    assert path.read_text() == "y" and path.stat().st_mode & 0o777 == 0o640
    assert hashes(tmp_path).keys() == {path.name}


def test_work_folders_go_but_for_what_is_not_of_ours(tmp_path: Path) -> None:
    work = tmp_path / "out.hmrcompress-training"
    with OutputRule().file(work / "vae" / "state.pt", "training state", hashed=False) as temporary:
        save_torch({"step": 1}, temporary)
    with OutputRule().file(work / "shards" / "0.npz", "shard", hashed=False) as temporary:
        archive(temporary)
    (work / "vae" / "log.jsonl").write_text('{"step": 1, "minutes": 0.1}\n')
    (work / "lab_book.txt").write_text("precious")
    archive(work / "shards" / "mine.npz")
    with pytest.warns(Notice, match="there are 2 files of somebody else in it"):
        remove_work(work)
    assert hashes(work).keys() == {"lab_book.txt", "shards", "shards/mine.npz"}
    (work / "lab_book.txt").unlink(), (work / "shards" / "mine.npz").unlink()
    remove_work(work)
    assert not work.exists()
    remove_work(work)


def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    """torch raises a RuntimeError, which says nothing of disks."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            save_torch({"w": torch.zeros(10_000)}, tmp_path / "a.pt")
        except OSError as error:
            os._exit(error.errno)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EFBIG


def test_paths_in_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b,c", "test", "d"):
        Path(name).touch()
    found = {str(path) for path in places.paths_in(["crops:a,split=x", "files:b,c", "starter:test", "merge.plan=d", 3])}
    assert found == {"a", "b,c", "d"}
    assert outputs.FREE
