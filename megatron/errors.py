"""The errors a user can cause. Each message says what was given, what is allowed and what to do.

Command lines turn them into one line on stderr and exit code 2; anything else that escapes is a bug of ours.
"""


class MegatronError(Exception):
    """Base of every error that a user's input can cause."""


class ConfigError(MegatronError):
    """A flag, a combination of flags, or a layout that cannot run."""


class DataError(MegatronError):
    """A dataset, tokenizer or input file that is missing, damaged or does not fit."""


class CheckpointError(MegatronError):
    """A checkpoint that is missing, damaged or belongs to another run."""


class TrainingError(MegatronError):
    """A run that cannot go on though its input is right: its numbers went wrong. Exit code 1."""
