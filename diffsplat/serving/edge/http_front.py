"""The HTTP front: the same requests as JSON, for what speaks no gRPC. See docs/edge.md.

POST   /v1/splats               -> 202, its id and addresses
GET    /v1/splats/{id}          where it stands
GET    /v1/splats/{id}/events   the same as server-sent events, to the end
GET    /v1/splats/{id}/result   a file: the first one, or that of ?format=NAME&index=N
GET    /v1/splats/{id}/preview  the newest preview
DELETE /v1/splats/{id}          stop it
GET    /healthz
"""

import asyncio
import json
import logging
import math
import uuid
from typing import Any

import numpy as np
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from diffsplat_client.cloud import SplatCloud
from diffsplat_client.contract import (
    ASSET_FORMATS,
    ASSETS,
    ERROR_CODES,
    GAUSSIAN_WIDTH,
    PACKAGE_INDEX,
    PREVIEW,
    STOP_ANSWERS,
)
from diffsplat_client.formats import FORMATS, PLY
from diffsplat_client.request_checks import short

from diffsplat.serving.edge.admission import RefusedError
from diffsplat.serving.edge.clients import Client, Clients
from diffsplat.serving.edge.dispatch import Dispatcher, read_recording
from diffsplat.serving.edge.http_body import read_body, to_message
from diffsplat.serving.edge.identity import Doorman
from diffsplat.serving.edge.results_store import RUNNING, Recording
from diffsplat.serving.edge.standing import Standing, standing_of
from diffsplat.serving.edge.tracing import trace_headers
from diffsplat.serving.edge.wire import Response

PREFIX = "/v1/splats"
EVENTS_TYPE = "text/event-stream"
RETRY_AFTER_S = 1
_RETRIED = [error_type for error_type, code in ERROR_CODES.items() if code == "UNAVAILABLE"]
_STATUS_CODES = {"INVALID_ARG": 400, "NOT_FOUND": 404, "UNAVAILABLE": 503}
_STOP_STATUS = dict(zip(STOP_ANSWERS, (202, 200, 404), strict=True))


class HttpFront:
    """Routes of one edge.

    Args:
        dispatcher, clients, doorman: as for the gRPC calls.
        max_request_bytes: of one body.
    """

    def __init__(self, dispatcher: Dispatcher, clients: Clients, doorman: Doorman, max_request_bytes: int) -> None:
        self._dispatcher, self._clients, self._doorman = dispatcher, clients, doorman
        self.app = web.Application(client_max_size=max_request_bytes, middlewares=[_errors_as_json])
        self.app.add_routes(
            [
                web.post(PREFIX, self._submit),
                web.get(PREFIX + "/{id}", self._status),
                web.get(PREFIX + "/{id}/events", self._events),
                web.get(PREFIX + "/{id}/result", self._result),
                web.get(PREFIX + "/{id}/preview", self._preview),
                web.delete(PREFIX + "/{id}", self._cancel),
                web.get("/healthz", self._health),
            ]
        )

    def runner(self) -> web.AppRunner:
        """What serves the routes once it is set up."""
        log = logging.getLogger(__name__)
        log.addFilter(_is_no_bad_request)
        return web.AppRunner(self.app, access_log=None, logger=log)

    async def _health(self, request: web.Request) -> web.Response:
        ready = self._dispatcher.ready
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _submit(self, request: web.Request) -> web.Response:
        """The id in `Idempotency-Key`, or a new one: sent again, the request is not computed again."""
        client = self._client_of(request)
        if request.content_type != "application/json":  # what a page of another site may send without being asked
            raise RefusedError("INVALID_ARG", "Content-Type: must be application/json")
        wanted = read_body(await request.read())
        client_id = request.headers.get("Idempotency-Key") or uuid.uuid4().hex
        message = to_message(wanted, client_id).SerializeToString()
        inference = self._dispatcher.admit(client, message, trace_headers(_headers(request)))
        self._dispatcher.record(client, inference)
        here = f"{PREFIX}/{client_id}"
        addresses = {
            "status_url": here,
            **{f"{name}_url": f"{here}/{name}" for name in ("events", "preview", "result")},
        }
        return web.json_response({"id": client_id, **addresses}, status=202, headers={"Location": here})

    async def _status(self, request: web.Request) -> web.Response:
        recording = self._recording(request)
        return web.json_response({"id": request.match_info["id"], **standing_of(recording).to_dict()})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """One event for every change, `preview` if there is a new one, and a last one named after the end state."""
        client, recording = self._client_of(request), self._recording(request)
        stream = web.StreamResponse(headers={"Content-Type": EVENTS_TYPE, "Cache-Control": "no-store"})
        await stream.prepare(request)
        last: Standing | None = None
        shown: dict[int, int] = {}  # previews of each object
        answers = read_recording(client, recording)
        try:
            async for _ in answers:
                now = standing_of(recording)
                if now != last and now.state == RUNNING:
                    is_new = now.previews > shown.get(now.index, 0)
                    shown[now.index] = now.previews
                    await stream.write(_event("preview" if is_new else "progress", now))
                last = now
        finally:
            answers.leave()
        now = standing_of(recording)
        await stream.write(_event(now.state, now))
        return stream

    async def _result(self, request: web.Request) -> web.StreamResponse:
        """The file of `?format` and `?index`, else the first one, once it is there.

        409 and `Retry-After` before, 503 and `Retry-After` if the request is to be sent again.
        """
        recording = self._recording(request)
        standing = standing_of(recording)
        if standing.state == RUNNING:
            return web.json_response(standing.to_dict(), status=409, headers=_retry_after())
        if standing.error_type in _RETRIED:
            return web.json_response(standing.to_dict(), status=503, headers=_retry_after(standing.retry_after_s))
        if standing.state != "finished":
            return web.json_response(standing.to_dict(), status=410)
        answers = read_recording(self._client_of(request), recording)
        try:
            async for message in answers:
                response = Response.parse(message)
                names = [name.decode() for name in response.strings(ASSET_FORMATS.name)]
                if names and str(response.read_int(PACKAGE_INDEX.name)) == request.query.get("index", "0"):
                    wanted = request.query.get("format", names[0])
                    if wanted not in names:
                        raise RefusedError("NOT_FOUND", f"format = {short(wanted)}: the result has {', '.join(names)}")
                    return _file_answer(wanted, response.strings(ASSETS.name)[names.index(wanted)])
        finally:
            answers.leave()
        raise RefusedError("NOT_FOUND", "the result of this request has no such file: no such index, or raw alone")

    async def _preview(self, request: web.Request) -> web.Response:
        """The newest preview as .ply, while the request runs."""
        message = self._recording(request).preview
        if not message:
            raise RefusedError("NOT_FOUND", "this request shows no preview now")
        response = Response.parse(message)
        splats = np.frombuffer(response.payload[response.names.index(PREVIEW.name)], np.float32)
        cloud = SplatCloud.from_array(splats.reshape(-1, GAUSSIAN_WIDTH))
        return _file_answer(PLY.name, await asyncio.to_thread(PLY.write, cloud))

    async def _cancel(self, request: web.Request) -> web.Response:
        """Takes effect at the next step."""
        answer = self._dispatcher.stop(self._client_of(request), request.match_info["id"])
        return web.json_response({"status": answer}, status=_STOP_STATUS[answer])

    def _recording(self, request: web.Request) -> Recording:
        recording = self._dispatcher.find(self._client_of(request), request.match_info["id"])
        if recording is None:
            raise RefusedError("NOT_FOUND", "no request of this id is running, and no result of it is kept")
        return recording

    def _client_of(self, request: web.Request) -> Client:
        assert request.transport is not None
        subject = (request.transport.get_extra_info("peercert") or {}).get("subject", ())
        names = [value.encode() for part in subject for key, value in part if key == "commonName"]
        peer = f"ipv4:{request.remote}:0"  # as gRPC names it: a host is one client, whatever it speaks
        name = self._doorman.name_of(peer, _headers(request), {"x509_common_name": names} if names else {})
        if name is None:
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        return self._clients.get(name)


def _headers(request: web.Request) -> list[tuple[str, str]]:
    """As gRPC names them."""
    return [(name.lower(), value) for name, value in request.headers.items()]


def _file_answer(file_format: str, content: bytes) -> web.Response:
    kind = FORMATS[file_format]
    disposition = f'attachment; filename="{kind.file_name}"'
    return web.Response(body=content, headers={"Content-Disposition": disposition, "Content-Type": kind.media_type})


def _retry_after(seconds: float | None = None) -> dict[str, str]:
    """The header, in whole seconds."""
    return {"Retry-After": str(max(RETRY_AFTER_S, math.ceil(seconds or 0)))}


def _event(name: str, standing: Standing) -> bytes:
    return f"event: {name}\ndata: {json.dumps(standing.to_dict())}\n\n".encode()


def _is_no_bad_request(record: logging.LogRecord) -> bool:
    """Bytes that are no HTTP get an answer that says so; a traceback of each would let anybody fill the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


@web.middleware
async def _errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except RefusedError as error:
        status = _STATUS_CODES.get(error.code, 500)
        headers = _retry_after() if status == 503 else {}
        return web.json_response({"error_type": error.code, "error": str(error)}, status=status, headers=headers)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        kept = {name: value for name, value in error.headers.items() if name in ("WWW-Authenticate", "Allow")}
        return web.json_response({"error": error.reason}, status=error.status, headers=kept)
    return response
