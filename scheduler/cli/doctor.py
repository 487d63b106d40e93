"""``raylens doctor``."""

from typing import Any

import click
import orjson

from raylens.scheduler.cli._options import lens_option, model_options, model_settings


@click.command("doctor")
@model_options
@lens_option
@click.option("--json", "as_json", is_flag=True, help="The certificate as JSON.")
def command(as_json: bool, **options: Any) -> None:
    """Load a model and print its certificate: what is hooked for each tap, and the errors that were measured.

    A model that cannot be lensed exactly is refused with the reason, and exit code 4.
    """
    from raylens.workers.preflight import inspect_model
    from raylens.workers.settings import LensSettings, WorkerSettings
    from raylens.workers.worker import Worker

    settings = WorkerSettings(model_settings(options), LensSettings(lens=options["lens"]))
    inspect_model(settings)
    certificate = Worker(settings).certificate
    if as_json:
        click.echo(orjson.dumps(certificate))
    else:
        click.echo("\n".join(_lines(certificate)))


def _lines(certificate: dict[str, Any]) -> list[str]:
    lens, runs = certificate["lens"], certificate["runs"]
    lines = [
        f"{certificate['architecture']}: {certificate['layers']} layers in {certificate['dtype']} on {certificate['device']}",
        f"lens: {lens['norm']}, head, {lens['after_head']} after it; {lens['path']}",
        f"last block against the model's own logits: {lens['error']:.1e} (allowed {lens['allowed']:.1e})",
        f"padded batch against one prompt: {runs['padding_error']:.1e} (allowed {runs['allowed']:.1e}); runs {runs['module']}",
    ]
    if "kind" in lens:
        lines.append(f"--lens: {lens['kind']} {lens['file']} fits; it reads {', '.join(certificate['run_taps'])}")
    lines += [f"holds: {text} (error {error:.1e})" for text, error in certificate["sums"].items()]
    lines += [f"tap {name}: {', '.join(tap['hooked'])}" for name, tap in certificate["taps"].items()]
    lines += [f"tap {name}: refused, {reason}" for name, reason in certificate["refused"].items()]
    return lines
