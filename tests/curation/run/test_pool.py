"""The work by Ray: the same files as by processes, errors in one line, and the task of a worker that died done again."""

import importlib.util
import json
import os
import pickle
import random
from functools import partial
from pathlib import Path

import pytest

from megatron.curation.blend import MixConfig
from megatron.curation.decontaminate.stage import DecontaminateConfig
from megatron.curation.dedup.comparison import DedupConfig
from megatron.curation.formats.stage import FormatConfig
from megatron.curation.mix import mix
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import run_steps
from megatron.curation.run.pool import RayWorkers, apply, pool_of
from megatron.curation.select.stage import SelectConfig
from megatron.curation.stages import STAGES
from megatron.errors import ConfigError, DataError
from megatron.options import TokenizerConfig
from megatron.tokenizer.tokenizer import build_tokenizer
from megatron.tokenizer.train import train_tokenizer

for module in ("_minhash", "_multi_search", "_pii_scan"):
    pytest.importorskip(f"megatron.curation.{module}", reason="csrc/ is not compiled: make env")
HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs pip install ray")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine, with two tasks at a time."""
    ray = pytest.importorskip("ray", reason="needs pip install ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # or it leaves a token in the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
        yield "auto"
        ray.shutdown()


@pytest.fixture
def source(tmp_path):
    draw = random.Random(1)
    rows = []
    for number in range(120):
        words = [f"word{draw.randrange(1000)} =" for _ in range(60)]
        rows += [{"id": f"{number}-{copy}", "text": "\n".join([*words, f"x{copy}"]), "path": f"{number}.py"} for copy in range(number % 3 + 1)]  # fmt: skip
    draw.shuffle(rows)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "strings.txt").write_text("a text of a benchmark that is in no file at all\n")
    return path


def options(source, name, **more):
    output = str(source.parent / name)
    return RunOptions((str(source),), output, shard_mb=0.03, **more)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pipeline(source):
    chosen = {
        "select": SelectConfig(any_license=True),
        "filter": STAGES["filter"].config(),
        "dedup": DedupConfig(),
        "decontaminate": DecontaminateConfig(against=(f"strings={source.parent}/strings.txt",)),
        "pii": STAGES["pii"].config(),
        "format": FormatConfig(),
    }
    return [STAGES[name].make(config) for name, config in chosen.items()]


@needs_ray
def test_files_are_those_of_one_machine(cluster, source):
    run_steps(pipeline(source), options(source, "one", keep_intermediate=True))
    totals = run_steps(
        pipeline(source),
        options(source, "many", workers=2, ray=cluster, keep_intermediate=True),
    )
    assert totals.kept() == 120
    one, many = (contents(source.parent / name) for name in ("one", "many"))
    assert sum(name.endswith(".jsonl.zst") for name in one) > 4
    # Fingerprints of the second pass name the files that the first one wrote, which lie elsewhere.
    for files in (one, many):
        for name in [name for name in files if "done.json" in name or "totals.json" in name]:
            del files[name]
        for name in [name for name in files if name.startswith("shards/")]:
            files[name] = json.dumps(json.loads(files[name]) | {"fingerprint": ""}).encode()
    assert one == many


@needs_ray
def test_mix_with_a_tokenizer_is_that_of_one_machine(cluster, source):
    path = source.parent / "tokenizer.json"
    path.write_text(json.dumps(train_tokenizer([source.read_text()], 300)))
    tokenizer = build_tokenizer(TokenizerConfig(tokenizer_file=str(path)))
    config = MixConfig(split_records=True)
    mix(options(source, "one"), config, tokenizer)
    mix(options(source, "many", workers=2, ray=cluster), config, tokenizer)
    assert contents(source.parent / "one") == contents(source.parent / "many")


def dying_once(marks, number):
    """End the process at the first try of task 3."""
    mark = marks / str(number)
    is_first = not mark.exists()
    mark.touch()
    if number == 3 and is_first:
        os._exit(1)
    return number * number


def failing(number):
    if number == 2:
        raise DataError("shard 2 is damaged; copy it again")
    return number


@needs_ray
def test_the_task_of_a_dead_worker_is_done_again_and_results_keep_their_order(cluster, tmp_path):
    make = pool_of(RunOptions(("a",), str(tmp_path), workers=2, ray=cluster))
    with make(partial(dying_once, tmp_path), 20) as pool:
        assert list(pool.map(range(20))) == [number * number for number in range(20)]
    assert len(list(tmp_path.iterdir())) == 20


@needs_ray
def test_a_mistake_of_the_user_in_a_task_is_raised_as_it_is(cluster, tmp_path):
    pool = RayWorkers(failing, 2, address=cluster, folder=tmp_path)
    results = pool.map(range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(DataError, match="shard 2 is damaged"):
        next(results)
    pool = RayWorkers(failing, 2, address=cluster, folder=tmp_path / "elsewhere")
    with pytest.raises(DataError, match="name a folder that all machines see"):
        next(pool.map([1]))


def test_every_stage_can_be_sent_to_another_machine(source):
    cloudpickle = pytest.importorskip("cloudpickle", reason="needs pip install cloudpickle or ray")
    for step in pipeline(source):
        assert len(cloudpickle.dumps(step)) < 20_000, step.name


def test_a_task_is_done_where_the_folder_is_there_and_refused_where_it_is_not(tmp_path):
    task = pickle.dumps(len), pickle.dumps("four")
    assert apply(*task, str(tmp_path)) == (True, 4)
    is_ok, error = apply(*task, str(tmp_path / "none"))
    assert not is_ok and "is not there on" in str(error)


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_error_says_how_to_install_it(tmp_path):
    with pytest.raises(ConfigError, match="pip install"):
        pool_of(RunOptions(("a",), str(tmp_path), ray="auto"))(len, 1)
