"""Features of whole clips: what is kept, that it is kept once, and that the starter's clips are those of its splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import roma
import tiny
import torch

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet, normalise
from hmrcompress.data.mask_files import FileMasks
from hmrcompress.data.masks import DataMasks, NoMasks, coverage_grid
from hmrcompress.errors import Notice, UserError
from hmrcompress.io.keys import Key, folder_of
from hmrcompress.merging.apply import with_token_merging
from hmrcompress.models.network import HMR2
from hmrcompress.plan import TokenSettings
from hmrcompress.runtime import no_progress
from hmrcompress.starter.data import dataset
from hmrcompress.starter.data.clip_stream import StarterClips, rendered
from hmrcompress.starter.scene.world import make_clip, split_named
from hmrcompress.training.features import ClipCrops, CropClips, extract_features


class Counted(CropClips):
    """Crops that tell which clips were read."""

    def clips(self, wanted: Sequence[int]) -> Iterator[ClipCrops]:
        for clip in super().clips(wanted):
            self.read = [*getattr(self, "read", []), clip.clip]
            yield clip


def test_features_are_those_of_single_crops(tiny_crops: CropSet, tiny_network: HMR2, tmp_path: Path) -> None:
    source = CropClips(tiny_crops, DataMasks())
    kept = extract_features(tiny_network, source, tmp_path, batch_size=4)
    assert kept.clip_ids == tiny_crops.clip_ids and kept.fps == 30.0
    for found in kept.clips():
        rows = tiny_crops.frames_of(found.clip)
        assert found.frame.tolist() == tiny_crops.frame[rows].tolist() and found.features.dtype == np.float16
        masks = coverage_grid(torch.from_numpy(tiny_crops.pixel_masks(rows))) >= 0.1
        for place, row in enumerate(rows):
            with torch.no_grad():
                one = tiny_network(normalise(tiny_crops.arrays["images"][row : row + 1]), masks[place : place + 1])
            assert np.abs(found.features[place] - one.features[0].numpy()).max() < 2e-3 * one.features.abs().max()
            assert torch.allclose(found.prediction.rotations[place], one.params.rotations[0], atol=1e-5)
            assert np.allclose(found.predicted_betas[place], one.betas[0], atol=1e-5)
            assert np.allclose(found.cam[place], one.cam[0], atol=1e-5)
        true = roma.rotvec_to_rotmat(torch.from_numpy(tiny_crops.arrays["poses"][rows]).double())
        assert torch.allclose(found.truth.rotations.double(), true, atol=1e-5)
        assert np.array_equal(found.truth.betas.numpy(), tiny_crops.arrays["betas"][rows])


def test_what_is_there_is_not_computed_again(tiny_crops: CropSet, tiny_network: HMR2, tmp_path: Path) -> None:
    first = Counted(tiny_crops, NoMasks())
    kept = extract_features(tiny_network, first, tmp_path, clips=[0])
    whole = (kept.folder / "00000.npz").read_bytes()
    again = Counted(tiny_crops, NoMasks())
    kept = extract_features(tiny_network, again, tmp_path)
    assert first.read == [0] and again.read == [1] and kept.clip_ids == [0, 1]
    (kept.folder / "00000.npz").unlink()
    extract_features(tiny_network, Counted(tiny_crops, NoMasks()), tmp_path)
    assert (kept.folder / "00000.npz").read_bytes() == whole, "the same clip, the same bytes"


def test_processes_share_the_clips(tiny_crops: CropSet, tiny_network: HMR2, tmp_path: Path) -> None:
    for rank in (0, 1):
        source = Counted(tiny_crops, NoMasks())
        extract_features(tiny_network, source, tmp_path, process=(rank, 2))
        assert source.read == [rank]


def test_other_networks_and_masks_have_folders_of_their_own(
    tiny_crops: CropSet, tiny_network: HMR2, tmp_path: Path
) -> None:
    tokens = with_token_merging(tiny_network, TokenSettings(keep=150, per_layer=40)).eval()
    folders = {
        extract_features(network, CropClips(tiny_crops, masks), tmp_path, clips=[]).folder
        for masks, network in ((NoMasks(), tiny_network), (DataMasks(), tiny_network), (NoMasks(), tokens))
    }
    assert len(folders) == 3
    (leftover := min(folders) / ".0000.npz-hmrcompress-0123456789ab.part").mkdir()  # of a run killed behind a clip
    for masks, network in ((NoMasks(), tiny_network), (DataMasks(), tiny_network), (NoMasks(), tokens)):
        extract_features(network, CropClips(tiny_crops, masks), tmp_path, clips=[])
    assert not leftover.exists()
    folder, key = folders.pop(), Key("features", {"network": "another"})
    folder.rename(tmp_path / key.short)
    with pytest.raises(UserError, match="kept under a name that is not its own"):
        folder_of(tmp_path, key, {}, "features")


def test_a_changed_network_or_clip_is_told_and_computed_anew(
    tiny_crops: CropSet, tiny_network: HMR2, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    extract_features(tiny_network, CropClips(tiny_crops, NoMasks()), tmp_path, name="mine")
    extract_features(tiny.network(1), CropClips(tiny_crops, NoMasks()), tmp_path, name="other")
    assert not recwarn.list
    with pytest.warns(Notice, match="^features of tiny:test: made anew, as network changed since they were kept$"):
        extract_features(tiny.network(2), CropClips(tiny_crops, NoMasks()), tmp_path, name="mine")
    arrays = tiny.crop_arrays()
    arrays["images"][7] //= 2  # of the second clip
    changed = Counted(CropSet(arrays, tiny.crop_meta()), NoMasks())
    with pytest.warns(Notice, match="^features of tiny:test: 1 clips are made anew, as they changed"):
        kept = extract_features(tiny_network, changed, tmp_path, name="mine")
    assert changed.read == [1] and kept.clip_ids == [0, 1]


def test_faults(tiny_crops: CropSet, tiny_network: HMR2, tmp_path: Path) -> None:
    kept = extract_features(tiny_network, CropClips(tiny_crops, NoMasks()), tmp_path)
    path = kept.folder / "00001.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="no readable features"):
        kept.read(1)
    arrays = {name: values for name, values in tiny.crop_arrays().items() if name not in ("poses", "betas")}
    with pytest.raises(UserError, match="without ground truth"):
        CropClips(CropSet(arrays, tiny.crop_meta()), NoMasks())
    with pytest.raises(UserError, match="expected data, self or none"):
        StarterClips("train", FileMasks(tmp_path))


def test_gaps_end_a_run(tiny_crops: CropSet, tiny_network: HMR2, tmp_path: Path) -> None:
    kept = extract_features(tiny_network, CropClips(tiny_crops, NoMasks()), tmp_path, clips=[0])
    found = kept.read(0)
    assert found.runs() == [slice(0, 6)]
    found.frame[3:] += 2
    assert found.runs() == [slice(0, 3), slice(3, 6)]


@pytest.fixture
def rendered_split(tiny_body: BodyModel, tmp_path: Path) -> CropSet:
    """Clips 0 and 1 of `val`, two frames each, as the splits are rendered."""
    clips = [make_clip(split_named("val"), index, tiny_body, 2) for index in (0, 1)]
    dataset._render_split("val", clips, tiny_body, tmp_path / "val", no_progress)
    return CropSet.open(tmp_path / "val")


def test_a_streamed_clip_is_that_of_the_split(rendered_split: CropSet, tiny_body: BodyModel) -> None:
    for wanted in CropClips(rendered_split, DataMasks()).clips([0, 1]):
        clip = rendered("val", wanted.clip, tiny_body, frames=2)
        assert np.array_equal(clip.images, wanted.images)
        assert clip.person is not None and wanted.person is not None and torch.equal(clip.person, wanted.person)
        assert torch.allclose(clip.params.rotations, wanted.params.rotations, atol=1e-5)
        assert torch.equal(clip.params.betas, wanted.params.betas) and clip.frame.tolist() == [0, 1]


@pytest.mark.slow
def test_clips_come_from_another_process_in_order() -> None:
    from hmrcompress.body.files import starter_body

    source = StarterClips("val", DataMasks(), frames=2, workers=2)
    body = starter_body()
    for index, clip in zip((3, 1, 2), source.clips([3, 1, 2]), strict=True):
        here = rendered("val", index, body, frames=2)
        assert clip.clip == index and np.array_equal(clip.images, here.images)
        assert torch.equal(clip.params.rotations, here.params.rotations)
    beyond = split_named("val").clips
    with pytest.raises(UserError, match=f"got index {beyond}"):
        next(source.clips([beyond]))
