"""An Android phone in a folder: the device's side of adb over TCP, with commands run in a chroot by a static shell.

Real adb talks to it (seen with Debian's 29.0.6). Written after AOSP's `packages/modules/adb/protocol.txt`, `SYNC.TXT` and the behaviour
of adb: services `shell:` (v1 and v2), `exec:`, `sync:` (v1), `tcp:` (for forwards) and `reverse:`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

CNXN, AUTH, OPEN, OKAY, CLSE, WRTE = (int.from_bytes(word, "little") for word in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE"))
VERSION, MAX_DATA = 0x01000001, 1 << 20
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
FEATURES = "shell_v2,cmd"
PROPERTIES = {
    "ro.product.manufacturer": "Google", "ro.product.model": "Pixel 8", "ro.product.device": "shiba", "ro.product.name": "shiba",
    "ro.product.cpu.abi": "arm64-v8a", "ro.product.cpu.abilist": "arm64-v8a", "ro.build.version.release": "15",
    "ro.build.version.sdk": "35", "ro.soc.manufacturer": "Google", "ro.soc.model": "Tensor G3", "ro.kernel.qemu": "1",
}  # fmt: skip
BATTERY = "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n  level: 83\n  scale: 100\n  temperature: 287\n"
THERMAL = "IsStatusOverride: false\nThermalEventListeners:\nThermal Status: 0\n"
OWN_ADDRESS = "127.0.0.2"
"""`localhost` of the phone, as far as its reversed ports go: the host's own has these ports in use."""
CPUINFO = "\n".join(
    f"processor\t: {n}\nBogoMIPS\t: 49.15\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
    "lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0b\nCPU revision\t: 1\n"
    for n in range(2)
)


class Gone(Exception):
    """The stream or the connection has ended."""


class _Stream:
    """One service's data, both ways; a write waits until the last one was acknowledged."""

    def __init__(self, connection: _Connection, own: int, other: int) -> None:
        self._connection, self.own, self.other = connection, own, other
        self._data, self._changed = bytearray(), threading.Condition()
        self._may_write = self._open = True

    def receive(self, data: bytes) -> None:
        with self._changed:
            self._data += data
            self._changed.notify_all()

    def acknowledge(self) -> None:
        with self._changed:
            self._may_write = True
            self._changed.notify_all()

    def shut(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._data) >= size or not self._open)
            if len(self._data) < size:
                raise Gone
            return self._taken(size)

    def read_some(self) -> bytes:
        """What is there; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._data or not self._open)
            return self._taken(len(self._data))

    def _taken(self, size: int) -> bytes:
        data = bytes(self._data[:size])
        del self._data[:size]
        return data

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), self._connection.max_data):
            with self._changed:
                self._changed.wait_for(lambda: self._may_write or not self._open)
                if not self._open:
                    raise Gone
                self._may_write = False
            self._connection.send(WRTE, self.own, self.other, data[start : start + self._connection.max_data])

    def drain(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._may_write or not self._open, timeout=10)


class _Connection:
    """One adb server that is connected."""

    def __init__(self, phone: Phone, link: socket.socket) -> None:
        self.phone, self._link = phone, link
        self.max_data = 4096
        self._streams: dict[int, _Stream] = {}
        self._last, self._sending = 0, threading.Lock()

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        header = struct.pack("<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with self._sending, contextlib.suppress(OSError):
            self._link.sendall(header + data)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if not (more := self._link.recv(size - len(data))):
                raise Gone
            data += more
        return bytes(data)

    def run(self) -> None:
        try:
            while True:
                command, first, second, size, _, magic = struct.unpack("<6I", self._exactly(24))
                if magic != command ^ 0xFFFFFFFF:
                    raise Gone
                self._handle(command, first, second, self._exactly(size))
        except (Gone, OSError):
            for stream in list(self._streams.values()):
                stream.shut()

    def _handle(self, command: int, first: int, second: int, data: bytes) -> None:
        stream = self._streams.get(second)
        if command == CNXN:
            self.max_data = min(second, MAX_DATA)
            if self.phone.unauthorized:
                self.send(AUTH, 1, 0, bytes(20))
                return
            about = ";".join(f"ro.product.{n}={self.phone.properties[f'ro.product.{n}']}" for n in ("name", "model", "device"))
            self.send(CNXN, VERSION, MAX_DATA, f"device::{about};features={FEATURES}".encode())
        elif command == AUTH:
            self.send(AUTH, 1, 0, bytes(20))
        elif command == OPEN:
            opened = self._new(first)
            threading.Thread(target=self._serve, args=(opened, data.rstrip(b"\0").decode()), daemon=True).start()
        elif command == WRTE and stream:
            stream.receive(data)
            self.send(OKAY, stream.own, stream.other)
        elif command == OKAY and stream:
            stream.other = first
            stream.acknowledge()
        elif command == CLSE and stream:
            del self._streams[second]
            stream.shut()
            self.send(CLSE, stream.own, stream.other)  # as a phone does

    def _new(self, other: int) -> _Stream:
        self._last += 1
        stream = self._streams[self._last] = _Stream(self, self._last, other)
        return stream

    def _serve(self, stream: _Stream, service: str) -> None:
        self.phone.asked.append(service)
        self.phone.before(service)
        serve = self.phone.service(service, self)
        if serve is None:
            self._streams.pop(stream.own, None)
            self.send(CLSE, 0, stream.other)
            return
        self.send(OKAY, stream.own, stream.other)
        with contextlib.suppress(Gone, OSError):
            serve(stream)
            stream.drain()
        self.send(CLSE, stream.own, stream.other)
        self._streams.pop(stream.own, None)

    def open_on_host(self, address: str, client: socket.socket) -> None:
        """A connection to a reversed port of the phone, carried to the host."""
        stream = self._new(0)
        stream._may_write = False
        self.send(OPEN, stream.own, 0, address.encode() + b"\0")
        self.phone.join(stream, client)

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)


class Phone:
    """The phone.

    Args:
        root: Its file system; a static busybox is put there.
        properties: What `getprop` tells beyond, or instead of, `PROPERTIES`.

    Attributes:
        asked: Every service that was asked for.
        before: Told of each one before it is served.
        unauthorized: Nobody has allowed the computer.
    """

    def __init__(self, root: Path, properties: dict[str, str] | None = None) -> None:
        self.root, self.properties = root, PROPERTIES | (properties or {})
        self.asked: list[str] = []
        self.before: Callable[[str], object] = lambda service: None
        self.unauthorized = False
        self._connections: list[_Connection] = []
        self._reversed: dict[str, socket.socket] = {}
        self._furnish()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _furnish(self) -> None:
        tools = self.root / "system/bin"
        for folder in (tools, self.root / "data/local/tmp", self.root / "dev", self.root / "proc/self"):
            folder.mkdir(parents=True)
        shutil.copy("/bin/busybox", tools / "busybox")
        for name in ("sh", "cat", "chmod", "df", "echo", "head", "kill", "ls", "mkdir", "rm", "sleep", "stat", "touch", "true"):
            (tools / name).symlink_to("busybox")
        self.script("getprop", "cat /system/properties")
        (self.root / "system/properties").write_text("".join(f"[{name}]: [{value}]\n" for name, value in self.properties.items()))
        self.script("dumpsys", "cat /system/dumpsys-$1")
        self.tell(battery=BATTERY, thermalservice=THERMAL)
        self.script("settings", "echo 0")
        self.script("pkill", "true")  # see `_pkill`
        self.script("am", 'echo "$@" > /system/am')
        # what ONNX Runtime's cpuinfo reads: on the real ones it would see the processor of the machine that emulates
        (self.root / "proc/cpuinfo").write_text(CPUINFO)
        (self.root / "proc/meminfo").write_text("MemTotal:        7654321 kB\n")
        for cpu in (0, 1):
            (self.root / f"sys/devices/system/cpu/cpu{cpu}").mkdir(parents=True)
        for name in ("possible", "present"):
            (self.root / "sys/devices/system/cpu" / name).write_text("0-1\n")

    def script(self, name: str, body: str) -> None:
        """A program of the phone, as a shell script."""
        path = self.root / "system/bin" / name
        path.write_text(f"#!/system/bin/sh\n{body}\n")
        path.chmod(0o755)

    def tell(self, **services: str) -> None:
        """What `dumpsys` answers."""
        for name, text in services.items():
            (self.root / f"system/dumpsys-{name}").write_text(text)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._server.accept()
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections.append(_Connection(self, link))
                threading.Thread(target=self._connections[-1].run, daemon=True).start()

    def unplug(self) -> None:
        """Nothing answers any more."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection in self._connections:
            connection.cut()

    # --- services ---------------------------------------------------------------------------------------------------------------

    def service(self, name: str, connection: _Connection) -> Callable[[_Stream], None] | None:
        """What serves a stream; None for what the phone does not know."""
        kind, _, rest = name.partition(":")
        if kind == "sync":
            return self._sync
        if kind.startswith("shell,v2"):
            return lambda stream: self._shell(stream, rest)
        if kind.split(",")[0] in ("shell", "exec"):
            return lambda stream: self._plain(stream, rest)
        if kind == "tcp":
            return lambda stream: self.join(stream, socket.create_connection(("127.0.0.1", int(rest))))
        if kind == "reverse":
            return lambda stream: self._reverse(stream, rest, connection)
        return None

    def running(self) -> dict[int, str]:
        """The phone's processes with their command lines."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "root") == str(self.root):
                    found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def _pkill(self, command: str) -> str:
        """Do what a command's `pkill -9 -f` does; the phone's own /proc tells nothing. A shell that ends itself runs nothing more."""
        if not (found := re.search(r"pkill -9 -f ('?)([^;']+)\1", command)):
            return command
        for pid, words in self.running().items():
            if re.search(found[2], words):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        return "kill -9 $$" if re.search(found[2], command) else command

    def _start(self, command: str, stderr: int) -> subprocess.Popen[bytes]:
        command = self._pkill(command)
        environment = {"PATH": "/system/bin", "ANDROID_DATA": "/data", "HOME": "/", "TMPDIR": "/data/local/tmp"}
        words = ["/system/bin/sh", "-c", command] if command else ["/system/bin/sh"]
        chroot = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin")
        return subprocess.Popen(
            [str(chroot), str(self.root), *words], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0,
            start_new_session=True,
        )  # fmt: skip

    def _plain(self, stream: _Stream, command: str) -> None:
        process = self._start(command, subprocess.STDOUT)
        assert process.stdin
        assert process.stdout

        def feed() -> None:
            with contextlib.suppress(OSError):
                while data := stream.read_some():
                    process.stdin.write(data)
                process.stdin.close()

        threading.Thread(target=feed, daemon=True).start()
        while data := process.stdout.read(1 << 16):
            stream.write(data)
        process.wait()

    def _shell(self, stream: _Stream, command: str) -> None:
        process, sending = self._start(command, subprocess.PIPE), threading.Lock()
        assert process.stdin
        assert process.stdout
        assert process.stderr

        def packet(kind: int, data: bytes) -> None:
            with sending:
                stream.write(struct.pack("<BI", kind, len(data)) + data)

        def pump(source: object, kind: int) -> None:
            with contextlib.suppress(Gone):
                while data := source.read(1 << 16):  # type: ignore[attr-defined]
                    packet(kind, data)

        def feed() -> None:
            with contextlib.suppress(Gone, OSError):
                while True:
                    kind, size = struct.unpack("<BI", stream.read(5))
                    data = stream.read(size)
                    if kind == STDIN:
                        process.stdin.write(data)
                    elif kind == CLOSE_STDIN:
                        process.stdin.close()
            # the host is gone: a phone hangs up
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 1)

        pumps = [threading.Thread(target=pump, args=a, daemon=True) for a in ((process.stdout, STDOUT), (process.stderr, STDERR))]
        for thread in (*pumps, threading.Thread(target=feed, daemon=True)):
            thread.start()
        for thread in pumps:
            thread.join()
        code = process.wait()
        packet(EXIT, bytes([128 - code if code < 0 else code]))

    def join(self, stream: _Stream, other: socket.socket) -> None:
        """Carry bytes between a stream and a socket until both ends."""

        def up() -> None:
            with contextlib.suppress(OSError, Gone):
                while data := stream.read_some():
                    other.sendall(data)
                other.shutdown(socket.SHUT_WR)

        threading.Thread(target=up, daemon=True).start()
        with contextlib.suppress(OSError, Gone):
            while data := other.recv(1 << 16):
                stream.write(data)

    def _reverse(self, stream: _Stream, what: str, connection: _Connection) -> None:
        """`forward:[norebind:]tcp:PORT;tcp:PORT`, `killforward:tcp:PORT`, `killforward-all`."""
        kind, _, rest = what.partition(":")
        if kind == "forward":
            here, there = rest.removeprefix("norebind:").split(";")
            server = self._reversed[here] = socket.create_server((OWN_ADDRESS, int(here.removeprefix("tcp:"))))
            threading.Thread(target=self._carry, args=(server, there, connection), daemon=True).start()
        else:
            for place in list(self._reversed) if kind == "killforward-all" else [rest]:
                if server := self._reversed.pop(place, None):  # type: ignore[assignment]
                    server.close()
        stream.write(b"OKAY")

    def _carry(self, server: socket.socket, there: str, connection: _Connection) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                threading.Thread(target=connection.open_on_host, args=(there, client), daemon=True).start()

    # --- files ------------------------------------------------------------------------------------------------------------------

    def _real(self, path: str) -> Path:
        return self.root / os.path.normpath(f"/{path}").lstrip("/")

    def _sync(self, stream: _Stream) -> None:
        while True:
            what, size = struct.unpack("<4sI", stream.read(8))
            if what == b"QUIT":
                return
            path = stream.read(size).decode()
            {b"STAT": self._stat, b"LIST": self._list, b"SEND": self._take, b"RECV": self._give}[what](stream, path)

    def _stat(self, stream: _Stream, path: str) -> None:
        try:
            found = self._real(path).lstat()
            stream.write(struct.pack("<4s3I", b"STAT", found.st_mode, found.st_size, int(found.st_mtime)))
        except OSError:
            stream.write(struct.pack("<4s3I", b"STAT", 0, 0, 0))

    def _list(self, stream: _Stream, path: str) -> None:
        with contextlib.suppress(OSError):
            for entry in self._real(path).iterdir():
                found, name = entry.lstat(), entry.name.encode()
                stream.write(struct.pack("<4s4I", b"DENT", found.st_mode, found.st_size, int(found.st_mtime), len(name)) + name)
        stream.write(struct.pack("<4s4I", b"DONE", 0, 0, 0, 0))

    def _take(self, stream: _Stream, target: str) -> None:
        path, _, mode = target.rpartition(",")
        real, error = self._real(path), b""
        try:
            real.parent.mkdir(parents=True, exist_ok=True)
            file = real.open("wb", buffering=0)
        except OSError as e:
            error, file = (e.strerror or "").encode(), (self.root / "dev/null").open("wb", buffering=0)
        with file:
            while True:
                what, size = struct.unpack("<4sI", stream.read(8))
                if what == b"DONE":
                    break
                try:
                    file.write(stream.read(size))
                except OSError as e:
                    error = error or (e.strerror or "").encode()
        if error:
            stream.write(struct.pack("<4sI", b"FAIL", len(error)) + error)
            return
        real.chmod(stat.S_IMODE(int(mode)) & 0o777)
        os.utime(real, (size, size))
        stream.write(struct.pack("<4sI", b"OKAY", 0))

    def _give(self, stream: _Stream, path: str) -> None:
        try:
            with self._real(path).open("rb") as file:
                while data := file.read(1 << 16):
                    stream.write(struct.pack("<4sI", b"DATA", len(data)) + data)
            stream.write(struct.pack("<4sI", b"DONE", 0))
        except OSError as e:
            message = (e.strerror or "").encode()
            stream.write(struct.pack("<4sI", b"FAIL", len(message)) + message)
