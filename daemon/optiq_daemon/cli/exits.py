"""Exit codes of ``optiq``: 0 ok, 1 failed, 2 usage, 3 try again, 130 interrupted."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_RETRY = 3
EXIT_INTERRUPTED = 130


def exit_code_of(error: BaseException) -> int | None:
    """The code for an error that Optiq raises on purpose; None for any other, which is a bug."""
    from optiq_client.credentials import CredentialsError
    from optiq_client.errors import OptiqClientError
    from optiq_client.paths import SocketPathError
    from optiq_core.errors import OptiqError

    if isinstance(error, OptiqClientError):
        return EXIT_RETRY if error.retryable else EXIT_FAILED
    if isinstance(error, OptiqError | SocketPathError | CredentialsError):
        return EXIT_FAILED
    return None
