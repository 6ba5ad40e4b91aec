"""Answers among what a command prints."""

from __future__ import annotations

import pytest

from search.answers import VERSION, answer, for_people, said
from search.errors import TransferSearchError


def test_the_last_answer_of_a_kind_is_read_and_people_see_none() -> None:
    text = (
        "begin\n" + answer("launched", search="a") + "trial 1\n" + answer("failed", message='no\n"{"', code=2)
    )
    assert said(text, "launched") == {"search": "a"}
    assert said(text, "failed") == {"message": 'no\n"{"', "code": 2}
    assert said(text, "exported") is None
    assert for_people(text) == "begin\ntrial 1\n"


def test_what_a_person_prints_is_no_answer() -> None:
    text = '{"trial": 1}\nerror: the search is launched\n'
    assert said(text, "launched") is None
    assert for_people(text) == text


def test_a_line_that_is_half_there_is_not_shown_and_not_read() -> None:
    line = answer("launched", search="a")
    for end in range(1, len(line)):
        assert for_people(f"begin\n{line[:end]}") == "begin\n"
        assert said(f"begin\n{line[:end]}", "launched") is None
    assert for_people("begin\nhalf") == "begin\nhalf"


def test_another_version_is_refused_by_name() -> None:
    line = answer("launched", search="a").replace(f": {VERSION},", ": 99,", 1)
    with pytest.raises(TransferSearchError, match="version 99"):
        said(line, "launched")
