"""Commands that list what a spec can name: backbones, policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from search.cli.options import JsonOption
from search.cli.printing import console, errors, print_json
from search.errors import BadInput
from search.spec.sections import SAMPLERS
from trainables.errors import DataError, UnknownName
from trainables.modalities import MODALITIES
from trainables.modalities import modality as find_modality
from trainables.modality import Modality
from trainables.plugins import PluginError

__all__ = ["commands"]

commands = typer.Typer()

ModalityOption = Annotated[str, typer.Option(help="Of which kind of data.")]


@commands.command("backbones")
def list_backbones(
    pattern: Annotated[str | None, typer.Argument(help="A part of a name, or a glob: 'timm/*lite*'.")] = None,
    modality: ModalityOption = "image",
    as_json: JsonOption = False,
) -> None:
    """List the backbones, and whether their weights are on this machine."""
    kind = _modality(modality)
    found = kind.backbones(pattern)
    _warn(kind)
    if as_json:
        print_json(
            [
                {
                    "name": info.name,
                    "parameters": info.parameters,
                    **info.details,
                    "weights_at_hand": info.weights_at_hand,
                }
                for info in found
            ]
        )
        return
    columns = list(dict.fromkeys(column for info in found for column in info.details))
    titles = [column.replace("_", " ") for column in columns]
    table = Table("backbone", "parameters", *titles, "weights on this machine", box=None)
    for info in found:
        parameters = "" if info.parameters is None else f"{info.parameters:,}"
        details = [str(info.details.get(column, "")) for column in columns]
        table.add_row(info.name, parameters, *details, "yes" if info.weights_at_hand else "no")
    console.print(table)


@commands.command("policies")
def list_policies(
    preview: Annotated[Path | None, typer.Option(help="Draw every policy on this image file.")] = None,
    to: Annotated[Path, typer.Option(help="Where the drawing goes.")] = Path("policies.png"),
    modality: ModalityOption = "image",
    as_json: JsonOption = False,
) -> None:
    """List the augmentation policies and what each does; draw them on an image."""
    kind = _modality(modality)
    lines = kind.policies()
    _warn(kind)
    if as_json:
        print_json({policy: list(steps) for policy, steps in lines.items()})
    else:
        for policy, steps in lines.items():
            console.print(f"{policy}: {_sentence(steps)}", markup=False, highlight=False)
    if preview is not None:
        try:
            to.write_bytes(kind.draw_policies(preview))
        except DataError as error:
            raise BadInput(str(error)) from error
        except OSError as error:
            raise BadInput(f"cannot write {to}: {error.strerror}") from error
        console.print(f"drawn to {to}")


def _sentence(steps: Sequence[str]) -> str:
    """The steps of a policy in a line; those that are indented belong to the one before them."""
    told = ""
    for step in steps:
        joint = "" if not told else " " if told.endswith(":") else " / " if step.startswith(" ") else "; "
        told += joint + step.strip()
    return told


def _warn(kind: Modality[Any]) -> None:
    """Names what installed packages add and cannot be used."""
    for problem in (*kind.problems(), *MODALITIES.problems(), *SAMPLERS.problems()):
        errors.print(f"warning: {problem}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _modality(name: str) -> Modality[Any]:
    try:
        return find_modality(name)
    except (UnknownName, PluginError) as error:
        raise BadInput(str(error)) from error
