import hashlib
import shutil
import subprocess

import pytest

from megatron.checksum import (
    PIECE,
    ChecksumListError,
    format_checksums,
    hash_file,
    parse_checksums,
)

DIGESTS = {"a.bin": "0" * 64, "name with spaces.idx": "f" * 64}


def test_a_file_is_hashed_whole_and_each_byte_is_told_of(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(251)) * (PIECE // 251 + 2))  # longer than what is read at a time
    told = []
    assert hash_file(path, told.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(told) == 2
    assert sum(told) == path.stat().st_size


def test_sha256sum_reads_a_list(tmp_path):
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    for name in DIGESTS:
        (tmp_path / name).write_text(name)
    digests = {name: hash_file(tmp_path / name) for name in DIGESTS}
    (tmp_path / "list").write_text(format_checksums(digests))
    subprocess.run(["sha256sum", "-c", "--strict", "list"], cwd=tmp_path, check=True)


def test_a_list_is_read_as_it_was_written():
    assert parse_checksums(format_checksums(DIGESTS)) == DIGESTS


@pytest.mark.parametrize("text", ["", format_checksums(DIGESTS)[:-1]])
def test_a_list_that_is_cut_short_is_told(text):
    with pytest.raises(ChecksumListError) as error:
        parse_checksums(text)
    assert error.value.line is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "0" * 63 + "  b",
        "0" * 64 + " b",
        "0" * 64 + "  ",
        "F" * 64 + "  b",
        "0" * 64 + "  ../b",
        "1" * 64 + "  a.bin",  # a second time
        "0" * 64 + "  b\r\x0b\n",
    ],
)
def test_a_line_that_is_no_checksum_of_a_file_is_told(line):
    with pytest.raises(ChecksumListError) as error:
        parse_checksums(format_checksums(DIGESTS) + line + "\n")
    assert error.value.line in (3, 4)
