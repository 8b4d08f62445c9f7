"""The training recipe of the starter network: sizes, stages, rates. Everything that decides the result stands here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hmrcompress.models.network import NetworkConfig

STARTER_CONFIG = NetworkConfig(
    dim=192,
    depth=12,
    num_heads=3,
    mlp_dim=768,
    head_width=192,
    head_depth=3,
    head_heads=3,
    head_dim=64,
    head_mlp_dim=384,
)


@dataclass(frozen=True)
class Stage:
    """A stretch of training. images counts crops seen; head: with the body losses (else dense losses alone); size the
    crop in pixels; backbone_rate multiplies the learning rate of the backbone; difficulty and mocap as in `shards`."""

    name: str
    images: int
    size: tuple[int, int]
    head: bool
    rate: float
    backbone_rate: float = 1.0
    difficulty: float = 1.0
    dense_weight: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """The whole run. `reuse` is how often a crop is seen on average, `window` the number of shards in the pool,
    `cooldown` the share of the last stage over which the rate falls to zero."""

    stages: tuple[Stage, ...] = (
        Stage("dense", 80_000, (128, 96), head=False, rate=8e-4, difficulty=0.7),
        Stage("body", 420_000, (128, 96), head=True, rate=6e-4, backbone_rate=0.5, dense_weight=0.3),
        Stage("full", 100_000, (256, 192), head=True, rate=4e-4, backbone_rate=0.6, dense_weight=0.2),
    )
    batch: int = 32
    weight_decay: float = 0.05
    clip_norm: float = 10.0
    warmup_images: int = 6_400
    cooldown: float = 0.6
    layer_drop: float = 0.25
    ema: float = 0.999
    shard_crops: int = 4096
    reuse: float = 5.0
    window: int = 10
    mocap: float = 0.4
    config: NetworkConfig = field(default_factory=lambda: STARTER_CONFIG)

    @property
    def images(self) -> int:
        """Crops seen in the whole run."""
        return sum(stage.images for stage in self.stages)

    def with_images(self, counts: dict[str, int]) -> Recipe:
        """The same recipe with other lengths for the named stages."""
        return replace(
            self, stages=tuple(replace(stage, images=counts.get(stage.name, stage.images)) for stage in self.stages)
        )

    def at(self, seen: int) -> tuple[int, int]:
        """(number of the stage, crops seen in it) after `seen` crops in all."""
        for number, stage in enumerate(self.stages):
            if seen < stage.images:
                return number, seen
            seen -= stage.images
        return len(self.stages), 0

    def rate(self, seen: int) -> float:
        """Learning rate after `seen` crops: a short warm-up into every stage, flat, a linear fall at the very end."""
        number, within = self.at(seen)
        stage = self.stages[number]
        rate = stage.rate * min(1.0, (within + self.batch) / self.warmup_images)
        if number == len(self.stages) - 1:
            rate *= min(1.0, (stage.images - within) / (self.cooldown * stage.images))
        return rate
