"""Sandboxes: making, listing, looking at and ending them, and what runs in them just now."""

from __future__ import annotations

from fastapi import APIRouter, Response

from actors.models import Model, Operation, SandboxInfo, SandboxPage
from gateway.answers import NO_CONTENT, answer, done
from gateway.routes.request import Box, Cursor, Limit, Service

router = APIRouter(prefix="/v1/sandbox", tags=["sandboxes"])


class Created(Model):
    """The name of a fresh sandbox."""

    id: str


class Running(Model):
    """Whether an actor is awake for the sandbox."""

    running: bool


class Cancelled(Model):
    """Whether an operation was cancelled: false if none runs, or if it can no longer be undone."""

    cancelled: bool


@router.post("", response_model=Created)
async def create_sandbox(service: Service) -> Response:
    """A fresh sandbox with a random id. (Any valid id works without this.)"""
    return answer(Created(id=await service.create_sandbox()))


@router.get("", response_model=SandboxPage)
async def list_sandboxes(service: Service, limit: Limit = 100, cursor: Cursor = None) -> Response:
    """The sandboxes that the key may see, by id."""
    return answer(await service.sandboxes(limit=limit, cursor=cursor))


@router.get("/{id}", response_model=SandboxInfo)
async def sandbox_info(box: Box) -> Response:
    """What is known of a sandbox. Neither wakes nor creates it."""
    return answer(await box.info())


@router.delete("/{id}", status_code=NO_CONTENT, response_class=Response)
async def destroy_sandbox(box: Box) -> Response:
    """Ends a sandbox and removes its files and state. Its backups stay. Repeatable."""
    await box.destroy()
    return done()


@router.get("/{id}/running", response_model=Running)
async def sandbox_running(box: Box) -> Response:
    """Whether an actor is awake for the sandbox. Neither wakes nor creates it."""
    return answer(Running(running=await box.running()))


@router.get("/{id}/operation", response_model=Operation | None)
async def sandbox_operation(box: Box) -> Response:
    """The backup or restore that runs now, with its progress; null if none does."""
    return answer(await box.operation())


@router.post("/{id}/cancel", response_model=Cancelled)
async def cancel_operation(box: Box) -> Response:
    """Cancels the backup or restore that runs now."""
    return answer(Cancelled(cancelled=await box.cancel()))
