"""Options and arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ADDRESS_VARIABLES", "AddressOption", "HomeOption", "JsonOption", "NameArgument"]

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder of searches; else TRANSFER_SEARCH_HOME, else ./searches.",
        show_default=False,
    ),
]
NameArgument = Annotated[str, typer.Argument(help="The search's name.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
ADDRESS_VARIABLES = ("TRANSFER_SEARCH_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Where the address of a cluster comes from that no option gives."""
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar=list(ADDRESS_VARIABLES),
        help="Do it on the Ray cluster whose dashboard is there, such as https://head:8265.",
        show_default=False,
    ),
]
