"""The command ``bayeslora serve``: a tested run answers over HTTP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bayeslora.errors import UsageError, require

EXTRA = (
    "fastapi and uvicorn are missing, which `bayeslora serve` needs; install them with: pip install 'bayeslora[serve]'"
)
_WAITING = 2048  # connections that may wait to be taken
_GRACE = 10  # seconds that requests in flight have when the server is to stop


def serve(
    run: Path | str,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    seconds: float = 30.0,
    in_flight: int = 512,
    batch_size: int | None = None,
) -> None:
    """Serve a run until a signal ends it.

    Args:
        run: Folder of a run that was tested.
        host: Address to listen at; ``0.0.0.0`` lets other machines in, who then can ask whatever they like.
        port: To listen at.
        device: ``auto``, ``cpu`` or ``cuda``.
        seconds: After which a request is refused.
        in_flight: Questions in flight at most; a request beyond is refused.
        batch_size: Questions that are gathered before they are answered, in passes of the run's own eval_batch_size;
            None gathers as many as one pass takes.

    Raises:
        UsageError: the server's packages are missing, the run cannot answer, or the port is taken.
    """
    try:
        import uvicorn

        from bayeslora.serving.server import Limits, application
    except ImportError as error:
        raise UsageError(EXTRA) from error
    import socket

    from bayeslora.serving.batcher import Batcher
    from bayeslora.serving.predictor import Predictor

    require("port", port, 0 <= port < 65536, "0 (any) to 65535")
    require("seconds", seconds, seconds > 0, "above 0")
    require("in_flight", in_flight, in_flight >= 1, "1 or more")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind((host, port))  # before the model is loaded: a port that is taken is said at once
        except OSError as error:
            raise UsageError(f"cannot listen at {host}:{port} ({error.strerror}); give another --port") from error
        batcher = Batcher(Predictor.from_run(run, device), in_flight, size=batch_size)
        config = uvicorn.Config(
            application(batcher, Limits(seconds)),
            log_level="warning",
            timeout_graceful_shutdown=_GRACE,
            server_header=False,
        )
        own.listen(_WAITING)  # whoever reads the next line can connect
        address = "http://" + (f"[{host}]" if ":" in host else host) + f":{own.getsockname()[1]}"
        print(f"serving {run} ({batcher.predictor.kept.method}) at {address}", file=sys.stderr, flush=True)
        uvicorn.Server(config).run(sockets=[own])


def main(args: Sequence[str]) -> int:
    """The command ``bayeslora serve``; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="bayeslora serve", description="Answer questions over HTTP with a run that was tested."
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a run that was tested")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="to listen at (default 8000; 0 for any)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--seconds", type=float, default=30.0, help="after which a request is refused (default 30)")
    parser.add_argument("--in-flight", type=int, default=512, help="questions in flight at most (default 512)")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="questions gathered at most, answered in passes of the run's eval_batch_size (default: one pass)",
    )
    given = parser.parse_args(args)
    serve(given.run, given.host, given.port, given.device, given.seconds, given.in_flight, given.batch_size)
    return 0
