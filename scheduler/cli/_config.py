"""``--config``: options of a command from a TOML file."""

from pathlib import Path

import click

from raylens.storage.errors import UsageError, one_line


def read_text(option: str, path: str) -> str:
    """The text of a file that an option names.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {path}: {error}") from error


def load_config(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    """Defaults from a TOML file; flags and environment win over them.

    Raises:
        UsageError: the file cannot be read, or names what is no option.
    """
    if value is None:
        return
    import tomllib

    try:
        found = tomllib.loads(read_text("--config", value))
    except (ValueError, RecursionError) as error:  # not TOML; a number of thousands of digits; nested without end
        raise UsageError(f"--config {value}: {one_line(error)}") from error
    options = {long_name(parameter): parameter for parameter in ctx.command.params}
    for once in ("config", "fresh"):  # in a file, fresh would throw each resume away
        options.pop(once)
    unknown = sorted(set(found) - set(options))
    if unknown:
        dashed = unknown[0].replace("_", "-")
        remedy = f"write {dashed}" if dashed in options else "see raylens run --help"
        raise UsageError(f"--config {value}: unknown option {unknown[0]!r}; {remedy}")
    defaults = {str(options[name].name): _default(value, name, setting, options[name]) for name, setting in found.items()}
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def long_name(parameter: click.Parameter) -> str:
    """What a parameter is called in a file: an option's long form without its dashes."""
    return max(parameter.opts, key=len).removeprefix("--")


def _default(path: str, name: str, setting: object, parameter: click.Parameter) -> object:
    """One setting of a file as click takes it; a list where there may be several, such as the files of the corpus."""
    many = parameter.multiple or parameter.nargs == -1
    settings = setting if many and isinstance(setting, list) else [setting]
    if not all(isinstance(one, str | int | bool | float) for one in settings):
        raise UsageError(f"--config {path}: {name} must be {'one value or a list of them' if many else 'one value'}")
    texts = [str(one).lower() if isinstance(one, bool) else str(one) for one in settings]  # click would take true for 1
    return texts if many else texts[0]
