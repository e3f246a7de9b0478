"""Routes of files and archives: in and out, streamed, never whole in memory."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from actors.models import TRANSFER_BYTES, FileEntry, Model
from gateway.answers import NO_CONTENT, answer, done
from gateway.body import BINARY, describes_bytes, in_blocks, pieces
from gateway.cluster import Uploading
from gateway.routes.request import Box, DirectoryPath, Excludes, FilePath, config_of
from gateway.streaming import Source, StreamedAnswer, raw


class _AnyPath(PathConvertor):
    """A path whose names may hold line feeds, which Starlette's own convertor does not match."""

    regex = "(?s:.*)"


register_url_convertor("anypath", _AnyPath())

router = APIRouter(prefix="/v1/sandbox", tags=["files"])

TAR = "application/x-tar"


class Received(Model):
    """The whole body has been taken over."""

    ok: bool = True


class FileList(Model):
    """The entries of a directory, by name."""

    files: list[FileEntry]


@router.get(
    "/{id}/file/{path:anypath}",
    response_class=Response,
    responses={200: {"description": "The file's bytes", "content": {BINARY: {}}}},
)
async def read_file(request: Request, box: Box, path: FilePath) -> Response:
    """The bytes of a regular file. A connection that ends without its last chunk means that reading failed."""
    return await _streamed(request, Source(box.read_file(path)), BINARY)


@router.put("/{id}/file/{path:anypath}", response_model=Received, openapi_extra=describes_bytes(BINARY))
async def write_file(request: Request, box: Box, path: FilePath) -> Response:
    """Writes a file, and its parents if need be. The file shows whole or not at all."""
    await _receive(request, await box.write_file(path))
    return answer(Received())


@router.delete("/{id}/file/{path:anypath}", status_code=NO_CONTENT, response_class=Response)
async def delete_file(box: Box, path: FilePath) -> Response:
    """Removes a file, a link or an empty directory."""
    await box.delete_file(path)
    return done()


@router.get("/{id}/files", response_model=FileList)
async def list_files(box: Box, path: DirectoryPath) -> Response:
    """The entries of a directory. Bytes of a name that are not UTF-8 come as \\udc80 to \\udcff."""
    return answer(FileList(files=await box.list_files(path)))


@router.post(
    "/{id}/persist",
    response_class=Response,
    responses={200: {"description": "A tar archive of /workspace", "content": {TAR: {}}}},
)
async def persist(request: Request, box: Box, excludes: Excludes) -> Response:
    """A tar archive of /workspace, without what `excludes` names."""
    return await _streamed(request, Source(box.persist(excludes=excludes)), TAR)


@router.post("/{id}/hydrate", response_model=Received, openapi_extra=describes_bytes(TAR))
async def hydrate(request: Request, box: Box) -> Response:
    """Unpacks a tar archive into /workspace."""
    await _receive(request, await box.hydrate())
    return answer(Received())


async def _streamed(request: Request, source: Source[bytes], media_type: str) -> Response:
    await source.begin(request.receive)
    return StreamedAnswer(raw(source), source, media_type=media_type)


async def _receive(request: Request, upload: Uploading) -> None:
    config = config_of(request)
    body = pieces(
        request, limit_bytes=config.max_upload_bytes, idle_s=config.body_idle_s, total_s=config.upload_total_s
    )
    try:
        async for block in in_blocks(body, TRANSFER_BYTES):
            await upload.send(block)
    except BaseException:
        await asyncio.shield(upload.abort())
        raise
    await upload.commit()
