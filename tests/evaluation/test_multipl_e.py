"""Programs of other languages: what is right passes, what is wrong, ends early or makes its tests do nothing does not."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from megatron.errors import ConfigError, DataError
from megatron.evaluation.falsified import falsified
from megatron.evaluation.isolation.sandbox import Sandbox
from megatron.evaluation.isolation.trial import Equipment, Limits, Verdict
from megatron.evaluation.multipl_e import equip, load_multipl_e
from megatron.evaluation.task import Task
from megatron.evaluation.toolchain import TOOLCHAINS, Installed

SET = Path(__file__).parent / "sets" / "multipl_e.jsonl"
TASKS = {task.group: task for task in load_multipl_e([SET])}
LIMITS = Limits(wall_seconds=20.0, cpu_seconds=1, memory=512 << 20)
FAST = ("sh", "pl", "js", "lua", "php")
# Each passes a harness that looks at the exit code only, and is put in the place of the solution's first line.
FORGERIES = {
    "sh-exit": ("sh", "  :\n}\nexit 0\n"),
    "sh-trap": ("sh", "  :\n}\ntrap 'exit 0' EXIT\n"),
    "sh-no-set": ("sh", "  :\n}\nset() { :; }\n"),
    "sh-own-source": ("sh", "  grep -F \"candidate \\\"$1\\\" \\\"$2\\\")\" \"$0\" | grep -v grep | sed 's/.*= \"\\(.*\\)\".*/\\1/'\n}\n"),
    "sh-late-exit": ("sh", "  [ \"$1\" = '1 5 3' ] && echo 2 || { kill -KILL $PPID; kill -TERM $$; }\n}\ntrap 'exit 0' TERM\n"),
    "pl-exit": ("pl", "    return 0;\n}\nexit 0;\n"),
    "pl-end": ("pl", "    return 0;\n}\nEND { $? = 0 }\n"),
    "js-exit": ("js", "  process.exit(0);\n}"),
    "js-assert": ("js", "  return 0;\n}\nrequire('node:assert').deepEqual = () => {};\n"),
    "js-uncaught": ("js", "  return 0;\n}\nprocess.on('uncaughtException', () => process.exit(0));\n"),
    "lua-exit": ("lua", "  os.exit(0)\nend"),
    "lua-luaunit": ("lua", "  return 0\nend\nrequire('luaunit').assertEquals = function() end\n"),
    "php-exit": ("php", "    exit(0);\n}"),
    "php-handler": ("php", "    return 0;\n}\nset_exception_handler(function() { exit(0); });\n"),
}  # fmt: skip


@pytest.fixture(scope="module")
def judge() -> Callable[[str, str], Verdict]:
    """Judge a completion of a language's task, in a sandbox that has all of FAST."""
    installed = [one for language in FAST if (one := Installed.find(language))]
    try:
        sandbox = Sandbox(LIMITS, _all(installed))
    except ConfigError as error:
        pytest.skip(str(error))
    present = {one.toolchain.language for one in installed}

    def run(language: str, completion: str) -> Verdict:
        if language not in present:
            pytest.skip(f"{TOOLCHAINS[language].title} is not installed")
        (task,) = equip([TASKS[language]], LIMITS, 2)
        return task.judge(completion, sandbox.run)

    with sandbox:
        yield run


def _all(installed: list[Installed]):
    equipment = installed[0].equipment
    for one in installed[1:]:
        equipment |= one.equipment
    return equipment


def solution(language: str) -> str:
    assert TASKS[language].solution is not None
    return TASKS[language].solution


@pytest.mark.parametrize("language", FAST)
def test_solution_passes_and_is_proven_and_a_wrong_one_fails(
    language: str, judge: Callable[[str, str], Verdict]
) -> None:
    verdict = judge(language, solution(language))
    assert verdict.is_passed and verdict.is_proven, verdict
    wrong = solution(language).replace(" > ", " < ").replace("-gt", "-lt")
    assert wrong != solution(language)
    assert judge(language, wrong).outcome == "wrong"


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_is_found_out(name: str, judge: Callable[[str, str], Verdict]) -> None:
    language, completion = FORGERIES[name]
    assert not judge(language, "\n" + completion).is_passed


def test_an_exit_code_alone_would_be_forged(judge: Callable[[str, str], Verdict]) -> None:
    assert judge("sh", "\n" + FORGERIES["sh-exit"][1]).outcome == "forged"
    (task,) = equip([TASKS["sh"]], LIMITS, 0)
    with Sandbox(LIMITS, task.equipment) as sandbox:
        verdict = task.judge("\n" + FORGERIES["sh-exit"][1], sandbox.run)
    assert verdict.is_passed and not verdict.is_proven


def test_ends_are_told_apart(judge: Callable[[str, str], Verdict]) -> None:
    assert judge("pl", "\n    1 while 1;\n}").outcome == "timeout-cpu"
    assert judge("sh", "\n  kill -SEGV $$\n}").outcome == "exited"
    assert judge("pl", "\n    return (;\n}").outcome == "syntax"


def test_one_falsified_test_finds_what_ends_at_the_last_check() -> None:
    late = "\n  if (++calls === 3) process.exit(0);\n  return numbers.filter(one => one > limit).length;\n}\nlet calls = 0;\n"
    (task,) = equipped("js", 1)
    with open_sandbox(task.equipment) as sandbox:
        assert task.judge(late, sandbox.run).outcome == "forged"


def test_memory_is_held_in_a_worker_that_others_need_wider() -> None:
    large = "\n  Buffer.alloc(2 ** 31 - 1);\n  return numbers.filter(one => one > limit).length;\n}"
    (task,) = equipped("js", 0)
    with open_sandbox(dataclasses.replace(task.equipment, memory=4 << 30)) as sandbox:
        assert task.judge(solution("js"), sandbox.run).is_passed
        assert task.judge(large, sandbox.run).outcome in ("wrong", "exited")


def equipped(language: str, num_falsified: int) -> list[Task]:
    if Installed.find(language) is None:
        pytest.skip(f"{TOOLCHAINS[language].title} is not installed")
    return equip([TASKS[language]], LIMITS, num_falsified)


def open_sandbox(equipment: Equipment) -> Sandbox:
    try:
        return Sandbox(LIMITS, equipment)
    except ConfigError as error:
        pytest.skip(str(error))


def test_compiled_program_passes_and_what_does_not_compile_is_no_program() -> None:
    language = next((one for one in ("d", "rs", "cpp") if Installed.find(one)), None)
    if language is None:
        pytest.skip("no compiler is installed")
    (task,) = equip([TASKS[language]], LIMITS, 1)
    try:
        sandbox = Sandbox(LIMITS, task.equipment)
    except ConfigError as error:
        pytest.skip(str(error))
    with sandbox:
        verdict = task.judge(solution(language), sandbox.run)
        assert verdict.is_passed and verdict.is_proven, verdict
        assert task.judge("\n    not a program", sandbox.run).outcome == "syntax"


def test_proc_shows_the_trial_alone_and_nothing_of_what_holds_the_socket() -> None:
    installed = Installed.find("sh")
    assert installed is not None
    equipment = dataclasses.replace(installed.equipment, has_processes=True)
    seen = (
        "/proc/1/environ /proc/1/fd /proc/1/mem /proc/$PPID/environ /proc/$PPID/fd /proc/$PPID/mem"
    )
    program = f"""
    (($$ < 10 && PPID < 10)) || exit 1
    [[ "$(echo /proc/[0-9]*)" = "/proc/1 /proc/$PPID /proc/$$"* ]] || exit 2
    ls /proc/$$/fd > list || exit 3
    for file in {seen}; do
        [ -d $file ] && ls $file > list 2> /dev/null && exit 4
        cat $file > list 2> /dev/null && exit 5
    done
    [ -e /proc/sys ] || [ -e /proc/meminfo ] && exit 6
    exit 0
    """
    try:
        sandbox = Sandbox(LIMITS, equipment)
    except ConfigError as error:
        pytest.skip(str(error))
    with sandbox:
        verdict = sandbox.run(installed.trial(program, LIMITS))
    assert verdict.is_passed, verdict


def test_python_is_judged_as_human_eval_is() -> None:
    task = TASKS["py"]
    try:
        sandbox = Sandbox(LIMITS)
    except ConfigError as error:
        pytest.skip(str(error))
    with sandbox:
        assert task.judge(solution("py"), sandbox.run).is_passed
        assert task.judge("\n    import os\n    os._exit(0)\n", sandbox.run).outcome == "exited"


@pytest.mark.parametrize("language", sorted(set(TASKS) - {"py"}))
def test_each_check_is_falsified_in_its_expected_value_alone(language: str) -> None:
    tests = TASKS[language].tests  # type: ignore[attr-defined]
    changes = [("2", "3"), ("0", "1"), ("4", "5")]
    if language == "sh":  # which has texts only
        changes = [("2", "2x"), ("0", "0x"), ("4", "4x")]
    variants = falsified(tests, language)
    for variant, (old, new) in zip(variants, changes, strict=True):
        (pair,) = [
            lines
            for lines in zip(tests.splitlines(), variant.splitlines(), strict=True)
            if lines[0] != lines[1]
        ]
        before, after = pair
        if language == "rkt":  # whose tolerance comes last
            old, new = f"{old} 0.001", f"{new} 0.001"
        # Ruby's expected value is the first one of its line, the others' the last
        replaced = new.join(before.split(old, 1) if language == "rb" else before.rsplit(old, 1))
        assert after == replaced


@pytest.mark.parametrize(
    ("language", "line", "changed"),
    [
        ("js", "  assert.deepEqual(candidate([]),[]);", None),
        ("js", "  assert.deepEqual(candidate([1, 2]),[]);", None),
        ("js", '  assert.deepEqual(candidate("a),b"),["x", "y,(z"]);', '  assert.deepEqual(candidate("a),b"),["x", "y,(zx"]);'),
        ("cpp", "    assert(candidate((2)) == (true));", "    assert(candidate((2)) == (false));"),
        ("cpp", "    assert(candidate(('b')) == ('a'));", "    assert(candidate(('b')) == ('b'));"),
        ("java", '    assert(f((1l)).equals(("ab")));', '    assert(f((1l)).equals(("abx")));'),
        ("rs", "    assert_eq!(candidate(vec![1.0], 2), Some(3.5));", "    assert_eq!(candidate(vec![1.0], 2), Some(4.5));"),
        ("rkt", "    (check-within (candidate (list 1.0 2) 0.3) #t 0.001)", "    (check-within (candidate (list 1.0 2) 0.3) #f 0.001)"),
        ("r", "    if(!identical(candidate(c(1, 2)), TRUE)){quit('no', 1)}", "    if(!identical(candidate(c(1, 2)), FALSE)){quit('no', 1)}"),
        ("sh", '    [[ $(candidate "1 2") = "true" ]]', '    [[ $(candidate "1 2") = "truex" ]]'),
        ("rb", "    assert_equal([1, 2], candidate.call([3], 4))", "    assert_equal([1, 3], candidate.call([3], 4))"),
        ("php", '    if (candidate(1) !== array("a" => 2)) { throw new Exception("Test failed!"); }', '    if (candidate(1) !== array("a" => 3)) { throw new Exception("Test failed!"); }'),
        ("go", '     { actual: candidate("a"), expected: []string{"b"} },', '     { actual: candidate("a"), expected: []string{"bx"} },'),
    ],
)  # fmt: skip
def test_expected_value_is_found(language: str, line: str, changed: str | None) -> None:
    assert falsified(line, language) == ([] if changed is None else [changed])


def test_missing_tools_are_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"lacks what runs rb: rb needs ruby \(Debian: ruby.*--only"
    ):
        equip([TASKS["rb"]], LIMITS, 2)


@pytest.mark.parametrize(
    ("folder", "seen"),
    [("me/lua-5.4/bin", "me/lua-5.4"), ("me/bin", "me/bin/lua"), ("me/.local/bin", "me/.local/bin/lua"), ("bin", "bin/lua")],
)  # fmt: skip
def test_a_program_shows_its_own_folder_and_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, seen: str
) -> None:
    program = tmp_path / folder / "lua"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("PATH", str(program.parent))
    installed = Installed.find("lua")
    assert installed is not None
    mounts = [path for path in installed.mounts if not path.startswith("/etc/")]
    assert mounts == [str(tmp_path / seen)]


def test_parquet_and_json_lines_hold_the_same_tasks(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in SET.read_text().splitlines()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test-00000.parquet")
    read = load_multipl_e([tmp_path / "test-00000.parquet"])
    assert [_plain(task) for task in read] == [_plain(task) for task in TASKS.values()]


def _plain(task: Task) -> dict:
    return {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"language": "cobol"}, "line 1 is no task of this benchmark: language is 'cobol'"),
        ({"tests": None}, "tests is None, where a text is wanted"),
    ],
)
def test_rows_that_are_no_task_are_named(tmp_path: Path, change: dict, said: str) -> None:
    row = json.loads(SET.read_text().splitlines()[0]) | change
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=said):
        load_multipl_e([tmp_path / "rows.jsonl"])
