"""Stored prompts: what was kept comes back, nothing else ever does, and the folder stays within its size."""

import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from shimmy.engine.kv import prompt_files
from shimmy.engine.kv.prompt_files import MIN_TOKENS, PromptFiles

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
MAX_BYTES = 10**6
PROMPT = [7 * place % 1000 for place in range(300)]
CELLS: prompt_files.Cells = [b"first part", b"", memoryview(b"second part" * 20)]
JOINED = b"".join(CELLS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "prompts"


def opened(folder: Path, max_bytes: int = MAX_BYTES, *, max_tokens: int = 4096, in_part: bool = True) -> PromptFiles:
    return PromptFiles(folder, max_bytes, max_tokens=max_tokens, in_part=in_part)


def kept(cache: PromptFiles, tokens: Sequence[int] = PROMPT, cells: prompt_files.Cells = CELLS) -> None:
    assert cache.keep(KEY, tokens, cells)
    cache.flush(10)
    assert not cache.is_writing


def cells_of(cache: PromptFiles, prompt: Sequence[int] = (*PROMPT, 1), key: bytes = KEY) -> bytes | None:
    found = cache.find(key, prompt)
    cells = None if found is None else cache.read(found.stored)
    return None if cells is None else bytes(cells)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.prompt"))


def only_file(folder: Path) -> Path:
    (path,) = files(folder)
    return path


# -- what comes back -------------------------------------------------------------------------------------------------


def test_what_was_kept_comes_back_after_a_restart(folder: Path) -> None:
    kept(opened(folder))
    cache = opened(folder)
    assert cells_of(cache) == JOINED
    cells = cache.read(cache.find(KEY, [*PROMPT, 1]).stored)  # type: ignore[union-attr]
    assert cells is not None
    assert not cells.readonly, "the engine takes a pointer to it"


def test_it_is_there_for_the_one_who_kept_it_too(folder: Path) -> None:
    cache = opened(folder)
    assert cells_of(cache) is None
    kept(cache)
    assert cells_of(cache) == JOINED


def test_the_longest_common_beginning_wins(folder: Path) -> None:
    cache = opened(folder)
    kept(cache, [*PROMPT[:280], *range(300)], [b"280"])
    kept(cache, [*PROMPT[:290], *range(300)], [b"290"])
    for one in (cache, opened(folder)):
        found = one.find(KEY, PROMPT)
        assert found is not None
        assert found.n_tokens == 290
        assert cells_of(one, PROMPT) == b"290"
        other = one.find(KEY, [*PROMPT[:285], 5, 5])
        assert other is not None
        assert other.n_tokens in {280, 285}
        assert one.find(KEY, [*PROMPT[: MIN_TOKENS - 1], 9999, 1]) is None


def test_the_last_token_of_a_prompt_is_computed(folder: Path) -> None:
    cache = opened(folder)
    kept(cache)
    found = cache.find(KEY, PROMPT)
    assert found is not None
    assert found.n_tokens == len(PROMPT) - 1


def test_what_cannot_be_used_in_part_is_found_whole_or_not_at_all(folder: Path) -> None:
    cache = opened(folder, in_part=False)
    kept(cache)
    assert cells_of(cache) == JOINED
    assert cache.find(KEY, PROMPT) is None
    assert cache.find(KEY, [*PROMPT[:299], 5, 5, 5]) is None
    kept(cache, [*PROMPT, 1, 2], [b"longer"])
    assert len(files(folder)) == 2
    assert cells_of(cache, [*PROMPT, 1, 2, 3]) == b"longer"
    assert cells_of(cache, [*PROMPT, 1, 3]) == JOINED


def test_another_key_sees_nothing(folder: Path) -> None:
    kept(opened(folder))
    assert cells_of(opened(folder), key=OTHER_KEY) is None
    assert len(files(folder)) == 1, "it may be the other's"


def test_what_is_longer_than_the_pool_is_left_alone(folder: Path) -> None:
    kept(opened(folder))
    assert cells_of(opened(folder, max_tokens=299)) is None
    assert cells_of(opened(folder, max_tokens=300)) == JOINED


def test_a_longer_prompt_takes_the_place_of_its_beginning(folder: Path) -> None:
    cache = opened(folder)
    kept(cache)
    kept(cache, [*PROMPT, 1, 2, 3], [b"longer"])
    assert len(files(folder)) == 1
    for one in (cache, opened(folder)):
        assert cells_of(one) == b"longer"


@pytest.mark.parametrize(
    ("tokens", "lacks"),
    [
        (PROMPT[: MIN_TOKENS - 1], True),
        (PROMPT, True),
        ([*PROMPT, *range(MIN_TOKENS - 1)], True),
        ([*PROMPT, *range(MIN_TOKENS)], False),
        ([5, *PROMPT], False),
    ],
)
def test_only_what_is_mostly_new_is_worth_writing(folder: Path, tokens: list[int], lacks: bool) -> None:
    cache = opened(folder)
    kept(cache)
    assert cache.lacks(KEY, tokens) is not lacks
    assert opened(folder).lacks(KEY, tokens) is not lacks


# -- two processes ---------------------------------------------------------------------------------------------------


def test_what_another_process_writes_is_found(folder: Path) -> None:
    first, second = opened(folder), opened(folder)
    assert cells_of(first) is None
    kept(second)
    assert cells_of(first) == JOINED
    kept(first, PROMPT[::-1], [b"back"])
    assert cells_of(second, [*PROMPT[::-1], 1]) == b"back"


def test_what_another_process_removed_is_a_miss(folder: Path) -> None:
    cache = opened(folder)
    kept(cache)
    found = cache.find(KEY, [*PROMPT, 1])
    assert found is not None
    only_file(folder).unlink()
    assert cache.read(found.stored) is None
    assert cells_of(cache) is None


WRITER = """
import sys
from pathlib import Path
from shimmy.engine.kv.prompt_files import PromptFiles
cache = PromptFiles(Path(sys.argv[1]), 40_000, max_tokens=4096)
for number in range(30):
    tokens = [int(sys.argv[2]) * 100 + number] + list(range(300))
    assert cache.keep(bytes(32), tokens, [bytes([number]) * 5000])
    cache.flush(20)
    found = cache.find(bytes(32), [*tokens, 1])
    cells = found and cache.read(found.stored)
    assert cells is None or bytes(cells) == bytes([number]) * 5000
"""


def test_two_processes_stay_within_the_size_together_and_never_read_half_a_file(folder: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, folder, str(n)]) for n in (1, 2)]
    n_most = 0
    while any(writer.poll() is None for writer in writers):
        sizes = []
        for path in folder.glob("*.prompt*"):
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                break
        else:
            n_most = max(n_most, sum(sizes))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert 20_000 < n_most <= 40_000 + 6300, "a file and the one that takes its place"
    assert sum(path.stat().st_size for path in files(folder)) <= 40_000
    assert not list(folder.glob("*.part"))
    assert (folder / "secret").stat().st_size == 32


def test_the_secret_is_made_once(folder: Path) -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(opened(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept(found[0])
    assert [cells_of(cache) for cache in found] == [JOINED] * 8


# -- what is not what was kept ---------------------------------------------------------------------------------------


def spoilt(data: bytes) -> Iterator[bytes]:
    """Every file that is one change away from `data`, and many that are more."""
    for place in range(len(data)):
        yield data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
    for place in range(0, len(data), 7):
        yield data[:place]
        yield data[:place] + data[place + 1 :]
    yield data + b"\0"
    yield data * 2
    yield b""
    yield bytes(len(data))
    random = Random(1)
    for _ in range(200):
        changed = bytearray(data)
        for _ in range(random.randrange(2, 40)):
            changed[random.randrange(len(data))] = random.randrange(256)
        yield bytes(changed)


def test_nothing_that_was_changed_is_ever_handed_out(folder: Path) -> None:
    kept(opened(folder))
    path = only_file(folder)
    good = path.read_bytes()
    n_tried = 0
    cache, late = opened(folder), opened(folder)
    found = late.find(KEY, [*PROMPT, 1])
    assert found is not None
    for data in spoilt(good):
        if data == good:
            continue
        n_tried += 1
        path.write_bytes(data)
        assert cells_of(opened(folder)) is None
        # Who looked while it was good, and who looked before it was there.
        path.write_bytes(data)
        assert late.read(found.stored) is None
        assert not path.exists()
        cells_of(cache)
    assert n_tried > 1800
    path.write_bytes(good)
    assert cells_of(opened(folder)) == JOINED


def test_a_file_of_another_secret_is_removed(folder: Path, tmp_path: Path) -> None:
    kept(opened(tmp_path / "other"))
    foreign = only_file(tmp_path / "other")
    cache = opened(folder)
    (folder / foreign.name).write_bytes(foreign.read_bytes())
    assert cells_of(cache) is None
    assert not files(folder)


def test_a_good_file_under_another_name_is_not_what_that_name_says(folder: Path) -> None:
    cache = opened(folder)
    kept(cache)
    first = only_file(folder)
    kept(cache, PROMPT[::-1], [b"back"])
    (second,) = set(files(folder)) - {first}
    found = cache.find(KEY, [*PROMPT, 1])
    assert found is not None
    first.write_bytes(second.read_bytes())
    assert cache.read(found.stored) is None
    second.rename(folder / second.name.replace(KEY[:8].hex(), OTHER_KEY[:8].hex()))
    assert cells_of(opened(folder), [*PROMPT[::-1], 1], OTHER_KEY) is None
    assert not files(folder)


def _as_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("replace", [_as_link, _as_pipe])
def test_what_is_no_file_is_removed(folder: Path, replace: Callable[[Path], None]) -> None:
    kept(opened(folder))
    replace(only_file(folder))
    assert cells_of(opened(folder)) is None
    assert not files(folder)


def test_a_folder_in_the_place_of_a_file_is_a_miss(folder: Path) -> None:
    kept(opened(folder))
    path = only_file(folder)
    path.unlink()
    path.mkdir()
    assert cells_of(opened(folder)) is None


def test_a_vast_file_is_not_read_into_memory(folder: Path) -> None:
    kept(opened(folder))
    with only_file(folder).open("r+b") as file:
        file.seek(16)
        file.write((2**33).to_bytes(8, "little"))
        file.truncate(60 + 1200 + 2**33 + 32)
    assert cells_of(opened(folder)) is None
    assert not files(folder)


# -- its size --------------------------------------------------------------------------------------------------------


def test_what_was_used_longest_ago_goes_first(folder: Path) -> None:
    cache = opened(folder, 10_000)
    prompts = [[number, *PROMPT] for number in range(4)]
    for age, prompt in enumerate(prompts[:3]):
        kept(cache, prompt, [bytes(1600)])
        for path in files(folder):
            status = path.stat()
            os.utime(path, (status.st_atime, status.st_mtime - 100))
        assert len(files(folder)) == age + 1
    assert cells_of(cache, [*prompts[0], 1]) == bytes(1600), "which is a use of it"
    kept(cache, prompts[3], [bytes(1600)])
    there = [cells_of(opened(folder), [*prompt, 1]) is not None for prompt in prompts]
    assert there == [True, False, True, True]
    assert sum(path.stat().st_size for path in files(folder)) <= 10_000


def test_it_is_one_size_for_all_models(folder: Path) -> None:
    cache = opened(folder, 4000)
    assert cache.keep(OTHER_KEY, PROMPT, [bytes(1600)])
    cache.flush(10)
    kept(cache, PROMPT, [bytes(1600)])
    assert cells_of(cache, key=OTHER_KEY) is None
    assert cells_of(cache) == bytes(1600)


def test_what_would_be_larger_than_all_is_not_written(folder: Path) -> None:
    cache = opened(folder, 4000)
    kept(cache, PROMPT, [bytes(1600)])
    kept(cache, PROMPT[::-1], [bytes(4000)])
    assert cells_of(cache) == bytes(1600)
    assert len(files(folder)) == 1


def test_what_a_killed_process_left_behind_is_removed(folder: Path) -> None:
    cache = opened(folder)
    kept(cache)
    left = only_file(folder).with_suffix(".prompt.part")
    left.write_bytes(bytes(100))
    kept(cache, PROMPT[::-1])
    assert not left.exists()
    assert len(files(folder)) == 2


def test_who_keeps_them_hears_what_was_written_and_what_there_is(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    cache = PromptFiles(folder, MAX_BYTES, max_tokens=4096, on_written=lambda *sizes: told.append(sizes))
    kept(cache)
    size = only_file(folder).stat().st_size
    kept(cache, PROMPT[::-1])
    assert told == [(size, size), (size, 2 * size)]


# -- a disk that does not want ---------------------------------------------------------------------------------------


def test_a_full_disk_is_told_once_and_costs_only_the_writing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = opened(folder)
    kept(cache)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with caplog.at_level(logging.WARNING):
            kept(cache, PROMPT[::-1], [bytes(50_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not stored" in caplog.text
    assert cells_of(cache) == JOINED
    assert len(list(folder.iterdir())) == 2, "the file and the secret, nothing half done"
    assert not cache.lacks(KEY, [*PROMPT[::-1], 5])
    assert not cache.keep(KEY, PROMPT[::-1], CELLS)
    assert len(caplog.records) == 1


def _refuse(*_: object, **__: object) -> int:
    raise PermissionError(13, "Permission denied")


def test_a_folder_that_cannot_be_written_is_still_read(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(opened(folder))
    monkeypatch.setattr(prompt_files, "create_private", _refuse)
    monkeypatch.setattr(os, "utime", _refuse)
    cache = opened(folder)
    with caplog.at_level(logging.WARNING):
        kept(cache, PROMPT[::-1])
    assert len(caplog.records) == 1
    assert cells_of(cache) == JOINED


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
        opened(tmp_path / "file" / "prompts")


def test_folder_and_files_are_for_their_user_alone(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    kept(opened(folder))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "secret": 0o600,
        only_file(folder).name: 0o600,
    }


def test_a_folder_that_stays_open_to_others_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    with pytest.raises(PermissionError, match="other users"):
        opened(folder)


def test_a_folder_of_another_user_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="another user"):
        opened(folder)


def test_a_secret_that_others_may_have_read_is_made_anew(folder: Path) -> None:
    kept(opened(folder))
    secret = (folder / "secret").read_bytes()
    (folder / "secret").chmod(0o644)
    cache = opened(folder)
    assert (folder / "secret").read_bytes() != secret
    assert cells_of(cache) is None
    (folder / "secret").write_bytes(b"short")
    opened(folder)
    assert len((folder / "secret").read_bytes()) == 32


def test_one_is_written_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on = threading.Event()
    make_room = PromptFiles._make_room

    def wait(self: PromptFiles, n_bytes: int) -> int:
        assert may_go_on.wait(10)
        return make_room(self, n_bytes)

    monkeypatch.setattr(PromptFiles, "_make_room", wait)
    cache = opened(folder)
    assert cache.keep(KEY, PROMPT, CELLS)
    assert cache.is_writing
    assert not cache.keep(KEY, PROMPT[::-1], CELLS)
    cache.flush(0)
    assert cache.is_writing
    may_go_on.set()
    cache.flush(10)
    assert not cache.is_writing
    assert cells_of(cache) == JOINED
