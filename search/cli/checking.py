"""Commands that check: what is doubtful in data, and whether a trial is what it says when it is run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.options import HomeOption, JsonOption, NameArgument
from search.cli.printing import console, errors, print_json

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
def repeat(
    name: NameArgument,
    trial: Annotated[int, typer.Option(min=0, help="The trial's number.", show_default=False)],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="Where the data is now: data.source=DIR; or other resources."),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Run a trial again from its record and compare, to the bit; 1 is the exit code where it differs."""
    from search.console import progress_bar
    from search.home import Home
    from search.run.premises import check_movable
    from search.run.repeating import repeated
    from search.search import Search
    from search.spec.search_spec import read_spec

    check_movable(override or ())
    place = Home.existing(name, home)
    search = Search.open(place, read_spec(place.spec, override or ()))
    with progress_bar(errors) as progress:
        found = repeated(search, trial, lambda done, total: progress("epochs", done, total))
    if as_json:
        print_json(found.document())
    else:
        for line in found.lines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not found.is_equal:
        raise typer.Exit(1)


@commands.command()
def inspect(
    spec: Annotated[Path, typer.Argument(help="The spec, a YAML file.", show_default=False)],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="path.to.key=value in place of the spec's; may be repeated."),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Draw the most doubtful images into this file.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what is doubtful in data: labels, copies across splits, confused classes, groups that leak."""
    from search.console import progress_bar
    from search.results.sheet import write_sheet
    from search.run.inspecting import inspected
    from search.spec.search_spec import read_spec

    checked = read_spec(spec, override or ())
    with progress_bar(errors) as progress:
        found, data, backbone = inspected(checked, progress)
    if as_json:
        print_json(found.document())
    else:
        for line in (*data.report.lines(), *found.lines()):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if sheet is not None:
        shown = write_sheet(sheet, checked, found, data, backbone)
        told = f"{shown} images drawn into {sheet}" if shown else f"nothing is doubtful: {sheet} is not drawn"
        errors.print(told, markup=False, highlight=False, soft_wrap=True)
