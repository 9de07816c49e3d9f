"""A stand-in for `xcrun devicectl`: `python xcrun.py PHONE devicectl ...` with the commands and JSON files that Xcode 16 documents.

PHONE is a folder: `state.json` has the listed `devices`, the installed `apps`, a `fault` of the app, what shall `hang`, and what shall
`fail` ({part of a command: [description, reason]}); `container` is the app's own folder; every command is written to `asked`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

PHONE, WORDS = Path(sys.argv[1]), sys.argv[3:]
STATE = json.loads((PHONE / "state.json").read_text())
SIMULATOR = Path(__file__).with_name("app.py")


def option(name: str, default: str = "") -> str:
    return WORDS[WORDS.index(name) + 1] if name in WORDS else default


def end(result: dict[str, object] | None = None, error: dict[str, object] | None = None) -> NoReturn:
    outcome = "failed" if error else "success"
    info = {
        "arguments": WORDS,
        "commandType": f"devicectl.{'.'.join(WORDS[:2])}",
        "jsonVersion": 2,
        "outcome": outcome,
        "version": "397.28",
    }
    if option("--json-output"):
        Path(option("--json-output")).write_text(json.dumps({"info": info} | ({"error": error} if error else {"result": result or {}})))
    sys.exit(1 if error else 0)


def fail(text: str, reason: str | None = None) -> NoReturn:
    below = {"NSUnderlyingError": {"error": {"userInfo": {"NSLocalizedFailureReason": {"string": reason}}}}} if reason else {}
    sys.stderr.write(f"ERROR: {text}\n" + (f"       NSLocalizedFailureReason = {reason}\n" if reason else ""))
    told = {"NSLocalizedDescription": {"string": text}} | below
    end(error={"code": 1, "domain": "com.apple.dt.CoreDeviceError", "userInfo": told})


def copy() -> NoReturn:
    assert (option("--domain-type"), option("--domain-identifier")) == ("appDataContainer", STATE["app"])
    source, target = Path(option("--source")), Path(option("--destination"))
    source, target = (source, PHONE / "container" / target) if WORDS[2] == "to" else (PHONE / "container" / source, target)
    if not source.exists():
        fail("The operation could not be completed.", "No such file or directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    end({"source": str(source), "destination": str(target)})


def launch() -> NoReturn:
    assert WORDS[WORDS.index(STATE["app"]) + 1] == "--", "what begins with a dash would be devicectl's own"
    if gone := option("--mobileclip-remove"):
        shutil.rmtree(PHONE / "container" / gone)
        end()
    plan = PHONE / "container" / option("--mobileclip-bench")
    code = subprocess.run([sys.executable, SIMULATOR, plan.parent, STATE.get("fault", "")], check=False).returncode
    if code < 0:
        sys.stdout.write(f"App terminated due to signal {-code}.\n")
    sys.exit(1 if code else 0)


def main() -> NoReturn:
    command = " ".join(WORDS)
    with (PHONE / "asked").open("a") as f:
        f.write(command + "\n")
    if STATE.get("hang", "\n") in command:
        time.sleep(600)
    for wanted, (text, reason) in STATE.get("fail", {}).items():
        if wanted in command:
            fail(text, reason)
    if WORDS[:2] == ["list", "devices"]:
        end({"devices": STATE["devices"]})
    if option("--device") != STATE["udid"]:
        fail("The specified device was not found.")
    if WORDS[:3] == ["device", "info", "apps"]:
        end({"apps": [{"bundleIdentifier": name} for name in STATE["apps"]]})
    if WORDS[:3] == ["device", "install", "app"]:
        STATE["apps"].append(STATE["app"])
        (PHONE / "state.json").write_text(json.dumps(STATE))
        end({"installedApplications": [{"bundleID": STATE["app"]}]})
    if WORDS[:2] == ["device", "copy"]:
        copy()
    if WORDS[:3] == ["device", "process", "launch"]:
        launch()
    fail("unknown command")


main()
