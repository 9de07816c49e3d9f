"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A field of the config, as in augmentation.scale=[0.4,1]; may be repeated."),
]
"""Changes to a YAML config, for commands that read one."""


def share(option: str, text: str) -> float:
    """A share from 0 to 1, written as `1%` or `0.01`.

    Raises:
        InputError: It is no such number.
    """
    from mobileclip import configs
    from mobileclip.errors import InputError

    try:
        value = float(str(configs.share(text)))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"{option} {text}: is not a share; write for example 1% or 0.01")
    return value
