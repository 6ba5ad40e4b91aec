"""Commands that list what a spec can name: backbones, policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from search.cli.options import JsonOption
from search.cli.printing import console, print_json

__all__ = ["commands"]

commands = typer.Typer()


@commands.command("backbones")
def list_backbones(
    pattern: Annotated[str | None, typer.Argument(help="A part of a name, or a glob: 'timm/*lite*'.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the backbones, and whether their weights are on this machine."""
    from trainables.image.backbones import available

    found = available(pattern)
    if as_json:
        print_json([vars(info) for info in found])
        return
    table = Table("backbone", "parameters", "image size", "weights at hand", box=None)
    for info in found:
        parameters = "" if info.parameters is None else f"{info.parameters:,}"
        table.add_row(info.name, parameters, str(info.image_size), "yes" if info.weights_at_hand else "")
    console.print(table)


@commands.command("policies")
def list_policies(
    preview: Annotated[Path | None, typer.Option(help="Draw every policy on this image file.")] = None,
    to: Annotated[Path, typer.Option(help="Where the drawing goes.")] = Path("policies.png"),
    as_json: JsonOption = False,
) -> None:
    """List the augmentation policies and what each does; draw them on an image."""
    from search.cli.previews import draw_policies, policy_lines

    lines = policy_lines()
    if as_json:
        print_json(lines)
    else:
        for policy, steps in lines.items():
            console.print(f"{policy}: {'; '.join(steps)}", markup=False, highlight=False)
    if preview is not None:
        draw_policies(preview, to)
        console.print(f"drawn to {to}")
