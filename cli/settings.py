"""Settings that are no flags: `--set SECTION.KEY=VALUE` on the sections of `recipe/schema.py`, `--settings` to list
them, and flags of earlier days, which name the setting that they became."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from hmrcompress.errors import UserError

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Another value for a setting, KEY=VALUE (repeatable).", show_default=False),
]


def takes_settings(
    section: str, *, flags: Mapping[str, str] | None = None, without: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command `--set` and `--settings`; its argument `settings` is the section as it was set.

    flags: parameters of the command that are settings, too, by the key in the section. Such a key may be set either
    way, but not both ways; where it was set by `--set`, the parameter holds that value. without: keys of the section
    that the command has no use for, each with what to do instead.
    """
    keys, unused = dict(flags or {}), dict(without or {})

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        listed = list_option(section, keys, unused)

        @functools.wraps(command)
        def run(context: typer.Context, overrides: list[str] | None, list_settings: bool, **given: Any) -> None:
            from hmrcompress.recipe.reading import read_section

            settings = read_section(section, overrides or [])
            for key, instead in unused.items():
                if key in settings.model_fields_set:
                    raise UserError("has no meaning here", f"--set {section}.{key}", instead)
            for name, key in keys.items():
                found, value = _value_of(settings, key)
                if found and _given(context, name):
                    flag = _flag(context, name)
                    raise UserError(f"says the same as {flag}", f"--set {section}.{key}", "Give one of them")
                if found:
                    text = isinstance(signature.parameters[name].default, str) and not isinstance(value, str)
                    given[name] = str(value) if text else value
            command(**given, settings=settings)

        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, default, annotation in (("overrides", None, SetOption), ("list_settings", False, listed))
        ]
        more.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
        own = [each for each in signature.parameters.values() if each.name != "settings"]
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *more)]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _given(context: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line, rather than having its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _flag(context: typer.Context, name: str) -> str:
    return next(each.opts[0] for each in context.command.params if each.name == name)


def _value_of(settings: Any, key: str) -> tuple[bool, Any]:
    """Whether `a.b` of a section was set, and its value; None below what was set to null."""
    value = settings
    for part in key.split("."):
        if value is None:
            return True, None
        if part not in value.model_fields_set:
            return False, None
        value = getattr(value, part)
    return True, value


def list_option(section: str = "", flags: Mapping[str, str] | None = None, hidden: Iterable[str] = ()) -> Any:
    """The type of an option `--settings`, which prints the settings of a section, or of a whole recipe, and ends.
    flags: parameters that are settings, too, by key. hidden: keys that are left out."""

    def callback(context: typer.Context, value: bool) -> bool:
        if not value or context.resilient_parsing:
            return value
        from hmrcompress.recipe.listing import settings_of
        from hmrcompress.recipe.schema import SECTIONS, Recipe

        named = {f"{section}.{key}": f"; also {_flag(context, name)}" for name, key in (flags or {}).items()}
        for each in settings_of(SECTIONS.get(section, Recipe), section):
            if each.key not in {f"{section}.{key}" for key in hidden}:
                typer.echo(f"{each.key}={each.default}  ({each.type}{named.get(each.key, '')})")
                typer.echo(f"    {each.description}")
        raise typer.Exit()

    text = "List what --set takes: type, default and meaning of each setting."
    return Annotated[bool, typer.Option("--settings", help=text, is_eager=True, callback=callback)]
