"""Healing: a compressed network learns to predict again what the network it was made from predicts. No labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hmrcompress.body.model import BodyModel
from hmrcompress.data.crops import CropSet
from hmrcompress.data.masks import MaskSource, masks_sha256
from hmrcompress.io.keys import plain
from hmrcompress.merging.apply import counts_of, with_token_merging
from hmrcompress.metrics.other_bodies import UNSCORED
from hmrcompress.metrics.pose import STARTER24, Protocol, Scores, network_predict, score
from hmrcompress.models.network import HMR2, from_state, network_sha256
from hmrcompress.models.probe import SaliencyProbe, reads
from hmrcompress.plan import TokenSettings
from hmrcompress.records import BodyParams, FrameBatch
from hmrcompress.runtime import autocast
from hmrcompress.training.adapters import adapt, folded_state, layers_beside_cuts
from hmrcompress.training.heal_losses import output_losses, token_loss, total, traced_encode
from hmrcompress.training.optimisers import ParameterGroup
from hmrcompress.training.streams import Stream

LOW_RANK_RATE = 4.0
"""The rate of adapters over that of weights as such: the product of two thin matrices moves slowly at first."""
BESIDE_MUON = 0.25
"""The rate of what is no matrix over that of those that Muon trains: with the full one read-outs never settle."""


@dataclass(frozen=True)
class HealSettings:
    """What learns. rank: of the adapters; reach: how far from a cut layers are adapted; full: all weights of the
    backbone instead; with_head: those of the head too. dtype: what networks compute in."""

    rank: int = 16
    reach: int = 1
    full: bool = False
    with_head: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """The compressed network (the student) and the uncompressed one (the teacher), float32, on one device.

    groups: the teacher's layers that each of the student's came from; those in none were removed. tokens: how the
    student merges tokens; probe: its mask, where it finds the person itself. kept_probe: a probe whose tokens
    (`models.probe.reads`) are not to change.
    """

    student: HMR2
    teacher: HMR2
    groups: Sequence[Sequence[int]]
    tokens: TokenSettings | None = None
    probe: SaliencyProbe | None = None
    kept_probe: SaliencyProbe | None = None


class Healing:
    """The `Task` of the training loop. `network` is the student as it learns: a copy, with adapters and token
    merging."""

    name = "heal"

    def __init__(
        self,
        pair: Pair,
        stream: Stream,
        validation: Validation,
        body: BodyModel,
        settings: HealSettings,
    ) -> None:
        self.stream, self.validation, self.body, self.settings = stream, validation, body, settings
        self.teacher = _teaching(pair).eval().requires_grad_(False)
        state = {name: tensor.detach().clone() for name, tensor in pair.student.state_dict().items()}
        copied = from_state(pair.student.config, state).requires_grad_(False)
        self.network = with_token_merging(copied, pair.tokens, pair.probe).requires_grad_(False)
        self.layers = self._layers(pair)
        if not settings.full:
            adapt(self.network, self.layers, settings.rank, settings.seed)
        self.groups = self._groups(frozen=reads(pair.kept_probe.layer) if pair.kept_probe else ())
        for group in self.groups:
            for parameter in group.parameters.values():
                parameter.requires_grad_(True)
        self.identity = {
            "task": self.name,
            "student": network_sha256(pair.student),
            "teacher": network_sha256(pair.teacher),
            "groups": [list(group) for group in pair.groups],
            "tokens": plain(pair.tokens),
            "probes": [None if probe is None else probe.sha256 for probe in (pair.probe, pair.kept_probe)],
            "body": body.sha256,
            **plain(settings),
            "layers": self.layers,
            "stream": stream.identity,
            "validation": validation.identity,
            "device": self.device.type,
        }

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.network.backbone.pos_embed.device

    @property
    def trained(self) -> int:
        """How many numbers learn."""
        return sum(p.numel() for group in self.groups for p in group.parameters.values())

    def _layers(self, pair: Pair) -> list[int]:
        changed = [*range(len(counts_of(self.network)) - 1)]
        changed += [*pair.student.config.without_attention, *pair.student.config.without_mlp]
        reach = len(pair.groups) if self.settings.full else self.settings.reach
        return layers_beside_cuts(pair.groups, changed, reach, self.teacher.config.depth)

    def _groups(self, frozen: tuple[str, ...]) -> list[ParameterGroup]:
        """Adapters, norms and biases of the adapted layers, or all weights asked for: then Muon trains the matrices of
        transformers, as it did the starter network."""
        thin: dict[str, nn.Parameter] = {}
        plain: dict[str, nn.Parameter] = {}
        matrices: dict[str, nn.Parameter] = {}
        inside = ("backbone.blocks.", f"{self.network.head_name}.transformer.transformer.")
        blocks = tuple(f"backbone.blocks.{layer}." for layer in self.layers)
        for name, parameter in self.network.named_parameters():
            if name.startswith(frozen):
                continue
            learns = plain
            if self.settings.full and parameter.ndim == 2 and name.startswith(inside):
                learns = matrices
            if name.startswith(f"{self.network.head_name}."):
                if self.settings.with_head:
                    learns[name] = parameter
            elif self.settings.full or name.startswith("backbone.last_norm."):
                learns[name] = parameter
            elif name.startswith(blocks):
                if name.endswith((".down", ".up")):
                    thin[name] = parameter
                elif parameter.ndim == 1:
                    plain[name] = parameter
        plain_rate = BESIDE_MUON if matrices else 1.0
        groups = [
            ParameterGroup(thin, rate_factor=LOW_RANK_RATE),
            ParameterGroup(plain, rate_factor=plain_rate),
            ParameterGroup(matrices, muon=True),
        ]
        return [group for group in groups if group.parameters]

    def losses(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all terms (see `heal_losses`) on the stream's crops of this step, and the terms."""
        crops = self.stream.batch(step)
        images = crops.images.to(self.device)
        mask, condition = (
            None if given is None else given.to(self.device) for given in (crops.person_mask, crops.condition)
        )
        with autocast(self.device, self.settings.dtype):
            with torch.no_grad():
                wanted, bias = self.teacher.backbone.encode(images, mask)
                target = self.teacher.read(wanted, bias, condition)
            with _attention(self.device):
                encoded = traced_encode(self.network, images, mask)
                output = self.network.read(encoded.tokens, encoded.bias, condition)
        parts = {"tokens": token_loss(encoded, wanted), **output_losses(output, target, self.body)}
        return total(parts), parts

    def validate(self) -> dict[str, float]:
        """The figures of `Validation`."""
        return self.validation(self.network, self.settings.dtype)

    def state(self) -> dict[str, Tensor]:
        """The healed network's state dict, adapters folded in, on the CPU."""
        return {name: tensor.cpu() for name, tensor in folded_state(self.network).items()}


class Validation:
    """Measures a network on held-out frames against its teacher's predictions, and against the truth where there is
    any for its body. `truth` then holds the teacher's own errors."""

    def __init__(
        self,
        crops: CropSet,
        indices: np.ndarray,
        masks: MaskSource,
        teacher: HMR2,
        body: BodyModel,
        *,
        protocol: Protocol | None = None,
        batch_size: int = 32,
    ) -> None:
        own = UNSCORED.get(body.num_joints)
        protocol = protocol or own or STARTER24
        self.has_truth = crops.has_truth and own is None
        self.crops, self.indices, self.masks = crops, indices, masks
        self.body, self.protocol, self.batch_size = body, protocol, batch_size
        self.identity: dict[str, Any] = {
            "data": crops.contents_sha256(indices),
            "masks": masks_sha256(masks, crops, indices),
            "teacher": network_sha256(teacher),
            "protocol": plain(protocol),
            "batch_size": batch_size,
        }
        predict = network_predict(with_token_merging(teacher, None).eval())
        self.truth: list[FrameBatch] = []
        self.wanted: list[FrameBatch] = []
        for batch in self._batches():
            bare = replace(batch, images=batch.images[:, :, :0], person_mask=None)
            self.truth.append(bare)
            self.wanted.append(replace(bare, params=predict(batch)))
        self.teacher: dict[str, float] = {}
        if self.has_truth:
            of_teacher = self._score([batch.params for batch in self.wanted], self.truth)
            self.teacher = {"teacher_mpjpe_mm": round(of_teacher.mpjpe_mm, 3)}

    def __call__(self, network: HMR2, dtype: torch.dtype = torch.float32) -> dict[str, float]:
        """{to_teacher_mm, to_teacher_pve_mm[, mpjpe_mm, teacher_mpjpe_mm]}: MPJPE and vertex distance to the teacher's
        predictions, and MPJPE to the truth."""
        predict = network_predict(network, dtype=dtype)
        predicted = [predict(batch).to(torch.float32) for batch in self._batches()]
        near = self._score(predicted, self.wanted, pve=True)
        assert near.pve_mm is not None
        figures = {"to_teacher_mm": round(near.mpjpe_mm, 3), "to_teacher_pve_mm": round(near.pve_mm, 3)}
        if self.has_truth:
            figures["mpjpe_mm"] = round(self._score(predicted, self.truth).mpjpe_mm, 3)
        return figures | self.teacher

    def _batches(self) -> Iterator[FrameBatch]:
        return self.crops.batches(self.indices, self.batch_size, self.masks, truth=False)

    def _score(self, predicted: list[BodyParams], wanted: list[FrameBatch], pve: bool = False) -> Scores:
        given = iter(predicted)
        device = self.body.v_template.device
        return score(lambda _: next(given), wanted, body=self.body, protocol=self.protocol, device=device, pve=pve)


def _teaching(pair: Pair) -> HMR2:
    """The teacher as it teaches. Where background is dropped before the first layer, it does without it too: what the
    student cannot see it cannot imitate, and layers are all that it has lost then."""
    drops = pair.tokens is not None and pair.tokens.drop_background is not None and pair.probe is None
    return with_token_merging(pair.teacher, pair.tokens if drops else None)


def _attention(device: torch.device) -> AbstractContextManager[Any]:
    """Unfused attention on the CPU, where training is a quarter faster with it on crops of 192 tokens."""
    return sdpa_kernel([SDPBackend.MATH]) if device.type == "cpu" else nullcontext()
