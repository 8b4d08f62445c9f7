"""An exported network as predict, eval, bench and profile run it: the call of a network, through its runtime."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from hmrcompress.errors import HMRCompressError, UserError
from hmrcompress.exporting.folder import ANEW, ExportedFolder, read_export_folder
from hmrcompress.exporting.parity import GraphNetwork
from hmrcompress.exporting.runtimes.registry import runtime
from hmrcompress.exporting.runtimes.runtime import Running
from hmrcompress.exporting.session import has_exact_int8
from hmrcompress.io.hashes import sha256_json
from hmrcompress.models.files.load import Checkpoint
from hmrcompress.models.network import build
from hmrcompress.records import BodyParams, HMROutput


class ExportedNetwork(nn.Module):
    """A folder's network: images (B,3,H,W), person_mask, condition -> HMROutput, on the device of the module (its
    runtime is opened at the first call, with CUDA where that is a CUDA device)."""

    here: Tensor

    def __init__(self, folder: ExportedFolder, threads: int | None = None) -> None:
        super().__init__()
        self.folder, self.threads = folder, threads
        self.register_parameter("here", nn.Parameter(torch.zeros(()), requires_grad=False))
        self._opened: GraphNetwork | None = None

    @property
    def config(self) -> object:
        """Sizes of the network."""
        return self.folder.network

    @property
    def sha256(self) -> str:
        """Hash of all that it computes with: the files of its runtime, and what they are run in."""
        found = self.folder.config
        return sha256_json([found.runtime, found.precision, {name: each.sha256 for name, each in found.files.items()}])

    @property
    def takes_mask(self) -> bool:
        """Whether it merges tokens by a mask from outside."""
        return "person_mask" in self.folder.config.inputs

    @property
    def mean(self) -> BodyParams:
        """The mean parameters that its read-outs are added to, where the module lies."""
        return self.folder.mean.to(self.here.device)

    @property
    def running(self) -> Running:
        """The network as its runtime opened it. Raises UserError, MissingExtra."""
        if self._opened is None:
            found = self.folder.config
            if found.exact_int8 and not self.here.is_cuda and not has_exact_int8():
                fault = "was exported where products of 8-bit numbers are exact (VNNI, AMX); here they overflow"
                raise UserError(fault, self.folder.path, ANEW)
            if self.here.device.index:
                fault = f"got {self.here.device}, and runtimes take the first GPU there is"
                raise UserError(
                    fault, "--device", f"Try CUDA_VISIBLE_DEVICES={self.here.device.index} and --device cuda"
                )
            chosen = runtime(found.runtime)
            running = chosen.run(
                self.folder.main,
                found.precision,
                threads=torch.get_num_threads() if self.threads is None else self.threads,
                cuda=self.here.is_cuda,
            )
            self._opened = GraphNetwork(running, running.inputs, self.folder.network.grid)
        return cast(Running, self._opened.run)

    def forward(self, images: Tensor, person_mask: Tensor | None = None, condition: Tensor | None = None) -> HMROutput:
        """See `HMR2.forward`. Raises UserError."""
        assert self.running is not None and self._opened is not None
        given = [None if each is None else each.cpu() for each in (images.float(), person_mask, condition)]
        found = self._opened(given[0], *given[1:])  # type: ignore[arg-type]
        return HMROutput(**{name: tensor.to(self.here.device) for name, tensor in found.items()})


def open_exported(path: Path | str, *, verify: bool = True) -> Checkpoint:
    """The model that a folder of an exported network is: `.exported` runs it, `.network` has its sizes and no weights.
    Raises UserError."""
    folder = read_export_folder(path, verify=verify)
    found = folder.config
    if folder.network.family != found.network.get("family"):
        raise HMRCompressError(f"{path}: network: no family is named")
    return Checkpoint(
        network=build(folder.network, "meta").eval(),
        family=folder.network.family,
        name=str(path),
        path=Path(path),
        stored_dtype=found.precision,
        plan=folder.plan,
        body=found.predicts,
        source=dict(found.provenance),
        known_sha256=found.sha256,
        decoder=folder.decoder,
        exported=ExportedNetwork(folder).eval(),
    )
