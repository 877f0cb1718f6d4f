"""Where documents start in a packed sample, against Megatron-LM's own function; FIM comes before it."""

import json

import numpy as np
import torch

from megatron.data.fim import FillInTheMiddle
from megatron.data.loader import Batch, BatchLoader, DocumentResets, document_starts
from tests.megatron_core import run_megatron_core

EOD = 0
SAMPLES = {
    "starts and ends inside a document": [5, 6, EOD, 7, 8, 9, EOD, 3, 4],
    "ends with a document": [5, 6, 7, EOD, 8, EOD],
    "starts with an end": [EOD, 5, 6, EOD, 7],
    "two ends in a row": [5, EOD, EOD, EOD, 6, 7],
    "no end": [5, 6, 7],
    "ends only": [EOD, EOD, EOD, EOD],
    "one token": [5],
    "one end": [EOD],
}
SCRIPT = """
import json, sys
import torch
from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

samples, eod = json.loads(sys.argv[1])
found = []
for sample in samples:
    for flags in ((True, True), (True, False), (False, True), (False, False)):
        mask, _, positions = _get_ltor_masks_and_position_ids(
            torch.tensor(sample), eod, *flags, eod_mask_loss=False, create_attention_mask=True
        )
        found.append((*flags, (~mask[0]).tolist(), positions.tolist()))
print(json.dumps(found))
"""


def batch_of(tokens):
    mask = torch.ones(tokens.shape)
    return Batch(tokens, tokens, mask, torch.arange(len(tokens)))


def test_positions_and_masks_are_megatron_cores():
    rows = list(SAMPLES.values())
    found = json.loads(run_megatron_core(SCRIPT, json.dumps((rows, EOD))).splitlines()[-1])
    assert len(found) == 4 * len(rows)
    for number, (resets_positions, resets_attention, visible, positions) in enumerate(found):
        tokens = torch.tensor([rows[number // 4]])
        resets = DocumentResets(EOD, positions=resets_positions, attention=resets_attention)
        batch = resets.apply(batch_of(tokens))
        counted = torch.arange(tokens.size(1))
        assert (batch.position_ids is not None) == resets_positions
        assert (batch.document_starts is not None) == resets_attention
        mine = counted if batch.position_ids is None else batch.position_ids[0]
        starts = torch.zeros_like(counted)
        if batch.document_starts is not None:
            starts = batch.document_starts[0]
        assert mine.tolist() == positions
        seen = (starts.unsqueeze(1) <= counted) & (counted <= counted.unsqueeze(1))
        assert seen.tolist() == visible


def test_samples_of_a_batch_do_not_see_each_others_ends():
    tokens = torch.tensor([[5, EOD, 6, 7], [5, 6, 7, EOD], [EOD, 5, 6, 7]])
    starts = document_starts(tokens, EOD)
    assert starts.dtype == torch.int64
    assert starts.tolist() == [[0, 0, 2, 2], [0, 0, 0, 0], [0, 1, 1, 1]]


class Documents:
    """Samples of three documents of real text each, in whose middle FIM cuts."""

    name = "documents"

    def __init__(self, tokenizer, text):
        ids = tokenizer.tokenize(text)
        pieces = [ids[start : start + 20] for start in range(0, 60, 20)]
        self.window = np.array([id for piece in pieces for id in (*piece, tokenizer.eod)])
        self.fim = FillInTheMiddle(tokenizer, rate=1.0)

    def __getitem__(self, index):
        window, _ = self.fim(self.window, index)
        mask = np.ones(len(window) - 1, np.float32)
        return {"tokens": window[:-1], "labels": window[1:], "loss_mask": mask}


def test_boundaries_are_those_of_the_tokens_after_fim(tokenizer, source_texts):
    dataset = Documents(tokenizer, source_texts[0])
    resets = DocumentResets(tokenizer.eod, positions=True, attention=True)
    batch = BatchLoader(dataset, micro_batch_size=2, resets=resets).batch(0, 4)
    unlike = 0
    for tokens, starts, positions in zip(
        batch.tokens, batch.document_starts, batch.position_ids, strict=True
    ):
        start = 0
        for place, token in enumerate(tokens.tolist()):
            assert starts[place] == start
            assert positions[place] == place - start
            if token == tokenizer.eod:
                start = place + 1
        unlike += tokens.tolist() != dataset.window[:-1].tolist()
        assert (tokens == tokenizer.special_tokens["<fim_middle>"]).sum() >= 2
    assert unlike == 4


def test_what_a_device_needs_goes_there_and_the_rest_stays(tokenizer):
    resets = DocumentResets(EOD, positions=True, attention=True)
    batch = resets.apply(batch_of(torch.tensor([[5, EOD, 6]])))
    moved = batch.to(torch.device("meta"))
    on_device = (moved.tokens, moved.labels, moved.loss_mask, moved.position_ids)
    assert all(tensor.device.type == "meta" for tensor in on_device)
    assert moved.document_starts is batch.document_starts
    assert moved.sample_ids is batch.sample_ids
