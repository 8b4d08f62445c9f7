"""How far the starter network is trained, at which rates, and when it is looked at: the loop's course, in crops."""

from __future__ import annotations

from dataclasses import dataclass

from hmrcompress.starter.network.recipe import Recipe, Stage
from hmrcompress.training.loop import Terms

LOG_STEPS = 50
AVERAGE_STEPS = 4
SAVE_SECONDS = 120.0
BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class CropCourse:
    """A recipe as a `Course` whose position counts crops.

    processes: share each batch; validate_every: crops, where the stage has the body losses; max_minutes: ends this run.
    """

    recipe: Recipe
    processes: int = 1
    validate_every: int = 20_000
    max_minutes: float | None = None

    def stage(self, seen: int) -> Stage:
        """That of the step which begins after `seen` crops, or the last one."""
        return self.recipe.stages[min(self.recipe.at(seen)[0], len(self.recipe.stages) - 1)]

    def share(self, seen: int) -> int:
        """Crops of a process in that step."""
        return self.stage(seen).batch // self.processes

    def terms(self) -> Terms:
        """See `training.loop.Course`."""
        return Terms(
            clip_norm=self.recipe.clip_norm,
            betas=BETAS,
            save_seconds=SAVE_SECONDS,
            fused=True,
            pause_minutes=self.max_minutes,
            measured_at_start=False,
            measured_when_cut=True,
        )

    def fraction(self, seen: int, minutes: float) -> float:
        """See `training.loop.Course`."""
        return min(1.0, seen / self.recipe.images)

    def after(self, seen: int) -> int:
        """The crops of all processes are behind it then."""
        return seen + self.share(seen) * self.processes

    def rates(self, seen: int, fraction: float) -> tuple[float, float]:
        """See `Recipe.rate` and `Stage.adam_rate`."""
        return self.recipe.rate(seen), self.stage(seen).adam_rate

    def decay(self, seen: int) -> float | None:
        """Of the average that follows every few steps. Early on it spans a twentieth of what was seen, so that it
        forgets the random start."""
        batch, behind = self.stage(seen).batch, self.after(seen)
        if behind // batch % AVERAGE_STEPS:
            return None
        return min(self.recipe.ema, 1 - 20 * batch / (behind + 20 * batch)) ** AVERAGE_STEPS

    def logs(self, seen: int) -> bool:
        """Every so many steps."""
        return self.after(seen) // self.stage(seen).batch % LOG_STEPS == 0

    def looks(self, seen: int, fraction: float) -> int:
        """Multiples of `validate_every` that were passed in stages with the body losses."""
        return sum(self.stage(mark - 1).head for mark in range(self.validate_every, seen + 1, self.validate_every))

    def told(self, seen: int, minutes: float) -> tuple[int, int]:
        """Crops."""
        return seen, self.recipe.images
