"""Each kind of record as the text that is trained on: templates, chances, and no sentinel that is not ours."""

import ast
import importlib.util
import json
import random
import re
import time
from collections import Counter

import pytest

from megatron.curation.formats.human_language import NOT_PROSE, language_of
from megatron.curation.formats.issues import without_mail
from megatron.curation.formats.sentinels import neutralise
from megatron.curation.formats.stage import FormatConfig, format_stage, star_bucket
from megatron.curation.run.document import Changed, Document, Drop
from megatron.data.preprocessing.formatted import FORMAT_TOKENS, SENTINELS
from megatron.errors import ConfigError
from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS

CODE = {"repo": "octocat/hello", "path": "src/a.py", "stars": 42}


def formatted(text, id="1", *, config=None, **metadata):
    answer = format_stage(config or FormatConfig()).apply(Document(id, text, metadata))
    assert isinstance(answer, Changed), answer
    return answer.document.text


def sentinels(text, config=None, **metadata):
    """Give what stands at the places that a formatted record names, and the raw texts between."""
    answer = format_stage(config or FormatConfig()).apply(Document("1", text, metadata))
    data, start, found, raw = answer.document.text.encode(), 0, [], []
    for place in answer.document.metadata[SENTINELS]:
        raw.append(data[start:place].decode())
        found.append(next(t for t in FORMAT_TOKENS if data.startswith(t.encode(), place)))
        start = place + len(found[-1])
    return found, [*raw, data[start:].decode()]


def reason(text, **metadata):
    answer = format_stage(FormatConfig()).apply(Document("1", text, metadata))
    assert isinstance(answer, Drop), answer
    return answer.rule


def test_code_has_all_three_prefixes_in_order_or_none():
    always, never = FormatConfig(prefix_rate=1.0), FormatConfig(prefix_rate=0.0)
    prefix = "<reponame>octocat/hello<filename>src/a.py<gh_stars>10-100\n"
    assert formatted("x = 1\n", config=always, **CODE) == prefix + "x = 1\n"
    assert formatted("x = 1\n", config=never, **CODE) == "x = 1\n"
    assert formatted("x = 1\n", config=always) == "x = 1\n"  # a record that states nothing


def test_each_prefix_has_a_chance_of_a_fifth_of_its_own():
    counts = Counter()
    for number in range(4000):
        head = formatted("x", str(number), **CODE).removesuffix("x")
        assert not head or head.endswith("\n")
        found = [name for name in ("<reponame>", "<filename>", "<gh_stars>") if name in head]
        counts.update(found)
        counts[not found] += 1
    for name in ("<reponame>", "<filename>", "<gh_stars>"):
        assert counts[name] / 4000 == pytest.approx(0.2, abs=0.022)  # 99.9 %
    assert counts[True] / 4000 == pytest.approx(0.8**3, abs=0.026)


def test_choices_depend_on_seed_and_id_alone():
    texts = [formatted("x", str(n), **CODE) for n in range(50)]
    assert texts == [formatted("x", str(n), **CODE) for n in reversed(range(50))][::-1]
    assert texts != [formatted("x", str(n), config=FormatConfig(seed=5), **CODE) for n in range(50)]


@pytest.mark.parametrize(
    ("stars", "bucket"),
    [(None, "0"), (0, "0"), (1, "1-10"), (10, "1-10"), (11, "10-100"), (100, "10-100"), (1000, "100-1000"), (1001, "1000+")],
)  # fmt: skip
def test_stars_are_told_in_the_ranges_of_the_paper(stars, bucket):
    assert star_bucket(Document("1", "", {"max_stars_count": stars})) == bucket
    assert star_bucket(Document("1", "", {})) == ""


RAW = "é " + " ".join(STARCODER_SPECIAL_TOKENS) + " <<filename>filename> < filename> \U0001f600"
ISSUE = [{"author": "ann", "title": RAW, "text": RAW * 3}, {"author": "bob", "text": RAW}]


def test_raw_text_stays_as_it_is_and_is_no_sentinel_in_any_kind():
    always = FormatConfig(prefix_rate=1.0)
    found, raw = sentinels(RAW, always, path=RAW, repo="<filename>")
    assert found == ["<reponame>", "<filename>"]
    assert raw == ["", "<filename>", f"{RAW}\n{RAW}"]
    found, raw = sentinels("t", events=ISSUE)
    assert found == ["<issue_start>", "<issue_comment>"]
    assert raw[2] == f"username_1: {RAW}"
    found, raw = sentinels(RAW, FormatConfig(all_commits=True), old_contents="", subject="Say it")
    assert found == ["<commit_before>", "<commit_msg>", "<commit_after>"]
    assert raw == ["", "", "Say it", RAW]
    cells = ("markdown", "Hi", []), ("code", f"# {RAW}", [{"text": RAW}])
    found, raw = sentinels(notebook(*cells), FormatConfig(kind="notebook-structured"))
    assert found == ["<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>"]
    assert raw == ["", "", "Hi", f"# {RAW}", RAW]


def prose(text):
    """Give the prose of a notebook of one text and one line of code."""
    config = FormatConfig(kind="notebook-structured")
    return sentinels(notebook(("markdown", text, []), ("code", "1", [])), config)[1][2]


def test_prose_is_what_stands_outside_of_comments_and_tags():
    source = random.Random(1)
    parts = ["<!--", "-->", "<b>", "</b>", "<", ">", "<a x='-->'>", "word ", "-", "!", "\n"]
    for _ in range(500):
        text = "x" + "".join(source.choices(parts, k=source.randrange(12))) + " y"
        shown = re.sub(r"<!--.*?-->|</?[A-Za-z][^<>]*>", " ", text, flags=re.S)
        assert prose(text) == " ".join(shown.split()), text


@pytest.mark.parametrize("part", ["<!--", "<!-- x >", "<a ", "<!-->"])
def test_prose_of_a_megabyte_of_comments_that_never_end_is_read_once(part):
    begin = time.process_time()
    assert prose("x --> y " + part * (1_000_000 // len(part)) + " z").endswith(" z")
    assert time.process_time() - begin < 8  # minutes where each place looks at all behind it


def test_for_other_programs_raw_text_gets_a_space_where_it_spells_a_sentinel():
    config = FormatConfig(prefix_rate=1.0, raw_sentinels="space")
    spelled = re.compile("|".join(map(re.escape, STARCODER_SPECIAL_TOKENS)))
    assert spelled.findall(formatted(RAW, path=RAW, config=config)) == ["<filename>"]
    assert len(spelled.findall(formatted("t", config=config, events=ISSUE))) == 2
    assert neutralise("vector<filename> x;") == "vector< filename> x;"


def test_a_record_cannot_say_itself_where_sentinels_are():
    found, raw = sentinels("<filename>a", FormatConfig(prefix_rate=0.0), sentinels=[0], path="b")
    assert (found, raw) == ([], ["<filename>a"])


def test_half_a_surrogate_pair_in_a_notebook_does_not_end_the_run():
    text = formatted(notebook(("code", "x = 1 # \ud83d", [])), path="a.ipynb")
    assert text.endswith("x = 1 # \ufffd\n")


def test_an_issue_is_a_conversation_of_numbered_users():
    long = "The reader of a.b fails when the file is empty, as @ann-b said; see annex. " * 3
    events = [
        {"action": "opened", "author": "ann-b", "title": "Reader fails", "text": long},
        {"action": "created", "author": "a", "text": "/retest"},
        {"action": "created", "author": "k8s-ci-robot", "text": "rerunning all"},
        {"action": "created", "author": "a", "text": "Thanks ann-b\r\n> quoted\r\n\r\nIt is a bug"},
        {"action": "closed", "author": "ann-b", "text": ""},
    ]
    text = formatted("ignored", events=events)
    shown = long.strip().replace("ann-b", "username_0")
    assert text == (
        f"<issue_start>Title: Reader fails\nusername_0: {shown}"
        "<issue_comment>username_1: Thanks username_0\n\nIt is a bug<issue_closed>"
    )


PROSE = {
    "en": "The build fails when I run the tests on Windows, and I do not see why it should.",
    "de": "Der Bau bricht ab, wenn ich die Tests unter Windows laufen lasse, und ich sehe nicht warum.",
    "fr": "La compilation échoue quand je lance les tests sous Windows, et je ne vois pas pourquoi.",
    "pt": "A compilação falha quando eu executo os testes no Windows, e não vejo por que razão.",
    "ru": "Сборка завершается ошибкой, когда я запускаю тесты под Windows, и я не понимаю почему.",
    "zh": "我在 Windows 上运行测试的时候，构建总是失败，我不明白这是为什么，请帮忙看一下。",
}
CODE_IN_AN_ISSUE = """
```python
def the_function_that_is_called_when_it_fails(self, value):
    raise ValueError("this is not the value that was expected")
```
See `the.value` at https://example.org/this/is/the/place and
    Traceback (most recent call last):
"""


@pytest.mark.skipif(
    importlib.util.find_spec("py3langid") is None, reason="needs pip install py3langid"
)
def test_issues_in_other_languages_are_dropped_whatever_code_they_hold():
    stage = format_stage(FormatConfig(issue_languages=("en",)))
    for code, prose in PROSE.items():
        events = [{"author": "ann", "title": "Windows", "text": prose + CODE_IN_AN_ISSUE}]
        answer = stage.apply(Document("1", "t", {"events": events}))
        assert isinstance(answer, Changed if code == "en" else Drop), code
        if isinstance(answer, Drop):
            assert (answer.rule, answer.detail) == ("issue-language", code)
    events = [{"author": "ann", "text": CODE_IN_AN_ISSUE * 2}]
    assert isinstance(stage.apply(Document("1", "t", {"events": events})), Changed)


@pytest.mark.skipif(
    importlib.util.find_spec("py3langid") is None, reason="needs pip install py3langid"
)
@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("zh", "调用load_model()函数时程序崩溃,错误信息在日志/tmp/log.txt里面可以看到,请问这个问题应该怎么解决?"),
        ("ja", "load_model()を呼び出すとクラッシュします。ログは/tmp/log.txtにあります。助けてください。"),
    ],
)  # fmt: skip
def test_a_language_without_spaces_is_told_between_names_of_code(language, text):
    assert language_of(text) == language


@pytest.mark.parametrize("unit", ["a", "+", "_(", "a=", "\n", "://", ") ", "> ", "`", "<", "aé"])
def test_prose_of_a_log_without_spaces_is_found_in_no_time(unit):
    begin = time.process_time()
    NOT_PROSE.sub(" ", "x" + unit * 30_000)
    without_mail("x" + unit * 30_000 + "y")
    assert time.process_time() - begin < 2  # ten where each place looks at all behind it


@pytest.mark.parametrize(
    ("kind", "text", "metadata"),
    [
        ("issue", "t", {"events": 5}),
        ("issue", "t", {"events": [5, {"author": 5, "text": ["a"]}]}),
        ("notebook-script", '{"worksheets": [{"cells": 5}, {"cells": null}, 5]}', {}),
        ("notebook-structured", '{"worksheets": [{"cells": 5}]}', {}),
    ],
)
def test_a_record_of_another_build_is_dropped_and_ends_no_run(kind, text, metadata):
    answer = format_stage(FormatConfig(kind=kind)).apply(Document("1", text, metadata))
    assert isinstance(answer, Drop)


def test_a_language_that_is_no_code_is_an_error():
    with pytest.raises(ConfigError, match="codes of two letters"):
        FormatConfig(issue_languages=("english",)).check()


def test_issues_that_are_short_or_long_monologues_are_dropped():
    def one(text, times=1):
        return [{"author": "ann", "text": text}] * times

    assert reason("t", events=one("x" * 199)) == "issue-short"
    assert formatted("t", events=one("x" * 200))
    assert reason("t", events=one("x" * 7001)) == "issue-monologue"
    assert reason("t", events=one("x" * 100, 11)) == "issue-monologue"
    text = formatted("t", events=one("\n".join(f"line {n}" for n in range(100))))
    assert "line 59\n[Truncated]\nline 80" in text


def commit(number=0, subject="Make the reader skip empty files", **more):
    old = "".join(f"line {n}\n" for n in range(200))
    new = old.replace("line 100\n", "changed\nand more\n").replace("line 103\n", "")
    return new, {"old_contents": old, "subject": subject, "path": "a.py", **more}


def test_a_commit_shows_the_change_in_a_window_or_in_whole_files():
    new, metadata = commit()
    whole = 0
    for number in range(300):
        text = formatted(new, str(number), **metadata)
        found = re.fullmatch("<commit_before>(.*)<commit_msg>(.*)<commit_after>(.*)", text, re.S)
        before, subject, after = found.groups()
        assert subject == metadata["subject"]
        assert "line 100\nline 101\nline 102\nline 103\n" in before
        assert "changed\nand more\nline 101\nline 102\n" in after
        whole += after == new
        assert after == new or len(after.splitlines()) <= 4 + 2 * 31
        assert before in metadata["old_contents"]
    assert whole / 300 == pytest.approx(0.2, abs=0.08)


def test_commits_that_say_nothing_are_dropped():
    for subject in ("", "Update README.md", "auto commit of today", "x" * 30):
        assert reason(commit()[0], **commit(subject=subject)[1]) == "commit-subject"
    assert reason(commit()[0], **commit(subject="v1.2.3")[1]) == "commit-version"
    assert reason("same\n", old_contents="same\n", subject="Do it") == "commit-unchanged"
    answers = Counter()
    for number in range(500):
        document = Document(str(number), "b\n", {"old_contents": "a\n", "subject": "Make the reader read well"})  # fmt: skip
        answers[type(format_stage(FormatConfig()).apply(document)).__name__] += 1
    assert answers["Changed"] / 500 == pytest.approx(0.1, abs=0.045)


def notebook(*cells, language="python"):
    made = [
        {"cell_type": kind, "source": source.splitlines(True), "outputs": outputs}
        for kind, source, outputs in cells
    ]
    return json.dumps({"cells": made, "metadata": {"language_info": {"name": language}}})


CELLS = (
    ("code", "import numpy as np\n%matplotlib inline\n!ls", []),
    ("markdown", "## Means\n\n<b>All</b> of &lt;filename&gt; them", []),
    ("code", "x = np.mean([1,\n  2\n  % 3])\n", []),
    ("code", "print(x)", [{"output_type": "stream", "text": ["1.", "5\n"]}]),
    ("markdown", "The end", []),
)


def test_a_notebook_becomes_a_script_that_parses():
    text = formatted(notebook(*CELLS), path="a.ipynb", config=FormatConfig(prefix_rate=0.0))
    assert text == (
        "import numpy as np\n# %matplotlib inline\n# !ls\n\n# ## Means\n#\n# <b>All</b> of &lt;filename&gt; them\n\n"
        "x = np.mean([1,\n  2\n  % 3])\n\nprint(x)\n\n# The end\n"
    )
    ast.parse(text)
    scala = formatted(notebook(("markdown", "Hi", []), ("code", "val x = 1", []), language="scala"), path="a.ipynb")  # fmt: skip
    assert "// Hi\n\nval x = 1\n" in scala


def test_a_notebook_becomes_text_code_and_output_in_turn():
    config = FormatConfig(notebooks="structured", output_characters=2)
    assert formatted(notebook(*CELLS), path="a.ipynb", config=config) == (
        "<jupyter_start><jupyter_text>Means All of <filename> them"
        "<jupyter_code>x = np.mean([1,\n  2\n  % 3])\nprint(x)<jupyter_output>1.[...]"
    )
    quiet = notebook(("markdown", "Hi", []), ("code", "x = 1", []))
    assert formatted(quiet, path="a.ipynb", config=config).endswith(
        "<jupyter_output><empty_output>"
    )


def test_what_is_no_notebook_is_dropped_with_a_reason():
    assert reason("{", path="a.ipynb") == "notebook-unreadable"
    assert reason("[]", path="a.ipynb") == "notebook-unreadable"
    assert reason('{"cells": []}', path="a.ipynb") == "notebook-empty"


def test_a_text_that_is_changed_afterwards_no_longer_says_where_sentinels_are():
    answer = format_stage(FormatConfig()).apply(Document("1", "a", CODE))
    assert SENTINELS in answer.document.metadata
    assert SENTINELS not in answer.document.with_text("b").metadata
