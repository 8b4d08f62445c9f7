"""Small stand-ins for networks of other code: the structure, the names and the calls of each, formulas written out.

A `Spec` says what a network's blocks are called and how they are called; `Stranger` is a network made by it. Its
pictures have patches of 4 x 4 pixels on a grid of 6 x 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

GRID, PATCH, DIM, HEADS, DEPTH = (6, 5), 4, 24, 2, 4
SIZE = DIM // HEADS


@dataclass(frozen=True)
class Spec:
    """`path`: where the list is; `scale`: none, module by these names, or bare; `mlp`: gelu, swiglu, gated or dense;
    `rope`: none, hub, hf or timm; `front`, `behind`: tokens that are no patches and what they are called."""

    path: str = "backbone.blocks"
    norms: tuple[str, str] = ("norm1", "norm2")
    attention: str = "attn"
    qkv: tuple[str, ...] = ("qkv",)
    output: str = "proj"
    heads: str = "num_heads"
    scale: tuple[str, str] | None = None
    scale_name: str = "gamma"
    mlp: str = "gelu"
    rope: str = ""
    lists: bool = False
    wraps: bool = False
    norm_heads: bool = False
    biases: bool = False
    front: tuple[tuple[str, int], ...] = ()
    behind: int = 0
    told: bool = True
    """Whether the tokens in front are found by themselves."""

    @property
    def prefix(self) -> int:
        return sum(count for _, count in self.front)


HF_QKV = ("q_proj", "k_proj", "v_proj")
OLD_QKV = ("attention.query", "attention.key", "attention.value")
SPECS = {
    "HMR2, ViTPose": Spec(),
    "SAM 3D Body, DINOv3": Spec(
        "backbone.encoder.blocks", scale=("ls1", "ls2"), mlp="swiglu", rope="hub",
        front=(("cls_token", 1), ("storage_tokens", 4)),
    ),
    "DINOv3 called with lists": Spec(
        "backbone.blocks", scale=("ls1", "ls2"), mlp="swiglu", rope="hub", lists=True,
        front=(("cls_token", 1), ("storage_tokens", 4)),
    ),
    "DINOv2 with registers": Spec(
        "encoder.blocks", scale=("ls1", "ls2"), front=(("cls_token", 1), ("register_tokens", 4))
    ),
    "PromptHMR": Spec("image_encoder.backbone.encoder.blocks", scale=("ls1", "ls2"), front=(("cls_token", 1),)),
    "WiLoR": Spec(front=(("pose_emb", 3), ("shape_emb", 1), ("cam_emb", 1)), told=False),
    "SMPLest-X": Spec("encoder.blocks", front=(("task_tokens", 7),)),
    "tokens behind": Spec(behind=3, told=False),
    "transformers DINOv3": Spec(
        "model.layer", attention="attention", qkv=HF_QKV, output="o_proj", scale=("layer_scale1", "layer_scale2"),
        scale_name="lambda1", mlp="gated", rope="hf", front=(("cls_token", 1), ("register_tokens", 4)),
    ),
    "transformers DINOv2": Spec(
        "encoder.layer", attention="attention", qkv=HF_QKV, output="o_proj", scale=("layer_scale1", "layer_scale2"),
        scale_name="lambda1", mlp="gated", heads="num_attention_heads", front=(("cls_token", 1),),
    ),
    "transformers ViT": Spec(
        "layers", norms=("layernorm_before", "layernorm_after"), attention="attention", qkv=HF_QKV, output="o_proj",
        heads="num_attention_heads", front=(("cls_token", 1),),
    ),
    "transformers ViT, old": Spec(
        "encoder.layer", norms=("layernorm_before", "layernorm_after"), attention="attention", qkv=OLD_QKV,
        output="output.dense", heads="num_attention_heads", mlp="dense", wraps=True, front=(("cls_token", 1),),
    ),
    "transformers ViTPose": Spec(
        "backbone.encoder.layer", norms=("layernorm_before", "layernorm_after"), attention="attention", qkv=OLD_QKV,
        output="output.dense", heads="num_attention_heads",
    ),
    "timm ViT": Spec("blocks", scale=("ls1", "ls2"), norm_heads=True, front=(("cls_token", 1), ("reg_token", 2))),
    "timm EVA": Spec(
        "blocks", scale=("gamma_1", "gamma_2"), mlp="swiglu", rope="timm", biases=True, front=(("cls_token", 1),)
    ),
}  # fmt: skip


class Empty(nn.Module):
    """A namespace."""


def put(module: nn.Module, name: str, part: nn.Module) -> None:
    """Adds a part under a dotted name."""
    *steps, last = name.split(".")
    for step in steps:
        if not hasattr(module, step):
            module.add_module(step, Empty())
        module = getattr(module, step)
    module.add_module(last, part)


class Scale(nn.Module):
    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return x * getattr(self, self.name)


class Gelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Gated(nn.Module):
    def __init__(self, gate: str, value: str, out: str) -> None:
        super().__init__()
        self.names = gate, value, out
        put(self, gate, nn.Linear(DIM, 2 * DIM))
        put(self, value, nn.Linear(DIM, 2 * DIM))
        put(self, out, nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        gate, value, out = (getattr(self, name) for name in self.names)
        return out(nn.functional.silu(gate(x)) * value(x))


class Intermediate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(DIM, 2 * DIM)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.dense(x))


class Output(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(2 * DIM, DIM)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.dense(x) + residual


class Masked(nn.Linear):
    """Keys have no bias in effect: a buffer says so."""

    def __init__(self) -> None:
        super().__init__(DIM, 3 * DIM)
        self.register_buffer("bias_mask", torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias * self.bias_mask)


class Halves(nn.Module):
    """A block's arithmetic, one head after the other; subclasses have the calls."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        for name in spec.norms:
            put(self, name, nn.LayerNorm(DIM, eps=1e-5))
        attention = Empty()
        setattr(attention, spec.heads, HEADS)
        for name in spec.qkv:
            wide = 3 * DIM if len(spec.qkv) == 1 else DIM
            joint = Masked() if spec.rope == "hub" else nn.Linear(DIM, wide, bias=not spec.biases)
            put(attention, name, joint)
        put(attention, spec.output, nn.Linear(DIM, DIM))
        if spec.norm_heads:
            attention.q_norm, attention.k_norm = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
        if spec.biases:
            attention.q_bias, attention.v_bias = (nn.Parameter(torch.randn(DIM)) for _ in range(2))
            attention.register_buffer("k_bias", torch.zeros(DIM))
        if spec.rope == "timm":
            attention.rotate_half = True
        self.add_module(spec.attention, attention)
        if spec.mlp == "dense":
            self.intermediate, self.output = Intermediate(), Output()
        else:
            mlps = {"gelu": Gelu, "swiglu": lambda: Gated("w1", "w2", "w3")}
            self.mlp = mlps.get(spec.mlp, lambda: Gated("gate_proj", "up_proj", "down_proj"))()
        for name in spec.scale or ():
            value = torch.randn(DIM)
            if name.startswith("gamma"):
                self.register_parameter(name, nn.Parameter(value))
            else:
                put(self, name, Scale(spec.scale_name, value))

    def scaled(self, half: int, x: Tensor) -> Tensor:
        if self.spec.scale is None:
            return x
        scale = getattr(self, self.spec.scale[half])
        return scale(x) if isinstance(scale, nn.Module) else scale * x

    def attended(self, x: Tensor, table: tuple[Tensor, Tensor] | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B,N,D), table (sin, cos) (B|1,M,d) of the last M tokens but those behind, bias (B,N) -> x, keys."""
        spec, attention = self.spec, getattr(self, self.spec.attention)
        normed = self.get_submodule(spec.norms[0])(x)
        parts = [attention.get_submodule(name)(normed) for name in spec.qkv]
        parts = list(parts[0].split(DIM, -1)) if len(parts) == 1 else parts
        if spec.biases:
            parts = [parts[0] + attention.q_bias, parts[1] + attention.k_bias, parts[2] + attention.v_bias]
        mixed, keys = [], []
        for head in range(HEADS):
            query, key, value = (part[..., head * SIZE : (head + 1) * SIZE] for part in parts)
            if spec.norm_heads:
                query, key = attention.q_norm(query), attention.k_norm(key)
            keys.append(key)
            if table is not None:
                query, key = turned(query, table), turned(key, table)
            logits = query @ key.transpose(1, 2) / math.sqrt(SIZE)
            if bias is not None:
                logits = logits + bias[:, None]
            mixed.append(logits.softmax(-1) @ value)
        out = attention.get_submodule(spec.output)(torch.cat(mixed, -1))
        return x + self.scaled(0, out), torch.stack(keys, 1)

    def fed(self, x: Tensor) -> Tensor:
        normed = self.get_submodule(self.spec.norms[1])(x)
        if self.spec.mlp == "dense":
            return self.output(self.intermediate(normed), x)
        return x + self.scaled(1, self.mlp(normed))

    def whole(self, x: Tensor, table: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return self.fed(self.attended(x, table, None)[0])


def turned(part: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    sine, cosine = table
    front = part.shape[1] - sine.shape[-2]
    patches = part[:, front:]
    first, second = patches[..., : SIZE // 2], patches[..., SIZE // 2 :]
    return torch.cat([part[:, :front], patches * cosine + torch.cat([-second, first], -1) * sine], 1)


def rows(table: Tensor) -> Tensor:
    """(M,d) or (B,1,M,d) -> (B|1,M,d)."""
    return table[:, 0] if table.ndim == 4 else table[None]


class Plain(Halves):
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor]:
        return (self.whole(x),) if self.spec.wraps else self.whole(x)


class Hub(Halves):
    def forward(self, x_or_x_list: Any, rope_or_rope_list: Any = None) -> Any:
        if isinstance(x_or_x_list, list):
            return [self(x, rope) for x, rope in zip(x_or_x_list, rope_or_rope_list, strict=True)]
        sine, cosine = rope_or_rope_list
        return self.whole(x_or_x_list, (rows(sine), rows(cosine)))


class HF(Halves):
    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, position_embeddings: Any = None
    ) -> Tensor:
        if attention_mask is not None:
            raise ValueError("no masks here")
        cosine, sine = position_embeddings
        return self.whole(hidden_states, (rows(sine), rows(cosine)))


class Eva(Halves):
    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        assert rope is not None and attn_mask is None and not is_causal
        return self.whole(x, (rows(rope[..., :SIZE]), rows(rope[..., SIZE:])))


CALLS = {"": Plain, "hub": Hub, "hf": HF, "timm": Eva}


class Stranger(nn.Module):
    """pictures (B,3,24,20) -> map (B,D,6,5), tokens in front and behind (B,n,D)."""

    def __init__(self, spec: Spec, depth: int = DEPTH) -> None:
        super().__init__()
        self.spec = spec
        put(self, spec.path, nn.ModuleList([CALLS[spec.rope](spec) for _ in range(depth)]))
        holder = self.get_submodule(spec.path.rpartition(".")[0]) if "." in spec.path else self
        # `transformers` keeps class and register tokens in an embedding beside what holds the blocks.
        tokens = Empty()
        if spec.attention == "attention":
            self.embeddings = tokens
            tokens.patch_embeddings = nn.Conv2d(3, DIM, PATCH, PATCH)
        else:
            tokens = holder
            holder.patch_embed = Empty()
            holder.patch_embed.proj = nn.Conv2d(3, DIM, PATCH, PATCH)
        for name, count in spec.front:
            tokens.register_parameter(name, nn.Parameter(torch.randn(1, count, DIM)))
        self.last = nn.Parameter(torch.randn(1, spec.behind, DIM))
        self.positions = nn.Parameter(torch.randn(1, GRID[0] * GRID[1], DIM), requires_grad=not spec.rope)
        self.norm = nn.LayerNorm(DIM)

    @property
    def list(self) -> nn.ModuleList:
        return self.get_submodule(self.spec.path)  # type: ignore[return-value]

    def embed(self, pictures: Tensor) -> Tensor:
        """(B,front+30+behind,D)."""
        stem = next(part for part in self.modules() if isinstance(part, nn.Conv2d))
        patches = stem(pictures).flatten(2).transpose(1, 2)
        if not self.spec.rope:
            patches = patches + self.positions
        named = dict(self.named_parameters())
        front = [next(p for key, p in named.items() if key.endswith(name)) for name, _ in self.spec.front]
        count = len(patches)
        return torch.cat([*(part.expand(count, -1, -1) for part in front), patches, self.last.expand(count, -1, -1)], 1)

    def angles(self) -> tuple[Tensor, Tensor]:
        """(sin, cos), each (30,d)."""
        down, across = (2 * (torch.arange(side, dtype=torch.float64) + 0.5) / side - 1 for side in GRID)
        periods = 100 ** (2 * torch.arange(SIZE // 4, dtype=torch.float64) / (SIZE // 2))
        where = torch.stack(torch.meshgrid(down, across, indexing="ij"), -1).reshape(-1, 2)
        angles = (2 * math.pi * where[..., None] / periods).flatten(1).repeat(1, 2).to(self.positions)
        return angles.sin(), angles.cos()

    def blocks_on(self, tokens: Tensor) -> Tensor:
        """All blocks as this network calls them."""
        for block in self.list:
            sine, cosine = self.angles()
            if self.spec.rope == "hub":
                if self.spec.lists:
                    tokens = block([tokens], [(sine, cosine)])[0]
                else:
                    tokens = block(tokens, (sine, cosine))
            elif self.spec.rope == "hf":
                tokens = block(tokens, None, position_embeddings=(cosine, sine))
            elif self.spec.rope == "timm":
                tokens = block(tokens, rope=torch.cat([sine, cosine], -1), attn_mask=None)
            else:
                tokens = block(tokens)
                tokens = tokens[0] if self.spec.wraps else tokens
        return tokens

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.norm(self.blocks_on(self.embed(pictures)))
        front, stop = self.spec.prefix, tokens.shape[1] - self.spec.behind
        grid = tokens[:, front:stop].transpose(1, 2).reshape(len(pictures), -1, *GRID)
        return grid, torch.cat([tokens[:, :front], tokens[:, stop:]], 1)


def stranger(name: str, seed: int = 0, depth: int = DEPTH) -> Stranger:
    """A network of that kind in double precision, attention far from uniform."""
    torch.manual_seed(seed)
    made = Stranger(SPECS[name], depth).double().eval().requires_grad_(False)
    for key, parameter in made.named_parameters():
        if parameter.ndim == 2 and any(part in key for part in ("qkv", "q_proj", "k_proj", "query", "key")):
            parameter.mul_(6)
    return made


def given(name: str) -> dict[str, Any]:
    """What `hc.live.network` has to be told of it."""
    spec = SPECS[name]
    return {} if spec.told else {"prefix": spec.prefix, "suffix": spec.behind}


def pictures(count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures (B,3,24,20) and masks (B,6,5)."""
    random = torch.Generator().manual_seed(seed)
    made = torch.randn(count, 3, GRID[0] * PATCH, GRID[1] * PATCH, generator=random, dtype=torch.float64)
    mask = torch.zeros(count, *GRID, dtype=torch.bool)
    for index in range(count):
        mask[index, 1 : 4 + index % 2, 1:3] = True
    return made, mask
