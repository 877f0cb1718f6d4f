"""Training on conversations: transformers' loss of the answers alone, the same on any number of processes, and what an export says."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron.convert.hf_export import export_hf
from megatron.convert.source import ModelSource, RunSource
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.preprocessing.options import PreprocessConfig
from megatron.data.preprocessing.preprocess import preprocess
from megatron.data.trace import Tracer
from megatron.options import TokenizerConfig
from megatron.tokenizer.chat_template import ChatEncoder, Message
from megatron.tokenizer.tokenizer import build_tokenizer
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.start import plan_start
from megatron.training.train import queue_step
from tests.grid import grid
from tests.training.runs import flags_of, parse, read_lines, read_metrics, train_here

NUM_STEPS = 4
EVAL_ITERS = 2
GLOBAL_BATCH = 8
LAYOUTS = [
    ("DP2", 2, "--micro-batch-size 2"),
    ("PP2", 2, "--pipeline-model-parallel-size 2"),
    ("TP2 SP", 2, "--tensor-model-parallel-size 2 --sequence-parallel --micro-batch-size 4"),
    ("CP2", 2, "--context-parallel-size 2"),
]


@pytest.fixture(scope="module")
def chats(corpus, tmp_path_factory) -> str:
    """A dataset of conversations of one or two turns, whose answers are of 1 to some 30 tokens."""
    folder = tmp_path_factory.mktemp("chats")
    text = tokenizer_of(corpus).detokenize(IndexedDataset(corpus.train).tokens[:6000].tolist())
    lines = [line.strip() for line in text.splitlines() if 2 < len(line.strip()) < 40]
    with (folder / "chats.jsonl").open("w") as file:
        for i in range(0, len(lines) - 4, 4):
            turns = lines[i : i + 2 + 2 * (i % 3 == 0)]
            turns[1] = turns[1][: 1 + i % 37]
            roles = ["user", "assistant", "user", "assistant"]
            messages = [{"role": r, "content": c} for r, c in zip(roles, turns, strict=False)]
            file.write(json.dumps({"messages": messages}) + "\n")
    config = PreprocessConfig(
        input=(str(folder / "chats.jsonl"),),
        output_prefix=str(folder / "chats"),
        messages_key="messages",
    )
    preprocess(config, tokenizer_of(corpus))
    return config.prefix_of("messages")


def tokenizer_of(corpus):
    return build_tokenizer(TokenizerConfig(tokenizer_file=str(corpus.tokenizer)))


def flags(corpus, chats, save, extra=""):
    return flags_of(
        corpus,
        save,
        f"--train-data-path {chats} --valid-data-path {chats} --seq-length 96 --max-position-embeddings 96 "
        f"--fim-rate 0 --reset-attention-mask --reset-position-ids --train-iters {NUM_STEPS} "
        f"--eval-interval {NUM_STEPS} --eval-iters {EVAL_ITERS} {extra}",
    )


@pytest.fixture(scope="module")
def alone(world, corpus, chats, tmp_path_factory):
    """The folder of a run of one process."""
    save = tmp_path_factory.mktemp("alone")
    world(1).run(train_here, flags(corpus, chats, save))
    return save


@pytest.fixture(scope="module")
def exported(alone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "hf"
    folder.mkdir()
    source = RunSource.open(alone)
    export_hf(
        source, folder, dtype=torch.float32, max_shard_bytes=10**9, progress=lambda done: None
    )
    return folder


def documents_of(corpus, chats, save, number):
    """The conversations of a validation sample: (context, answer, context, …) of each."""
    dataset = open_inputs(parse(flags(corpus, chats, save)), 1).datasets.valid["valid"]
    indexed = IndexedDataset(chats)
    for span in Tracer(dataset).trace(number).spans:
        first, end = (int(indexed.document_items[span.document + i]) for i in (0, 1))
        yield [indexed.get(item).tolist() for item in range(first, end)]


def test_the_loss_is_transformers_of_each_conversation_by_itself(corpus, chats, alone, exported):
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for number in range(EVAL_ITERS * GLOBAL_BATCH):
        for parts in documents_of(corpus, chats, alone, number):
            ids = [token for part in parts for token in part]
            labels = [t if i % 2 else -100 for i, part in enumerate(parts) for t in part]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, :-1]
            target = torch.tensor(labels[1:])
            total += F.cross_entropy(logits, target, reduction="sum", ignore_index=-100).item()
            count += int((target != -100).sum())
    assert count > 200
    _, validation = read_metrics(alone)
    assert validation[NUM_STEPS] == pytest.approx(total / count, abs=2e-5)


@pytest.mark.parametrize(("name", "size", "layout"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
def test_the_mean_is_over_all_answers_of_a_step_on_any_layout(
    world, corpus, chats, alone, tmp_path, name, size, layout
):
    assert (
        world(size).run(train_here, flags(corpus, chats, tmp_path, layout)) == ["finished"] * size
    )
    (training, validation), expected = read_metrics(tmp_path), read_metrics(alone)
    for step in range(1, NUM_STEPS + 1):
        one, other = training[step], expected[0][step]
        assert one["lm_loss"] == pytest.approx(other["lm_loss"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["loss_tokens"] == other["loss_tokens"] < GLOBAL_BATCH * 96 / 2
    assert validation == {step: pytest.approx(loss, abs=1e-4) for step, loss in expected[1].items()}


def _gradients(rank, command, change):
    """The gradients of a step, and its loss; with `change`, labels that carry no loss are others."""
    inputs = open_inputs(parse(command), 1)
    run = build_run(inputs, plan_start(inputs, 1), grid())
    if change:
        read = run.loader.batch

        def batch(consumed, size):
            given = read(consumed, size)
            labels = torch.where(given.loss_mask == 0, (given.labels + 7) % 380, given.labels)
            assert not torch.equal(labels, given.labels)
            return replace(given, labels=labels)

        run.loader.batch = batch
    result = queue_step(run, GLOBAL_BATCH).read()
    weights = {
        name: tensor.detach().to_local().clone() for name, tensor in run.tensors.parameters.items()
    }
    run.close()
    return result.loss, result.gradient_norm, weights


def test_what_carries_no_loss_gives_no_gradient(world, corpus, chats, tmp_path):
    command = flags(corpus, chats, tmp_path)
    ((loss, norm, weights),) = world(1).run(_gradients, command, False)
    ((other_loss, other_norm, others),) = world(1).run(_gradients, command, True)
    assert (loss, norm) == (other_loss, other_norm)
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name


def _step_without_loss(rank, command):
    """What a step does whose tokens all carry no loss, and whether it left the weights."""
    inputs = open_inputs(parse(command), 1)
    run = build_run(inputs, plan_start(inputs, 1), grid())
    read = run.loader.batch

    def batch(consumed, size):
        given = read(consumed, size)
        return replace(given, loss_mask=torch.zeros_like(given.loss_mask))

    run.loader.batch = batch
    before = [tensor.detach().to_local().clone() for tensor in run.tensors.parameters.values()]
    result = queue_step(run, GLOBAL_BATCH).read()
    after = [tensor.detach().to_local() for tensor in run.tensors.parameters.values()]
    run.close()
    return result, all(map(torch.equal, before, after))


def test_a_step_without_a_token_to_learn_changes_nothing_and_is_not_lost(
    world, corpus, chats, tmp_path
):
    ((result, is_left),) = world(1).run(_step_without_loss, flags(corpus, chats, tmp_path))
    assert is_left and result.is_skipped and not result.is_lost
    assert result.num_loss_tokens == 0


def test_an_export_has_the_template_and_what_ends_an_answer(corpus, alone, exported):
    theirs = AutoTokenizer.from_pretrained(exported)
    source = ModelSource.open(alone)
    chat = ChatEncoder(tokenizer_of(corpus), source.chat_template())
    messages = [("user", "x = 1"), ("assistant", "y"), ("user", "what?")]
    expected = theirs.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    assert chat.prompt([Message(role, content) for role, content in messages]) == expected
    assert ModelSource.open(exported).chat_template() == source.chat_template()
    eos = json.loads((exported / "generation_config.json").read_text())["eos_token_id"]
    assert eos == chat.end == 0
    card = (exported / "README.md").read_text()
    assert "tokenizer.apply_chat_template(" in card and "was tuned on conversations" in card
    assert "not been trained to follow" not in card


def test_a_run_says_how_much_it_learned_from(alone):
    lines = [line for line in read_lines(alone) if "loss_tokens" in line]
    assert len(lines) == NUM_STEPS and all(line["loss_tokens"] > 0 for line in lines)
