"""What the measurements of personal data plant is what they say, and what they ask about was not learned from."""

from pathlib import Path

from megatron.benchmark import pii
from megatron.benchmark.curation import Curation
from megatron.benchmark.pii_cases import CONTEXTS, TEMPLATES, documents
from megatron.curation.pii.spans import annotated
from megatron.curation.run.document import Document


def test_spans_of_made_up_code_are_its_values_and_the_same_for_a_seed():
    records = list(documents(3, 50, half=0))
    assert records == list(documents(3, 50, half=0))
    assert records != list(documents(4, 50, half=0))
    kinds = set()
    for record in records:
        for span in annotated(Document("1", record["text"], record)).spans:
            value = record["text"][span.begin : span.end]
            assert value == value.strip() and "\n" not in value and len(value) > 3
            assert (" " in value) == (span.label == "NAME")
            kinds.add(span.label)
    assert kinds == set(TEMPLATES)


def test_contexts_that_are_asked_about_are_not_those_learned_from():
    for learned, asked in TEMPLATES.values():
        assert not set(learned) & set(asked)
        assert all(template.count("{}") == 1 for template in (*learned, *asked))
    assert len(CONTEXTS) == 12


def test_the_rules_row_states_what_was_found_of_what_was_planted(tmp_path: Path):
    bench = Curation([Document("1", "mail ann@lee.org\n", {})], tmp_path, 1)
    notes = {row.what: row.note for row in pii.rules(bench)}
    assert notes["pii, rules"] == "1 finds"
    assert notes["pii, 2,400 EMAIL planted"].startswith("recall 1.000, precision 1.000")
    assert notes["pii, 2,400 KEY planted"].startswith("recall 0.99")
