"""Folders, tables and specs that nobody thought of: no traceback, and no image vanishes silently.

A few seconds each; TRANSFER_SEARCH_FUZZ_EXAMPLES=5000 looks longer.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.errors import SpecError
from search.spec.search_spec import read_spec
from tests.search.specs import SMALL
from tests.trainables.image.drawn import draw, loaded
from trainables.errors import DataError
from trainables.image.decode import EXTENSIONS

EXAMPLES = int(os.environ.get("TRANSFER_SEARCH_FUZZ_EXAMPLES", "25"))
bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

FOLDERS = st.sampled_from(
    [
        "cat",
        "dog",
        "Cat",
        "train",
        "val",
        "test",
        "dev",
        ".hidden",
        "cafe\u0301",
        "caf\u00e9",
        "a b",
        "images",
    ]
)
FILES = st.sampled_from(["0.png", "1.png", "2.PNG", "3.jpg", ".4.png", "notes.txt", "x.heic", "noend"])
PLACES = st.lists(FOLDERS, max_size=3).flatmap(lambda parts: FILES.map(lambda file: "/".join([*parts, file])))
TREES = st.lists(PLACES, min_size=1, max_size=24, unique=True)
LINKS = st.lists(st.tuples(FOLDERS, FOLDERS), max_size=2)
_BESIDE = re.compile(r"^(\d+) images lie beside the class folders, ignored", re.MULTILINE)


def is_image(place: str) -> bool:
    return Path(place.lower()).suffix in EXTENSIONS


def images_in(root: Path) -> int:
    """Files that are named like images, hidden ones too, each once; links lead to what is counted already."""
    return sum(is_image(path.name) and path.is_file() and not path.is_symlink() for path in root.rglob("*"))


@bounded
@given(tree=TREES, links=LINKS)
def test_images_in_are_images_used_and_images_named(tree: list[str], links: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "data"
        for seed, place in enumerate(tree):
            if is_image(place):
                draw(root / place, seed)
            else:
                (root / place).parent.mkdir(parents=True, exist_ok=True)
                (root / place).write_text("none")
        for name, target in links:
            link = root / f"link-{name}"
            if not link.exists() and not link.is_symlink():
                link.symlink_to(root / target)
        there = images_in(root)
        try:
            data = loaded(root, test=0.0, validation=0.3)
        except DataError:
            return
        report = "\n".join(data.report.lines())
        used = {name for name in data.names if not name.startswith("link-")}
        out = {name for name, *_ in data.report.duplicates if not name.startswith("link-")}
        beside = _BESIDE.search(report)
        hidden = [place for place in tree if is_image(place) and "/." in f"/{place}"]
        assert len(used | out) + int(beside[1] if beside else 0) + len(hidden) == there, report
        assert not hidden or "hidden files and folders are ignored" in report


CELLS = st.one_of(
    st.sampled_from(["0.png", "1.png", "2.png", "../x.png", "/etc/passwd", "", "cat", "dog", "a|b", "nan"]),
    st.text(alphabet="abc,;\t|\"'\\/\n\r#\u00e9\x00", max_size=6),
)


@bounded
@given(
    header=st.sampled_from(
        ["path,label", "path;label", "path\tlabel", "file_name,label", "a,b", "", "path,label,split"]
    ),
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=3), max_size=8),
    separator=st.sampled_from([",", ";", "\t"]),
    name=st.sampled_from(["m.csv", "m.tsv", "m.jsonl", "m.parquet"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1"]),
)
def test_tables_are_read_or_refused_in_words(
    header: str, rows: list[list[str]], separator: str, name: str, encoding: str
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(3):
            draw(Path(temporary) / f"{seed}.png", seed)
        text = "\n".join([header, *(separator.join(row) for row in rows)])
        (Path(temporary) / name).write_bytes(text.encode(encoding, "replace"))
        try:
            data = loaded(Path(temporary) / name, test=0.0)
        except DataError:
            return
        assert data.report.found >= len(data.names)


KEYS = [
    "name",
    "data",
    "search",
    "space",
    "resources",
    "tracking",
    "cache",
    "lr",
    "trials",
    "policy",
    "source",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner)
    ),
    max_leaves=6,
)
PATHS = st.lists(
    st.sampled_from([*KEYS, "objective", "splits", "low", "high", "or", "gpu"]), min_size=1, max_size=3
)


@settings(bounded, max_examples=EXAMPLES * 2)
@given(path=PATHS, value=VALUES)
def test_specs_are_read_or_refused_in_words(path: list[str], value: object) -> None:
    raw = yaml.safe_load(SMALL)
    section = raw
    for key in path[:-1]:
        inner = section.get(key)
        if not isinstance(inner, dict):
            inner = section[key] = {}
        section = inner
    section[path[-1]] = value
    text = yaml.safe_dump(raw, allow_unicode=True)
    try:
        read_spec(text)
        said = ""
    except SpecError as error:
        said = str(error)
    assert "Input should" not in said
