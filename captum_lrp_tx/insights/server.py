"""A server for pages of Captum Insights, on this machine only."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import webbrowser
from collections.abc import Iterable, Mapping
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from captum_lrp_tx.errors import InputError, MissingPackageError
from captum_lrp_tx.insights.registration import insights_module, register
from captum_lrp_tx.visualization.colours import colour_of, hexadecimal
from captum_lrp_tx.visualization.rendering import render

_HOST = "127.0.0.1"
_REQUESTS = ("/init", "/fetch", "/attribute")
#: Background and text of a token of -100 to 100 percent of the largest relevance.
_COLOURS = [[hexadecimal(rgb) for rgb in colour_of(n, 100)] for n in range(-100, 101)]


class PageServer:
    """Serves pages of Captum Insights to the browser of this machine.

    The first page is at the root, each also at ``/<its name>/``. The methods of this package are
    in the list of Insights for as long as the server exists. As a context manager it serves in
    the background for the time of the block.

    Args:
        pages (mapping): An ``AttributionVisualizer`` for each name, e.g. from
            :func:`~captum_lrp_tx.insights.text_page`; names are made of letters, digits and
            ``-``.
        port (int): 0 for one that is free.

    Attributes:
        url (str): Where the first page is.
        urls (dict): Where each is.

    Raises:
        MissingPackageError: This Captum has no Insights, or its server misses a package.
        InputError: No page, or a name that cannot be part of an address.
        OSError: The port is taken.

    Example::

        >>> with insights.PageServer({"digits": page}) as server:  # doctest: +SKIP
        ...     print(server.url)
    """

    def __init__(self, pages: Mapping[str, Any], port: int = 0) -> None:
        if not pages:
            raise InputError("there is no page to serve; make one with text_page or image_page")
        for name in pages:
            if not name.replace("-", "").isalnum() or not name.isascii():
                raise InputError(f"{name!r} is no name of a page: use letters, digits and '-'")
            if f"/{name}" in _REQUESTS or name == "static":
                raise InputError(f"{name!r} is taken by Captum Insights; use another name")
        self._pages = dict(pages)
        self._insights = insights_module("server")
        self._index = _index_of(Path(self._insights.__file__).parent)
        self._lock = threading.Lock()
        self._worker: int | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        self._server = make_server(_HOST, port, self._answer, _Server, _Handler)
        self.url = f"http://{_HOST}:{self._server.server_port}/"
        self.urls = {name: f"{self.url}{name}/" for name in pages}
        self._registration = register()

    def serve_forever(self) -> None:
        """Serves until interrupted."""
        self._server.serve_forever()

    def close(self) -> None:
        """Stops serving and takes the methods out of the list that were added to it.

        A request that is being computed is given up; it may take minutes otherwise.
        """
        self._closing = True
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        worker = self._worker
        if worker is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(worker), ctypes.py_object(SystemExit)
            )
            if self._lock.acquire(timeout=10):
                self._lock.release()
        self._server.server_close()
        self._registration.__exit__()

    def __enter__(self) -> PageServer:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The WSGI application: Captum's, for the page that the address names."""
        path: str = environ.get("PATH_INFO", "/")
        first, slash, rest = path[1:].partition("/")
        page = next(iter(self._pages))
        if first in self._pages:
            if not slash:
                start_response("302 Found", [("Location", f"/{first}/")])
                return [b""]
            page, path = first, f"/{rest}"
            environ = {**environ, "SCRIPT_NAME": f"/{first}", "PATH_INFO": path}
        if path == "/":
            body = self._index.replace("<body>", f"<body>{self._head(page)}", 1).encode()
            headers = [("Content-Type", "text/html; charset=utf-8"),
                       ("Content-Length", str(len(body)))]  # fmt: skip
            start_response("200 OK", headers)
            return [body]
        if path not in _REQUESTS:
            answer: Iterable[bytes] = self._insights.app(environ, start_response)
            return answer
        # Captum's application serves the visualizer of a global variable, which keeps the
        # examples of the last request: one request at a time
        with self._lock:
            try:
                self._worker = threading.get_ident()
                if self._closing:
                    raise SystemExit
                self._insights.visualizer = self._pages[page]
                return _complete(self._insights.app(environ, start_response))
            except SystemExit:
                start_response("503 Service Unavailable", [], sys.exc_info())
                return [b""]
            finally:
                self._worker = None

    def _head(self, page: str) -> str:
        return render(
            "head.html", package="captum_lrp_tx.insights", names=list(self._pages), page=page,
            single=len(self._pages[page].features) == 1, colours=_COLOURS,
        )  # fmt: skip


def serve(pages: Mapping[str, Any], port: int = 0, *, open_browser: bool = True) -> None:
    """Serves pages of Captum Insights until interrupted, on this machine only.

    Args:
        pages, port: See :class:`PageServer`.
        open_browser (bool): Open the first page.

    Raises:
        As :class:`PageServer`.

    Example::

        >>> insights.serve({"reviews": page}, port=8000)  # doctest: +SKIP
    """
    server = PageServer(pages, port)
    try:
        print(f"Captum Insights is at {server.url}")
        if len(pages) > 1:
            width = max(map(len, pages))
            for name, url in server.urls.items():
                print(f"  {name:<{width}}  {url}")
        print("Choose a method and press Fetch. Ctrl-C stops the server.", flush=True)
        if open_browser and _has_screen():
            webbrowser.open(server.url)
        server.serve_forever()
    finally:
        server.close()


def _complete(answer: Any) -> list[bytes]:
    try:
        return [b"".join(answer)]
    finally:
        answer.close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # a browser that has gone is no error
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing about requests."""


def _index_of(folder: Path) -> str:
    file = folder / "frontend" / "build" / "index.html"
    if not file.is_file():
        raise MissingPackageError(
            f"This captum has no built page of Insights ({file}); install its wheel: pip install "
            '--force-reinstall --only-binary captum "captum<0.9"'
        )
    text = file.read_text(encoding="utf-8")
    return text.replace("<head>", '<head><link rel="icon" href="data:,">', 1)  # there is no icon


def _has_screen() -> bool:
    """Without one, a browser for the terminal might be started over the output."""
    if sys.platform in ("win32", "darwin", "cygwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
