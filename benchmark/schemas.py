"""JSON Schemas of everything that crosses a language: `python -m mobileclip.benchmark.schemas [FOLDER]` writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mobileclip.benchmark.protocol import BenchAnswer, BenchPlan, BenchRequest, BenchResult, DeviceSamples
from mobileclip.export.bundle import Manifest
from mobileclip.files import write_bytes

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILES: dict[str, type[BaseModel]] = {
    "bench_answer.schema.json": BenchAnswer,
    "bench_plan.schema.json": BenchPlan,
    "bench_request.schema.json": BenchRequest,
    "bench_result.schema.json": BenchResult,
    "device_samples.schema.json": DeviceSamples,
    "manifest.schema.json": Manifest,
}


def schemas() -> dict[str, bytes]:
    """File name -> content, the same bytes for the same models."""
    found = {}
    for name, model in FILES.items():
        schema: dict[str, Any] = {"$schema": DIALECT, **model.model_json_schema(mode="serialization")}
        found[name] = json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    return found


def main(folder: Path) -> None:
    """Write the schemas."""
    for name, content in schemas().items():
        write_bytes(folder / name, content)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "conformance"))
