"""Commands in a warm process of its own, which imports no more than they do."""

import io
import os
from contextlib import redirect_stderr
from multiprocessing.connection import Connection
from typing import Any

from armo_ray.cli.main import main


def serve(connection: Connection, start: Any) -> None:
    """Run commands as they come, each when the other process is ready too; sends status and what was told."""
    while received := connection.recv():
        command, variables = received
        os.environ.update(variables)
        told = io.StringIO()
        start.wait(60)
        with redirect_stderr(told):
            status = main(command)
        connection.send((status, told.getvalue()))
