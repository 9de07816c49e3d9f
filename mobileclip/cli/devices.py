"""`mobileclip devices`."""

from __future__ import annotations

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption


def devices(json_output: JsonOption = False) -> None:
    """List the devices that can be measured on now, and why others cannot.

    Example: mobileclip devices
    """
    from mobileclip.benchmark import devices as library

    found, reasons = library.connected()
    if json_output:
        usable = [{"device": d.key, "name": d.name, "via": d.kind, "runtimes": d.targets} for d in found]
        output.print_json({"devices": usable, "not_usable": reasons})
        return
    rows = [(d.key, d.name, d.kind, ", ".join(d.targets)) for d in found]
    output.print_table("mobileclip bench --device DEVICE", ("device", "name", "via", "runtimes"), rows)
    for reason in reasons:
        output.print_line(reason)
