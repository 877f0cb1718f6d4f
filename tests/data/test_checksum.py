import hashlib
import io
import random

import pytest

from megatron.checksum import format_checksums, hash_file
from megatron.data.checksum import HashedFile, read_checksums
from megatron.errors import DataError


def test_a_file_is_hashed_while_it_is_written(tmp_path):
    draw = random.Random(1)
    pieces = [draw.randbytes(draw.choice([0, 1, 1000, 300_000])) for _ in range(100)]
    file = HashedFile((tmp_path / "a").open("wb"))
    for piece in pieces:
        changed = bytearray(piece)
        file.write(memoryview(changed))
        changed[:] = bytes(len(changed))
    digest = file.hexdigest()
    file.close()
    whole = b"".join(pieces)
    assert (tmp_path / "a").read_bytes() == whole
    assert digest == hashlib.sha256(whole).hexdigest() == hash_file(tmp_path / "a")


def test_what_the_disk_refuses_is_raised_at_the_end():
    file = HashedFile(io.FileIO("/dev/full", "w"))
    file.write(b"x" * 100)
    with pytest.raises(OSError, match="No space left"):
        file.hexdigest()
    file.close()


def test_what_the_disk_refuses_is_raised_by_a_later_write():
    file = HashedFile(io.FileIO("/dev/full", "w"))
    with pytest.raises(OSError, match="No space left"):
        for _ in range(100):
            file.write(b"x" * 100)
    file.close()


def test_an_empty_file_has_a_hash(tmp_path):
    file = HashedFile((tmp_path / "a").open("wb"))
    assert file.hexdigest() == hashlib.sha256(b"").hexdigest()
    file.close()


def test_a_checksum_file_names_the_files_beside_it(tmp_path):
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.bin", "a.idx")}
    (tmp_path / "a.sha256").write_text(format_checksums(digests))
    assert read_checksums(tmp_path / "a.sha256") == {tmp_path / n: digests[n] for n in digests}


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"0" * 64, b"0" * 63 + b"  a\n"])
def test_what_is_no_checksum_file_is_an_error(tmp_path, content):
    (tmp_path / "a.sha256").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.sha256"):
        read_checksums(tmp_path / "a.sha256")
