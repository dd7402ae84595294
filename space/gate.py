"""What gradio lets strangers reach, and how much of it: addresses, bytes, inputs, places in the queue, uploads."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import shutil
import time
from bisect import bisect
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
from folders import own_folder
from gradio.block_function import BlockFunction
from gradio.data_classes import PredictBodyInternal
from gradio.queueing import Event, Queue
from gradio.route_utils import upload_fn
from gradio.routes import file_upload_statuses
from gradio.server_messages import EventMessage, ProcessCompletedMessage
from limits import KEEP_MINUTES, MAX_BYTES, MAX_FILES, MAX_WAITING, forget_deleted, refusal, upload_path
from python_multipart.exceptions import FormParserError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

log = logging.getLogger("space")

# A folder of this server's own, so that whatever lies in it may be read and deleted.
_PARENT = os.environ.get("GRADIO_TEMP_DIR")
if _PARENT:
    Path(_PARENT).mkdir(parents=True, exist_ok=True)
UPLOADS = own_folder("ddrm-jpeg-uploads-", _PARENT)
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS)

# --- Addresses and bytes ---

_OPEN = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon|pwa_icon/\d+)/?|/(static|assets|svelte)/.+"
    r"|/gradio_api/(info|openapi\.json|app_id|startup-events|theme\.css|upload|upload_progress|cancel|reset"
    r"|queue/join|queue/data|queue/status|heartbeat/[^/]+|run/[^/]+|call/[^/]+|call/[^/]+/[^/]+|call/v2/[^/]+/[^/]+)/?"
)
_FILE = "/gradio_api/file="
_STREAM = re.compile(r"/gradio_api/(queue/data|heartbeat/[^/]+)")
_GRACE = 20  # seconds for which a session whose connection broke is taken to come back
_MAX_JSON = 100_000
_LONGEST_PATH = 250
_MULTIPART_OVERHEAD = 10_000


class Gate:
    """Middleware that lets pass what a browser on the page could send, in bounded size, and has the rest refused.

    Args:
        app: gradio.
        is_expected: whether somebody may fetch the results of a session, or of a call, of this name.
    """

    def __init__(self, app: ASGIApp, is_expected: Callable[[str], bool]) -> None:
        self.app, self.is_expected = app, is_expected
        self.streams: dict[str, Stream] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
                # gradio answers so where it could not read its inputs; a failure of ours comes through the queue.
                message["status"] = 400 if message["status"] == 500 else message["status"]
            await send(message)

        try:
            path = _path(scope)
            if scope["method"] == "GET" and _STREAM.fullmatch(path) and _is_open(path):
                await self._follow(path, scope, receive, send_marked)
            else:
                await self.app(scope, await self._admitted(scope, receive), send_marked)
        except HTTPException as refused:
            await PlainTextResponse(refused.detail, refused.status_code)(scope, receive, send_marked)
        except ClientDisconnect:
            pass  # nobody is there to read an answer
        except Exception as error:  # what no browser sends; much of it gradio does not foresee
            log.warning("%s %r: %s", scope["method"], scope["path"][:100], repr(error)[:200])
            if not started:
                sentence = "This server can make nothing of this request."
                await PlainTextResponse(sentence, 400)(scope, receive, send_marked)

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        """What the application may receive.

        Raises:
            HTTPException: where it may receive nothing.
        """
        path, query = _path(scope), Request(scope).query_params
        if not _is_open(path) or "deep_link" in query:
            raise HTTPException(404, "This server has nothing at this address.")
        asked = None
        if path == "/gradio_api/queue/data":
            asked = query.get("session_hash", "")
        elif path.startswith("/gradio_api/call/") and scope["method"] == "GET":
            asked = path.rpartition("/")[2]
        if asked is not None and not self.is_expected(asked):
            raise HTTPException(404, "This server has nothing to tell such a session.")
        if path == "/gradio_api/upload":
            return _bounded(receive, MAX_BYTES + _MULTIPART_OVERHEAD)
        bounded = _bounded(receive, _MAX_JSON)
        if scope["method"] != "POST":
            return bounded
        body = await Request(scope, bounded).body()
        try:
            # Neither NaN nor half a character, which gradio would stumble over whenever it shows its sessions.
            json.dumps(json.loads(body), ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise HTTPException(400, "The request is not JSON.") from None
        read = [{"type": "http.request", "body": body}]

        async def receive_again() -> Message:
            return read.pop() if read else await receive()

        return receive_again

    async def _follow(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """A long connection of a session, or the rest of one that broke off less than `_GRACE` ago."""
        query = Request(scope).query_params
        name, seen = f"{path} {query.get('session_hash')}", query.get("seen", "")
        stream = self.streams.get(name)
        if not re.fullmatch("[0-9]{1,9}", seen):
            if stream:
                stream.gone.set()
            await self._admitted(scope, receive)
            stream = Stream(self.app, scope)
            if len(self.streams) < _MAX_SESSIONS:
                self.streams[name] = stream
        elif stream is None:
            raise HTTPException(404, "This server has nothing more to tell such a session.")
        try:
            await stream.send_on(int(seen or 0), receive, send)
        finally:
            kept = self.streams.get(name) is stream
            asyncio.get_running_loop().call_later(_GRACE if kept else 0, self._forget, name, stream)

    def _forget(self, name: str, stream: Stream) -> None:
        if not stream.followers:
            stream.gone.set()
            if self.streams.get(name) is stream:
                del self.streams[name]


class Stream:
    """What gradio tells a session, remembered for a while, so that a connection that breaks for seconds loses nothing.

    To gradio the visitor is there until `gone`.
    """

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self.messages: list[Message | None] = []
        """The start of the answer, then its events; `None` for those that are old."""
        self.times: list[float] = []
        self.followers = 0
        self.news, self.gone = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        async def receive() -> Message:
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def take(message: Message) -> None:
            if self.gone.is_set():
                raise OSError("nobody is there")
            self._add(message)

        with suppress(Exception):  # of what gradio fails at when nobody is there
            await app(scope, receive, take)
        if not self.messages:
            self._add({"type": "http.response.start", "status": 400, "headers": []})
        self._add({"type": "http.response.body"})

    def _add(self, message: Message) -> None:
        self.messages.append(message)
        self.times.append(time.monotonic())
        old = bisect(self.times, time.monotonic() - 2 * _GRACE)
        self.messages[max(1, old - 100) : old] = [None] * (old - max(1, old - 100))
        self.news.set()
        self.news = asyncio.Event()

    async def send_on(self, seen: int, receive: Receive, send: Send) -> None:
        """Send all but the events that were seen, until the end, or until nobody is there any more."""
        if None in self.messages[1 + seen :]:
            raise HTTPException(404, "This server no longer knows what this session has missed.")
        self.followers += 1
        left = asyncio.create_task(_disconnected(receive))
        try:
            place = 0
            while not left.done():
                if place >= len(self.messages):
                    news = asyncio.create_task(self.news.wait())
                    await asyncio.wait([news, left], return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
                    continue
                message = self.messages[place]
                if message is None:  # somebody reads slowly
                    break
                await send(message)
                place += 1 if place else 1 + seen
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    break
        finally:
            left.cancel()
            self.followers -= 1


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _path(scope: Scope) -> str:
    return scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") or "/"


def _is_open(path: str) -> bool:
    if not path.startswith(_FILE):
        return path.isprintable() and len(path) < _LONGEST_PATH and _OPEN.fullmatch(path) is not None
    try:
        upload_path(path.removeprefix(_FILE))
    except gr.Error:
        return False
    return True


def _bounded(receive: Receive, limit: int) -> Receive:
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, f"The request is larger than the {limit / 1e6:g} MB that this server takes.")
        return message

    return receive_bounded


# --- Uploads ---


async def upload(request: Request) -> Response:
    """gradio's upload, with a folder of its own for each request: what is refused or broken off leaves nothing."""
    folder = UPLOADS / uuid4().hex
    folder.mkdir()
    upload_id = request.query_params.get("upload_id")
    progress = file_upload_statuses if upload_id else None
    try:
        paths, _, _ = await upload_fn(request, folder, MAX_BYTES, upload_id, upload_progress=progress)
        if not 1 <= len(paths) <= MAX_FILES:
            raise HTTPException(400, f"The request has {len(paths)} files; send 1 to {MAX_FILES}.")
    except BaseException as error:
        shutil.rmtree(folder)
        if isinstance(error, MultiPartException):
            status = 413 if "maximum allowed size" in error.message else 400
            return PlainTextResponse(error.message, status)
        if isinstance(error, (FormParserError, AttributeError, LookupError, TypeError)):  # as gradio has it
            return PlainTextResponse("The request is not a form with files; send them as `files`.", 400)
        raise
    return JSONResponse([str(path) for path in paths])


_MAX_FOLDERS = 50 * MAX_WAITING
_MAX_UPLOAD_IDS = 100


def sweep(page: gr.Blocks) -> None:
    """Delete uploads and results that are too old or too many, and forget them."""
    kept = {Path(path).parent for block in page.blocks.values() for path in block.keep_in_cache}
    ages = {}
    for folder in UPLOADS.iterdir():
        if folder not in kept:
            with suppress(FileNotFoundError):  # a refused upload, gone meanwhile
                ages[folder] = time.time() - folder.stat().st_mtime
    oldest_first = sorted(ages, key=ages.__getitem__, reverse=True)
    for place, folder in enumerate(oldest_first):
        if ages[folder] > 60 * KEEP_MINUTES or place < len(oldest_first) - _MAX_FOLDERS:
            shutil.rmtree(folder, ignore_errors=True)
    forget_deleted()
    for paths in page.temp_file_sets:
        paths.difference_update([path for path in list(paths) if not Path(path).exists()])
    for by_id in (file_upload_statuses._statuses, file_upload_statuses._signals):
        for upload_id in list(by_id)[:-_MAX_UPLOAD_IDS]:
            by_id.pop(upload_id, None)


# --- Places in the queue ---

WORK, INSPECT = "work", "inspect"  # concurrency_ids of the listeners that restore, and that read an upload
_PLACED = (WORK, INSPECT)
_MAX_UNREAD = 20  # calls of a session whose results have not been fetched
MAX_STATES = 100  # sessions whose state gradio keeps; this page has none worth keeping
_MAX_SESSIONS = 500  # sessions whose unread results are kept


class Places(Queue):
    """gradio's queue, in which whatever is done with an upload has a place, from joining to its end, on all ways."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ANALYTICS_MAX_EVENTS = 100  # gradio goes through all of them after every call
        self.joining = dict.fromkeys(_PLACED, 0)
        self.told: set[str] = set()  # calls that have ended, although gradio still keeps their places for a moment
        self.refused: OrderedDict[str, str] = OrderedDict()  # what the work of a session ended with

    def taken(self, kind: str) -> int:
        """How many calls of a kind wait or run."""
        queue = self.event_queue_per_concurrency_id.get(kind)
        running = {event._id: event.concurrency_id for events in self.active_jobs for event in events or ()}
        self.told &= running.keys()
        at_work = sum(one == kind for call, one in running.items() if call not in self.told)
        return self.joining[kind] + (len(queue.queue) if queue else 0) + at_work

    async def push(self, body: PredictBodyInternal, request: Request, username: str | None) -> tuple[bool, Any, str]:
        listener = self.blocks.fns.get(body.fn_index)
        kind = listener and listener.concurrency_id
        refused = self._why_not(body, listener)
        if refused:
            joined = False, refused, "error"
        elif kind not in _PLACED:
            joined = await super().push(body, request, username)
        else:
            self.joining[kind] += 1
            try:
                joined = await super().push(body, request, username)
            finally:
                self.joining[kind] -= 1
        if kind == WORK and not joined[0]:
            self._remember(body.session_hash, joined[1])
        return joined

    def _why_not(self, body: PredictBodyInternal, listener: BlockFunction | None) -> str | None:
        """Why a call may not join, if it may not."""
        if listener is None or (body.simple_format and listener.api_visibility != "public"):
            return "This server has no such endpoint."
        self._forget_unread()
        if len(self.pending_event_ids_session.get(body.session_hash, ())) >= _MAX_UNREAD:
            return f"This session has {_MAX_UNREAD} calls with unread results; read those first."
        kind = listener.concurrency_id
        if kind in _PLACED and self.taken(kind) >= MAX_WAITING:
            return (
                f"{self.taken(kind)} images are waiting, and the limit of this server is {MAX_WAITING};"
                " try again in a minute."
            )
        return None

    def send_message(self, event: Event, event_message: EventMessage) -> None:
        if event.concurrency_id in _PLACED and isinstance(event_message, ProcessCompletedMessage):
            self.told.add(event._id)
        if event.concurrency_id == WORK and event.alive and getattr(event_message, "success", True) is False:
            self._remember(event.session_hash, event_message.output.get("error"))
        super().send_message(event, event_message)

    def _remember(self, session: str, sentence: Any) -> None:
        self.refused[session] = sentence if isinstance(sentence, str) else "Not restored."
        self.refused.move_to_end(session)
        while len(self.refused) > _MAX_SESSIONS:
            self.refused.popitem(last=False)

    def _forget_unread(self) -> None:
        """Drop the results that nobody has come for, of the sessions that were served first."""
        excess = len(self.pending_messages_per_session) - _MAX_SESSIONS
        if excess > 0:
            served = {event.session_hash for event in self.event_ids_to_events.values()}
            idle = [session for session in self.pending_messages_per_session if session not in served]
            for session in idle[:excess]:
                del self.pending_messages_per_session[session]
        for session in self.pending_event_ids_session.keys() - self.pending_messages_per_session.keys():
            del self.pending_event_ids_session[session]

    async def give_up(self, session: str) -> None:
        """Take a session's work out of the queue; of what runs, nobody hears any more."""
        async with self.delete_lock:
            for events in self.active_jobs:
                for event in events or ():
                    if event.session_hash == session and event.concurrency_id == WORK:
                        event.alive = False
            work = self.event_queue_per_concurrency_id.get(WORK)
            for event in [event for event in work.queue if event.session_hash == session] if work else []:
                work.queue.remove(event)
                self.event_ids_to_events.pop(event._id, None)

    def is_expected(self, name: str) -> bool:
        """Whether there are, or will be, results to fetch for a session, or for a call, of this name."""
        sessions = self.pending_messages_per_session
        calls = self.pending_event_ids_session
        return name in sessions or any(name in calls[session] for session in calls.keys() & sessions.keys())

    def is_wanted(self, event_id: str | None) -> bool:
        """Whether somebody still waits for what a call in the queue is at."""
        event = self.event_ids_to_events.get(event_id)
        return event is not None and event.alive


# --- Inputs ---


def _uploaded(value: Any) -> dict[str, Any]:
    path = upload_path(value.get("path") if isinstance(value, dict) else None)
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def checked(component: Any, value: Any) -> Any:
    """What a request gives for a control, if a visitor could have chosen it.

    Raises:
        gr.Error: if not.
    """
    if isinstance(component, (gr.Image, gr.File)) and value is None:
        return None
    if isinstance(component, gr.Image):
        return _uploaded(value)
    if isinstance(component, gr.File):
        if isinstance(value, list) and 1 <= len(value) <= MAX_FILES:
            return [_uploaded(file) for file in value]
        raise refusal(f"This server takes 1 to {MAX_FILES} files at once")
    if isinstance(component, gr.Checkbox):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(component, gr.Radio):
        choices = [choice for _, choice in component.choices]
        fits, wanted = any(type(value) is type(choice) and value == choice for choice in choices), f"one of {choices}"
    elif isinstance(component, (gr.Slider, gr.Number)):
        low, high = component.minimum, component.maximum
        whole = component.precision == 0 if isinstance(component, gr.Number) else component.step == 1
        if value is None and isinstance(component, gr.Number) and not whole:  # left to follow from others
            return None
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = fits and math.isfinite(value) and low <= value <= high and (not whole or value == int(value))
        wanted = f"a {'whole ' if whole else ''}number from {low} to {high}"
        value = int(value) if fits and whole else value
    else:
        fits, wanted = False, "left alone"
    if not fits:
        given = "empty" if value is None else repr(value)[:40]
        raise refusal(f"{component.label} is {given}; it must be {wanted}")
    return value


class Page(gr.Blocks):
    """gradio's page, behind the gate: every listener, whatever the way to it, gets its inputs from here."""

    async def preprocess_data(
        self, block_fn: BlockFunction, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        try:
            self.validate_inputs(block_fn, inputs)
        except ValueError:
            raise refusal(f"The request has {len(inputs)} inputs; send {len(block_fn.inputs)}") from None
        inputs = [checked(component, value) for component, value in zip(block_fn.inputs, inputs, strict=False)]
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)

    def queue(self, **settings: Any) -> Page:
        super().queue(**settings)
        given = self._queue
        self._queue = Places(
            given.live_updates,
            given.max_thread_count,
            given.update_intervals,
            given.max_size,
            self,
            given.default_concurrency_limit,
        )
        return self

    def app_kwargs(self) -> dict[str, Any]:
        """What `launch` hands to FastAPI so that the gate stands before gradio."""

        @asynccontextmanager
        async def guarded(app: Any) -> AsyncIterator[None]:
            # Before the middleware that gradio has added meanwhile, which answers some requests itself.
            app.user_middleware.insert(0, Middleware(Gate, is_expected=self._queue.is_expected))
            app.middleware_stack = app.build_middleware_stack()

            async def sweep_regularly() -> None:
                while True:
                    await asyncio.sleep(30)
                    try:
                        await asyncio.to_thread(sweep, self)
                    except OSError:
                        log.exception("some uploads could not be deleted")

            task = asyncio.create_task(sweep_regularly())
            yield
            task.cancel()

        return {
            "routes": [Route("/gradio_api/upload", upload, methods=["POST"])],
            "lifespan": guarded,
        }
