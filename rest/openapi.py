"""`GET /openapi.json`: the document of all URLs, made of the tables by which requests are read."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from braid.rest.field_kinds import Kind, Schema
from braid.rest.media_fields import Field, Table
from braid.rest.text_schemas import text_schemas

if TYPE_CHECKING:
    from braid.rest.operations import Operation

JSON = "application/json"
TITLE = "Braid"
VERSION = "1"
"""Of the contract under /v1."""
_REF = "#/components/schemas/{name}"
_BYTES: Schema = {"type": "string", "format": "binary"}
EVENTS = "text/event-stream"
_EVENT: Schema = {"type": "object", "properties": {"event": {"type": "string"}, "data": {}}, "required": ["data"]}
"""One of a stream: before OpenAPI 3.2, the schema of a stream is that of its events."""

ERRORS = {
    400: "a field is missing, unknown, or holds what cannot be right; `param` names it",
    401: "no API key, or none of this server's",
    403: "the key may not do this",
    404: "no such job or model, or somebody else's",
    409: "the job has ended, has not ended yet, or the idempotency key came with another request",
    413: "the body is too long",
    415: "the body is of a type that is not read here",
    416: "the range begins behind the end of the file",
    429: "too much at once; `Retry-After` says when to come again",
    500: "the work failed",
    503: "not ready, or no room now; `Retry-After` says when to come again",
    507: "the data directory is full",
}


async def openapi(request: Request) -> Response:
    """The document; it is the same for everybody."""
    return Response(_encoded(), media_type=JSON)


@cache
def _encoded() -> bytes:
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """The OpenAPI document, version 3.1."""
    from braid.rest.operations import OPERATIONS  # it serves this document, too

    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        path = re.sub(r"\{(\w+):path\}", r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": VERSION, "description": "Text, pictures, films and sound from one server."},
        "paths": paths,
        "components": {
            "schemas": _schemas(OPERATIONS),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [*_path_parameters(operation), *map(_query_parameter, operation.query), *_headers(operation)],
        "responses": _responses(operation),
    }
    if operation.takes_bytes:
        content = {kind: {"schema": _BYTES} for kind in operation.body_types}
        described["requestBody"] = {"required": True, "content": content}
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _body(operation)}
    return described


# -- what it takes -----------------------------------------------------------------------------------------------------


def _path_parameters(operation: Operation) -> list[Schema]:
    names = re.findall(r"\{(\w+)(?::path)?\}", operation.path)
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]


def _query_parameter(field: Field) -> Schema:
    return {"name": field.name, "in": "query", "description": field.help, "schema": field.kind.schema}


def _headers(operation: Operation) -> list[Schema]:
    if not isinstance(operation.body, tuple):
        return []
    schema = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"}
    text = "sent again with the same request, it gives the same job instead of another one"
    return [{"name": "Idempotency-Key", "in": "header", "description": text, "schema": schema}]


def _body(operation: Operation) -> dict[str, Any]:
    body = operation.body
    if not isinstance(body, tuple):
        assert body is not None
        return {JSON: {"schema": {"$ref": _REF.format(name=body.__name__)}}}
    schemas = {JSON: table_schema(body), "multipart/form-data": form_schema(body)}
    return {kind: {"schema": schemas[kind]} for kind in operation.body_types}


def table_schema(table: Table) -> Schema:
    """Of a JSON body. Null is as if a field were not given."""
    properties = {
        field.name: {"description": field.help}
        | (field.kind.schema if field.is_required else {"anyOf": [field.kind.schema, {"type": "null"}]})
        for field in table
    }
    return _object(properties, table)


def form_schema(table: Table) -> Schema:
    """Of a multipart form: text, files, and JSON as text."""
    return _object({field.name: {"description": field.help} | _form_value(field.kind) for field in table}, table)


def _object(properties: Schema, table: Table) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [field.name for field in table if field.is_required],
        "additionalProperties": False,
    }


def _form_value(kind: Kind) -> Schema:
    if kind.is_file:
        return {"type": "string", "format": "binary", "minLength": 1}
    if kind.schema.get("type") in ("string", "integer", "number", "boolean"):
        return kind.schema
    return {"type": "string", "contentMediaType": JSON, "contentSchema": kind.schema}


# -- what it gives -----------------------------------------------------------------------------------------------------


def _responses(operation: Operation) -> dict[str, Any]:
    content = {kind: {"schema": _given(operation, kind)} for kind in operation.media_types}
    responses: dict[str, Any] = {"200": {"description": "as asked", "content": content}}
    if operation.name.startswith("content_of_"):
        responses["206"] = {"description": "a range of the file", "content": content}
    if operation.name == "ready":
        responses["503"] = {"description": "nothing can be asked for now", "content": content}
    for status in _error_statuses(operation):
        error = {JSON: {"schema": {"$ref": _REF.format(name="Error")}}}
        responses.setdefault(str(status), {"description": ERRORS[status], "content": error})
    return responses


def _given(operation: Operation, media_type: str) -> Schema:
    if media_type == EVENTS:
        return _EVENT
    if media_type != JSON:
        return {"type": "string"} if media_type.startswith("text/") else _BYTES
    return {"type": "object"} if operation.gives == "object" else {"$ref": _REF.format(name=operation.gives)}


def _error_statuses(operation: Operation) -> list[int]:
    statuses = {401, 403, 500}
    if operation.body is not None:
        statuses |= {400, 404, 413, 415, 429, 503}
    if operation.takes_bytes:
        statuses |= {400, 413, 415}
    if isinstance(operation.body, tuple):
        statuses |= {409, 507}
    if operation.query or operation.is_job:
        statuses |= {400}
    if operation.is_job:
        statuses |= {404, 409, 503}
    if operation.name.startswith("list_"):
        statuses |= {404, 503}
    if operation.name.startswith("content_of_"):
        statuses |= {416}
    if operation.makes_work:
        statuses |= {503}
    if "{" in operation.path:
        statuses |= {404}
    return sorted(statuses)


_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_ANY: Schema = {"type": "object"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _record(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list_of(name: str) -> Schema:
    return {"type": "array", "items": {"$ref": _REF.format(name=name)}}


def _schemas(operations: tuple[Operation, ...]) -> dict[str, Schema]:
    """Of everything that is given, and of the bodies that msgspec reads."""
    structs = [operation.body for operation in operations if isinstance(operation.body, type)]
    _, text_bodies = msgspec.json.schema_components(structs, ref_template=_REF)
    return text_schemas(text_bodies) | {
        "Error": _record(
            error=_record(message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code=_or_null(_TEXT)),
        ),
        "Job": _job(),
        "JobList": _record(
            object={"const": "list"},
            data=_list_of("Job"),
            has_more={"type": "boolean"},
            first_id=_or_null(_TEXT),
            last_id=_or_null(_TEXT),
        ),
        "Deleted": _record(id=_TEXT, object=_TEXT, deleted={"const": True}),
        "Images": _record(
            created=_WHOLE,
            data={
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"id": _TEXT, "seed": _or_null(_WHOLE), "b64_json": _TEXT, "url": _TEXT},
                    "required": ["id"],
                },
            },
            background=_TEXT,
            output_format=_TEXT,
            size=_TEXT,
        ),
        "Model": _record(id=_TEXT, object={"const": "model"}, created=_WHOLE, owned_by=_TEXT),
        "ModelList": _record(object={"const": "list"}, data=_list_of("Model")),
        "Activity": _record(object={"const": "activity"}, now_s={"type": "number"}, steps={"type": "array"}),
        "Ready": _record(ready={"type": "boolean"}, modalities=_ANY, models={"type": "array", "items": _ANY}),
    }


def _job() -> Schema:
    return _record(
        id=_TEXT,
        object={"enum": ["video", "image", "audio"]},
        model=_TEXT,
        status={"enum": ["queued", "in_progress", "completed", "failed", "cancelled"]},
        progress={"type": "integer", "minimum": 0, "maximum": 100},
        created_at=_WHOLE,
        started_at=_or_null(_WHOLE),
        completed_at=_or_null(_WHOLE),
        expires_at=_or_null(_WHOLE),
        prompt=_or_null(_TEXT),
        seconds=_or_null(_TEXT),
        size=_or_null(_TEXT),
        remixed_from_video_id=_or_null(_TEXT),
        extended_from_video_id=_or_null(_TEXT),
        edited_from_video_id=_or_null(_TEXT),
        error=_or_null(_record(code=_TEXT, message=_TEXT, param=_or_null(_TEXT), type=_TEXT)),
        stage=_or_null(_TEXT),
        queue_position=_or_null(_WHOLE),
        eta_s=_or_null({"type": "number"}),
        cancel_requested={"type": "boolean"},
        files={"type": "array", "items": _TEXT},
        params=_ANY,
        notes={"type": "array", "items": _TEXT},
    )
