"""From the data options to the datasets of a run: train, and the named sets for validation and test.

Opt-out lists apply to all sets alike; a document stays in the set it is in, whether others are excluded or not.
Opening costs the same for any size of data, so every process does it for itself. Knows nothing of batches or torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from megatron.data.blended_dataset import BlendedDataset
from megatron.data.content import SetContents, SourceContent, content_of
from megatron.data.conversation_dataset import (
    ConversationDataset,
    SourceDataset,
    has_short,
    template_of,
)
from megatron.data.exclusion import Exclusions, exclude_documents
from megatron.data.fim import FillInTheMiddle
from megatron.data.gpt_dataset import Dataset, GPTDataset
from megatron.data.indexed_dataset import IndexedDataset, idx_path
from megatron.data.origin import other_tokenizer
from megatron.data.split import DataPlan, SourceGroup, read_data_options
from megatron.data.token_range import TokenRange
from megatron.errors import ConfigError, DataError
from megatron.logging import get_logger
from megatron.option_field import require
from megatron.options import DataConfig
from megatron.tokenizer.chat_template import ChatTemplate
from megatron.tokenizer.interface import Tokenizer

logger = get_logger(__name__)

NUM_CHECKED_TOKENS = 1 << 14  # at either end of a file
NUM_CHECKED_DOCUMENTS = 16
FIM_SUFFIX = "+fim"  # of the name of a set that is evaluated with fill-in-the-middle


@dataclass(frozen=True)
class Datasets:
    """What a run reads. Each set is endless: sample numbers go on into later epochs."""

    train: Dataset
    valid: dict[str, Dataset]
    test: dict[str, Dataset]
    train_content: SetContents
    eval_content: SetContents  # of valid, and of test by the names that logs use
    excluded_sha256: tuple[str, ...] = ()  # of each opt-out list
    chat_template: ChatTemplate | None = None  # of the conversations that are trained on

    @property
    def logged_test(self) -> dict[str, Dataset]:
        """The test sets by the names that logs use, which tell them from validation: test, or test/NAME."""
        return {_test_name(name): dataset for name, dataset in self.test.items()}


def _test_name(name: str) -> str:
    return name if name.removesuffix(FIM_SUFFIX) == "test" else f"test/{name}"


def build_datasets(config: DataConfig, tokenizer: Tokenizer, *, seed: int) -> Datasets:
    """Open every file that the options name and make the sets of it.

    Raises ConfigError for options that clash and DataError for data that is missing, damaged, too short or made
    with another tokenizer. Logs a line for each source of each set.
    """
    plan = read_data_options(config)
    files = _open_all(plan, tokenizer)
    templates = _templates(files, config)
    excluded = exclude_documents(
        config.exclude_documents, files, skipped=config.exclude_documents_skip
    )
    builder = _Builder(config, tokenizer, seed, files, excluded, frozenset(templates))
    (train,) = builder.build(plan.train, [builder.fim])
    valid, test = builder.build_evaluated(plan.valid), builder.build_evaluated(plan.test)
    contents = {name: made.content for name, made in valid.items()}
    contents |= {_test_name(name): made.content for name, made in test.items()}
    return Datasets(
        train=train.dataset,
        valid={name: made.dataset for name, made in valid.items()},
        test={name: made.dataset for name, made in test.items()},
        train_content={plan.train.name: train.content},
        eval_content=contents,
        excluded_sha256=excluded.sha256,
        chat_template=_trained_template(plan.train, templates),
    )


def _open_all(plan: DataPlan, tokenizer: Tokenizer) -> dict[str, IndexedDataset]:
    """Open every token file once, by prefix: one that serves three sets is mapped once."""
    groups = (plan.train, *plan.valid, *plan.test)
    prefixes = dict.fromkeys(source.prefix for group in groups for source in group.sources)
    return {prefix: _open(prefix, tokenizer) for prefix in prefixes}


def _open(prefix: str, tokenizer: Tokenizer) -> IndexedDataset:
    if not idx_path(prefix).exists():
        raise DataError(
            f"there is no dataset {prefix}: {idx_path(prefix)} does not exist{_hint(prefix)}"
        )
    indexed = IndexedDataset(prefix)
    _check_ids(indexed, tokenizer)
    _check_ends(indexed, tokenizer)
    other = other_tokenizer(prefix, tokenizer.fingerprint())
    if other is not None:
        logger.warning(
            "%s: ATTENTION: it was made with another tokenizer than %s, by its fingerprint %s; its ids stand for other "
            "text, unless the two differ in sentinels alone",
            prefix,
            tokenizer.name,
            other,
        )
    return indexed


def _templates(files: Mapping[str, IndexedDataset], config: DataConfig) -> dict[str, ChatTemplate]:
    """Give the templates of files of conversations, by prefix. ConfigError for options that do not go with these."""
    found = {prefix: template_of(indexed) for prefix, indexed in files.items()}
    templates = {prefix: template for prefix, template in found.items() if template is not None}
    if not templates:
        return {}
    holds = f"{next(iter(templates))} holds conversations"
    require(
        config.fim_rate == 0,
        f"--fim-rate is {config.fim_rate:g} and {holds}, which fill-in-the-middle would take apart; give --fim-rate 0",
    )
    require(
        config.reset_attention_mask and config.reset_position_ids,
        f"{holds}, several a sample: give --reset-attention-mask and --reset-position-ids, so that none sees another "
        "and each begins at position 0, as a prompt does",
    )
    return templates


def _trained_template(
    train: SourceGroup, templates: Mapping[str, ChatTemplate]
) -> ChatTemplate | None:
    """Give the one template of what is trained on, None without conversations. DataError where there are two."""
    used = {
        source.prefix: templates[source.prefix]
        for source in train.sources
        if source.prefix in templates
    }
    first = next(iter(used), None)
    for prefix, template in used.items():
        if first is not None and template != used[first]:
            raise DataError(
                f"{first} and {prefix} hold conversations written by different templates ({used[first]} and "
                f"{template}); preprocess them with the same --chat-template"
            )
    return used[first] if first is not None else None


@dataclass(frozen=True)
class _Made:
    """A set, and what it is made of."""

    dataset: Dataset
    content: tuple[SourceContent, ...]


class _Builder:
    """Makes sets of open token files."""

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        seed: int,
        files: dict[str, IndexedDataset],
        excluded: Exclusions,
        conversations: frozenset[str],
    ) -> None:
        """conversations: the files that hold some."""
        self._config = config
        self._conversations = conversations
        self._tokenizer = tokenizer
        self._seed = seed
        self._files = files
        self._excluded = excluded
        self._contents = {prefix: content_of(prefix) for prefix in files}
        self.fim = None
        if config.fim_rate > 0:
            self.fim = FillInTheMiddle(
                tokenizer,
                rate=config.fim_rate,
                spm_rate=config.fim_spm_rate,
                split_token=config.fim_split_sample,
                fragment_rate=config.fragment_fim_rate,
            )

    def build_evaluated(self, groups: Sequence[SourceGroup]) -> dict[str, _Made]:
        """Make sets by name; with --fim-rate, as --eval-fim says, the same samples without FIM and with it."""
        variants: dict[str, FillInTheMiddle | None] = {"": None}
        if self.fim is not None and self._config.eval_fim == "with":
            variants = {FIM_SUFFIX: self.fim}
        elif self.fim is not None and self._config.eval_fim == "both":
            variants[FIM_SUFFIX] = self.fim
        sets: dict[str, _Made] = {}
        for group in groups:
            made = self.build(group, list(variants.values()))
            for suffix, dataset in zip(variants, made, strict=False):  # none was made of too little
                name = group.name + suffix
                if name in sets:
                    raise ConfigError(
                        f"{name} would name two sets, since {FIM_SUFFIX} marks a set read with FIM; rename one of them"
                    )
                sets[name] = dataset
        return sets

    def build(self, group: SourceGroup, fims: Sequence[FillInTheMiddle | None]) -> list[_Made]:
        """Make one set with each of fims; none if it is there by default only and makes no sample."""
        sources: list[_Source] = []
        prefixes = [source.prefix for source in group.sources]
        names = _numbered(f"{group.name}/{Path(prefix).name}" for prefix in prefixes)
        # Draws depend on what is read: a file may be moved and renamed.
        keys = _numbered(f"{group.name}/{self._contents[prefix].sample}" for prefix in prefixes)
        for source, name, key in zip(group.sources, names, keys, strict=True):
            indexed = self._files[source.prefix]
            documents = source.part.documents(indexed.num_documents)
            tokens = TokenRange(indexed, documents, self._excluded.of(source.prefix))
            if group.is_by_default and not self._holds_sample(source.prefix, documents, tokens):
                logger.info(
                    "%s: %d documents of %s make no sample; left out, since no --split asks for them",
                    name,
                    tokens.num_documents,
                    source.prefix,
                )
                continue
            sources.append(_Source(indexed, documents, name, key, source.weight))
        if not sources:
            return []
        made = [[self._dataset(source, fim) for source in sources] for fim in fims]
        weights = [source.weight for source in sources]
        _log_sources(made[0], weights)
        content = tuple(self._content(source, sum(weights)) for source in sources)
        if len(sources) == 1:
            return [_Made(datasets[0], content) for datasets in made]
        return [_Made(BlendedDataset(datasets, weights, group.name), content) for datasets in made]

    def _holds_sample(self, prefix: str, documents: range, tokens: TokenRange) -> bool:
        seq_length = self._config.seq_length
        if prefix not in self._conversations:
            return tokens.num_tokens > seq_length
        return has_short(tokens.indexed, documents, self._excluded.of(prefix), seq_length)

    def _dataset(self, source: _Source, fim: FillInTheMiddle | None) -> SourceDataset:
        if source.indexed.prefix in self._conversations:
            return ConversationDataset(
                source.indexed,
                source.documents,
                seq_length=self._config.seq_length,
                seed=self._seed,
                name=source.name,
                eod=self._tokenizer.eod,
                excluded=self._excluded.of(source.indexed.prefix),
                key=source.key,
            )
        return GPTDataset(
            source.indexed,
            source.documents,
            seq_length=self._config.seq_length,
            seed=self._seed,
            name=source.name,
            fim=fim,
            eod_without_loss=self._tokenizer.eod if self._config.eod_mask_loss else None,
            excluded=self._excluded.of(source.indexed.prefix),
            key=source.key,
        )

    def _content(self, source: _Source, total_weight: Fraction | int) -> SourceContent:
        prefix, documents = source.indexed.prefix, source.documents
        return SourceContent(
            file=Path(prefix).name,
            weight=str(source.weight / total_weight),
            start=documents.start,
            stop=documents.stop,
            content=self._contents[prefix],
        )


@dataclass(frozen=True)
class _Source:
    """A part of an open token file in a set."""

    indexed: IndexedDataset
    documents: range
    name: str
    key: str  # tells its draws from those of others
    weight: Fraction


def _check_ids(indexed: IndexedDataset, tokenizer: Tokenizer) -> None:
    """Raise DataError if the first or last ids of a file are beyond the vocabulary."""
    num_tokens = indexed.num_tokens
    num_checked = min(NUM_CHECKED_TOKENS, num_tokens)
    for start in (0, num_tokens - num_checked):
        ids = indexed.read(start, start + num_checked)
        if len(ids) and (ids.min() < 0 or ids.max() >= tokenizer.vocab_size):
            raise DataError(
                f"{indexed.prefix} holds ids {ids.min()} to {ids.max()}, and the tokenizer {tokenizer.name} has "
                f"0 to {tokenizer.vocab_size - 1}: it was made with another one; give the tokenizer that "
                "tools/preprocess_data.py was given"
            )


def _check_ends(indexed: IndexedDataset, tokenizer: Tokenizer) -> None:
    """Warn if none of the first documents ends with the end-of-document token."""
    for document in range(min(NUM_CHECKED_DOCUMENTS, indexed.num_documents)):
        start, stop = indexed.document_start(document), indexed.document_start(document + 1)
        if stop > start and indexed.read(stop - 1, stop)[0] == tokenizer.eod:
            return
    logger.info(
        "%s: its documents do not end with the end-of-document token (id %d): the model cannot learn to stop, and "
        "fill-in-the-middle, --reset-position-ids and --reset-attention-mask take all of a sample as one document; "
        "preprocess with --append-eod",
        indexed.prefix,
        tokenizer.eod,
    )


def _hint(prefix: str) -> str:
    """Name datasets whose prefix starts like the one that is missing: --output-prefix is only part of it."""
    path = Path(prefix)
    found = []
    if path.parent.is_dir():
        found = sorted(
            str(path.with_name(file.stem))
            for file in path.parent.iterdir()
            if file.suffix == ".idx" and file.name.startswith(path.name)
        )
    if not found:
        return "; a dataset is given by its prefix, the path without .bin and .idx"
    return f"; did you mean {' or '.join(found[:3])}?"


def _numbered(names: Iterable[str]) -> list[str]:
    """Tell equal names apart: the second one ends with #2."""
    numbered, seen = [], Counter[str]()
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return numbered


def _log_sources(datasets: Sequence[SourceDataset], weights: Sequence[Fraction]) -> None:
    for dataset, weight in zip(datasets, weights, strict=True):
        logger.info(
            "%s: weight %.4f, %s documents, %s tokens, %s samples an epoch",
            dataset.name,
            weight / sum(weights),
            f"{dataset.num_documents:,}",
            f"{dataset.num_tokens:,}",
            f"{dataset.samples_per_epoch:,}",
        )
        if not isinstance(dataset, ConversationDataset):
            continue
        logger.info(
            "%s: conversations; %s of the tokens, those of answers, carry loss, and %.1f%% of the samples is padding",
            dataset.name,
            f"{dataset.num_answer_tokens:,}",
            100 * dataset.padding,
        )
        if dataset.num_too_long:
            logger.warning(
                "%s: ATTENTION: %s conversations are longer than a sample of %d tokens and are left out",
                dataset.name,
                f"{dataset.num_too_long:,}",
                dataset.seq_length,
            )
