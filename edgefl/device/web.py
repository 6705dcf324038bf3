"""Reading a part of a file from a web server, over HTTPS only. The standard library's client, imported when first needed.

Rules: certificates are checked as the context says; a redirection leads to HTTPS or nowhere; each step has a timeout; a server
that ignores the range is understood, one that has more than was promised is refused.
"""

import http.client
import ssl
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from edgefl.errors import EndlessDataError, LinkError, MessageError

PIECE = 16 * 1024


class _HttpsOnly(HTTPRedirectHandler):
    """Follows redirections to HTTPS."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        """The request to make instead. Raises LinkError when it would not be HTTPS."""
        if not newurl.startswith("https://"):
            raise LinkError("a source redirects to another protocol", expected="https://...", found=newurl[:100])
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class WebFile:
    """Bytes of a file on a web server, from an offset on; a context manager.

    Args:
        url: of the file, `https://...`.
        offset: first byte wanted.
        end: byte after the last one wanted.
        length: bytes of the whole file, as promised.
        context: which certificates are believed.
        timeout: seconds for each step.

    Raises:
        LinkError: no such server, no such file, or a refused redirection.
        EndlessDataError: the server has more than was promised.
        MessageError: it sends another part than was asked for.
    """

    def __init__(self, url: str, offset: int, end: int, length: int, context: ssl.SSLContext, timeout: float) -> None:
        opener = OpenerDirector()
        for handler in (
            ProxyHandler(), HTTPSHandler(context=context), HTTPDefaultErrorHandler(), HTTPErrorProcessor(), _HttpsOnly(),
        ):  # fmt: skip
            opener.add_handler(handler)
        self._url = url
        request = Request(url, headers={"Range": f"bytes={offset}-{end - 1}"} if end - offset < length else {})  # noqa: S310 - checked: https
        try:
            self._answer = opener.open(request, timeout=timeout)
        except HTTPError as error:
            error.close()
            raise LinkError(
                f"source {url[:100]} answers {error.code}", remedy="Publish the file there, or take the source out"
            ) from None
        except (URLError, http.client.HTTPException, OSError, ValueError) as error:
            raise LinkError(f"source {url[:100]} cannot be reached", found=str(error)[:200]) from None
        try:
            self._check(offset, end, length)
        except Exception:
            self.close()
            raise

    def __enter__(self) -> "WebFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, count: int) -> bytes:
        """Up to so many bytes; empty at the end. Raises LinkError."""
        try:
            return bytes(self._answer.read1(min(count, PIECE)))
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise LinkError(f"source {self._url[:100]} broke off", found=str(error)[:200]) from None

    def close(self) -> None:
        """Let go of the connection."""
        self._answer.close()

    @property
    def skip(self) -> int:
        """Bytes to be read before those that were asked for."""
        return self._skip

    def _check(self, offset: int, end: int, length: int) -> None:
        partial = self._answer.status == http.client.PARTIAL_CONTENT
        described = self._answer.headers.get("Content-Range", "")
        if partial and not described.startswith(f"bytes {offset}-"):
            raise MessageError(f"source {self._url[:100]} sends another part", expected=f"bytes {offset}-", found=described[:60])
        self._skip = 0 if partial else offset
        promised = end - offset if partial else length
        stated = self._answer.headers.get("Content-Length", "")
        if stated.isdigit() and int(stated) > promised:
            raise EndlessDataError(f"source {self._url[:100]} has too much", expected=f"{promised} bytes", found=stated)
