"""A small Portfolio Planner backend on FastAPI, SQLite and `collab.client`: an example to start from.

usage, in scripts/: USER_ID=ada PORT=8000 COLLAB_URL=ws://localhost:9000 python -m demo_backend

The environment has, besides: DISPLAY_NAME, BACKEND_URL (where other backends reach this one) and
DATABASE (a file). The page of its user is at /.

    app.py       the routes, the lifespan and the dependency
    backend.py   what it does with the service: sends, receives, catches up
    store.py     what it keeps, in SQLite
    page.html    what its user sees

Nothing that it has accepted is lost or doubled, whoever restarts when:

- What a user does, and the events that tell of it, are stored in one transaction. The events stay in the
  outbox until the service has acknowledged that they reach their receiver.
- An event that may have been delivered is sent again. Whoever receives it twice sees that by the ids in it.
- The service stores nothing, so what it had acknowledged can still be lost with it, or with a connection. So
  after each connect a backend shares again what it shares, and whoever hears of a position fetches its
  `share_url`: that brings what is missing here, and shows what of one's own is missing there.

Left out, because it has nothing to do with the service: users who log in, and backends that prove to each
other who they are. This one believes the header X-User-Id; take a signed token instead, and fetch only
from hosts that you know.
"""
