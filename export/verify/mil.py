"""A reference interpreter for CoreML's ML programs: checks a .mlpackage on any machine, without a Mac.

It executes what is written: the stored program with the stored weights at the stored precision, operator by operator with torch on
the CPU (see mil_ops for the arithmetic). It says nothing about speed, or about how a device's own kernels round.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobileclip.errors import BundleError, InputError
from mobileclip.export.verify.mil_storage import (
    MODEL_ROOT,
    WeightFile,
    damaged,
    enum_name,
    immediate,
    inside,
    read_model,
    tensor_type,
)

if TYPE_CHECKING:
    import torch

    from mobileclip.export.verify.mil_ops import Operator

# Specification version -> name of the operator set: iOS 17 and 18.
OPSETS = {8: "CoreML7", 9: "CoreML8"}


@dataclass(frozen=True)
class TensorType:
    """Type of a model input or output. An image input takes uint8 RGB pixels of shape (1, H, W, 3)."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    image: bool = False


@dataclass(frozen=True)
class Value:
    """A value inside the program; `dtype` is numpy's name of the type ("string" for texts)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    constant: bool


@dataclass(frozen=True)
class Operation:
    """One operation as written: its inputs by parameter name, and its outputs."""

    type: str
    name: str
    inputs: dict[str, tuple[Value, ...]]
    outputs: tuple[Value, ...]


@dataclass
class _Step:
    """An operation ready to run: constants are in place, the others are looked up by name."""

    operation: Operation
    function: Callable[..., Any]
    fixed: dict[str, Any]
    lookups: dict[str, Callable[[dict[str, torch.Tensor]], Any]]
    narrow: bool
    last_uses: tuple[str, ...] = ()

    def run(self, env: dict[str, torch.Tensor]) -> None:
        """Compute the outputs into `env` and drop from it what is not used any more."""
        results = self.function(**self.fixed, **{name: get(env) for name, get in self.lookups.items()})
        results = results if isinstance(results, tuple) else (results,)
        for output, result in zip(self.operation.outputs, results, strict=True):
            if self.narrow and result.is_floating_point():
                result = result.half()
            got = (str(result.dtype).removeprefix("torch."), tuple(result.shape))
            if got != (output.dtype, output.shape):
                raise ValueError(f"gives {got[0]}{list(got[1])}, declared is {output.dtype}{list(output.shape)}")
            env[output.name] = result
        for name in self.last_uses:
            del env[name]


class MilProgram:
    """A CoreML package, read and checked, ready to run.

    `inputs` and `outputs` map names to types, `operations` are all operations in order.
    """

    inputs: dict[str, TensorType]
    outputs: dict[str, TensorType]
    operations: tuple[Operation, ...]

    def __init__(self, package: Path, threads: int = 1) -> None:
        self._package, self._threads = package, threads
        self._weights: dict[str, WeightFile] = {}
        self._constants: dict[str, torch.Tensor | str] = {}
        self._widened: dict[str, torch.Tensor] = {}
        self._planes: dict[str, tuple[slice, np.dtype[Any]]] = {}  # of image inputs: channel order, type in the program

    @classmethod
    def load(cls, package: Path, threads: int = 1) -> MilProgram:
        """Read a .mlpackage, check all of it, and prepare its constants.

        Args:
            package: The folder.
            threads: CPU threads that each run takes.

        Raises:
            BundleError: The package is damaged, leaves its folder, is for another version of CoreML, or needs an operator or
                an option that is not supported; the message names it.
            MissingToolError: coremltools, whose message definitions are needed, is not installed.
        """
        program = cls(package, threads)
        model, folder = read_model(package)
        function, block = _main_block(package, model)
        try:
            types = {i.name: tensor_type(i.type) for i in function.inputs}
        except ValueError as e:
            raise BundleError(f"{package}: program input: {e}") from None
        program._read_block(block, folder, types)
        program._read_interface(model.description, types, list(block.outputs))
        return program

    def walk(self) -> Iterator[Operation]:
        """All operations in order of execution, constants included."""
        return iter(self.operations)

    def constants_not_finite(self) -> list[str]:
        """Names of constants with infinite values or NaN."""
        import torch

        return [n for n, v in self._constants.items() if isinstance(v, torch.Tensor) and v.is_floating_point() and not v.isfinite().all()]

    def operator_counts(self) -> dict[str, int]:
        """How often each operator occurs, by falling count; constants are not counted."""
        return dict(Counter(o.type for o in self.operations if o.type != "const").most_common())

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Execute the program once.

        Args:
            feeds: One array for each input, of exactly its type and shape (`inputs`).

        Returns:
            The outputs by name.

        Raises:
            InputError: A feed is missing, unknown, or of another type or shape.
            BundleError: An operator cannot do what the program asks of it; the message names the operation.
        """
        import torch

        env = self._feed(feeds)
        env.update({n: c for n, c in self._constants.items() if n in self.outputs and not isinstance(c, str)})
        with torch.inference_mode(), _threads(self._threads):
            for step in self._steps:
                try:
                    step.run(env)
                except (ValueError, RuntimeError, IndexError, TypeError) as e:
                    raise self._error(step.operation, str(e).splitlines()[0]) from e
            return {name: np.array(env[name].numpy()) for name in self.outputs}

    def _feed(self, feeds: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        import torch

        if set(feeds) != set(self.inputs):
            raise InputError(f"inputs given: {sorted(feeds)}; {self._package} needs: {sorted(self.inputs)}")
        env = {}
        for name, kind in self.inputs.items():
            feed = feeds[name]
            if feed.dtype != kind.dtype or feed.shape != kind.shape:
                raise InputError(f"input {name!r} is {feed.dtype}{list(feed.shape)}; needed is {kind.dtype}{list(kind.shape)}")
            if kind.image:
                order, dtype = self._planes[name]
                feed = feed[..., order].transpose(0, 3, 1, 2).astype(dtype)
            env[name] = torch.from_numpy(np.array(feed, order="C"))
        return env

    # --- reading -----------------------------------------------------------------------------------------------------

    def _error(self, operation: Operation, what: str) -> BundleError:
        what = " ".join(f"operator {operation.type} {operation.name!r}: {what}".split())  # one line, whatever the names hold
        return BundleError(f"{self._package}: {what}")

    def _read_block(self, block: Any, folder: Path, inputs: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        known = {name: Value(name, dtype, shape, constant=False) for name, (dtype, shape) in inputs.items()}
        operations, steps = [], []
        for op in block.operations:
            operation = self._read_operation(op, folder, known)
            for output in operation.outputs:
                if output.name in known:
                    raise damaged(self._package, f"value {output.name!r} is defined twice")
                known[output.name] = output
            operations.append(operation)
            if operation.type != "const":
                steps.append(self._prepare(operation))
        for name in block.outputs:
            if name not in known:
                raise damaged(self._package, f"output {name!r} is never computed")
        used = set(block.outputs)
        for step in reversed(steps):
            names = [v.name for values in step.operation.inputs.values() for v in values if not v.constant]
            last = (set(names) | {o.name for o in step.operation.outputs}) - used
            step.last_uses = tuple(sorted(last))
            used |= last
        self.operations, self._steps = tuple(operations), steps

    def _read_operation(self, op: Any, folder: Path, known: dict[str, Value]) -> Operation:
        name = op.attributes["name"].immediateValue.tensor.strings.values[:1] if "name" in op.attributes else ()
        outputs: list[Value] = []
        inputs: dict[str, tuple[Value, ...]] = {}
        # An operation without a name is known by its first output.
        label = name[0] if name else op.outputs[0].name if op.outputs else ""
        try:
            outputs = [Value(o.name, *tensor_type(o.type), constant=op.type == "const") for o in op.outputs]
            extra = sorted(set(op.attributes) - {"name", "val"}) + (["a nested block"] if op.blocks else [])
            if extra:
                raise ValueError(f"{extra[0]} is not supported")
            for parameter in sorted(op.inputs):
                inputs[parameter] = tuple(
                    self._read_binding(f"{label}.{parameter}.{i}", b, folder, known) for i, b in enumerate(op.inputs[parameter].arguments)
                )
            if op.type == "const":
                if len(outputs) != 1 or "val" not in op.attributes:
                    raise ValueError("has no value")
                self._read_constant(outputs[0], op.attributes["val"], folder)
        except ValueError as e:
            raise self._error(Operation(op.type, label, inputs, tuple(outputs)), str(e)) from None
        return Operation(op.type, label, inputs, tuple(outputs))

    def _read_binding(self, label: str, binding: Any, folder: Path, known: dict[str, Value]) -> Value:
        if binding.WhichOneof("binding") == "value":
            value = Value(label, *tensor_type(binding.value.type), constant=True)
            self._read_constant(value, binding.value, folder)
            return value
        if binding.name not in known:
            raise ValueError(f"uses value {binding.name!r} before it is computed")
        return known[binding.name]

    def _read_constant(self, value: Value, stored: Any, folder: Path) -> None:
        if tensor_type(stored.type) != (value.dtype, value.shape):
            raise ValueError("the stored type is not the declared one")
        if stored.WhichOneof("value") == "immediateValue":
            self._constants[value.name] = immediate(stored)
            return
        if stored.WhichOneof("value") != "blobFileValue":
            raise ValueError("has no value")
        name = stored.blobFileValue.fileName
        if not name.startswith(MODEL_ROOT):
            raise BundleError(f"{self._package}: weight file {name!r} is outside the package; do not use this package")
        if name not in self._weights:
            self._weights[name] = WeightFile(self._package, inside(self._package, folder, name[len(MODEL_ROOT) :]))
        self._constants[value.name] = self._weights[name].tensor(stored.blobFileValue.offset, value.dtype, value.shape)

    # --- preparing ---------------------------------------------------------------------------------------------------

    def _prepare(self, operation: Operation) -> _Step:
        from mobileclip.export.verify import mil_shape_ops  # noqa: F401  (registers its operators)
        from mobileclip.export.verify.mil_ops import OPERATORS

        operator = OPERATORS.get(operation.type)
        if operator is None:
            raise self._error(operation, "this operator is not supported by the reference interpreter")
        if not operation.outputs:
            raise self._error(operation, "has no output")
        for name in operation.inputs:
            if name not in operator.parameters:
                raise self._error(operation, f"option {name!r} is not supported")
        step = _Step(operation, operator.function, {}, {}, narrow=False)
        tensors: list[Value] = []
        for parameter in operator.parameters.values():
            values = operation.inputs.get(parameter.name)
            if values is None:
                if parameter.required:
                    raise self._error(operation, f"input {parameter.name!r} is missing")
                continue
            if parameter.kind != "tensors" and len(values) != 1:
                raise self._error(operation, f"input {parameter.name!r} has {len(values)} values, 1 is needed")
            self._bind(step, operator, parameter.name, values)
            tensors += values if parameter.kind != "plain" else ()
        # Mixed precision (conv with fp16 weights on fp32 data) gives the type of the data, which is the first parameter.
        step.narrow = operator.computes and bool(tensors) and tensors[0].dtype == "float16"
        return step

    def _bind(self, step: _Step, operator: Operator, name: str, values: tuple[Value, ...]) -> None:
        kind = operator.parameters[name].kind

        def get(env: dict[str, torch.Tensor], value: Value) -> Any:
            if value.constant:
                return self._constant(value, kind == "plain", operator.computes)
            tensor = env[value.name]
            if kind == "plain":
                return tensor.tolist()
            return tensor.float() if operator.computes and value.dtype == "float16" else tensor

        def get_all(env: dict[str, torch.Tensor]) -> Any:
            return [get(env, v) for v in values] if kind == "tensors" else get(env, values[0])

        if kind != "plain" and any(v.dtype == "string" for v in values):
            raise self._error(step.operation, f"input {name!r} is a text, a tensor is needed")
        if all(v.constant for v in values):
            step.fixed[name] = get_all({})
        else:
            step.lookups[name] = get_all

    def _constant(self, value: Value, plain: bool, widen: bool) -> Any:
        stored = self._constants[value.name]
        if isinstance(stored, str):
            return stored
        if plain:
            return stored.tolist()
        if widen and value.dtype == "float16":
            if value.name not in self._widened:
                self._widened[value.name] = stored.float()
            return self._widened[value.name]
        return stored

    # --- the model's own description ---------------------------------------------------------------------------------

    def _read_interface(self, description: Any, types: dict[str, tuple[str, tuple[int, ...]]], block_outputs: list[str]) -> None:
        if set(types) != {f.name for f in description.input} or set(block_outputs) != {f.name for f in description.output}:
            raise damaged(self._package, "inputs and outputs of the description are not those of the program")
        if description.state:
            raise BundleError(f"{self._package}: models with state are not supported")
        self.inputs = {f.name: self._feature(f, *types[f.name]) for f in description.input}
        made = {o.name: o for operation in self.operations for o in operation.outputs}
        self.outputs = {}
        for feature in description.output:
            if feature.name not in made:
                raise damaged(self._package, f"output {feature.name!r} is an input")
            output = made[feature.name]
            self.outputs[feature.name] = self._feature(feature, output.dtype, output.shape)
            if self.outputs[feature.name].image:
                raise BundleError(f"{self._package}: output {feature.name!r} is an image, which is not supported")

    def _feature(self, feature: Any, dtype: str, shape: tuple[int, ...]) -> TensorType:
        kind = feature.type.WhichOneof("Type")
        if kind == "imageType":
            image = feature.type.imageType
            color = enum_name(image.ColorSpace, image.colorSpace)
            if color not in ("RGB", "BGR") or image.WhichOneof("SizeFlexibility"):
                raise BundleError(f"{self._package}: {color} or flexible image {feature.name!r} is not supported")
            if shape != (1, 3, image.height, image.width) or not dtype.startswith("float"):
                raise damaged(self._package, f"image {feature.name!r} is not what the program takes")
            self._planes[feature.name] = (slice(None, None, -1 if color == "BGR" else 1), np.dtype(dtype))
            return TensorType(np.dtype("uint8"), (1, image.height, image.width, 3), image=True)
        if kind != "multiArrayType":
            raise BundleError(f"{self._package}: {feature.name!r} is of kind {kind}, which is not supported")
        array = feature.type.multiArrayType
        if feature.type.isOptional or array.WhichOneof("ShapeFlexibility"):
            raise BundleError(f"{self._package}: {feature.name!r} is optional or has a flexible shape; not supported")
        name = enum_name(array.ArrayDataType, array.dataType).lower().replace("double", "float64")
        if name != dtype or tuple(array.shape) != shape:
            raise damaged(
                self._package,
                f"{feature.name!r} is described as {name}{list(array.shape)}, the program has {dtype}{list(shape)}",
            )
        return TensorType(np.dtype(dtype), shape)


def _main_block(package: Path, model: Any) -> tuple[Any, Any]:
    """The program's one function and its block of operations, after the versions are checked."""
    version = model.specificationVersion
    if version not in OPSETS:
        known = ", ".join(map(str, OPSETS))
        raise BundleError(f"{package}: specification version {version} is not supported ({known} are)")
    if model.WhichOneof("Type") != "mlProgram":
        raise BundleError(f"{package}: holds a {model.WhichOneof('Type')}, not an ML program")
    program = model.mlProgram
    if program.version != 1 or list(program.functions) != ["main"]:
        raise BundleError(f"{package}: version {program.version}, functions {sorted(program.functions)}; need 1, main")
    function = program.functions["main"]
    if function.opset not in OPSETS.values() or list(function.block_specializations) != [function.opset]:
        raise BundleError(f"{package}: operator set {function.opset!r} is not supported")
    block = function.block_specializations[function.opset]
    if block.inputs:
        raise damaged(package, "the main block has inputs of its own")
    return function, block


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
