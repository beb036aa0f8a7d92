"""The server of the annotation page: it shows unknown images on 127.0.0.1 and stores an annotator's decisions."""

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from collective_node.annotation.access import Access
from collective_node.annotation.clusters import Cluster
from collective_node.annotation.labels import Decision, LabelBook
from collective_node.annotation.unknown_set import UnknownSet
from protocol.errors import InputError, StorageFailedError, fault_line

COOKIE = "annotate"
#: Life of a cookie, if the server goes on for so long: a closed tab can be opened again within a week.
COOKIE_SECONDS = 7 * 24 * 3600
#: Largest request body; enough for a decision on 100,000 images.
MAX_BODY_BYTES = 1 << 20

_USED = (
    "This address was used already, or belongs to an earlier start. "
    "In the terminal of `collective-node annotate`, press Enter for a new one."
)
# The next request then comes from a page of ours; one that came from elsewhere would not bring a strict cookie.
_ENTERED = (
    '<!doctype html><title>Unknown images</title><link rel="icon" href="data:,">'
    '<meta http-equiv="refresh" content="0; url=./">'
)

_FILES = {"": "text/html", "annotate.css": "text/css", "annotate.js": "text/javascript"}

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(
    unknown: UnknownSet,
    groups: Sequence[Cluster],
    book: LabelBook,
    access: Access,
    *,
    title: str = "",
    finished: Callable[[], None],
) -> Starlette:
    """The application, to be bound to 127.0.0.1 and nothing else.

    Below ``/<place>/`` it answers: ``enter?token=`` (a cookie for a token), the page and its two files, ``set`` (what
    does not change), ``images/<number>.png``, ``labels`` (the labels now; 204 if they are still at revision ``since``)
    and ``decisions`` (POST, one :class:`Decision`; once it is durable, the answer is the labels at that time).

    Args:
        unknown: the images.
        groups: every image once, in the order of the page.
        book: stores the decisions.
        access: decides who may see the page.
        title: names the set on the page.
        finished: called once the decision ``finished`` is stored and answered.
    """
    page = _Page(unknown, groups, book, access, title, finished)
    routes = [
        Route("/enter", page.enter),
        *(Route(f"/{name}", page.file) for name in _FILES),
        Route("/set", page.set),
        Route("/images/{number:int}.png", page.image),
        Route("/labels", page.labels),
        Route("/decisions", page.decide, methods=["POST"]),
    ]
    return Starlette(routes=[Mount(f"/{access.place}", routes=routes)], middleware=[Middleware(_Guard, access=access)])


class _Guard:
    """Refuses requests that do not come from the page, before any route, and adds our headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await (self._refusal(HTTPConnection(scope)) or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: HTTPConnection) -> Response | None:
        if _says_twice(request):
            return PlainTextResponse("This request says something twice; no browser does.", 400)
        host = request.headers.get("host", "")
        # Refuses other host names that point at 127.0.0.1 (DNS rebinding). Any port is allowed: it may be forwarded.
        if not re.fullmatch(r"127\.0\.0\.1(:[0-9]{1,5})?", host):
            return PlainTextResponse("This page is at 127.0.0.1 only.", 400)
        path = request.scope["path"]
        if not path.startswith(f"/{self._access.place}/"):
            return PlainTextResponse("Not here.", 404)
        if path != f"/{self._access.place}/enter" and not self._access.admits(request.cookies.get(COOKIE)):
            return PlainTextResponse(_USED, 403)
        # Another site's page can make a browser post, but not with our origin.
        own = request.headers.get("origin") == f"http://{host}"
        if request.scope["method"] not in ("GET", "HEAD") and not own:
            return PlainTextResponse("Only the page itself may send this.", 403)
        return None


def _says_twice(request: HTTPConnection) -> bool:
    """Check whether a request holds two values for one name: one program could check the first and another use the
    second. A chunked request that also has a length counts as such a request (RFC 9112, section 6.1)."""
    headers = [name for name, _ in request.scope["headers"]]
    # We read the raw headers, because a parser keeps only one of two.
    cookies = [part.partition("=")[0].strip() for part in request.headers.get("cookie", "").split(";")]
    parameters = [name for name, _ in request.query_params.multi_items()]
    return (
        len(set(headers)) < len(headers)
        or cookies.count(COOKIE) > 1
        or len(set(parameters)) < len(parameters)
        or b"transfer-encoding" in headers
    )


class _Page:
    """The answers of the routes."""

    def __init__(
        self,
        unknown: UnknownSet,
        groups: Sequence[Cluster],
        book: LabelBook,
        access: Access,
        title: str,
        finished: Callable[[], None],
    ) -> None:
        self._unknown, self._groups, self._book, self._access = unknown, groups, book, access
        self._title, self._finished = title, finished
        # A browser keeps what it could not send by these images, which its numbers of images refer to.
        self._id = hashlib.sha256(np.ascontiguousarray(unknown.images).data).hexdigest()
        folder = Path(__file__).parent
        self._files = {name: (folder / (name or "annotate.html")).read_bytes() for name in _FILES}

    async def enter(self, request: Request) -> Response:
        """Exchange a token for a cookie; a browser that has a cookie leaves the token unused."""
        response = HTMLResponse(_ENTERED)
        if self._access.admits(request.cookies.get(COOKIE)):
            return response
        cookie = self._access.exchange(request.query_params.get("token", ""))
        if cookie is None:
            return PlainTextResponse(_USED, 403)
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=COOKIE_SECONDS,
            path=f"/{self._access.place}/",
            httponly=True,
            samesite="strict",
        )
        return response

    async def file(self, request: Request) -> Response:
        """The page, its style or its program."""
        name = request.url.path.rpartition("/")[2]
        return Response(self._files[name], media_type=_FILES[name])

    async def set(self, request: Request) -> Response:
        """What does not change: digest of the images, title, size of the images, known classes, groups."""
        groups = [{"images": cluster.images, "confidence": cluster.confidence} for cluster in self._groups]
        height, width = self._unknown.images.shape[1:3]
        known = self._unknown.known
        size = {"height": height, "width": width}
        return JSONResponse({"id": self._id, "title": self._title, **size, "known": known, "groups": groups})

    async def image(self, request: Request) -> Response:
        """One image as PNG."""
        number = request.path_params["number"]
        if number >= len(self._unknown):
            return PlainTextResponse("There is no such image.", 404)
        buffer = io.BytesIO()
        pixels = self._unknown.images[number]
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")

    async def labels(self, request: Request) -> Response:
        """What holds now."""
        if request.query_params.get("since") == str(self._book.revision):
            return Response(status_code=204)
        return JSONResponse(self._state())

    async def decide(self, request: Request) -> Response:
        """Store one decision; the answer means that it is durable."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return JSONResponse({"error": "the decision is too long"}, 413)
        try:
            decision = Decision.model_validate_json(body)
            self._book.decide(decision)
        except ValidationError as error:
            return JSONResponse({"error": fault_line(error)}, 422)
        except InputError as error:
            return JSONResponse({"error": str(error)}, 409)
        except StorageFailedError as error:
            return JSONResponse({"error": str(error)}, 507)
        over = BackgroundTask(self._finished) if self._book.labels.finished else None
        return JSONResponse(self._state(), background=over)

    def _state(self) -> dict[str, object]:
        """The labels now: for each image its name, an empty string (dismissed) or null (undecided)."""
        labels = self._book.labels
        return {
            "revision": self._book.revision,
            "labels": [
                (labels.given[image] or "") if image in labels.given else None for image in range(len(self._unknown))
            ],
            "names": self._book.names,
            "canUndo": self._book.can_undo,
            "finished": labels.finished,
        }
