"""Owns the application: its lifespan, the dependency, and the routes.

`uvicorn --factory demo_backend.app:create_app --app-dir scripts --port 8000` runs it, too.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse

from demo_backend import shapes, store
from demo_backend.backend import Backend, open_backend
from demo_backend.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POSITIONS = "/api/v1/positions/ideas"
_PAGE = Path(__file__).with_name("page.html")
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; its settings are those of the environment unless others are given."""
    settings = settings or Settings.from_environment()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_backend(settings) as backend:
            app.state.backend = backend
            yield

    app = FastAPI(title="Portfolio Planner", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(store.NotFound, _not_found)
    # A page elsewhere, whose name suddenly means this machine, is not answered.
    host = urlsplit(settings.backend_url).hostname or "localhost"
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", host])
    app.include_router(routes)
    return app


def the_backend(request: Request) -> Backend:
    """The dependency."""
    backend: Backend = request.app.state.backend
    return backend


TheBackend = Annotated[Backend, Depends(the_backend)]
routes = APIRouter()


# For the user's page


@routes.get("/", response_class=HTMLResponse)
async def page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(_PAGE.read_text(), headers={"Content-Security-Policy": _CONTENT_SECURITY_POLICY})


@routes.get("/api/state", response_model=None)
async def state(backend: TheBackend, known: int = -1) -> Response | dict[str, Any]:
    """All that the page shows, or 204 where nothing has changed since it was `known`."""
    version = backend.changed
    if version == known:
        return Response(status_code=204)
    everything = await backend.read(store.everything)
    collab, settings = backend.collab, backend.settings
    online = {user.user_id: user.display_name for user in collab.online.values()}
    return {
        "version": version,
        "user": {"id": settings.user_id, "display_name": settings.display_name},
        "collab": {"state": collab.state.value, "reason": collab.reason, "online": online},
        **everything,
    }


@routes.post(POSITIONS, status_code=201)
async def create(new: shapes.NewPosition, backend: TheBackend) -> dict[str, str]:
    """Make a position."""
    settings = backend.settings
    base_url = f"{settings.backend_url}{POSITIONS}"
    return {"id": await backend.write(store.create_position, settings.user_id, base_url, **new.model_dump())}


@routes.patch(POSITIONS + "/{position_id}", status_code=204)
async def update(position_id: str, updates: shapes.Updates, backend: TheBackend) -> None:
    """Change tags, notes or status."""
    given = updates.model_dump(exclude_none=True)
    await backend.write(store.update, backend.settings.user_id, position_id, given)


@routes.post(POSITIONS + "/{position_id}/share", status_code=204)
async def share(position_id: str, receivers: shapes.Receivers, backend: TheBackend) -> None:
    """Share a position. Whoever is offline learns of it later."""
    await backend.write(store.share, backend.settings.user_id, position_id, receivers.to_users)


@routes.delete(POSITIONS + "/{position_id}/share/{user_id}", status_code=204)
async def revoke(position_id: str, user_id: str, backend: TheBackend) -> None:
    """Share it no longer with this user."""
    await backend.write(store.revoke, backend.settings.user_id, position_id, user_id)


@routes.post(POSITIONS + "/{position_id}/comments", status_code=201)
async def comment(position_id: str, new: shapes.NewComment, backend: TheBackend) -> shapes.Comment:
    """Comment on a position. Answered with 201, it is stored here and will be there."""
    me = backend.settings
    values = await backend.write(store.comment, me.user_id, me.display_name, position_id, new.text, new.id)
    return shapes.Comment.model_validate(values)


# For other backends: the `share_url`


@routes.get(POSITIONS + "/{position_id}")
async def seen(position_id: str, backend: TheBackend, x_user_id: Annotated[str, Header()]) -> shapes.Position:
    """A position of this user, for those with whom it is shared."""
    values = await backend.read(store.seen_by, backend.settings.user_id, position_id, unquote(x_user_id))
    return shapes.Position.model_validate(values)


async def _not_found(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "there is no such position for you"}, status_code=404)
