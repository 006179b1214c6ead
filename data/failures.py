"""What can go wrong with a source: the errors a user gets, in one line, and which failures may pass by themselves."""

import errno
import re
from typing import NoReturn

from data.sample import DataError

# Refusals, as s3fs translates them and `_check_answer` does.
LASTING = {errno.EINVAL, errno.ENOSYS, errno.EREMCHG, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR}
# aiohttp's and botocore's errors by name, as neither need be installed; those of botocore not here are lasting.
PASSING_NAMES = {"ClientError", "ConnectionError", "HTTPClientError", "IncompleteReadError", "ResponseParserError"}
PASSING_NAMES |= {"CredentialRetrievalError", "MetadataRetrievalError"}
LASTING_NAMES = {"InvalidURL", "ClientConnectorCertificateError"}
CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError"}

ADDRESS = re.compile(r"(\w+://)(?:[^/\s'\"]*@)?([^\s'\"?#]*)(?:[?#][^\s'\"]*)?")


class SourceError(DataError):
    """A source that cannot be reached. It says nothing about the samples in it."""


class MissingError(SourceError):
    """A source that was reached and has no such file."""


def passing(error: Exception) -> bool:
    """Whether another attempt may do better."""
    kinds = _kinds(error)
    if isinstance(error, FileNotFoundError | PermissionError) or kinds & LASTING_NAMES:
        return False
    return bool(kinds & PASSING_NAMES) or (isinstance(error, OSError) and error.errno not in LASTING)


def refuse(place: str, error: Exception) -> NoReturn:
    """Tell what will not change by itself. Errors in the program itself pass through."""
    kinds = _kinds(error)
    if not isinstance(error, OSError) and not kinds:
        raise error
    # Not `from error`, whose text may hold credentials.
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        raise MissingError(f"{place}: not there; mend the path or fetch it again") from None
    if isinstance(error, PermissionError) or kinds & CREDENTIALS:
        mend = "check permissions and credentials (a public bucket needs FSSPEC_S3_ANON=true)"
        raise SourceError(f"{place}: no access ({reason(error)}); {mend}") from None
    raise SourceError(f"{place}: cannot be read ({reason(error)}); mend the address or what serves it") from None


def reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return public(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def public(text: str) -> str:
    """A text without what addresses in it hold of passwords and signatures."""
    return ADDRESS.sub(r"\1\2", text)


def _kinds(error: Exception) -> set[str]:
    """Names of the classes of an error that the transport raised."""
    return {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith(("aiohttp.", "botocore."))}
