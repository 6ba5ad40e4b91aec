from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from trainables.files.cache import Cache, default_root, digest


def key(*parts: object) -> str:
    return digest({"parts": [str(part) for part in parts]})


def entry(number: int, size: int = 64) -> torch.Tensor:
    return torch.full((size,), float(number))


def never(position: int) -> torch.Tensor:
    raise AssertionError(f"entry {position} was computed")


def file_of(cache: Cache) -> Path:
    (found,) = cache.entries()
    return found[0]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_a_key_changes_with_every_part_and_not_with_their_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    others = [{"a": 1, "b": 2}, {"a": "1", "b": [2]}, {"a": 1}, {"a": 1, "b": [2], "c": None}]
    assert len({digest(parts) for parts in ({"a": 1, "b": [2]}, *others)}) == 5
    assert len(digest({})) == 40


def test_the_default_root_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "transfer-search"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "transfer-search"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_what_was_computed_is_read_back_bit_for_bit(cache: Cache, dtype: torch.dtype) -> None:
    value = torch.randint(0, 100, (7, 5)).to(dtype).t()  # not contiguous
    keys = [key(dtype)]
    first = cache.fetch(keys, lambda _: value)[0]
    again = cache.fetch(keys, never)[0]
    for found in (first, again):
        assert found.dtype == dtype
        assert torch.equal(found, value)
    usage = cache.usage
    assert (usage.computed, usage.hits) == (1, 1)
    assert usage.bytes_read == value.nbytes
    assert usage.bytes_written >= value.nbytes
    assert Cache(cache.root).fetch(keys, never)[0].equal(value)


def test_values_come_in_the_order_of_their_keys_and_progress_ends_at_the_total(cache: Cache) -> None:
    cache.fetch([key(3)], lambda _: entry(3))
    told: list[tuple[int, int]] = []
    values = cache.fetch([key(n) for n in range(7)], entry, lambda *done: told.append(done))
    assert [int(value[0]) for value in values] == list(range(7))
    assert told == [(n + 1, 7) for n in range(7)]
    assert cache.usage.computed == 7
    assert cache.fetch([], never) == []


def test_no_byte_of_an_entry_can_change_unnoticed(cache: Cache) -> None:
    value = torch.tensor([1.0, 2.0, 3.0])
    cache.write(key("a"), value)
    path = file_of(cache)
    whole = path.read_bytes()
    for position in range(len(whole)):
        for flip in (0x01, 0xFF):
            harmed = bytearray(whole)
            harmed[position] ^= flip
            path.write_bytes(harmed)
            found = cache.read(key("a"))
            in_value = position >= len(whole) - value.nbytes
            assert found is None if in_value else found is None or torch.equal(found, value)
    path.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    assert cache.fetch([key("a")], lambda _: value)[0].equal(value)
    assert cache.usage.computed == 1
    assert path.read_bytes() == whole


def test_a_torn_entry_is_computed_again(cache: Cache) -> None:
    value = torch.tensor([1.0, 2.0, 3.0])
    cache.write(key("a"), value)
    path = file_of(cache)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert cache.read(key("a")) is None
    assert cache.fetch([key("a")], lambda _: value)[0].equal(value)
    assert path.read_bytes() == whole


def test_the_least_recently_used_go_and_the_bound_holds(tmp_path: Path) -> None:
    bound = 45_000
    cache = Cache(tmp_path, max_bytes=bound)

    def write(number: int) -> None:
        cache.write(key(number), entry(number, 2500))
        os.utime(cache._path(key(number)), (number, number))  # as if time had passed

    def there() -> list[int]:
        return [n for n in range(12) if cache._path(key(n)).exists()]

    for number in range(4):
        write(number)
    assert there() == [0, 1, 2, 3]
    assert cache.read(key(0)) is not None  # now the most recent of them
    for number in range(4, 12):
        write(number)
        assert sum(size for _, size, _ in cache.entries()) <= bound
        assert there() == sorted([0, *range(max(1, number - 2), number + 1)])
    assert cache.sweep(0) > 40_000
    assert cache.entries() == []


def test_many_small_entries_do_not_overrun_the_bound_between_sweeps(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=100_000)
    sums = []
    for number in range(200):
        cache.write(key(number), entry(number, 100))
        sums.append(sum(size for _, size, _ in cache.entries()))
    assert 95_000 < max(sums[150:]) <= 100_000


def test_an_entry_above_the_bound_costs_only_the_caching(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=100)
    assert cache.fetch([key(1)], entry)[0].equal(entry(0))
    assert cache.entries() == []


def test_only_old_temporary_files_are_swept(cache: Cache) -> None:
    cache.write(key("a"), entry(1))
    folder = file_of(cache).parent
    old, new = folder / "old.tmp", folder / "new.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    cache.sweep()
    assert not old.exists()
    assert new.exists()
    assert cache.read(key("a")) is not None


def test_a_cache_that_cannot_be_written_costs_only_the_caching(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    cache = Cache(file / "cache")
    for _ in range(2):
        assert [int(value[0]) for value in cache.fetch([key(n) for n in range(3)], entry)] == [0, 1, 2]
    assert cache.usage.computed == 6
    assert cache.entries() == []
    assert cache.sweep() == 0
    assert cache.joined([key(n) for n in range(3)], entry).shape == (192,)
    assert cache.joined([key(n) for n in range(3)], never).shape == (192,)


def test_the_folder_may_go_at_any_time(cache: Cache) -> None:
    keys = [key(n) for n in range(40)]
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            shutil.rmtree(cache.root, ignore_errors=True)

    cache.max_bytes = 2000  # so that nearly every write sweeps
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(8):
            values = cache.fetch(keys, entry)
            assert [int(value[0]) for value in values] == list(range(40))
    finally:
        over.set()
        thread.join()


def test_an_error_frees_the_key(cache: Cache) -> None:
    def broken(position: int) -> torch.Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.fetch([key("a")], broken)
    assert cache.fetch([key("a")], entry)[0].equal(entry(0))


# Several processes

CHILD = """
import os, sys, time
from pathlib import Path
import torch
from trainables.files.cache import Cache, digest
torch.set_num_threads(1)
keys = [digest({"parts": [str(n)]}) for n in range(12)]
cache = Cache(Path(sys.argv[1]))
notes = Path(sys.argv[2])
"""


@pytest.fixture
def child(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    notes = tmp_path / "notes"
    notes.mkdir()

    def started(script: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD + script, str(tmp_path / "cache"), str(notes)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    return started


def test_a_writer_that_is_killed_leaves_no_torn_entry_and_no_lock(
    cache: Cache, child: Callable[[str], subprocess.Popen[str]]
) -> None:
    writer = child(
        """
cache.fetch(keys[:1], lambda i: torch.full((64,), 0.))
def stall(*_):
    print("written, not renamed", flush=True)
    time.sleep(60)
os.replace = stall
cache.fetch(keys[1:2], lambda i: torch.full((64,), 1.))
"""
    )
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == "written, not renamed"
    wanted = [key(n) for n in range(3)]
    with cache._lock(wanted[1]) as held:
        assert not held
    assert cache._entry(wanted[1], lambda: never(1), lambda: wanted[1]) is None
    assert cache._entry(wanted[2], lambda: never(2), lambda: wanted[1]) is None  # what comes of the same work
    writer.kill()
    writer.wait()
    leftovers = list(cache.root.rglob("*.tmp"))
    assert len(leftovers) == 1
    assert len(cache.entries()) == 1
    values = cache.fetch(wanted, entry)
    assert [int(value[0]) for value in values] == [0, 1, 2]
    assert (cache.usage.computed, cache.usage.hits) == (2, 1)
    os.utime(leftovers[0], (0, 0))
    cache.sweep()
    assert not leftovers[0].exists()


def idle(cores: float) -> Callable[[], float]:
    return lambda: cores * time.monotonic()


def test_a_thread_for_an_idle_core_shares_the_work(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.files.idle._idle_seconds", idle(cores=torch.get_num_threads()))
    cache.fetch([key(1)], entry)
    together, computed = threading.Barrier(2, timeout=20), []

    def compute(position: int) -> torch.Tensor:
        together.wait()
        computed.append(position)
        return entry(position)

    told: list[tuple[int, int]] = []
    values = cache.fetch([key(n) for n in range(5)], compute, lambda *done: told.append(done), at_once=2)
    assert [int(value[0]) for value in values] == [0, 0, 2, 3, 4]  # what was kept under the second key is 0
    assert sorted(computed) == [0, 2, 3, 4]
    assert told[-1] == (5, 5)


def test_an_error_of_such_a_thread_is_told(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.files.idle._idle_seconds", idle(cores=torch.get_num_threads()))

    def compute(position: int) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            never(position)
        time.sleep(0.3)
        return entry(position)

    with pytest.raises(AssertionError, match="was computed"):
        cache.fetch([key(n) for n in range(5)], compute, at_once=2)


def test_processes_that_want_the_same_compute_each_entry_once(
    tmp_path: Path, child: Callable[[str], subprocess.Popen[str]]
) -> None:
    script = """
def compute(i):
    (notes / f"{i}-{os.getpid()}").touch()
    time.sleep(0.05)
    return torch.full((64,), float(i))
print("ready", flush=True)
sys.stdin.readline()
values = cache.fetch(keys, compute)
assert [int(value[0]) for value in values] == list(range(12))
import json
print(json.dumps([os.getpid(), cache.usage.computed, cache.usage.hits]), flush=True)
"""
    racers = [child(script) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline().strip() == "ready"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    results = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]
    computed = sorted(path.name.split("-")[0] for path in (tmp_path / "notes").iterdir())
    assert computed == sorted(str(n) for n in range(12))
    assert sum(count for _, count, _ in results) == 12
    assert all(hits + count == 12 for _, count, hits in results)
    assert all(count > 0 for _, count, _ in results)  # they shared the work


# What stays in memory


def parts(view: int, count: int = 3) -> list[str]:
    return [key("view", view, chunk) for chunk in range(count)]


def test_what_was_joined_lately_is_not_read_again(cache: Cache) -> None:
    first = cache.joined(parts(0), entry)
    assert [int(first[64 * n]) for n in range(3)] == [0, 1, 2]
    shutil.rmtree(cache.root)
    assert torch.equal(cache.joined(parts(0), never), first)
    assert (cache.usage.resident, cache.usage.hits, cache.usage.bytes_read) == (1, 0, 0)
    # The order of the keys is part of what is asked for.
    turned = cache.joined(parts(0)[::-1], entry)
    assert not torch.equal(turned[:1], first[-1:])
    assert cache.usage.resident == 1


def test_the_least_recently_joined_is_read_from_the_disk_again(tmp_path: Path) -> None:
    size = 3 * 64 * 4
    cache = Cache(tmp_path, resident_bytes=2 * size)
    for view in (0, 1):
        cache.joined(parts(view), entry)
    cache.joined(parts(0), never)
    cache.joined(parts(2), entry)  # view 1 goes
    cache.joined(parts(0), never)
    assert (cache.usage.resident, cache.usage.hits, cache.usage.computed) == (2, 0, 9)
    cache.joined(parts(1), never)
    assert (cache.usage.resident, cache.usage.hits, cache.usage.computed) == (2, 3, 9)
    # What can never fit puts nothing out.
    kept = list(cache._resident)
    cache.joined(parts(9, count=9), entry)
    assert list(cache._resident) == kept


def test_memory_stays_flat_while_the_disk_fills(tmp_path: Path) -> None:
    chunk = 2**16
    cache = Cache(tmp_path, resident_bytes=2 * 2**20)
    process = psutil.Process()

    def joined(view: int) -> None:
        cache.joined(parts(view, 2), lambda _: torch.full((chunk,), float(view)))

    for view in range(10):
        joined(view)
    before = process.memory_info().rss
    for _ in range(2):
        for view in range(120):
            joined(view)
    on_disk = sum(size for _, size, _ in cache.entries())
    assert on_disk > 60 * 2**20
    assert sum(value.nbytes for value, _ in cache._resident.values()) <= cache.resident_bytes
    assert process.memory_info().rss - before < 15 * 2**20


def test_what_an_entry_took_is_saved_whenever_it_is_there(cache: Cache) -> None:
    def slow(index: int) -> torch.Tensor:
        time.sleep(0.02)
        return entry(index)

    cache.joined(parts(0), slow)
    assert cache.usage.seconds_saved == 0
    assert cache.usage.compute_seconds > 0.06
    other = Cache(cache.root)
    other.joined(parts(0), never)  # from the disk
    assert other.usage.seconds_saved == pytest.approx(cache.usage.compute_seconds, abs=0.002)
    other.joined(parts(0), never)  # from memory
    assert other.usage.seconds_saved == pytest.approx(2 * cache.usage.compute_seconds, abs=0.004)


def test_decoded_images_count_toward_the_bound(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=20_000)
    for number, name in enumerate(("old", "new")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        (folder / "frames").write_bytes(bytes(8_000))
        os.utime(folder / "frames", (number, number))
    cache.write(key(1), entry(1, 2000))
    cache.sweep()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["new"]
    assert cache.read(key(1)) is not None
