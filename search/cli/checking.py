"""Commands that check: whether a trial is what it says, run again."""

from __future__ import annotations

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
