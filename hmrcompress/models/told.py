"""The sizes that no state dict tells, and who told them: an argument, a configuration, or what is usual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hmrcompress.errors import UserError
from hmrcompress.io.checkpoints import StateFile
from hmrcompress.io.yamls import read_yaml
from hmrcompress.models.network import GIVE_GRID, HMR2, PATCHES, POSITIONS, NetworkConfig, usual_grid

MODEL_CONFIG = "model_config.yaml"
BACKBONE, HEAD, ITERATIONS = "heads of the backbone", "heads of the head", "iterations of the head"
GRID = "grid of tokens"


@dataclass(frozen=True)
class Sizes:
    """Numbers of heads of the backbone and of the head, and of the head's iterations; rows and columns of tokens; None
    where nobody says."""

    num_heads: int | None = None
    head_heads: int | None = None
    iterations: int | None = None
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.grid is not None:
            object.__setattr__(self, "grid", tuple(self.grid))

    def agreeing(self, config: NetworkConfig, teller: str, where: object) -> dict[str, str | None]:
        """Origins where `teller` has said all of `config`. UserError where these sizes are others."""
        for name in ("num_heads", "head_heads", "iterations", "grid"):
            said = getattr(self, name)
            if said is not None and said != getattr(config, name):
                raise UserError(
                    f"{teller} says {name} {_shown(getattr(config, name))}, which cannot be changed to {_shown(said)}",
                    where,
                    f"Leave {name} out",
                )
        return dict.fromkeys((BACKBONE, HEAD, ITERATIONS, GRID), teller)


def told_sizes(
    given: Sizes, head: Mapping[str, Any], teller: str | None, state: Mapping[str, Tensor], kind: type[HMR2]
) -> tuple[Sizes, dict[str, str | None]]:
    """The sizes of a network, and where each of them comes from. `head` is the section of the head in what `teller`
    says; sizes that nobody says are None, and usual ones (`network.config_from_state`) are named as such."""
    written = {
        "head_heads": _positive(head, "TRANSFORMER_DECODER", "heads"),
        "iterations": _positive(head, "IEF_ITERS"),
    }
    usual: dict[str, str | None] = {"num_heads": f"usual at dim {_size(state, POSITIONS, 2)}"}
    usual["head_heads"] = f"usual at width {_size(state, f'{kind.head_name}.transformer.to_token_embedding.weight', 0)}"
    usual["iterations"] = "usual, nothing says more"
    sizes: dict[str, Any] = {}
    origins: dict[str, str | None] = {}
    for name, label in (("num_heads", BACKBONE), ("head_heads", HEAD), ("iterations", ITERATIONS)):
        asked, found = getattr(given, name), written.get(name)
        sizes[name] = found if asked is None else asked
        if asked is not None:
            contradicted = f", where {teller} says {found}" if found not in (None, asked) else ""
            origins[label] = f"given as {name}{contradicted}"
        else:
            origins[label] = usual[name] if found is None else teller
    return Sizes(**sizes), origins


def told_grid(
    given: Sizes, model: Mapping[str, Any], teller: str | None, state: Mapping[str, Tensor], where: object
) -> tuple[tuple[int, int] | None, str]:
    """Rows and columns of tokens, and where they come from; None where only the number of positions tells
    (`network.config_from_state`). `model` is the section MODEL of what `teller` says: crops of IMAGE_SIZE pixels, or
    of the part of it that BBOX_SHAPE = [width, height] leaves. UserError where it says another number of tokens than
    there are positions.
    """
    size, shape = _positive(model, "IMAGE_SIZE"), model.get("BBOX_SHAPE")
    patch, positions = _size(state, PATCHES, 2), _size(state, POSITIONS, 1)
    found = None
    if size and isinstance(patch, int) and isinstance(shape, (list, tuple)) and len(shape) == 2:
        width, height = shape
        if all(type(side) is int and side > 0 for side in shape):
            pixels = [size * side // max(shape) for side in (height, width)]
            whole = all(size * side % (patch * max(shape)) == 0 for side in shape)
            found = (pixels[0] // patch, pixels[1] // patch) if whole else None
    if given.grid is not None:
        contradicted = f", where {teller} says {_shown(found)}" if found not in (None, given.grid) else ""
        return given.grid, f"given as grid{contradicted}"
    if found is None:
        return None, "the number of positions"
    if isinstance(positions, int) and positions != 1 + found[0] * found[1]:
        fault = f"has positions for {positions - 1} tokens, where {teller} says {_shown(found)}"
        raise UserError(f"{fault} (IMAGE_SIZE, BBOX_SHAPE)", where, GIVE_GRID)
    return found, str(teller)


def grid_without(
    given: Sizes, model: Mapping[str, Any], teller: str | None, state: Mapping[str, Tensor], where: object
) -> tuple[int, int] | None:
    """The grid that a file has where none is given: as `told_grid`, else the usual one; None where nothing tells."""
    try:
        found, _ = told_grid(given, model, teller, state, where)
        return found or usual_grid(_size(state, POSITIONS, 1) - 1, where)
    except (UserError, TypeError):
        return None


def configuration_of(file: StateFile) -> tuple[dict[str, Any], str | None]:
    """The configuration that training left in the file, or in a model_config.yaml beside it or one folder above, and
    which of these it was; empty and None where there is none. Raises UserError."""
    given = file.hyper_parameters.get("cfg", file.hyper_parameters)
    if section(given, "MODEL"):
        return given, "the configuration in the file"
    for folder in (file.path.absolute().parent, file.path.absolute().parent.parent):
        beside = folder / MODEL_CONFIG
        if beside.is_file():
            found = read_yaml(beside)
            return (found if isinstance(found, dict) else {}), str(beside)
    return {}, None


def section(configuration: Any, *names: str) -> dict[str, Any]:
    """A part of a configuration by its keys; empty where there is none."""
    for name in names:
        configuration = configuration.get(name) if isinstance(configuration, dict) else None
    return configuration if isinstance(configuration, dict) else {}


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _positive(settings: Any, *names: str) -> int | None:
    for name in names:
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings if isinstance(settings, int) and settings > 0 else None


def _size(state: Mapping[str, Tensor], key: str, axis: int) -> Any:
    """A size of a tensor that `config_from_state` asks for later, by name where it is missing."""
    return state[key].shape[axis] if key in state and state[key].ndim > axis else "?"
