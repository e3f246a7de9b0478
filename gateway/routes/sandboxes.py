"""Routes of sandboxes: creating, listing, describing and destroying them, and their running operations."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from actors.models import (
    EventList,
    ForgetOptions,
    ForgetResult,
    Labels,
    Model,
    NewSandbox,
    Operation,
    SandboxInfo,
    SandboxPage,
)
from gateway.answers import NO_CONTENT, answer, done
from gateway.body import describes, parsed
from gateway.routes.request import Box, Cursor, Limit, Service

router = APIRouter(prefix="/v1/sandbox", tags=["sandboxes"])


class Created(Model):
    """The name of a fresh sandbox."""

    id: str


class Running(Model):
    """Tells whether there is such a sandbox: `running`, as clients of the bridge understand it, asleep or not.

    The next call to one that sleeps wakes it, with its files. `awake` says whether it is awake now, if there is one.
    """

    running: bool
    awake: bool | None = None


class Cancelled(Model):
    """Cancels the running operation. The answer is false if none runs, or if it can no longer be undone."""

    cancelled: bool


@router.post("", response_model=Created, openapi_extra=describes(NewSandbox, required=False))
async def create_sandbox(request: Request, service: Service) -> Response:
    """A fresh sandbox with a random id, and with labels if the body has some. (Any valid id works without this.)"""
    wanted = await parsed(request, NewSandbox, empty=NewSandbox())
    return answer(Created(id=await service.create_sandbox(labels=wanted.labels)))


@router.get("", response_model=SandboxPage)
async def list_sandboxes(service: Service, limit: Limit = 100, cursor: Cursor = None) -> Response:
    """The sandboxes that the key may see, by id."""
    return answer(await service.sandboxes(limit=limit, cursor=cursor))


@router.get("/{id}", response_model=SandboxInfo)
async def sandbox_info(box: Box) -> Response:
    """Describes a sandbox. Neither wakes nor creates it."""
    return answer(await box.info())


@router.delete("/{id}", status_code=NO_CONTENT, response_class=Response)
async def destroy_sandbox(box: Box) -> Response:
    """Ends a sandbox and removes its files and state. Its backups stay. Repeatable."""
    await box.destroy()
    return done()


@router.get("/{id}/events", response_model=EventList)
async def sandbox_events(box: Box, limit: Limit = 100) -> Response:
    """Lists the latest events of a sandbox, newest first. Neither wakes nor creates it."""
    return answer(await box.events(limit=limit))


@router.put("/{id}/labels", response_model=Labels, openapi_extra=describes(Labels))
async def set_labels(request: Request, box: Box) -> Response:
    """Gives the sandbox these labels instead of those it has. Does not wake it.

    At most 64; keys of 1 to 63 characters (letters, digits and ._/-), values of up to 256 printable characters.
    """
    wanted = await parsed(request, Labels)
    return answer(await box.set_labels(wanted.root))


@router.get("/{id}/running", response_model=Running)
async def sandbox_running(box: Box) -> Response:
    """Tells whether there is such a sandbox, awake or asleep. Neither wakes nor creates it."""
    if await box.awake():
        return answer(Running(running=True, awake=True))
    return answer(Running(running=True, awake=False) if await box.exists() else Running(running=False))


@router.get("/{id}/operation", response_model=Operation | None)
async def sandbox_operation(box: Box) -> Response:
    """The backup or restore that runs now, with its progress; null if none does."""
    return answer(await box.operation())


@router.post("/{id}/cancel", response_model=Cancelled)
async def cancel_operation(box: Box) -> Response:
    """Cancels the backup or restore that runs now."""
    return answer(Cancelled(cancelled=await box.cancel()))


@router.post("/{id}/forget", response_model=ForgetResult, openapi_extra=describes(ForgetOptions))
async def forget_directories(request: Request, box: Box) -> Response:
    """Gives up directories that could not be brought back, so that the sandbox serves calls again without them.

    Only those that are missing: `recovery` of the sandbox names them. Their backups stay. Repeatable.
    """
    return answer(await box.forget(await parsed(request, ForgetOptions)))
