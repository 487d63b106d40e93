"""``--show-config``: each option's value, and who gave it."""

from typing import Any

import click
import orjson
from click.core import ParameterSource

from raylens.scheduler.cli._config import long_name
from raylens.scheduler.cli._output import print_table
from raylens.storage.urls import redact

#: In the order in which they win over each other.
_FROM = {
    ParameterSource.COMMANDLINE: "command line",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file",
    ParameterSource.DEFAULT: "default",
}
#: Options that are not settings of a run.
_ACTIONS = {"show_config", "help"}


def show_config(context: click.Context, *, as_json: bool) -> None:
    """Print them to stdout; the secrets of a server's URL are left out."""
    found = [
        (long_name(parameter), _shown(str(parameter.name), context.params[str(parameter.name)]), _source(context, parameter))
        for parameter in context.command.params
        if parameter.name in context.params and parameter.name not in _ACTIONS
    ]
    if as_json:
        click.echo(orjson.dumps({name: {"value": value, "from": source} for name, value, source in found}))
    else:
        print_table(["option", "value", "from"], [[name, _text(value), source] for name, value, source in found])


def _shown(name: str, value: Any) -> Any:
    return redact(value) if name == "redis" else value


def _source(context: click.Context, parameter: click.Parameter) -> str:
    source = context.get_parameter_source(str(parameter.name))
    return _FROM.get(source or ParameterSource.DEFAULT, "default")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " ".join(map(repr, value)) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
