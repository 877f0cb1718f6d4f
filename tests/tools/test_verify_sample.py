"""tools/verify.py sample and steps: a step is traced to its documents and back, without torch."""

import json
import shutil
import subprocess
import sys

import pytest

from megatron.config import to_json
from tests.checkpoint.seal import seal
from tests.training.corpus import make_corpus
from tests.training.runs import flags_of, parse


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run that saved after two steps of 8 samples leaves, without tensors."""
    folder = tmp_path_factory.mktemp("run")
    config = parse(flags_of(make_corpus(folder), folder))
    iteration = folder / "iter_0000002"
    iteration.mkdir()
    (iteration / "config.json").write_text(json.dumps(to_json(config)))
    state = {"iteration": 2, "consumed_samples": 16, "world_size": 2}
    (iteration / "state.json").write_text(json.dumps(state))
    seal(iteration)
    (folder / "latest_checkpointed_iteration.txt").write_text("2")
    return folder


def verify(*arguments, command="sample"):
    # An import of torch would be an error.
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'verify.py'; import runpy; "
        "runpy.run_path('tools/verify.py', run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, command, *map(str, arguments)], capture_output=True, text=True
    )


def test_step_of_a_process_for_programs(run):
    result = verify("--load", run, "--step", 2, "--rank", 1, "--json", "--text")
    assert result.returncode == 0, result.stderr
    samples = [json.loads(line) for line in result.stdout.splitlines()]
    assert [sample["sample"] for sample in samples] == [9, 11, 13, 15]
    for sample in samples:
        assert sample["set"] == "train" and sample["text"]
        assert sample["documents"][0]["dataset"] == str(run / "train")
        assert [span["tokens"][0] for span in sample["documents"]] == [
            0,
            *(span["tokens"][1] for span in sample["documents"][:-1]),
        ]
        assert sample["documents"][-1]["tokens"][1] == 33


def test_steps_of_a_document_are_those_whose_samples_name_it(run):
    lines = []
    for step in (1, 2):
        result = verify("--load", run, "--step", step, "--json")
        lines += [(step, json.loads(line)) for line in result.stdout.splitlines()]
    document = lines[0][1]["documents"][0]["document"]
    expected = [
        {"step": step, "sample": line["sample"]}
        for step, line in lines
        if document in [one["document"] for one in line["documents"]]
    ]
    flags = ("--load", run, "--dataset", "train", "--document", document)
    result = verify(*flags, "--json", command="steps")
    assert json.loads(result.stdout)["reads"] == expected, result.stderr
    spelled = ("--load", run, "--dataset", f"{run}/../{run.name}/train", "--document", document)
    assert json.loads(verify(*spelled, "--json", command="steps").stdout)["reads"] == expected
    shown = verify(*flags, command="steps").stdout
    assert f"step 1: sample {expected[0]['sample']}\n" in shown and " steps, up to " in shown
    wrong = verify("--load", run, "--dataset", "no", "--document", 0, command="steps")
    assert wrong.returncode == 2 and "reads no token file 'no'" in wrong.stderr


def test_samples_that_a_run_left_out(run, tmp_path):
    root = shutil.copytree(run, tmp_path / "run")
    state = json.loads((root / "iter_0000002" / "state.json").read_text())
    state["skipped"] = [{"after": 1, "start": 8, "stop": 11}]
    (root / "iter_0000002" / "state.json").write_text(json.dumps(state))
    seal(root / "iter_0000002")
    result = verify("--load", root, "--skipped", "--json")
    assert result.returncode == 0, result.stderr
    samples = [json.loads(line)["sample"] for line in result.stdout.splitlines()]
    assert samples == [8, 9, 10]


def test_sample_for_people(run):
    result = verify("--load", run / "iter_0000002", "--set", "valid", "--sample", 5, 6)
    assert result.returncode == 0, result.stderr
    assert f"valid sample 5: {run / 'valid'}\n  tokens      0-" in result.stdout
    assert "no provenance" in result.stdout
    assert f"traced 2, with the options of {run / 'iter_0000002'}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", 1, "--set", "valid"], "give --sample"),
        (["--sample", 1, "--rank", 0], "--rank says who read the samples of a --step"),
        (["--step", 1, "--rank", 2], "the run had processes 0 to 1"),
        ([], "one of the arguments --step --sample --skipped is required"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message):
    result = verify("--load", run, *arguments)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
