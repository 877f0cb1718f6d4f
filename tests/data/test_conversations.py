"""Conversations: what becomes an id, what carries loss, and that both survive all that is done to token files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron.data.build import build_datasets
from megatron.data.conversation_dataset import ConversationDataset
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.loader import BatchLoader, DocumentResets
from megatron.data.packing import pack
from megatron.data.preprocessing.merge import merge, merge_shuffled, open_sources
from megatron.data.preprocessing.options import PreprocessConfig
from megatron.data.preprocessing.preprocess import preprocess
from megatron.data.trace import Tracer
from megatron.data.verify_dataset import verify_dataset
from megatron.errors import ConfigError, DataError
from megatron.options import DataConfig, TokenizerConfig
from megatron.tokenizer.chat_template import (
    STARCHAT_SENTINELS,
    ChatEncoder,
    ChatTemplate,
    choose_template,
    read_messages,
)
from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS
from megatron.tokenizer.tokenizer import build_tokenizer
from megatron.tokenizer.train import train_tokenizer

SEQ_LENGTH = 72
WORDS = ["sum", "list", "return", "x", "é", "<|end|>", "\n    ", "==", "2023", "<|user|>", "the"]


def turns(*contents, system=None):
    """Alternate user and assistant."""
    roles = ["user", "assistant"] * len(contents)
    messages = [
        {"role": role, "content": text} for role, text in zip(roles, contents, strict=False)
    ]
    return [{"role": "system", "content": system}] * (system is not None) + messages


CHATS = [
    turns("Add two.", "def add(a, b):\n    return a + b", system="You write Python."),
    turns("hi", "<|user|> is text", "and <|end|>?", "yes <|endoftext|>"),
    turns(" indented question ", "1 + 1 = 2", "unanswered"),
    *(turns(" ".join(WORDS[: i % 11]), " ".join(WORDS[i % 7 :]) * (1 + i % 3)) for i in range(40)),
    *(turns(word, word) for word in WORDS),
]


@pytest.fixture(scope="module", params=["starchat", "plain"])
def tokenizer(request, tmp_path_factory):
    names = STARCHAT_SENTINELS if request.param == "starchat" else ()
    texts = [message["content"] for chat in CHATS for message in chat]
    definition = train_tokenizer(texts, 380, special_tokens=[*STARCODER_SPECIAL_TOKENS, *names])
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    path.write_text(json.dumps(definition))
    return build_tokenizer(TokenizerConfig(tokenizer_file=str(path)))


def write(folder: Path, tokenizer, chats=CHATS, name="chats", **options) -> str:
    source = folder / f"{name}.jsonl"
    source.write_text(
        "".join(json.dumps({"messages": chat, "id": i}) + "\n" for i, chat in enumerate(chats))
    )
    config = PreprocessConfig(
        input=(str(source),), output_prefix=str(folder / name), messages_key="messages", **options
    )
    preprocess(config, tokenizer)
    return config.prefix_of("messages")


def data(*prefixes, **options) -> DataConfig:
    paths = [word for prefix in prefixes for word in ("1", prefix)]
    resets = {"reset_attention_mask": True, "reset_position_ids": True}
    return DataConfig(seq_length=SEQ_LENGTH, train_data_path=tuple(paths), **(resets | options))


def open_train(tokenizer, *prefixes, **options):
    return build_datasets(data(*prefixes, **options), tokenizer, seed=1).train


def items(indexed: IndexedDataset, document: int) -> list[list[int]]:
    first, end = (int(indexed.document_items[document + i]) for i in (0, 1))
    return [indexed.get(item).tolist() for item in range(first, end)]


def spell(tokenizer, chat) -> list[str]:
    """The texts of context and answer by turns, as the template says: written down anew, from its description."""
    specials = tokenizer.special_tokens
    eod = "<|endoftext|>"
    before = {"user": "Question:\n", "assistant": "Answer:\n", "system": ""}
    after = {"user": "\n\n", "system": "\n\n"}
    end, behind = eod, ""
    if "<|user|>" in specials:
        before = {role: f"<|{role}|>\n" for role in before}
        after = dict.fromkeys(after, "<|end|>\n")
        end, behind = "<|end|>", "\n"
    texts = [""]
    for message in chat:
        texts[-1] += before[message["role"]]
        if message["role"] == "assistant":
            texts += [message["content"] + end, behind]
        else:
            texts[-1] += message["content"] + after[message["role"]]
    if texts[-1] or end != eod:
        texts[-1] += eod
    return [text for text in texts if text]


def test_items_are_context_and_answer_by_turns_and_spell_the_template(tokenizer, tmp_path):
    indexed = IndexedDataset(write(tmp_path, tokenizer))
    assert indexed.num_documents == len(CHATS)
    for document, chat in enumerate(CHATS):
        found = [tokenizer.detokenize(ids) for ids in items(indexed, document)]
        assert found == spell(tokenizer, chat)
        assert len(found) // 2 == sum(message["role"] == "assistant" for message in chat)


def test_what_a_message_spells_is_text_and_only_the_template_has_sentinels(tokenizer, tmp_path):
    indexed = IndexedDataset(write(tmp_path, tokenizer))
    ids = np.concatenate(items(indexed, 1)).tolist()
    specials = {number: name for name, number in tokenizer.special_tokens.items()}
    found = [specials[number] for number in ids if number in specials]
    if "<|user|>" in tokenizer.special_tokens:
        turn = ["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
        assert found == [*turn, *turn, "<|endoftext|>"]
    else:
        assert found == ["<|endoftext|>"] * 2


def test_transformers_reads_the_same_prompt_from_the_jinja_template(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.files()["tokenizer.json"])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    template = choose_template(None, tokenizer)
    theirs.chat_template = template.jinja()
    chat = ChatEncoder(tokenizer, template)
    for number in (0, 3, 17):  # of no text that spells a sentinel: theirs would take it for one
        messages = [m for m in CHATS[number] if m["role"] != "assistant"]
        if any("<|" in message["content"] for message in messages):
            continue
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert chat.prompt(read_messages(messages)) == expected
    whole = theirs.apply_chat_template(CHATS[0], tokenize=False)
    assert whole.removesuffix("<|endoftext|>") == "".join(spell(tokenizer, CHATS[0])).removesuffix(
        "<|endoftext|>"
    )


def test_a_prompt_is_the_beginning_of_what_training_read(tokenizer, tmp_path):
    indexed = IndexedDataset(write(tmp_path, tokenizer))
    chat = ChatEncoder(tokenizer, choose_template(None, tokenizer))
    context, first, between, *_ = items(indexed, 1)
    assert chat.prompt(read_messages(CHATS[1][:1])) == context
    assert chat.prompt(read_messages(CHATS[1][:3])) == context + first + between


def test_a_weight_of_0_keeps_an_answer_as_context(tokenizer, tmp_path):
    chat = [dict(message) for message in CHATS[1]]
    chat[1]["weight"] = 0
    both = IndexedDataset(write(tmp_path, tokenizer, [CHATS[1], chat]))
    assert np.concatenate(items(both, 0)).tolist() == np.concatenate(items(both, 1)).tolist()
    assert len(items(both, 1)) == len(items(both, 0)) - 2


def test_every_conversation_comes_whole_once_an_epoch_and_its_answers_alone_carry_loss(
    tokenizer, tmp_path
):
    prefix = write(tmp_path, tokenizer)
    indexed = IndexedDataset(prefix)
    dataset = open_train(tokenizer, prefix)
    loader = BatchLoader(
        dataset, micro_batch_size=1, resets=DocumentResets(tokenizer.eod, True, True)
    )
    short = [i for i in range(len(CHATS)) if sum(map(len, items(indexed, i))) <= SEQ_LENGTH + 1]
    assert 5 < len(short) < len(CHATS)  # some are too long
    for epoch in range(2):
        seen, most = [], 0
        for index in range(dataset.samples_per_epoch):
            number = epoch * dataset.samples_per_epoch + index
            batch = loader.batch(number, 1)
            place, spans = 0, Tracer(dataset).trace(number).spans
            most = max(most, len(spans))
            for span in spans:
                parts = items(indexed, span.document)
                ids = [token for part in parts for token in part]
                learned = [i % 2 for i, part in enumerate(parts) for _ in part]
                stop = min(place + len(ids), SEQ_LENGTH)
                assert span.tokens == range(place, place + len(ids))
                assert batch.tokens[0, place:stop].tolist() == ids[: stop - place]
                assert batch.document_starts[0, place:stop].eq(place).all()
                assert batch.position_ids[0, place:stop].tolist() == list(range(stop - place))
                # position t is asked for token t + 1; before a conversation nothing is asked
                assert batch.loss_mask[0, place : stop - 1].tolist() == learned[1 : stop - place]
                if place:
                    assert batch.loss_mask[0, place - 1] == 0
                place += len(ids)
                seen.append(span.document)
            assert batch.loss_mask[0, max(place - 1, 0) :].sum() == 0  # padding
        assert sorted(seen) == short
        assert most >= 3  # conversations in a sample
    total = sum(len(part) for i in short for part in items(indexed, i)[1::2])
    assert total == dataset.num_answer_tokens


def test_workers_read_the_same_boundaries(tokenizer, tmp_path):
    dataset = open_train(tokenizer, write(tmp_path, tokenizer))
    resets = DocumentResets(tokenizer.eod, True, True)
    here = BatchLoader(dataset, micro_batch_size=1, resets=resets).batch(3, 4)
    loader = BatchLoader(dataset, micro_batch_size=1, resets=resets, num_workers=1)
    there = loader.batch(3, 4)
    loader.close()
    for name in ("tokens", "labels", "loss_mask", "document_starts", "position_ids"):
        assert torch.equal(getattr(here, name), getattr(there, name))


def test_samples_do_not_depend_on_the_name_of_the_file(tokenizer, tmp_path):
    one, other = (open_train(tokenizer, write(tmp_path, tokenizer, name=name)) for name in "ab")
    assert one.name != other.name
    assert all(np.array_equal(one[i]["tokens"], other[i]["tokens"]) for i in range(20))


def test_packing_leaves_little_room_and_no_pack_too_full():
    sizes = np.random.default_rng(1).integers(1, 101, 2000)
    packs = pack(sizes, 100)
    assert sorted(packs.members.tolist()) == list(range(2000))
    used = [int(sizes[packs[i]].sum()) for i in range(len(packs))]
    assert min(used) > 0 and max(used) <= 100 and len(packs) * 100 < 1.03 * sizes.sum()


@pytest.mark.parametrize("joined", [merge, lambda *a, **k: merge_shuffled(*a, seed=3, **k)])
def test_what_carries_loss_survives_shards_and_merging(tokenizer, tmp_path, joined):
    prefixes = [
        Path(write(tmp_path, tokenizer, shard=f"{i}/3", provenance_keys=("id",))) for i in (1, 2, 3)
    ]
    joined(open_sources(prefixes, drop_provenance=False), tmp_path / "all", on_bytes=lambda n: None)
    whole, parts = IndexedDataset(tmp_path / "all"), IndexedDataset(write(tmp_path, tokenizer))
    assert verify_dataset(str(tmp_path / "all"), tokenizer=tokenizer).findings == []
    rows = [[items(one, i) for i in range(one.num_documents)] for one in (whole, parts)]
    assert sorted(rows[0]) == sorted(rows[1])
    assert isinstance(open_train(tokenizer, str(tmp_path / "all")), ConversationDataset)


def test_two_sets_of_conversations_merge_to_one(tokenizer, tmp_path):
    names = [write(tmp_path, tokenizer, CHATS[:9], "a"), write(tmp_path, tokenizer, CHATS[9:], "b")]
    sources = open_sources([Path(name) for name in names], drop_provenance=False)
    merge(sources, tmp_path / "all", on_bytes=lambda n: None)
    (parts, joined) = (open_train(tokenizer, *paths) for paths in (names, [str(tmp_path / "all")]))
    assert isinstance(joined, ConversationDataset)
    assert joined.num_answer_tokens == sum(one.num_answer_tokens for one in parts.datasets)


def test_conversations_are_not_merged_with_plain_documents(tokenizer, tmp_path):
    chats = write(tmp_path, tokenizer)
    source = tmp_path / "text.jsonl"
    source.write_text(json.dumps({"text": "x = 1"}) + "\n")
    config = PreprocessConfig(
        input=(str(source),), output_prefix=str(tmp_path / "py"), append_eod=True
    )
    preprocess(config, tokenizer)
    sources = open_sources([Path(chats), Path(config.prefix_of("text"))], drop_provenance=True)
    with pytest.raises(
        DataError, match=r"holds conversations written as .* and .* plain documents"
    ):
        merge(sources, tmp_path / "both", on_bytes=lambda n: None)


def test_opted_out_conversations_are_not_read(tokenizer, tmp_path):
    prefix = write(tmp_path, tokenizer, provenance_keys=("id",))
    (tmp_path / "out.jsonl").write_text('{"id": "0"}\n{"id": "5"}\n')
    dataset = open_train(tokenizer, prefix, exclude_documents=(str(tmp_path / "out.jsonl"),))
    seen = {
        span.document
        for index in range(dataset.samples_per_epoch)
        for span in Tracer(dataset).trace(index).spans
    }
    assert seen and seen.isdisjoint({0, 5})
    all_of_it = open_train(tokenizer, prefix)
    counts = [one.num_documents + one.num_too_long for one in (all_of_it, dataset)]
    assert counts == [len(CHATS), len(CHATS) - 2]


@pytest.mark.parametrize(("words", "is_left_out"), [(90, True), (1, False)])
def test_a_set_that_nobody_asked_for_is_left_out_if_all_in_it_are_too_long(
    tokenizer, tmp_path, words, is_left_out
):
    last = turns("hi", "x " * words)
    prefix = write(tmp_path, tokenizer, [turns("hi", "x")] * 40 + [last])
    resets = {"reset_attention_mask": True, "reset_position_ids": True}
    config = DataConfig(seq_length=SEQ_LENGTH, data_path=(prefix,), **resets)
    sets = build_datasets(config, tokenizer, seed=1)
    assert sets.train.num_documents == 40
    assert ("valid" not in sets.valid) == is_left_out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fim_rate": 0.5}, r"--fim-rate is 0.5 and .* holds conversations"),
        ({"reset_attention_mask": False}, "give --reset-attention-mask and --reset-position-ids"),
        ({"reset_position_ids": False}, "give --reset-attention-mask and --reset-position-ids"),
    ],
)
def test_options_that_would_spoil_conversations_are_refused(tokenizer, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        open_train(tokenizer, write(tmp_path, tokenizer), **options)


def test_a_dataset_that_lost_what_says_that_it_holds_conversations_is_refused(
    tokenizer, tmp_path, caplog
):
    prefix = write(tmp_path, tokenizer)
    Path(f"{prefix}.origin.json").unlink()
    with pytest.raises(DataError, match=r"origin.json is missing: it says whether"):
        open_train(tokenizer, prefix)
    Path(f"{prefix}.sha256").unlink()
    open_train(tokenizer, prefix)
    assert "its documents have several items" in caplog.text


def test_two_templates_in_training_are_refused(tokenizer, tmp_path):
    template = {"system": "{content}\n", "user": "Q {content}\n", "end": "<|endoftext|>"}
    template["assistant"] = "A {content}<|endoftext|>"
    (tmp_path / "own.json").write_text(json.dumps(template))
    own = write(tmp_path, tokenizer, name="own", chat_template=str(tmp_path / "own.json"))
    with pytest.raises(DataError, match="different templates"):
        open_train(tokenizer, own, write(tmp_path, tokenizer))
    assert (
        tokenizer.detokenize(items(IndexedDataset(own), 0)[0])
        == "You write Python.\nQ Add two.\nA "
    )


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ("hello", "no list of messages"),
        ([], "no list of messages"),
        ([3], "a message that is no object"),
        ([{"role": "tool", "content": "x"}], "a role that is none of system, user, assistant"),
        ([{"role": "user", "content": None}], "a message whose content is no text"),
        (turns("question"), "no answer to learn from"),
        (turns("question", ""), "an answer that is empty"),
        (
            [turns("q", "a")[0], {**turns("q", "a")[1], "weight": 0.5}],
            "a weight that is neither 0 nor 1",
        ),
    ],
)
def test_what_is_no_conversation_is_named_and_left_out(tokenizer, tmp_path, caplog, chat, reason):
    indexed = IndexedDataset(write(tmp_path, tokenizer, [CHATS[0], chat]))
    assert indexed.num_documents == 1
    assert f"chats.jsonl:2: key 'messages' holds {reason}" in caplog.text


def test_parquet_and_json_lines_give_the_same(tokenizer, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lines = write(tmp_path, tokenizer)
    parquet.write_table(pa.table({"messages": pa.array(CHATS)}), tmp_path / "chats.parquet")
    config = PreprocessConfig(
        input=(str(tmp_path / "chats.parquet"),),
        output_prefix=str(tmp_path / "p"),
        messages_key="messages",
    )
    preprocess(config, tokenizer)
    for suffix in (".bin", ".idx"):
        ours = Path(config.prefix_of("messages") + suffix).read_bytes()
        assert ours == Path(lines + suffix).read_bytes()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"user": "{content}"}, "has the texts system, user, assistant, end"),
        (
            {"system": "", "user": "{content}", "assistant": "A{content}.", "end": "."},
            "system is ''",
        ),
        (
            {"system": "{content}", "user": "{content}", "assistant": "{content}.", "end": "."},
            "something stands",
        ),
        (
            {"system": "{content}", "user": "{content}", "assistant": "A{content}\n", "end": "."},
            "right after it",
        ),
    ],
)
def test_a_template_that_cannot_work_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        ChatTemplate.from_json(values, "file")


def test_starchat_needs_its_sentinels(tokenizer):
    if "<|user|>" in tokenizer.special_tokens:
        pytest.skip("this tokenizer has them")
    with pytest.raises(ConfigError, match=r"has no <\|system\|> <\|user\|>"):
        choose_template("starchat", tokenizer)
    own = ChatTemplate("{content}", "{content}", "A {content}###", "###")
    with pytest.raises(ConfigError, match="ends answers with '###', which is no sentinel"):
        ChatEncoder(tokenizer, own)
