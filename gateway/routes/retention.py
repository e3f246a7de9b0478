"""Routes of retention: the policy of a sandbox, and its application."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from actors.models import Retention, RetentionReport, RetentionRun
from gateway.answers import NO_CONTENT, answer, done
from gateway.body import describes, parsed
from gateway.routes.request import Box

router = APIRouter(prefix="/v1/sandbox/{id}/retention", tags=["backups"])


@router.get("", response_model=Retention)
async def get_retention(box: Box) -> Response:
    """The sandbox's retention policy: which of its backups are kept. Neither wakes nor creates it."""
    return answer(await box.retention())


@router.put("", response_model=Retention, openapi_extra=describes(Retention))
async def set_retention(request: Request, box: Box) -> Response:
    """Replaces the sandbox's retention policy. Does not wake it, and deletes nothing yet.

    The policy is applied after each backup, and by every `gc`. A backup that is pinned has to exist.
    """
    return answer(await box.set_retention(await parsed(request, Retention)))


@router.delete("", status_code=NO_CONTENT, response_class=Response)
async def delete_retention(box: Box) -> Response:
    """Removes the sandbox's retention policy with its pins: all backups are kept until they expire. Repeatable."""
    await box.set_retention(Retention())
    return done()


@router.post("/apply", response_model=RetentionReport, openapi_extra=describes(RetentionRun, required=False))
async def apply_retention(request: Request, box: Box) -> Response:
    """Deletes the backups that the policy does not keep; a dry run says which, and why the others are kept.

    Does not wake the sandbox. Repeatable. If it fails half way, what was deleted stays deleted, and the rest whole.
    """
    return answer(await box.apply_retention(await parsed(request, RetentionRun, empty=RetentionRun())))
