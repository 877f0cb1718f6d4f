"""An exact trace is what looking at every place of every document gives."""

import json
import random

import numpy as np
import pytest

pytest.importorskip("pydivsufsort", reason="pip install pydivsufsort")
pytest.importorskip("megatron.attribution._suffix_search", reason="csrc/ is not compiled: make env")
from megatron.attribution.options import BuildOptions
from megatron.attribution.similar import Similar
from megatron.attribution.suffix_array import piece_tokens, pieces, sorted_places
from megatron.attribution.trace import Trace, TraceIndex, rank_documents, to_json
from megatron.errors import ConfigError, DataError
from tests.attribution.conftest import index, write


def begins_line(ids, i):
    return i == 0 or ids[i - 1] == ord("\n")


def brute_force(documents, query, *, line_starts=False):
    """Give {(first, stop): count} of the runs of a query that no longer one contains, by trying all."""

    def count(run):
        return sum(
            document[i : i + len(run)] == run and (not line_starts or begins_line(document, i))
            for document in documents
            for i in range(len(document))
        )

    found, end = {}, -1
    for first in range(len(query)):
        if line_starts and not begins_line(query, first):
            continue
        stop = first
        while stop < len(query) and count(query[first : stop + 1]):
            stop += 1
        if stop > max(end, first):
            found[first, stop] = count(query[first:stop])
        end = max(end, stop)
    return found


def draw_documents(draw, count, most):
    letters = "ab\n" if draw.random() < 0.5 else "abcdefgh  \n"
    return ["".join(draw.choices(letters, k=draw.randrange(1, most))) for _ in range(count)]


@pytest.mark.parametrize("line_starts", [False, True])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_runs_and_counts_are_those_of_brute_force(
    by_bytes, tmp_path, monkeypatch, dtype, line_starts
):
    draw = random.Random(3)
    for number in range(12):
        texts = draw_documents(draw, 9, 60)
        prefixes = [
            write(tmp_path / f"{number}{name}", some, by_bytes, dtype=dtype)
            for name, some in (("a", texts[:6]), ("b", texts[6:]))
        ]
        # Pieces of at most 61 tokens, so that there are several.
        monkeypatch.setattr("megatron.attribution.suffix_array.piece_tokens", lambda *_: 61)
        files, spelling = index(prefixes, by_bytes, "trace", line_starts=line_starts)
        trace = Trace(files, by_bytes, spelling, num_threads=1 + number % 2)
        assert len(trace.pieces) > 2
        for query in [*draw_documents(draw, 4, 40), texts[2][1:] + texts[7], "z"]:
            ids = np.array(list(query.encode()), np.int64)
            found = {run: trace.count(ids[slice(*run)])[0] for run in trace.runs(ids)}
            assert found == brute_force(
                [text.encode() for text in texts], query.encode(), line_starts=line_starts
            )


def test_what_is_opted_out_is_as_if_it_were_not_there(by_bytes, tmp_path):
    draw = random.Random(5)
    for number in range(10):
        texts = draw_documents(draw, 12, 50)
        prefix = write(tmp_path / str(number), texts, by_bytes)
        gone = draw.sample(range(12), 5)
        lines = [json.dumps({"dataset": str(number), "document": one}) for one in gone]
        (tmp_path / "list").write_text("\n".join(lines))
        index([prefix], by_bytes, "trace")
        files, spelling = index([prefix], by_bytes, "trace", opt_out=[str(tmp_path / "list")])
        trace = Trace(files, by_bytes, spelling)
        kept = [text.encode() for i, text in enumerate(texts) if i not in gone]
        for query in [*draw_documents(draw, 3, 30), texts[gone[0]]]:
            ids = np.array(list(query.encode()), np.int64)
            found = {run: trace.count(ids[slice(*run)])[0] for run in trace.runs(ids)}
            assert found == brute_force(kept, query.encode())
            for first, stop in found:
                for file, place in trace.count(ids[first:stop], 50)[1]:
                    assert file.dataset.document_at(place) not in gone


@pytest.mark.parametrize("most_id", [3, 300, 70_000])
def test_order_of_suffixes_is_that_of_ids_as_numbers(most_id):
    tokens = np.random.default_rng(1).integers(0, most_id + 1, 500).astype(np.int32)
    tokens[7] = most_id
    is_wanted = np.random.default_rng(2).random(500) < 0.7
    given = np.concatenate(list(sorted_places(tokens, is_wanted))).tolist()
    expected = sorted(np.flatnonzero(is_wanted).tolist(), key=lambda i: tokens[i:].tolist())
    assert given == expected


@pytest.fixture(scope="module")
def traced(source_texts, tokenizer, tmp_path_factory):
    rows = {
        "repo": [f"octocat/r{i}" for i in range(len(source_texts))],
        "license": ["MIT"] * len(source_texts),
    }
    prefix = write(tmp_path_factory.mktemp("trace") / "py", source_texts, tokenizer, rows=rows)
    files, spelling = index([prefix], tokenizer, "trace")
    return Trace(files, tokenizer, spelling), source_texts


def test_a_piece_of_a_document_cut_at_any_byte_is_found_whole_with_its_lines(traced):
    trace, texts = traced
    draw = random.Random(11)
    for _ in range(200):
        number = draw.randrange(len(texts))
        text = texts[number].encode()
        start = draw.randrange(len(text) - 500)
        query = text[start : start + draw.randrange(60, 400)]
        try:
            query.decode()
        except UnicodeDecodeError:
            continue
        spans = trace(query)
        best = max(spans, key=lambda span: span.stop - span.start)
        assert (best.start, best.stop) == (0, len(query)), (number, start, query)
        answer = to_json(query, spans, trace.spelling, 3)
        assert answer["covered_bytes"] == len(query)
        named = answer["documents"][0]
        assert named["covered_bytes"] == len(query)
        lines = text.split(b"\n")
        documents = [one for one in answer["documents"] if one["document"] == number]
        if documents:  # else as much stands in others
            first, last = max(documents[0]["parts"], key=lambda part: part["stop"])["lines"]
            shown = b"\n".join(lines[first - 1 : last])
            assert query.strip(b"\n") in shown and documents[0]["provenance"]["license"] == "MIT"


def test_line_starts_find_pieces_of_whole_lines_and_carry_them_to_the_left(
    source_texts, tokenizer, tmp_path
):
    prefix = write(tmp_path / "a", source_texts, tokenizer)
    files, spelling = index([prefix], tokenizer, "trace", line_starts=True)
    full = (tmp_path / "a.trace").stat().st_size
    trace = Trace(files, tokenizer, spelling)
    draw = random.Random(13)
    for _ in range(100):
        text = draw.choice(source_texts)
        start = draw.randrange(len(text) - 600)
        query = text[start : start + 400].encode()
        if query.strip().count(b"\n") < 2:
            continue
        best = max(trace(query), key=lambda span: span.stop - span.start)
        assert (best.start, best.stop) == (0, len(query))
    index([prefix], tokenizer, "trace", again=True)
    assert full < (tmp_path / "a.trace").stat().st_size / 4


def test_documents_are_ranked_by_how_much_of_the_text_stands_in_them(traced):
    trace, texts = traced
    query = (texts[1][1000:1400] + "\n@@@@\n" + texts[2][2000:2900]).encode()
    ranked = rank_documents(trace(query, min_tokens=20))
    assert [found[0].document for _, found in ranked[:2]] == [2, 1]


def test_lines_count_from_the_file_behind_metadata(by_bytes, tmp_path):
    text = "<reponame>a/b<filename>c.py\nfirst line of it\nsecond line of it\n"
    prefix = write(tmp_path / "a", [text, "no metadata\nsecond line of that\n"], by_bytes)
    files, spelling = index([prefix], by_bytes, "trace")
    trace = Trace(files, by_bytes, spelling)
    for query, lines in ((b"second line of it", [2, 2]), (b"second line of that\n", [2, 2])):
        answer = to_json(query, trace(query, min_tokens=17), spelling, 5)
        assert answer["documents"][0]["parts"][0]["lines"] == lines


def test_what_cannot_be_traced_is_an_error_that_says_what_to_do(
    by_bytes, tokenizer, source_texts, tmp_path, traced
):
    prefix = write(tmp_path / "a", ["some text", "more"], by_bytes, eod=False)
    with pytest.raises(DataError, match=r"document 0 does not end in id 256.*--append-eod"):
        index([prefix], by_bytes, "trace")
    prefix = write(tmp_path / "b", source_texts[:1], tokenizer)
    files, spelling = index([prefix], tokenizer, "trace", "search")
    with pytest.raises(DataError, match=r"b\.trace is of ids of another tokenizer"):
        Trace(files, by_bytes, type(spelling)(by_bytes))
    with pytest.raises(DataError, match=r"b\.search is of ids of another tokenizer"):
        Similar(files, type(spelling)(by_bytes))
    with pytest.raises(DataError, match="not UTF-8"):
        traced[0](b"\xff" * 30)
    with pytest.raises(
        ConfigError, match=r"document 0 of .* has more than the 10 tokens that --memory"
    ):
        pieces(files[0], 10)
    with pytest.raises(ConfigError, match=r"--memory 0\.1: a trace of"):
        piece_tokens(files[0], BuildOptions(memory=0.1))


def test_damage_is_seen(source_texts, tokenizer, tmp_path):
    from megatron.attribution.index_file import IndexFile

    prefix = write(tmp_path / "a", source_texts[:2], tokenizer)
    index([prefix], tokenizer, "trace")
    path = tmp_path / "a.trace"
    whole = path.read_bytes()
    IndexFile.open(prefix, "trace").verify()
    for damaged in (whole[:-1], whole[:100], b"x" + whole[1:], whole[:20] + b"\0" + whole[21:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged"):
            IndexFile.open(prefix, "trace")
    place = len(whole) - 5
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(DataError, match="is damaged: its SHA-256"):
        IndexFile.open(prefix, "trace").verify()


def test_the_longest_runs_are_kept_where_many_are_found(by_bytes, tmp_path):
    words = ["one", "fourteen", "two", "seventeen", "six"]
    prefix = write(tmp_path / "a", words, by_bytes)
    files, spelling = index([prefix], by_bytes, "trace")
    trace = Trace(files, by_bytes, spelling)
    text = "|".join(words).encode()
    spans = trace(text, min_tokens=2, most_spans=2)
    assert [text[span.start : span.stop] for span in spans] == [b"fourteen", b"seventeen"]
    assert trace.holds(text, 9) and not trace.holds(text, 10)


def test_a_token_file_that_is_opted_out_whole_is_not_searched(by_bytes, tmp_path):
    texts = ["some text", "more of it"]
    gone = write(tmp_path / "gone", texts, by_bytes, rows={"repo": ["a/gone", "a/gone"]})
    stays = write(tmp_path / "stays", texts[1:], by_bytes, rows={"repo": ["a/stays"]})
    list_file = tmp_path / "out.jsonl"
    list_file.write_text('{"repo": "a/gone"}\n')
    files, spelling = index([gone, stays], by_bytes, "trace", opt_out=[str(list_file)])
    assert [len(TraceIndex(file, spelling).pieces) for file in files] == [0, 1]
    trace = Trace(files, by_bytes, spelling)
    assert [span.count for span in trace(b"more of it", min_tokens=4)] == [1]
    assert trace(b"some text", min_tokens=8) == Trace(files[:1], by_bytes, spelling)(b"some") == []
