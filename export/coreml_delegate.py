"""The CoreML package inside an ExecuTorch program that was lowered to the CoreML delegate.

The delegate stores a folder as one run of bytes: the files, and behind them a list of the folder's nodes as JSON, written backwards.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from mobileclip.errors import BundleError, MissingToolError
from mobileclip.export.verify.mil_storage import model_proto
from mobileclip.files import reading, writing

MAX_LISTING_BYTES, MAX_NODES = 1 << 20, 1000
PACKAGE, METADATA = "model.mlpackage/", "metadata.json"
MANIFEST, MODEL = f"{PACKAGE}Manifest.json", f"{PACKAGE}Data/com.apple.CoreML/model.mlmodel"
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def wholly_lowered(path: Path) -> bytes | None:
    """The delegate's bytes, if the program does nothing but hand its input to the CoreML delegate and its output back; else None.

    Raises:
        BundleError: `path` is not a program.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import DelegateCall

    with reading(path):
        data = path.read_bytes()
    try:
        program = deserialize_pte_binary(data).program
        (plan,) = program.execution_plan
        calls = [i.instr_args for chain in plan.chains for i in chain.instructions]
        if calls != [DelegateCall(0, [*plan.inputs, *plan.outputs])] or [d.id for d in plan.delegates] != ["CoreMLBackend"]:
            return None
        return program.backend_delegate_data[plan.delegates[0].processed.index].data
    except Exception as e:  # the reader of the format raises whatever comes up
        raise BundleError(f"{path}: is not a sound ExecuTorch program ({type(e).__name__}); export again") from None


def stored_files(blob: bytes) -> dict[str, slice]:
    """Where each file of the stored folder lies, by its path.

    Raises:
        ValueError: The listing is damaged, or a name would leave the folder.
    """
    listing, _ = json.JSONDecoder().raw_decode(blob[-MAX_LISTING_BYTES:][::-1].decode("latin-1"))
    nodes = listing["nodes"]
    children = [child for node in nodes for child in node["children"].values()]
    (root,) = set(range(len(nodes))) - set(children)
    if len(nodes) > MAX_NODES or len(children) != len(set(children)):
        raise ValueError("the listing is no tree of files")
    found: dict[str, slice] = {}

    def descend(index: int, prefix: str) -> None:
        for name, child in nodes[index]["children"].items():
            if not re.fullmatch(r"\w[\w.-]{0,99}", name):
                raise ValueError(f"{prefix}{name} has a name that no such file bears")
            node = nodes[child]
            if node["kind"] == 1:
                descend(child, f"{prefix}{name}/")
                continue
            start, size = node["dataRegion"]["offset"], node["dataRegion"]["size"]
            if not (type(start) is type(size) is int and 0 <= start <= start + size <= len(blob)):
                raise ValueError(f"{prefix}{name} is cut off")
            found[f"{prefix}{name}"] = slice(start, start + size)

    descend(root, "")
    return found


def extract(path: Path, folder: Path) -> tuple[Path, str, str]:
    """Write the package of a wholly lowered program to `folder`.

    Returns:
        The package, and the names of its input and output.

    Raises:
        BundleError: The program is damaged.
        MissingToolError: It is not wholly lowered.
    """
    blob = wholly_lowered(path)
    if blob is None:
        raise MissingToolError(f"{path}: not all of it went to the CoreML delegate, so only a Mac can check it; use --backend xnnpack")
    try:
        files = stored_files(blob)
        metadata = json.loads(blob[files[METADATA]])
        (given,), (result,) = metadata["inputNames"], metadata["outputNames"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise BundleError(f"{path}: the CoreML delegate's files are damaged; export again") from None
    with writing(folder):
        for name, where in files.items():
            if name.startswith(PACKAGE):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(blob[where])
    return folder / PACKAGE, str(given), str(result)


def reproducible(program: bytes, blob: bytes) -> bytes:
    """The program without what the delegate draws at random: identifiers and the date, replaced by values of the same length."""
    start = program.index(blob)
    files = stored_files(blob)
    new = bytearray(blob)

    def replace(name: str, content: bytes) -> None:
        assert len(content) == files[name].stop - files[name].start
        new[files[name]] = content

    manifest = json.loads(blob[files[MANIFEST]])
    entries = sorted(manifest["itemInfoEntries"].items(), key=lambda item: str(item[1]["path"]))
    names = {old: _uuid(item["path"].encode()) for old, item in entries}
    manifest["itemInfoEntries"] = {names[old]: item for old, item in entries}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    replace(MANIFEST, json.dumps(manifest, indent=4).encode() + b"\n")
    model = model_proto().Model()
    model.ParseFromString(blob[files[MODEL]])
    model.description.metadata.userDefined["com.github.apple.coremltools.conversion_date"] = "2000-01-01"
    replace(MODEL, model.SerializeToString(deterministic=True))
    # a phone keeps the compiled model under this identifier, so it must differ between models
    everything_else = bytes(new[: files[METADATA].start] + new[files[METADATA].stop :])
    replace(METADATA, _UUID.sub(_uuid(everything_else).encode(), blob[files[METADATA]]))
    return program[:start] + bytes(new) + program[start + len(blob) :]


def _uuid(content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
