"""Every error a user may meet, each with its exit code and the next thing to try.

    LlamatuiError              1  runtime failure
      UsageError               2  wrong flags or values
      ModelError               3  a model or tokenizer file is missing or invalid
        CheckpointError           ... the model file
        TokenizerError            ... the tokenizer file
        TokenizerMissingError     none was found; knows which to fetch
      MissingExtraError        1  an optional package is not installed
      BackendError             1  a backend cannot be imported, or failed
      HistoryError             1  the history cannot be read or written
      ContextOverflowError     4  the text does not fit the context, under `--overflow error`

A message says what was expected and what was found; `hint` says what to do next.
"""


class LlamatuiError(Exception):
    """Root of all errors raised on purpose."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def code(self) -> str:
        """Stable name for `--json`: the class name without `Error`, in lower snake case."""
        name = type(self).__name__.removesuffix("Error")
        return "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))


class UsageError(LlamatuiError):
    exit_code = 2


class ModelError(LlamatuiError):
    exit_code = 3


class CheckpointError(ModelError):
    pass


class TokenizerError(ModelError):
    pass


class TokenizerMissingError(ModelError):
    def __init__(self, message: str, hint: str, pull: str) -> None:
        """`pull`: name in the catalogue of the tokenizer that would do; "" if none is known."""
        super().__init__(message, hint)
        self.pull = pull


class BackendError(LlamatuiError):
    pass


class HistoryError(LlamatuiError):
    pass


class MissingExtraError(LlamatuiError):
    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package", f'pip install "llamatui[{extra}]"')


class ContextOverflowError(LlamatuiError):
    exit_code = 4
