"""What `hmrcompress finetune --stage vae|decoder|all` does to a model: gives it a temporal decoder, and writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hmrcompress.decoder.config import DecoderConfig
from hmrcompress.decoder.files import decoder_tensors
from hmrcompress.decoder.model import TemporalDecoder
from hmrcompress.decoder.pose import PoseCodec
from hmrcompress.errors import UserError
from hmrcompress.io.outputs import OutputRule
from hmrcompress.io.work import remove_work
from hmrcompress.models.files.decoder_part import DecoderPart
from hmrcompress.models.files.folder import Folder, checkpoint_record, write_model_folder
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.records import BodyParams
from hmrcompress.runtime import Progress, no_progress
from hmrcompress.training.decoder_fit import DecoderFit, DecoderSettings
from hmrcompress.training.distributed import Team
from hmrcompress.training.features import ClipFeatures
from hmrcompress.training.finetune import stored_state, work_folder
from hmrcompress.training.loop import LoopSettings, Trained, train
from hmrcompress.training.motions import MotionBank
from hmrcompress.training.vae_fit import VAEFit, VAESettings

VAE, DECODER, ALL = "vae", "decoder", "all"
STAGES: dict[str, tuple[str, ...]] = {VAE: (VAE,), DECODER: (DECODER,), ALL: (VAE, DECODER)}
"""Parts that a stage trains, in order."""

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Fitted:
    """How training ended. runs: of the VAE and the denoiser, those that were trained. folder: None where the run was
    interrupted by its time limit; the same call goes on."""

    folder: Folder | None
    runs: dict[str, Trained] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """{vae|decoder: {steps, finished, before, after, validations}}; figures as their tasks' `validate` gives."""
        return {
            name: {
                "steps": run.steps,
                "finished": run.finished,
                "before": figures(run.validations[0]),
                "after": figures(run.kept),
                "validations": run.validations,
            }
            for name, run in self.runs.items()
        }


def figures(validation: Mapping[str, Any]) -> dict[str, Any]:
    """A validation without its step."""
    return {name: value for name, value in validation.items() if name != "step"}


def decoder_over_vae(checkpoint: Checkpoint, changes: Mapping[str, Any], *, seed: int) -> TemporalDecoder:
    """A decoder with the motion VAE that a model holds and a fresh denoiser, on the CPU; `changes` to the settings
    stored with the VAE, that are the denoiser's own. Raises UserError where the model holds no VAE."""
    part = checkpoint.motion_vae
    if part is None:
        raise UserError("holds no motion VAE", checkpoint.name, "Train one: --stage vae, or --stage all for both")
    config = DecoderConfig.from_dict({**part.config, **changes}, checkpoint.name)
    decoder = TemporalDecoder(config, seed=seed)
    known = {name: tensor.float() for name, tensor in part.tensors.items() if _of_vae(name)}
    # Not strict: the denoiser and its statistics are new. That the VAE is whole is checked below.
    missing, odd = decoder.load_state_dict(known, strict=False)
    if odd or any(_of_vae(name) for name in missing):
        raise UserError("the motion VAE in it does not fit its settings", checkpoint.name)
    return decoder


def fit_vae(
    decoder: TemporalDecoder,
    codec: PoseCodec,
    bank: MotionBank,
    held: Sequence[BodyParams],
    out: Path,
    *,
    settings: VAESettings,
    loop: LoopSettings,
    progress: Progress = no_progress,
    report: Report | None = None,
) -> Trained:
    """Trains the motion VAE of a decoder in place; goes on where an interrupted run left its state beside `out`.

    held: motions to validate on, a clip each. codec and decoder lie on one device. Raises UserError (`loop.train`).
    """
    task = VAEFit(decoder, codec, bank, held, settings)
    return train(task, loop, work_folder(out) / VAE, progress=progress, report=report)


def fit_denoiser(
    decoder: TemporalDecoder,
    codec: PoseCodec,
    clips: Sequence[ClipFeatures],
    held: Sequence[ClipFeatures],
    out: Path,
    *,
    settings: DecoderSettings,
    loop: LoopSettings,
    progress: Progress = no_progress,
    report: Report | None = None,
) -> Trained:
    """Trains the denoiser of a decoder in place over its frozen VAE; goes on as `fit_vae` does.

    clips: features to train on, held: to validate on. Raises UserError (see `DecoderFit`, `loop.train`).
    """
    task = DecoderFit(decoder, codec, clips, held, settings)
    return train(task, loop, work_folder(out) / DECODER, progress=progress, report=report)


def write_decoder(
    checkpoint: Checkpoint,
    decoder: TemporalDecoder,
    out: Path,
    fitted: Fitted,
    about: Mapping[str, Any],
    overwrite: bool | OutputRule = False,
) -> Fitted:
    """Writes the model with its decoder (with the VAE alone, where the denoiser was not trained) to `out`, and removes
    the state of the training. about: provenance of the parts trained, by their names. Of several processes the first
    one writes. `fitted` with the folder.
    """
    tensors = decoder_tensors(decoder)
    if DECODER not in fitted.runs:
        tensors = {name: tensor for name, tensor in tensors.items() if _of_vae(name)}
    source = checkpoint.source or checkpoint_record(checkpoint.reference, name=checkpoint.name, command="finetune")
    made = {
        name: {**about[name], "steps": run.steps, "kept_step": run.kept["step"], **figures(run.kept)}
        for name, run in fitted.runs.items()
    }
    earlier = {name: value for name, value in source.items() if name != DECODER}
    team, folder = Team(decoder.pose_mean.device), None
    if team.leads:
        folder = write_model_folder(
            out,
            stored_state(checkpoint),
            checkpoint.config,
            plan=checkpoint.plan,
            provenance={**earlier, **made},
            body=checkpoint.body,
            probe=checkpoint.probe,
            decoder=DecoderPart(decoder.config.to_dict(), tensors),
            overwrite=overwrite,
        )
        remove_work(work_folder(out))
    team.wait()
    return replace(fitted, folder=folder)


def _of_vae(name: str) -> bool:
    return name.startswith(("vae.", "pose_"))
