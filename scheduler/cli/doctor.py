"""``raylens doctor``."""

from typing import TYPE_CHECKING, Any

import click
import orjson

from raylens.scheduler.cli._options import (
    given_model,
    layers_option,
    lens_option,
    model_options,
    ray_option,
    store_option,
    typed,
)
from raylens.storage.errors import UsageError
from raylens.storage.paths import given_path

if TYPE_CHECKING:
    from raylens.scheduler.doctor import Finding

#: Options of what is checked without --model.
_OF_MACHINE = ("store", "redis", "ray")
_SIGNS = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}


@click.command("doctor")
@model_options(required=False)
@lens_option
@layers_option
@store_option
@click.option("--redis", default="embedded", show_default=True, help="URL of a Redis or Valkey server, or embedded.")
@ray_option
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(store: str, redis: str, ray: str, as_json: bool, **options: Any) -> None:
    """Check what a run needs on this machine, and say how to fix what is amiss. Exit code 1 if something does not work.

    With --model, load the model instead and print its certificate: what is hooked for each tap, and the errors measured. A
    model that cannot be lensed exactly is refused with the reason and exit code 4.
    """
    _refuse_ignored(options["model"] is not None)
    if options["model"] is not None:
        _print_certificate(options, as_json)
        return
    from raylens.scheduler.doctor import examine

    findings = []
    for finding in examine(given_path(store, "--store"), redis, ray):
        findings.append(finding)
        if not as_json:
            click.echo(_line(finding))
    if as_json:
        click.echo(orjson.dumps({"findings": findings}))
    click.get_current_context().exit(1 if any(finding.status == "problem" for finding in findings) else 0)


def _refuse_ignored(of_model: bool) -> None:
    """Options that were typed and would change nothing."""
    for parameter in click.get_current_context().command.params:
        name = str(parameter.name)
        if name in {"model", "as_json"} or not typed(name):
            continue
        if of_model and name in _OF_MACHINE:
            raise UsageError(f"--{name}: is not used with --model; leave one of them out")
        if not of_model and name not in _OF_MACHINE:
            raise UsageError(f"{parameter.opts[0]}: applies to a model; give --model too")


def _line(finding: "Finding") -> str:
    remedy = f"\n{'':27}-> {finding.remedy}" if finding.remedy else ""
    return f"{_SIGNS[finding.status]}  {finding.name:16}  {finding.found}{remedy}"


def _print_certificate(options: dict[str, Any], as_json: bool) -> None:
    from raylens.workers.preflight import inspect_model
    from raylens.workers.settings import LensSettings, WorkerSettings
    from raylens.workers.worker import Worker

    settings = WorkerSettings(given_model(options), LensSettings(layers=options["layers"], lens=options["lens"]))
    inspect_model(settings)
    certificate = Worker(settings).certificate
    if as_json:
        click.echo(orjson.dumps(certificate))
    else:
        click.echo("\n".join(_lines(certificate)))


def _lines(certificate: dict[str, Any]) -> list[str]:
    from raylens.workers.lenses.source import TAPS_OF

    lens, runs = certificate["lens"], certificate["runs"]
    read = TAPS_OF[lens.get("kind", "logit")] or tuple(certificate["taps"])
    lines = [
        f"{certificate['architecture']}: {certificate['layers']} layers in {certificate['dtype']} on {certificate['device']}",
        f"lens: {lens['norm']}, head, {lens['after_head']} after it; {lens['path']}",
        f"last block against the model's own logits: {lens['error']:.1e} (allowed {lens['allowed']:.1e})",
        f"padded batch against one prompt: {runs['padding_error']:.1e} (allowed {runs['allowed']:.1e}); runs {runs['module']}",
    ]
    if "kind" in lens:
        lines.append(f"--lens: {lens['kind']} {lens['file']} fits; it reads {', '.join(read)}")
    lines += [f"holds: {text} (error {error:.1e})" for text, error in certificate["sums"].items()]
    lines += [
        f"tap {name}: {', '.join(tap['hooked'])}{'' if name in read else '; this lens does not read it'}"
        for name, tap in certificate["taps"].items()
    ]
    lines += [f"tap {name}: refused, {reason}" for name, reason in certificate["refused"].items()]
    return lines
