"""The cache gives back each text's own vector or none, whatever interrupted the writing.

Every vector read is compared with `vector_of`, which computes it from the text and shares no code with the cache.
"""

import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5.vectors import Vectors
from evaluation.cache.key_index import ABSENT, KeyIndex
from evaluation.cache.vector_cache import CacheError, Dtype, VectorCache

DIMENSIONS = 6
ROW_BYTES = DIMENSIONS * 4
REPOSITORY = Path(__file__).parents[2]
CHILD = """
import os, signal, sys
from pathlib import Path
import numpy as np
sys.path[:0] = [{repository!r}, {tests!r}]
from evaluation.cache.vector_cache import CacheError, VectorCache
from test_vector_cache import DIMENSIONS, texts_of, vectors_of

folder = Path({folder!r})
{code}
"""


def vector_of(text: str) -> list[float]:
    """Multiples of 1/8 below 125, which float16 holds exactly."""
    return [zlib.crc32(f"{index} {text}".encode("utf-8", "surrogatepass")) % 1000 / 8 for index in range(DIMENSIONS)]


def vectors_of(texts: Sequence[str]) -> Vectors:
    return np.array([vector_of(text) for text in texts], np.float32).reshape(-1, DIMENSIONS)


def texts_of(begin: int, end: int) -> list[str]:
    return [f"document {index}" for index in range(begin, end)]


def opened(folder: Path, dtype: Dtype = "float32") -> VectorCache:
    return VectorCache(folder, DIMENSIONS, dtype)


def stored_of(cache: VectorCache, texts: Sequence[str]) -> list[str]:
    """The texts that the cache holds, after a check that each of their vectors is the right one."""
    rows = cache.find(texts)
    held = [text for text, row in zip(texts, rows, strict=True) if row != ABSENT]
    np.testing.assert_array_equal(cache.read(rows[rows != ABSENT]), vectors_of(held))
    return held


def child(folder: Path, code: str) -> "subprocess.Popen[str]":
    program = CHILD.format(repository=str(REPOSITORY), tests=str(Path(__file__).parent), folder=str(folder), code=code)
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


# --- storing and finding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_come_back_in_any_order_and_after_reopening(tmp_path: Path, dtype: Dtype) -> None:
    texts = ["", "ü", "日本", "lone \ud800", "two\nlines\0", *texts_of(0, 300)]
    for begin in range(0, len(texts), 60):
        with opened(tmp_path / "new" / "cache", dtype) as cache:
            cache.append(texts[begin : begin + 60], vectors_of(texts[begin : begin + 60]))
            assert stored_of(cache, texts) == texts[: begin + 60]
    with opened(tmp_path / "new" / "cache", dtype) as cache:
        shuffled = random.Random(1).choices(texts, k=1000)  # with repetitions
        assert stored_of(cache, shuffled) == shuffled
        assert cache.read(cache.find(texts)).dtype == np.float32
        assert cache.find(["document", "document 300", "Ü"]).tolist() == [ABSENT] * 3
        assert len(cache) == len(texts)


@given(st.lists(st.lists(st.text("ab", max_size=3), max_size=12), max_size=12), st.booleans())
def test_duplicates_are_stored_once_in_any_sequence_of_appends(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[list[str]], reopen: bool
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = opened(folder)
    texts = [text for chunk in chunks for text in chunk]
    for chunk in chunks:
        cache.append(chunk, vectors_of(chunk))
        if reopen:
            cache.close()
            cache = opened(folder)
    assert stored_of(cache, texts) == texts
    assert len(cache) == len(set(texts))
    cache.close()
    assert (folder / "vectors").stat().st_size == len(set(texts)) * ROW_BYTES
    shutil.rmtree(folder)


def test_first_vector_of_a_text_stays(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        cache.append(["a", "b", "a"], vectors_of(["a", "b", "other"]))
        cache.append(["b", "c"], vectors_of(["other", "c"]))
        assert stored_of(cache, ["a", "b", "c"]) == ["a", "b", "c"]


def test_no_texts_and_transposed_vectors(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        cache.append([], np.empty((0, DIMENSIONS), np.float32))
        assert cache.find([]).shape == (0,)
        assert cache.read(cache.find([])).shape == (0, DIMENSIONS)
        cache.append(texts_of(0, 9), np.asfortranarray(vectors_of(texts_of(0, 9))))
        assert stored_of(cache, texts_of(0, 9)) == texts_of(0, 9)


@pytest.mark.parametrize("row", [ABSENT, 3])
def test_rows_that_do_not_exist_are_refused(tmp_path: Path, row: int) -> None:
    with opened(tmp_path) as cache:
        cache.append(texts_of(0, 3), vectors_of(texts_of(0, 3)))
        with pytest.raises(IndexError, match="of a cache with 3 rows"):
            cache.read(np.array([0, row]))


def test_vectors_of_another_shape_are_a_bug(tmp_path: Path) -> None:
    with opened(tmp_path) as cache, pytest.raises(ValueError, match="this is a bug"):
        cache.append(["a", "b"], vectors_of(["a"]))


@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=9, unique=True), max_size=9))
def test_keys_that_share_their_first_half_are_told_apart(chunks: list[list[tuple[int, int]]]) -> None:
    index, rows, first_row = KeyIndex(), dict[tuple[int, int], list[int]](), 0
    for chunk in chunks:
        index.add(np.array(chunk, np.uint64).reshape(-1, 2), first_row)
        for key in chunk:
            rows.setdefault(key, []).append(first_row)
            first_row += 1
    keys = [(head, tail) for head in range(4) for tail in range(5)]
    for key, row in zip(keys, index.find(np.array(keys, np.uint64)).tolist(), strict=True):
        assert row in rows.get(key, [ABSENT])


def test_values_beyond_float16_and_nan_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path, "float16") as cache:
        cache.append(["a"], vectors_of(["a"]))
        for value, error, message in (
            (65504, None, ""),
            (-70000, CacheError, "the value 70000, .* use a cache of float32"),
            (np.nan, FloatingPointError, "text 2 of 2"),
            (np.inf, FloatingPointError, "text 2 of 2"),
        ):
            vectors = vectors_of(["b", "c"])
            vectors[1, 3] = value
            if error is None:
                cache.append(["limit"], vectors[1:])
                assert cache.read(cache.find(["limit"]))[0, 3] == value
            else:
                with pytest.raises(error, match=message):
                    cache.append(["b", "c"], vectors)
        assert stored_of(cache, ["a", "b", "c"]) == ["a"]


# --- interrupted writing ---------------------------------------------------------------------------------------------


def test_every_torn_write_leaves_the_complete_rows(tmp_path: Path) -> None:
    """Lengths of both files around the rows of the last append, including those that only a power failure leaves."""
    texts, more = texts_of(0, 5), texts_of(5, 9)
    with opened(tmp_path / "whole") as cache:
        cache.append(texts, vectors_of(texts))
    vectors, keys = ((tmp_path / "whole" / name).read_bytes() for name in ("vectors", "keys"))
    for vector_bytes in range(2 * ROW_BYTES, len(vectors) + 1, 4):
        for key_bytes in range(2 * 16, len(keys) + 1, 3):
            folder = shutil.copytree(tmp_path / "whole", tmp_path / "torn")
            os.truncate(folder / "vectors", vector_bytes)
            os.truncate(folder / "keys", key_bytes)
            with opened(folder) as cache:
                complete = min(vector_bytes // ROW_BYTES, key_bytes // 16)
                assert stored_of(cache, texts + more) == texts[:complete]
                cache.append(more, vectors_of(more))
                assert stored_of(cache, texts + more) == texts[:complete] + more
            with opened(folder) as cache:
                assert stored_of(cache, texts + more) == texts[:complete] + more
            shutil.rmtree(folder)


@pytest.mark.parametrize("fsync", range(1, 5))
def test_kill_between_vectors_and_keys_loses_only_that_append(tmp_path: Path, fsync: int) -> None:
    """Each append calls fsync for vectors, then for keys: here of the second and the third append."""
    code = f"""
cache = VectorCache(folder, DIMENSIONS, "float32")
cache.append(texts_of(0, 10), vectors_of(texts_of(0, 10)))
calls = iter(range(1, 9))
os.fsync = lambda _: next(calls) == {fsync} and os.kill(os.getpid(), signal.SIGKILL)
for begin in (10, 20):
    cache.append(texts_of(begin, begin + 10), vectors_of(texts_of(begin, begin + 10)))
"""
    process = child(tmp_path, code)
    assert process.wait(60) == -signal.SIGKILL, process.communicate()
    assert (tmp_path / "vectors").stat().st_size == (20 + 10 * (fsync > 2)) * ROW_BYTES
    with opened(tmp_path) as cache:
        complete = 10 + 10 * (fsync // 2)
        assert stored_of(cache, texts_of(0, 40)) == texts_of(0, complete)
        cache.append(texts_of(30, 40), vectors_of(texts_of(30, 40)))
        assert stored_of(cache, texts_of(0, 40)) == [*texts_of(0, complete), *texts_of(30, 40)]


def test_kill_while_the_folder_is_created_does_not_spoil_it(tmp_path: Path) -> None:
    code = """
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
VectorCache(folder, DIMENSIONS, "float32")
"""
    process = child(tmp_path, code)
    assert process.wait(60) == -signal.SIGKILL, process.communicate()
    assert not (tmp_path / "cache.json").exists()
    with opened(tmp_path) as cache:
        cache.append(texts_of(0, 5), vectors_of(texts_of(0, 5)))
        assert stored_of(cache, texts_of(0, 9)) == texts_of(0, 5)


def test_process_killed_again_and_again_ends_with_every_vector_right(tmp_path: Path) -> None:
    code = """
sizes = np.random.default_rng()
with VectorCache(folder, DIMENSIONS, "float32") as cache:
    print("open", flush=True)
    begin = len(cache)
    while begin < 400_000:
        texts = texts_of(begin, begin + int(sizes.integers(1, 300)))
        cache.append(texts, vectors_of(texts))
        begin += len(texts)
"""
    patience, counts = random.Random(7), [0]
    for _ in range(8):
        process = child(tmp_path, code)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n", process.communicate()
        time.sleep(patience.uniform(0.02, 0.25))
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        process.communicate()
        with opened(tmp_path) as cache:
            counts.append(len(cache))
            assert stored_of(cache, texts_of(0, counts[-1] + 300)) == texts_of(0, counts[-1])
    assert counts == sorted(counts) and counts[-1] > 0


def test_interrupted_append_can_be_repeated_in_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        if next(calls) == 2:  # vectors and keys are in the files
            raise KeyboardInterrupt

    calls = iter(range(1, 99))
    with opened(tmp_path) as cache:
        cache.append(texts_of(0, 5), vectors_of(texts_of(0, 5)))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                cache.append(texts_of(5, 10), vectors_of(texts_of(5, 10)))
        assert (tmp_path / "vectors").stat().st_size == 5 * ROW_BYTES
        assert (tmp_path / "keys").stat().st_size == 5 * 16
        cache.append(texts_of(7, 12), vectors_of(texts_of(7, 12)))
        assert stored_of(cache, texts_of(0, 12)) == [*texts_of(0, 5), *texts_of(7, 12)]


# --- disks and folders -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB: 1,600 rows with their keys."""
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"NOT TESTED: full disk; only root may mount a small file system here ({error})")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_full_disk_keeps_the_complete_rows(small_disk: Path) -> None:
    folder, begin = small_disk / "cache", 0
    with opened(folder) as cache:
        with pytest.raises(CacheError, match="No space left on device") as caught:
            for begin in range(0, 10_000, 100):
                cache.append(texts_of(begin, begin + 100), vectors_of(texts_of(begin, begin + 100)))
        assert 500 < begin < 1_700
        assert f"the {begin:,} vectors before are kept" in str(caught.value) and "free space" in str(caught.value)
        assert stored_of(cache, texts_of(0, begin + 100)) == texts_of(0, begin)
        assert (folder / "vectors").stat().st_size == begin * ROW_BYTES
        assert (folder / "keys").stat().st_size == begin * 16
    subprocess.run(["mount", "-o", "remount,size=128k", str(small_disk)], check=True)
    with opened(folder) as cache:
        cache.append(texts_of(begin, begin + 100), vectors_of(texts_of(begin, begin + 100)))
        assert stored_of(cache, texts_of(0, begin + 200)) == texts_of(0, begin + 100)


@pytest.mark.parametrize("limit", [100 * ROW_BYTES + 1000, 150 * ROW_BYTES], ids=["in the second", "before the third"])
def test_full_disk_of_a_user_who_is_not_root(tmp_path: Path, limit: int) -> None:
    """A limit on the size of files: the same path as a full disk, also without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as cache:
        cache.append(texts_of(0, 100), vectors_of(texts_of(0, 100)))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(CacheError, match="File too large; the 100 vectors before are kept"):
                cache.append(texts_of(100, 200), vectors_of(texts_of(100, 200)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "vectors").stat().st_size == 100 * ROW_BYTES
        cache.append(texts_of(150, 250), vectors_of(texts_of(150, 250)))
        assert stored_of(cache, texts_of(0, 250)) == [*texts_of(0, 100), *texts_of(150, 250)]


def test_read_only_disk_is_an_error_with_a_cure(small_disk: Path) -> None:
    with opened(small_disk / "cache") as cache:
        cache.append(texts_of(0, 5), vectors_of(texts_of(0, 5)))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for folder in ("cache", "new"):
        with pytest.raises(CacheError, match=r"Read-only file system.*another folder with --cache"):
            opened(small_disk / folder)


def test_path_that_is_no_folder_is_an_error_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(CacheError, match=r"cannot be used.*--cache"):
            opened(folder)


def test_file_that_another_program_cut_is_an_error(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        cache.append(texts_of(0, 5), vectors_of(texts_of(0, 5)))
        os.truncate(tmp_path / "vectors", 3 * ROW_BYTES + 1)
        with pytest.raises(CacheError, match="became shorter"):
            cache.read(np.arange(5))


def test_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    process = child(tmp_path, 'cache = VectorCache(folder, 6, "float32"); print("open", flush=True); input()')
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0] and process.stdout.readline() == "open\n"
    for _ in range(2):  # a refused attempt must not remove the lock
        with pytest.raises(CacheError, match=r"in use by another evaluation.*wait until it ends.*--cache"):
            opened(tmp_path)
    process.kill()
    process.communicate()
    with opened(tmp_path), pytest.raises(CacheError, match="in use"):  # nor may one process open it twice
        opened(tmp_path)
    opened(tmp_path).close()


def test_other_dimensions_dtype_and_format_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        cache.append(texts_of(0, 5), vectors_of(texts_of(0, 5)))
    with pytest.raises(
        CacheError, match="holds vectors of dimensions 6, dtype float32, not dimensions 7, dtype float16"
    ):
        VectorCache(tmp_path, 7, "float16")
    header = tmp_path / "cache.json"
    content = json.loads(header.read_text("utf-8"))
    for text, message in (
        (json.dumps(content | {"format": 2}), "format 2, not format 1"),
        ("{", "is broken"),
        ("[]", "is broken"),
    ):
        header.write_text(text, "utf-8")
        with pytest.raises(CacheError, match=message):
            opened(tmp_path)
    header.unlink()
    with pytest.raises(CacheError, match="is missing"):
        opened(tmp_path)
    header.write_text(json.dumps(content), "utf-8")
    with opened(tmp_path) as cache:  # no refusal changed anything, and each released its lock
        assert stored_of(cache, texts_of(0, 5)) == texts_of(0, 5)
