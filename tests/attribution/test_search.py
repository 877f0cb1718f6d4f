"""Search finds the document that a snippet was taken from."""

import random
import sqlite3
import sysconfig
from pathlib import Path

import pytest

from megatron.attribution.ranking import LineRanking, Place
from megatron.attribution.search import SearchIndex, build_search
from megatron.attribution.tantivy_search import TantivyIndex, build_tantivy
from megatron.errors import DataError

NUM_TRIES, NUM_LINES = 60, 10


@pytest.fixture(scope="module")
def library():
    """Files of the standard library, none of which is part of another."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [
        *sorted(folder.glob("*.py"))[:120],
        *sorted((folder / "encodings").glob("cp*.py"))[:30],
    ]
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


@pytest.fixture(scope="module", params=["sqlite", "tantivy"])
def index(request, library, tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "index"
    if request.param == "tantivy":
        pytest.importorskip("tantivy")
        build_tantivy(path, enumerate(library), {"dataset": "code"})
        return TantivyIndex(path)
    build_search(path, enumerate(library), {"dataset": "code"})
    return SearchIndex(path)


def first_hit(index, library, snippet):
    """The document that a user sees first."""
    ranking = LineRanking(snippet)
    shares = []
    for candidate in index.candidates(snippet, 50):
        place = ranking.place_in(library[candidate.document])
        shares.append((place.share if place else 0.0, candidate.document))
    return max(shares, key=lambda pair: pair[0])[1] if shares else None


def snippets(library, draw):
    """Ten lines each, of at least six that are not blank."""
    while True:
        lines = draw.choice(library).splitlines()
        start = draw.randrange(max(len(lines) - NUM_LINES, 1))
        chosen = lines[start : start + NUM_LINES]
        if sum(bool(line.strip()) for line in chosen) >= 6:
            yield chosen


def renamed(lines, draw):
    """Other names in a fifth of the lines."""
    result = list(lines)
    for number in draw.sample(range(len(lines)), len(lines) // 5):
        words = [w for w in result[number].replace("(", " ").split() if w.isidentifier()]
        if words:
            result[number] = result[number].replace(draw.choice(words), f"name_{draw.random():.6f}")
    return result


@pytest.mark.parametrize(("change", "aim"), [(lambda lines, _: lines, 0.95), (renamed, 0.90)])
def test_first_hit_is_where_ten_lines_came_from(index, library, change, aim):
    draw = random.Random(1)
    num_right = 0
    for lines, _ in zip(snippets(library, draw), range(NUM_TRIES), strict=False):
        found = first_hit(index, library, "\n".join(change(lines, draw)))
        num_right += found is not None and "\n".join(lines) in "\n".join(
            library[found].splitlines()
        )
    assert num_right >= aim * NUM_TRIES


def test_words_of_a_user_are_found(index, library):
    found = [one.document for one in index.candidates("bisect insort keeps a list sorted", 3)]
    assert any("insort" in library[document] for document in found)
    assert index.candidates("xyzzyplugh", 3) == []
    assert index.candidates('" * NEAR( ^', 3) == index.candidates("near", 3)  # no query language


def test_ranking_finds_the_lines_and_how_much_of_the_text_they_are():
    document = (
        "a = 1\nb = 2\n\nfor x in y:\n    call(x)\n    done(x)\nend\n" + "pass\n" * 9 + "call(x)\n"
    )
    assert LineRanking("for x in y:\n  call(x)\n  done(x)").place_in(document) == Place(1.0, 4, 6)
    half = LineRanking("call(x)\ncall(y)").place_in(document)
    assert half == Place(0.5, 5, 5)
    assert LineRanking("nothing here DONE").place_in(document) == Place(0.0, 6, 6)
    assert LineRanking("}").place_in(document) is None


def test_a_bad_index_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"none\.db does not exist; make it with"):
        SearchIndex(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("no database" * 1000)
    with pytest.raises(DataError, match=r"text\.db cannot be used: .*; .*build it again"):
        SearchIndex(tmp_path / "text.db")

    def stops():
        yield 0, "one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_search(tmp_path / "cut.db", stops(), {})
    with pytest.raises(DataError, match=r"cut\.db (was cut short|cannot be used)"):
        SearchIndex(tmp_path / "cut.db")
    build_search(tmp_path / "new.db", [], {})
    with sqlite3.connect(tmp_path / "new.db") as database:
        database.execute("UPDATE facts SET version = 9")
    database.close()
    with pytest.raises(DataError, match="version 9, this program reads version 1"):
        SearchIndex(tmp_path / "new.db")


def test_a_bad_tantivy_index_is_refused_by_name(tmp_path):
    pytest.importorskip("tantivy")
    with pytest.raises(DataError, match=r"none cannot be used: .*; build it again"):
        TantivyIndex(tmp_path / "none")
    build_tantivy(tmp_path / "one", [(0, "a word")], {})
    assert [one.document for one in TantivyIndex(tmp_path / "one").candidates("Word", 3)] == [0]
    index = TantivyIndex(tmp_path / "one")
    index.verify()
    (tmp_path / "one/meta.json").write_text("{")
    with pytest.raises(DataError, match=r"one cannot be used: .*; build it again"):
        TantivyIndex(tmp_path / "one")
    with pytest.raises(DataError, match=r"meta\.json is missing or damaged"):
        index.verify()
    (tmp_path / "one/facts.json").write_text('{"version": 9}')
    with pytest.raises(DataError, match="version 9, this program reads 1"):
        TantivyIndex(tmp_path / "one")
