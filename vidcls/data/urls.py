"""URLs of videos, and how they are shown without credentials. Imports nothing heavy."""

import os
import posixpath
import re

from vidcls.errors import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# user:password@, where a password may hold @ or, as secret keys of S3 do, a slash; and TOKEN@ of a web server's URL.
_USER = re.compile(
    r"""(://)(?:[^/?\#\s@]*:[^/?\#\s]*|(?!\[)[^/?\#\s:@]+:(?!\d{1,5}(?:[/?\#\s]|$))\S*?)@
    |(\bhttps?://)[^/?\#\s]+@""",
    re.IGNORECASE | re.VERBOSE,
)
# Parameters that sign a URL or give access, as S3, Google, Azure, CloudFront and others name them; also those with its
# expiry time, so that a video signed again keeps its name. A key that is a path,
# and a start in seconds, tell videos apart.
_SECRET = re.compile(
    r"""([?&;\#](?:[\w.-]*(?:token|secret|signature|credential|passw(?:or)?d|api[-_]?key|access[-_]?key(?:[-_]?id)?|auth
    |authorization)|x-(?:amz|goog|ms|oss|cos)-[\w-]+|sig|pwd|key(?==[\w-]*(?:[&;\#\s'"<>)\]]|$))|key-pair-id|policy
    |expires|GoogleAccessId|(?:se|st|ske|skt)(?==\d{4}-)|skoid|sktid)=)[^&;\#\s'"<>)\]]*""",
    re.IGNORECASE | re.VERBOSE,
)


def is_url(text: str) -> bool:
    """Whether a text is a URL (``s3://bucket/a.mp4``) rather than the path of a local file, which ``file://`` is too.

    >>> is_url("s3://bucket/a.mp4"), is_url("clips/a.mp4"), is_url("file:///clips/a.mp4")
    (True, False, False)
    """
    return bool(_SCHEME.match(text)) and not text.lower().startswith("file://")


def local_path(text: str) -> str:
    """A path without the ``file://`` that it may start with."""
    return text[len("file://") :] if text.lower().startswith("file://") else text


def join(base: str, name: str) -> str:
    """``name`` itself if it is a URL or absolute, else relative to the folder ``base``, which may be a URL.

    >>> join("s3://bucket/clips", "day 1/a.mp4"), join("/clips", "https://host/a.mp4")
    ('s3://bucket/clips/day 1/a.mp4', 'https://host/a.mp4')
    """
    name = local_path(name)
    if is_url(name) or os.path.isabs(name):
        return name
    if not is_url(base):
        return os.path.join(base, name)
    scheme, _, folder = base.partition("://")
    path = f"{folder.rstrip('/')}/{name}"
    return f"{scheme}://{posixpath.normpath(path) if {'.', '..'} & set(name.split('/')) else path}"


def absolute(location: str) -> str:
    """A URL as it is; of a path, the real path."""
    return location if is_url(location) else os.path.realpath(local_path(location))


def path_of(location: str) -> str:
    """A path as it is; of a URL, the part before the query.

    >>> path_of("https://host/a.mp4?width=3"), path_of("s3://bucket/really?.mp4")  # keys of S3 may hold ? and #
    ('https://host/a.mp4', 's3://bucket/really?.mp4')
    """
    if not is_url(location):
        return location
    return re.split("[?#]" if location.lower().startswith("http") else r"\?versionId=", location)[0]


def extension(location: str) -> str:
    """The extension of a path or URL, in lower case and without its dot.

    >>> extension("https://host/a.MP4?width=3"), extension("clips/a.b.mkv"), extension("s3://my.bucket")
    ('mp4', 'mkv', '')
    """
    path = path_of(location)
    return posixpath.splitext(path.partition("://")[2].partition("/")[2] if is_url(path) else path)[1][1:].lower()


def redact(text: str) -> str:
    """``text`` with *** in place of passwords, tokens and signatures in the URLs in it.

    >>> redact("https://me:secret@host/a.mp4?id=7&X-Amz-Signature=ab12&X-Amz-Date=20261126")
    'https://***@host/a.mp4?id=7&X-Amz-Signature=***&X-Amz-Date=***'
    >>> redact("s3://bucket/a@2x.mp4")
    's3://bucket/a@2x.mp4'
    """
    if "://" not in text or not ("@" in text or "=" in text):
        return text
    return _SECRET.sub(r"\1***", _USER.sub(lambda found: f"{found[1] or found[2]}***@", text))


def refuse_credentials(option: str, text: str) -> None:
    """Raises `UserError` for a URL with a password, token or signature, as options are stored in config.yaml."""
    if redact(text) != text:
        raise UserError(
            f"{option} without credentials",
            redact(text),
            "Give them in the environment or a profile, or list signed URLs in a .txt, .csv or .parquet file.",
            "url-credentials",
        )
