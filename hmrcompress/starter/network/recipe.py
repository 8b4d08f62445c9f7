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
    head_heads=6,
    head_dim=32,
    head_mlp_dim=384,
)


@dataclass(frozen=True)
class Stage:
    """A stretch of training.

    images counts crops seen; size is the crop's in pixels; head: with the body losses (else dense losses alone);
    rate: learning rate at its start, rate_end at its end (linear between); head_gradient is the share of the body
    losses' gradient that reaches the backbone; dense_weight multiplies the dense losses; difficulty as in `shards`.
    adam_rate multiplies the rate of what Muon does not train: with the full rate the read-outs never settle, the betas'
    error stays above their variance. tokens: how many of a crop's tokens every second step trains on (None: all of them
    in every step; see `step.choose_tokens`). frozen: only the dense read-out learns. A stage's images should be a
    multiple of its batch.
    """

    name: str
    images: int
    size: tuple[int, int]
    head: bool
    rate: float
    rate_end: float
    head_gradient: float = 1.0
    dense_weight: float = 1.0
    difficulty: float = 1.0
    batch: int = 32
    adam_rate: float = 1.0
    tokens: int | None = None
    frozen: bool = False


FINE = (
    Stage(
        "full",
        72_000,
        (256, 192),
        head=True,
        rate=4e-4,
        rate_end=6e-5,
        dense_weight=0.3,
        batch=96,
        adam_rate=0.25,
        tokens=80,
    ),
    Stage("all", 16_800, (256, 192), head=True, rate=6e-5, rate_end=0.0, dense_weight=0.3, batch=96, adam_rate=0.25),
)
"""The last stages: at full size, at the end with all tokens in every step."""
GO_ON = (
    Stage("readout", 9_600, (256, 192), head=False, rate=2e-3, rate_end=1e-3, batch=96, tokens=80, frozen=True),
    Stage(
        "full",
        552_000,
        (256, 192),
        head=True,
        rate=5e-4,
        rate_end=5e-5,
        dense_weight=0.3,
        batch=96,
        adam_rate=0.25,
        tokens=80,
    ),
    Stage("all", 48_000, (256, 192), head=True, rate=5e-5, rate_end=0.0, dense_weight=0.3, batch=96, adam_rate=0.25),
)
"""Stages for a network that was trained before: its dense read-out, which is not kept, first."""


@dataclass(frozen=True)
class Recipe:
    """The whole run. `reuse` is how often a crop is seen on average, `window` the number of shards in the pool, `mocap`
    the share of frames from motion capture, where there is any (splits but `test-mocap` have none).

    Stochastic depth, as the backbone of HMR2.0 was trained with (0.55 at the last of its 32 layers): each layer is
    skipped by a share of the samples that rises linearly from none to `layer_drop` at the last. No layer is treated
    otherwise, so that whatever redundancy a search finds is what training left there. After the first 10,464 crops at
    full size, going on from the network of 1,739,744, a sample of `starter:dev` had 106.9 mm with an end of 0.1, 102.2
    with 0.3 and 110.0 with 0.5.
    """

    stages: tuple[Stage, ...] = (
        Stage(
            "dense",
            79_968,
            (128, 96),
            head=True,
            rate=1e-3,
            rate_end=1e-3,
            head_gradient=0.0,
            difficulty=0.6,
            batch=48,
            tokens=32,
        ),
        Stage(
            "body",
            240_000,
            (128, 96),
            head=True,
            rate=1e-3,
            rate_end=3e-4,
            head_gradient=0.2,
            batch=96,
            adam_rate=0.25,
            tokens=32,
        ),
        *FINE,
    )
    weight_decay: float = 0.05
    clip_norm: float = 10.0
    warmup_images: int = 3_200
    layer_drop: float = 0.3
    ema: float = 0.999
    shard_crops: int = 2048
    reuse: float = 6.0
    window: int = 12
    mocap: float = 0.1
    config: NetworkConfig = field(default_factory=lambda: STARTER_CONFIG)

    @property
    def images(self) -> int:
        """Crops seen in the whole run."""
        return sum(stage.images for stage in self.stages)

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """Share of the samples that skip each layer."""
        last = max(self.config.depth - 1, 1)
        return tuple(self.layer_drop * layer / last for layer in range(self.config.depth))

    @classmethod
    def going_on(cls) -> Recipe:
        """The recipe for a network that was trained before."""
        return cls(stages=GO_ON)

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
        """Learning rate after `seen` crops: a short warm-up into every stage, then linear between its two rates."""
        number, within = self.at(seen)
        stage = self.stages[number]
        flat = stage.rate + (stage.rate_end - stage.rate) * within / stage.images
        return flat * min(1.0, (within + stage.batch) / self.warmup_images)
