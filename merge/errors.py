"""What every command says when it refuses its input: one message that a person can act on."""


class InputError(Exception):
    """Input from outside is unusable: a file, a folder, a setting, a text.

    The message says what is wrong and where, what was expected and what was found, and what to do. Commands print it
    alone and exit with 1, having written nothing. A mistake of our own is an assertion, never an `InputError`.
    """


class ExpertFileError(InputError):
    """An expert file is damaged, foreign, hostile, or was trained against another anchor."""


class CheckpointError(InputError):
    """A model folder is not what its place needs: not OLMo-2, not FlexOlmo, incomplete, or altered."""
