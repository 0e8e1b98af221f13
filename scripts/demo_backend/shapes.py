"""Owns the shapes of requests and answers. What is too long would not fit into an event."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

Id = Annotated[str, Field(min_length=1, max_length=200)]
Tags = Annotated[list[Annotated[str, Field(max_length=40)]], Field(max_length=20)]
Status = Literal["open", "closed"]


class NewPosition(BaseModel):
    """What a user says of a new position."""

    title: str = Field(min_length=1, max_length=200)
    tags: Tags = []
    notes: str = Field(default="", max_length=4000)


class Updates(BaseModel):
    """What a user changes. What is not given stays."""

    tags: Tags | None = None
    notes: str | None = Field(default=None, max_length=4000)
    status: Status | None = None


class Receivers(BaseModel):
    """With whom a position is shared."""

    to_users: list[Id] = Field(min_length=1, max_length=100)


class NewComment(BaseModel):
    """A comment, with an id of the page's own so that it can ask again."""

    id: Id | None = None
    text: str = Field(min_length=1, max_length=4000)


class Comment(BaseModel):
    """A comment as backends show it to each other."""

    id: str
    user_id: str
    display_name: str
    text: str
    created_at: str


class Position(BaseModel):
    """A position as its owner's backend shows it to those who see it."""

    id: str
    owner: str
    title: str
    tags: list[str]
    notes: str
    status: str
    comments: list[Comment]
