"""The photographs in every layout that can be scored."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from mobileclip.data.shards import write_shard
from mobileclip.export.encoder import Encoder, open_encoder
from mobileclip.export.verify.dataset import photograph

NAMES = ("cat", "coffee", "dahlia", "drum", "rocket")
CAPTIONS = {name: (f"a photo of a {name}", f"the {name}, seen from near") for name in NAMES}


@dataclass(frozen=True)
class Layouts:
    """Ten pictures of five classes: whole ones and halves, the same in each layout."""

    folders: Path
    shards: Path
    table: Path
    published: Path
    published_retrieval: Path


@pytest.fixture(scope="session")
def nano_encoder() -> Encoder:
    return open_encoder("untrained:mobileclip_nano")


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    root = tmp_path_factory.mktemp("layouts")
    made = Layouts(*(root / name for name in ("folders", "shards", "table.jsonl", "published", "published-retrieval")))
    samples: list[tuple[str, str, str, bytes]] = []
    for name in NAMES:
        whole = photograph(name).resize((80, 70))
        for style, image in (("whole", whole), ("half", whole.crop((0, 0, 40, 70)))):
            file = io.BytesIO()
            image.save(file, "PNG")
            samples.append((f"{name}-{style}", name, style, file.getvalue()))
    for key, name, _, data in samples:
        (made.folders / name).mkdir(parents=True, exist_ok=True)
        (made.folders / name / f"{key}.png").write_bytes(data)
    fields = [json.dumps({"label": name, "style": style}).encode() for _, name, style, _ in samples]
    members = [
        (k, {"png": data, "json": about, "txt": CAPTIONS[n][0].encode()}) for (k, n, _, data), about in zip(samples, fields, strict=True)
    ]
    made.shards.mkdir()
    write_shard(made.shards / "00.tar", members[:6])
    write_shard(made.shards / "01.tar", members[6:])
    rows = [{"image": f"folders/{n}/{k}.png", "captions": CAPTIONS[n], "style": style} for k, n, style, _ in samples]
    made.table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made.published / "test").mkdir(parents=True)
    (made.published / "test" / "nshards.txt").write_text("1\n")
    (made.published / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (made.published / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}\n")
    write_shard(made.published / "test" / "0.tar", [(k, {"png": data, "cls": b"%d" % NAMES.index(n)}) for k, n, _, data in samples])
    (made.published_retrieval / "test").mkdir(parents=True)
    (made.published_retrieval / "test" / "nshards.txt").write_text("2")
    (made.published_retrieval / "dataset_type.txt").write_text("retrieval\n")
    texts = [(k, {"png": data, "txt": "\n".join(CAPTIONS[n]).encode()}) for k, n, _, data in samples]
    write_shard(made.published_retrieval / "test" / "0.tar", texts[:3])
    write_shard(made.published_retrieval / "test" / "1.tar", texts[3:])
    return made
