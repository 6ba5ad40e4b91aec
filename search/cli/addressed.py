"""The option --address: the same command, on a Ray cluster."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

from search.cli.options import ADDRESS_VARIABLES, AddressOption
from search.cli.printing import console
from search.errors import BadInput

__all__ = ["Verbatim", "here_or_there"]


class Verbatim(TyperCommand):
    """A command that keeps its words as they were typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)


def here_or_there(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the option --address, which does the same on a Ray cluster."""

    @functools.wraps(command)
    def either(context: typer.Context, address: str | None, **options: Any) -> None:
        from search.home import is_inside

        if not address or is_inside():
            command(**options)
            return
        from search.cluster.jobs import perform

        words = _without_address(context.meta["words"])
        try:
            perform(address, str(context.info_name), words, options, console)
        except BadInput as error:
            given = context.get_parameter_source("address")
            if given is not None and given.name == "ENVIRONMENT":
                variable = next(name for name in ADDRESS_VARIABLES if os.environ.get(name))
                error.add_note(
                    f"This was for the cluster at {address}, which the variable {variable} names; unset it "
                    "to run on this machine"
                )
            raise

    signature = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *signature.parameters.values(),
        inspect.Parameter("address", keyword, default=None, annotation=AddressOption),
    ]
    either.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    either.__annotations__ = {each.name: each.annotation for each in parameters}
    return either


def _without_address(words: list[str]) -> list[str]:
    kept: list[str] = []
    for index, word in enumerate(words):
        value = index > 0 and words[index - 1] == "--address"
        if not (value or word == "--address" or word.startswith("--address=")):
            kept.append(word)
    return kept
