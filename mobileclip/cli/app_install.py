"""`mobileclip app install`."""

from __future__ import annotations

from pathlib import Path

import typer

from mobileclip.cli import output


def install(
    device: str = typer.Option(..., "--device", help="Serial number, udid, name, model or alias; see mobileclip devices."),
    source: Path | None = typer.Option(
        None, help="The folder android_app or ios_app of the repository, if the toolkit does not run there."
    ),
    team: str | None = typer.Option(None, help="For an iPhone: the id of the Apple developer team that signs."),
    app_id: str | None = typer.Option(None, help="For an iPhone: a name of your own for the app; give it to bench as well."),
) -> None:
    """Build the sample and the benchmark app and install them on a phone; needs Gradle and an Android SDK, or Xcode. Example:
    mobileclip app install --device pixel8
    """
    from mobileclip.benchmark import devices
    from mobileclip.benchmark.devices import build
    from mobileclip.benchmark.devices.app import AppDevice, app_name
    from mobileclip.errors import InputError

    place, via = devices.find(device), ""
    if place.kind.startswith("android"):
        place, via = devices.find(device, "app"), " --via app"
    if not isinstance(place, AppDevice):
        raise InputError(f"{place.name} runs no app; name a phone")
    if app_id is not None:
        place.app = app_name(app_id)
    with output.progress() as progress:
        packages = build.install(place, source, team, progress)
    names = " and ".join(package.name for package in packages)
    output.print_line(f"{names}: on {place.name}; measure with: mobileclip bench --device {device}{via}")
