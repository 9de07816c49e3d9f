"""A warm process that runs the real command line in forks of itself: a hundred exports need not import everything a hundred times."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

EXPORT = ("export", "untrained:mobileclip_nano", "--target", "onnx", "--tower", "image")
LONGEST_S = 300


def command(*arguments: object) -> int:
    """Run `mobileclip ARGUMENTS` in this process; returns the exit code."""
    from mobileclip.cli.main import main

    sys.argv = ["mobileclip", *map(str, arguments)]
    try:
        main()
    except SystemExit as e:
        sys.stderr.flush()
        return int(e.code or 0)
    return 0


def command_in_full(*arguments: object) -> int:
    """`command` that traces the tower again, as it does outside this server."""
    import torch

    torch.onnx.export = next(c.cell_contents for c in torch.onnx.export.__closure__ if callable(c.cell_contents))
    return command(*arguments)


class ForkServer:
    """Calls functions, `command` most of all, in forks; they are real processes, with a pid to send signals to."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, folder))
        self._process.start()
        there.close()
        self._answer()

    def start(self, err: Path, function: Callable[..., int], *arguments: object) -> int:
        """Call a function of a module, its result being the exit code, with standard error in a file; returns the pid."""
        self._connection.send(partial(_start, err, function, *arguments))
        return self._answer()

    def wait(self, pid: int) -> int:
        """Exit code, or minus the signal that ended the process."""
        self._connection.send(partial(_wait, pid))
        return self._answer()

    def run(self, err: Path, function: Callable[..., int], *arguments: object) -> int:
        """`start` and `wait`."""
        return self.wait(self.start(err, function, *arguments))

    def close(self) -> None:
        self._connection.close()
        self._process.join(20)

    def _answer(self) -> int:
        if not self._connection.poll(LONGEST_S + 10):
            raise TimeoutError("the fork server does not answer")
        return self._connection.recv()


def _serve(connection: Connection, folder: Path) -> None:
    import torch

    from mobileclip import sources

    torch.set_num_threads(1)  # a fork of a process with a pool of threads can hang
    sources.load_model = functools.cache(sources.load_model)
    real, programs = torch.onnx.export, []

    def traced_once(*arguments: object, **options: object) -> object:
        """Most of an export's time, in which it writes nothing; all exports of the server are of one tower with the same options."""
        if not programs:
            programs.append(real(*arguments, **options))
        return programs[0]

    torch.onnx.export = traced_once
    connection.send(command(*EXPORT, "-o", folder / "warm"))
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        connection.send(request())


def _start(err: Path, function: Callable[..., int], *arguments: object) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        signal.alarm(LONGEST_S)
        os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = function(*arguments)
    finally:
        os._exit(code)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
