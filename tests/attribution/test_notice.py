"""What is known of a source is read from whatever its fields are called, and a notice names each once."""

import pytest

from megatron.attribution.notice import Source, licenses, notice


def document(number, provenance, **fields):
    return {"dataset": "data/a", "document": number, "provenance": provenance, **fields}


MINE = {"repo": "octocat/b", "path": "x.py", "license": "MIT"}
STACK = {
    "max_stars_repo_name": "octocat/a",
    "max_stars_repo_path": "y.c",
    "max_stars_repo_licenses": '["Apache-2.0","MIT"]',
}


@pytest.mark.parametrize(
    ("provenance", "source"),
    [
        (MINE, Source("octocat/b", "x.py", "MIT")),
        (STACK, Source("octocat/a", "y.c", "Apache-2.0, MIT")),
        ({"repo": None, "license": "a\nb"}, Source("", "", "a b")),
        (None, Source("", "", "")),
    ],
)
def test_fields_of_common_corpora_are_known(provenance, source):
    assert Source.of(provenance) == source


def test_a_notice_names_each_source_once_by_repository():
    documents = [
        document(3, MINE, parts=[{"lines": [20, 25]}, {"lines": [7, 9]}, {"lines": [7, 9]}]),
        document(4, None, parts=[{"lines": [1, 2]}]),
    ]
    similar = [
        document(3, MINE, share=1.0, lines=[7, 30]),
        document(5, STACK, share=0.6, lines=[1, 9]),
        document(6, MINE, share=0.4, lines=[1, 9]),
    ]
    assert notice(documents, similar) == (
        "This work has parts that also stand in:\n\n"
        "  document 4 of data/a, lines 1-2\n    licence not known\n"
        "  octocat/a, y.c, lines 1-9\n    Apache-2.0, MIT\n"
        "  octocat/b, x.py, lines 7-9, 20-25\n    MIT\n"
    )
    assert notice([], similar[2:]) == ""
    assert licenses([*documents, *similar])[0] == {"license": "MIT", "documents": 3}
