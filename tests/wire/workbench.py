"""A bench for functions and values: real worker processes, and scripts run as `__main__`.

The worker does what the runtime does with definitions, entries, values and outcomes, and nothing
else. A script of a test starts with `from workbench import start`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from owndist.wire.frames import FrameDecoder, encode_frame
from owndist.wire.functions import Decoder, Encoder
from owndist.wire.outcomes import dump_error, dump_result, load_error
from owndist.wire.pickling import loads

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


# The driver's ends of all links, which a forked worker must not keep open.
_driver_ends: list[socket.socket] = []


class Kept(NamedTuple):
    """A result as bytes, which the driver did not look at."""

    head: bytes
    buffers: list[bytes]
    entries: tuple[int, ...]


class Worker:
    """The driver's end of one worker process.

    Args:
        encoder: the driver's encoder, the same for all of its workers.
        forked: fork the worker from this process, else start a fresh interpreter.
    """

    def __init__(self, encoder: Encoder, forked: bool) -> None:
        self.encoder = encoder
        self.sent: list[str] = []  # what the last call sent: names of entries, or "function"
        self._known: set[int] = set()
        self._last_entry: dict[str, int] = {}
        self._decoder = FrameDecoder()
        self._socket, theirs = socket.socketpair()
        self._pid = 0
        if forked:
            self._pid = os.fork()
            if not self._pid:
                try:
                    for other in (*_driver_ends, self._socket):
                        other.close()
                    serve(theirs)
                finally:
                    os._exit(0)
        else:
            command = f"import workbench; workbench.serve_descriptor({theirs.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", command], pass_fds=[theirs.fileno()]
            )
        theirs.close()
        _driver_ends.append(self._socket)

    def close(self) -> None:
        self._socket.close()
        if self._pid:
            os.waitpid(self._pid, 0)
        else:
            self._process.wait()

    def __call__(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a task there and return its result."""
        kept = self.keep(fn, *args, **kwargs)
        return loads(kept.head, kept.buffers)

    def keep(self, fn: Any, *args: Any, **kwargs: Any) -> Kept:
        """Run a task there; its result stays as it is."""
        value = self.encoder.value((args, kwargs))
        return self._run(fn, value.head, list(map(bytes, value.buffers)), value.entries)

    def give(self, fn: Any, kept: Kept) -> Any:
        """Run a task there whose arguments are a result of another worker."""
        made = self._run(fn, kept.head, kept.buffers, self.encoder.complete(kept.entries))
        return loads(made.head, made.buffers)

    def _run(self, fn: Any, head: bytes, buffers: list[bytes], entries: tuple[int, ...]) -> Kept:
        key, needed, _ = self.encoder.function(fn)
        messages: list[tuple[Any, ...]] = []
        self.sent = []
        for entry in (*entries, *needed):
            name = self.encoder.entry_name[entry]
            if self._last_entry.get(name) != entry:
                self._last_entry[name] = entry
                self.sent.append(name)
                messages.append(("entry", entry, self.encoder.definitions[entry]))
        if key not in self._known:
            self._known.add(key)
            self.sent.append("function")
            messages.append(("define", key, self.encoder.definitions[key]))
        messages.append(("run", key, head, buffers))
        self._socket.sendall(encode_frame(messages))
        answers: list[tuple[Any, ...]] = []
        while not answers:
            data = self._socket.recv(1 << 20)
            if not data:
                raise EOFError("the worker has ended")
            answers = self._decoder.feed(data)
        answer = answers[0]
        if answer[0] == "error":
            raise load_error(answer[1])
        return Kept(*answer[1:])


def serve_descriptor(fd: int) -> None:
    serve(socket.socket(fileno=fd))


def serve(link: socket.socket) -> None:
    """The worker's end: run tasks until the driver is gone."""
    decoder = Decoder()
    frames = FrameDecoder()
    while data := link.recv(1 << 20):
        for message in frames.feed(data):
            if message[0] == "define":
                decoder.define(*message[1:])
            elif message[0] == "entry":
                decoder.apply_entry(*message[1:])
            else:
                link.sendall(encode_frame([_outcome(decoder, *message[1:])]))


def _outcome(decoder: Decoder, key: int, head: bytes, buffers: list[bytes]) -> tuple[Any, ...]:
    try:
        fn = decoder.function(key)
        loaded = loads(head, buffers)
        args, kwargs = loaded if type(loaded) is tuple else ((loaded,), {})
        encoded = dump_result(fn(*args, **kwargs), "task")
        return "result", encoded.head, list(map(bytes, encoded.buffers)), encoded.entries
    except BaseException as error:
        return "error", dump_error(error)


def start(workers: int = 1) -> Any:
    """Start the script's worker, or a list of them; forked or fresh as the test asked for."""
    forked = sys.argv[1] == "forked"
    encoder = Encoder(dict(vars(sys.modules["__main__"])) if forked else None)
    started = [Worker(encoder, forked) for _ in range(workers)]
    return started if workers > 1 else started[0]


def run_script(folder: Path, mode: str, source: str) -> str:
    """Run a script as `__main__`; return what it printed.

    Args:
        folder: where to put the script.
        mode: "forked" or "fresh".
        source: the script. `start()` is imported for it.
    """
    script = folder / "script.py"
    script.write_text("from workbench import start\n" + textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, str(script), mode],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
