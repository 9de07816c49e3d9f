"""An iPhone in a folder, behind a usbmuxd of its own: lockdown without encryption, the app's files, and the list of apps.

The real pymobiledevice3 talks to it (seen with 11.45). Written after what libimobiledevice documents of usbmuxd, lockdownd, AFC,
house_arrest and installation_proxy.
"""

from __future__ import annotations

import contextlib
import plistlib
import shutil
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOCKDOWN_PORT = 62078
_AFC = struct.Struct("<8s4Q")
_MODES = {1: "rb", 2: "r+b", 3: "wb", 4: "w+b", 5: "ab", 6: "a+b"}
_STATUS, _DATA, _LIST, _REMOVE, _MAKE, _INFO, _DEVICE, _OPEN, _OPENED, _READ, _WRITE, _SEEK, _CLOSE = (
    1, 2, 3, 8, 9, 10, 11, 13, 14, 15, 16, 17, 20,
)  # fmt: skip
_REMOVE_ALL, _TIME = 34, 30
_NOT_FOUND = 8


class IPhone:
    """The phone.

    Args:
        root: The app's container, with `Documents`.
        udid: Its identifier.
        apps: Names of the installed apps.

    Attributes:
        address: Of its usbmuxd, `HOST:PORT`.
    """

    def __init__(self, root: Path, udid: str, apps: tuple[str, ...]) -> None:
        self.root, self.udid, self.apps = root, udid, apps
        (root / "Documents").mkdir(parents=True)
        self.values: dict[str, Any] = {
            "DeviceName": "Anna's phone", "DeviceClass": "iPhone", "ProductType": "iPhone13,2", "ProductName": "iPhone OS",
            "ProductVersion": "16.7", "BuildVersion": "20H1", "UniqueDeviceID": udid, "HardwareModel": "D53gAP", "UniqueChipID": 1,
            "CPUArchitecture": "arm64e", "ProtocolVersion": "2", "WiFiAddress": "aa:bb:cc:dd:ee:ff", "PasswordProtected": False,
            "DevicePublicKey": b"x", "TimeIntervalSince1970": 1.0, "HasSiDP": True, "BasebandStatus": "None",
        }  # fmt: skip
        self._ports: dict[int, Callable[[socket.socket], None]] = {LOCKDOWN_PORT: self._lockdown}
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def unplug(self) -> None:
        """Nothing answers any more."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with link, contextlib.suppress(EOFError, OSError):
            self._usbmux(link)

    # --- usbmuxd ------------------------------------------------------------------------------------------------------------------

    def _usbmux(self, link: socket.socket) -> None:
        attached = {
            "ConnectionType": "USB",
            "DeviceID": 1,
            "SerialNumber": self.udid,
            "ProductID": 4776,
            "LocationID": 1,
            "UDID": self.udid,
        }
        device = {"MessageType": "Attached", "DeviceID": 1, "Properties": attached}
        names = ("HostCertificate", "HostPrivateKey", "DeviceCertificate", "RootCertificate", "EscrowBag")
        pairing = {"HostID": "H", "SystemBUID": "B", "WiFiMACAddress": "aa:bb:cc:dd:ee:ff"} | dict.fromkeys(names, b"x")
        while True:
            size, _, _, tag = struct.unpack("<4I", _exactly(link, 16))
            asked = plistlib.loads(_exactly(link, size - 16))
            kind = asked["MessageType"]
            told: dict[str, Any] = {"MessageType": "Result", "Number": 0}
            if kind == "ListDevices":
                told = {"DeviceList": [device]}
            elif kind == "ReadBUID":
                told = {"BUID": "B"}
            elif kind == "ReadPairRecord":
                told = {"PairRecordData": plistlib.dumps(pairing)}
            content = plistlib.dumps(told)
            link.sendall(struct.pack("<4I", 16 + len(content), 1, 8, tag) + content)
            if kind == "Connect":
                self._ports[socket.ntohs(asked["PortNumber"])](link)
                return

    # --- services -----------------------------------------------------------------------------------------------------------------

    def _lockdown(self, link: socket.socket) -> None:
        services = {
            "com.apple.mobile.house_arrest": self._house_arrest,
            "com.apple.mobile.installation_proxy": self._installation,
            "com.apple.afc": lambda link: self._files(link, self.root),
        }
        while True:
            asked = _receive(link)
            request, told = asked["Request"], {"Request": asked["Request"]}
            if request == "QueryType":
                told["Type"] = "com.apple.mobile.lockdown"
            elif request == "GetValue":
                known = self.values if asked.get("Domain") is None else {}
                key = asked.get("Key")
                told |= (
                    {"Value": known} if key is None else {"Key": key, "Value": known[key]} if key in known else {"Error": "MissingValue"}
                )
            elif request == "StartSession":
                told |= {"SessionID": "S", "EnableSessionSSL": False}
            elif request == "StartService":
                if service := services.get(asked["Service"]):
                    port = 50000 + len(self._ports)
                    self._ports[port] = service
                    told |= {"Service": asked["Service"], "Port": port, "EnableServiceSSL": False}
                else:
                    told["Error"] = "InvalidService"
            _send(link, told)

    def _installation(self, link: socket.socket) -> None:
        apps = [{"CFBundleIdentifier": name, "ApplicationType": "User", "Container": "/c", "Path": "/p"} for name in self.apps]
        while True:
            command = _receive(link)["Command"]
            if command == "Browse":
                _send(link, {"Status": "BrowsingApplications", "CurrentList": apps, "CurrentAmount": len(apps), "CurrentIndex": 0})
            _send(link, {"Status": "Complete", "LookupResult": {a["CFBundleIdentifier"]: a for a in apps}})

    def _house_arrest(self, link: socket.socket) -> None:
        if _receive(link)["Identifier"] not in self.apps:
            _send(link, {"Error": "ApplicationLookupFailed"})
            return
        _send(link, {"Status": "Complete"})
        self._files(link, self.root)

    def _files(self, link: socket.socket, root: Path) -> None:
        opened: dict[int, Any] = {}
        while True:
            _, whole, head, number, operation = _AFC.unpack(_exactly(link, _AFC.size))
            data = _exactly(link, whole - _AFC.size)

            def reply(kind: int, head: bytes = b"", body: bytes = b"", number: int = number) -> None:
                size = _AFC.size + len(head)
                link.sendall(_AFC.pack(b"CFA6LPAA", size + len(body), size, number, kind) + head + body)

            try:
                self._file_operation(operation, data, root, opened, reply)
            except FileNotFoundError:
                reply(_STATUS, struct.pack("<Q", _NOT_FOUND))
            del head

    def _file_operation(self, operation: int, data: bytes, root: Path, opened: dict[int, Any], reply: Callable[..., None]) -> None:
        def place(name: bytes) -> Path:
            return root / name.partition(b"\0")[0].decode().lstrip("/")

        def handle() -> Any:
            return opened[struct.unpack("<Q", data[:8])[0]]

        status = 0
        if operation == _INFO:
            found = place(data).stat()
            kind = "S_IFDIR" if place(data).is_dir() else "S_IFREG"
            told = {"st_size": found.st_size, "st_blocks": 1, "st_nlink": 1, "st_ifmt": kind, "st_mtime": 1, "st_birthtime": 1}
            return reply(_DATA, b"", "".join(f"{name}\0{value}\0" for name, value in told.items()).encode())
        if operation == _LIST:
            return reply(_DATA, b"", b"".join(name.encode() + b"\0" for name in (".", "..", *(p.name for p in place(data).iterdir()))))
        if operation == _DEVICE:
            return reply(_DATA, b"", b"Model\0iPhone13,2\0FSTotalBytes\x00100\0FSFreeBytes\x00100\0FSBlockSize\x004096\0")
        if operation == _OPEN:
            file = place(data[8:]).open(_MODES[struct.unpack("<Q", data[:8])[0]])
            opened[file.fileno()] = file
            return reply(_OPENED, struct.pack("<Q", file.fileno()))
        if operation == _READ:
            return reply(_DATA, b"", handle().read(struct.unpack("<Q", data[8:16])[0]))
        if operation == _WRITE:
            handle().write(data[8:])
        elif operation == _SEEK:
            handle().seek(struct.unpack("<q", data[16:24])[0], struct.unpack("<Q", data[8:16])[0])
        elif operation == _CLOSE:
            opened.pop(struct.unpack("<Q", data[:8])[0]).close()
        elif operation == _MAKE:
            place(data).mkdir(parents=True, exist_ok=True)
        elif operation in (_REMOVE, _REMOVE_ALL):
            target = place(data)
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        elif operation != _TIME:
            status = 6  # not supported
        return reply(_STATUS, struct.pack("<Q", status))


def _exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (more := link.recv(size - len(data))):
            raise EOFError
        data += more
    return bytes(data)


def _receive(link: socket.socket) -> dict[str, Any]:
    return plistlib.loads(_exactly(link, struct.unpack(">I", _exactly(link, 4))[0]))


def _send(link: socket.socket, value: dict[str, Any]) -> None:
    content = plistlib.dumps(value)
    link.sendall(struct.pack(">I", len(content)) + content)
