"""Owns the logger that every room writes to, and the process's log set-up, which is the command's alone."""

from __future__ import annotations

import contextlib
import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

import structlog

from collab.observe.format import FORMATS, Line, plain
from collab.observe.outputs import LogFile, console
from collab.observe.writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collab.observe.outputs import Output
    from collab.settings import LogSettings

_LIBRARIES = ("hypercorn", "quart", "trio", "trio-websocket")

_Raised: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]


class Logger(structlog.BoundLoggerBase):
    """A structlog logger that writes one line per call, as `log.info("Drained", clients=3)` does.

    A level that is off costs one look-up. Fields are copied at the call and rendered by whatever
    handler writes the record. `bind(**fields)` gives a logger that adds them to each of its lines.
    `exc_info` takes an exception, or True for the one being handled; its traceback becomes the
    field `traceback`. Never raises, whatever the values are.
    """

    _logger: logging.Logger

    def debug(self, event: str, /, **fields: object) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        if self._logger.isEnabledFor(logging.INFO):
            self._write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        if self._logger.isEnabledFor(logging.WARNING):
            self._write(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        if self._logger.isEnabledFor(logging.ERROR):
            self._write(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """`error` with the traceback of the exception being handled."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._write(logging.ERROR, event, {"exc_info": True, **fields})

    def is_enabled_for(self, level: int) -> bool:
        """Whether lines of this `logging` level are written at all."""
        return self._logger.isEnabledFor(level)

    def _write(self, level: int, event: str, fields: dict[str, object]) -> None:
        if self._context:
            fields = {**self._context, **fields}
        raised = _raised(fields.pop("exc_info")) if "exc_info" in fields else None
        line = Line(event, {name: plain(value) for name, value in fields.items()})
        # The record is made here rather than by `Logger.log`, which walks the stack for the caller.
        caller = sys._getframe(2)
        logger = self._logger
        record = logger.makeRecord(
            logger.name,
            level,
            caller.f_code.co_filename,
            caller.f_lineno,
            line,
            (),
            raised,
            caller.f_code.co_name,
        )
        logger.handle(record)


def get_logger(name: str = "collab") -> Logger:
    """A logger over `logging.getLogger(name)`. Touches neither structlog's nor logging's configuration."""
    proxy = structlog.wrap_logger(
        logging.getLogger(name), processors=[], wrapper_class=Logger, context_class=dict
    )
    logger: Logger = proxy.bind()
    return logger


@contextlib.contextmanager
def configure(settings: LogSettings) -> Iterator[LogWriter]:
    """Send the process's log to standard output and to `settings.file` while the block runs.

    For the command alone: it takes over the logger `collab` and hears warnings from Hypercorn and
    Quart. Afterwards the queue is written out, for at most two seconds, and the loggers are as before.

    Raises:
        CannotStart: the log file cannot be opened.
    """
    outputs: list[Output] = [LogFile(settings.file)] if settings.file else []
    outputs.insert(0, console())
    writer = LogWriter(outputs, FORMATS[settings.format])
    writer.start()
    try:
        with contextlib.ExitStack() as undo:
            undo.enter_context(_take_over(logging.getLogger("collab"), writer, settings.level))
            for name in _LIBRARIES:
                library = logging.getLogger(name)
                handler = writer.handler(logging.WARNING)
                library.addHandler(handler)
                undo.callback(library.removeHandler, handler)
            yield writer
    finally:
        writer.stop()


def _raised(exc_info: object) -> _Raised | None:
    exception = sys.exception() if exc_info is True else exc_info
    if isinstance(exception, BaseException):
        return type(exception), exception, exception.__traceback__
    return None


@contextlib.contextmanager
def _take_over(logger: logging.Logger, writer: LogWriter, level: str) -> Iterator[None]:
    handlers, former_level, propagate = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:] = [writer.handler()]
    logger.setLevel(level.upper())
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(former_level)
        logger.propagate = propagate
