"""Heads of live networks: they read merged tokens as the native network's head does, or are told that they cannot.

Behind a live backbone every patch stands for itself again (`live.patching`), so a token of k patches is read k times: a
cross-attention gives it k times the weight that it has in the native network, unless the plan has log-sizes in the
head, which do just that. For all other plans the cross-attentions of heads like HMR2.0's (`to_q`, `to_kv`) are given
each token once, taken back out of what the head was handed. Other heads are not known, and such plans are refused.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from hmrcompress.errors import UserError

PASSES = 4
"""So many passes of the backbone a head may lag behind, such as a crop's and its mirror image's."""


class Restored(NamedTuple):
    """How a pass restored its tokens: owner (B,M), the token that each patch is in, and places (B,M'), the first patch
    of each token."""

    owner: Tensor
    places: Tensor


@dataclass
class Reading:
    """What one thread's heads know: the last passes, newest last, and which of them a context was found to be of."""

    passes: deque[Restored] = field(default_factory=lambda: deque(maxlen=PASSES))
    known: tuple[weakref.ref[Tensor], Restored] | None = None

    def remember(self, owner: Tensor, count: int) -> None:
        """A pass has ended with `count` tokens for owner (B,M)."""
        tokens = torch.arange(count, device=owner.device)[:, None]
        self.passes.append(Restored(owner, (owner[:, None] == tokens).int().argmax(-1)))

    def once(self, context: Tensor, where: str) -> Tensor:
        """Restored tokens (B,M,D) as a head was handed them -> each token once, (B,M',D), in the backbone's order.

        UserError where they are not what a pass of this thread restored: something lies between backbone and head that
        tells patches of one token apart.
        """
        if self.known is not None and self.known[0]() is context:
            return _gathered(context, self.known[1].places)
        for restored in reversed(self.passes):
            if context.shape[:2] != restored.owner.shape or context.device != restored.owner.device:
                continue
            merged = _gathered(context, restored.places)
            again = _gathered(merged, restored.owner)
            if bool(((again == context) | (again.isnan() & context.isnan())).all()):
                self.known = (weakref.ref(context), restored)
                return merged
        raise UserError(
            "was handed something else than the tokens of the compressed backbone, which it would read with other "
            "weights than the plan was measured with",
            where,
            "Set attention_bias of the plan's tokens to cross",
        )


def cross_attentions(model: nn.Module, blocks: nn.Module) -> dict[str, nn.Module]:
    """The cross-attentions to the tokens of `blocks` that can be told what to read, by name: those of the heads of
    HMR2.0, CameraHMR, TokenHMR and HaMeR, ours and the originals."""
    inside = set(blocks.modules())
    widths = {part.in_features for name, part in blocks.named_modules() if name.endswith("qkv") and _linear(part)}
    found = {}
    for name, module in model.named_modules():
        parts: dict[str, Any] = dict(module.named_children())
        if module not in inside and _linear(parts.get("to_q")) and _linear(parts.get("to_kv")):
            if parts["to_kv"].in_features in widths:
                found[name] = module
    return found


def read_once(
    reading: Reading, module: nn.Module, before: Callable[..., Any] | None, name: str, args: Any, kwargs: Any
) -> Any:
    """What a cross-attention (query, context, …) gives that reads each merged token once. before: its own `forward`,
    where the instance had one."""
    call = before or type(module).forward.__get__(module)
    if isinstance(kwargs.get("context"), Tensor):
        return call(*args, **{**kwargs, "context": reading.once(kwargs["context"], name)})
    if len(args) > 1 and isinstance(args[1], Tensor):
        return call(args[0], reading.once(args[1], name), *args[2:], **kwargs)
    return call(*args, **kwargs)


def unknown_head(model: nn.Module) -> UserError:
    """What to raise where nothing in the model is known to read tokens."""
    return UserError(
        "has no head that can be told to read each merged token once, as the plan was measured: it would be handed a "
        "token once for every patch in it",
        type(model).__name__,
        "Give the whole model, or set attention_bias of the plan's tokens to cross, which is the same in every head",
    )


def _gathered(tokens: Tensor, places: Tensor) -> Tensor:
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def _linear(part: object) -> TypeGuard[nn.Linear]:
    return isinstance(part, nn.Linear)
