"""A fake TensorRT module for tests of control flow: an engine is the ONNX file's bytes, and sums its input.

It takes two images of six numbers; its logits are the sums of the thirds of each.
"""

from __future__ import annotations

import ctypes
import enum
import json
from pathlib import Path

__version__ = "10.3.0"
CLASSES = 3
executed: list[Context] = []
configs: list[Config] = []
"""With which engines were built."""
_recorded: dict[int, Context] = {}


def hear_driver(graph: int, launch: int) -> None:
    """Be told by the fake driver that a recording ended, or that a recorded graph is launched."""
    if launch:
        _recorded[graph].execute()
    else:
        _recorded[graph] = executed[-1]


HEAR = ctypes.CFUNCTYPE(None, ctypes.c_long, ctypes.c_int)(hear_driver)
"""`hear_driver` for C."""


class TensorIOMode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class DataType(enum.Enum):
    FLOAT = 0


class LayerInformationFormat(enum.Enum):
    JSON = 0


class BuilderFlag(enum.IntEnum):
    TF32 = 0
    VERSION_COMPATIBLE = 1


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.Enum):
    DETAILED = 0


class ILogger:
    WARNING = 2


class IProfiler:
    pass


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        configs.append(config)
        if b"unbuildable" in network.data:
            self.logger.log(0, "no kernel for blocks.0")  # type: ignore[attr-defined]
            return None
        return network.data


class Tensor:
    name, shape = "image", (2, 6)


class Network:
    data = b""
    num_layers = 1

    def get_input(self, index: int) -> Tensor:
        return Tensor()


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        self._network.data = Path(path).read_bytes()
        return True


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return b"times"


class Config:
    profiling_verbosity = None

    def __init__(self) -> None:
        self.cleared: set[BuilderFlag] = set()

    def set_memory_pool_limit(self, kind: MemoryPoolType, size_bytes: int) -> None:
        assert size_bytes == 64 * 2**20

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.cleared.add(flag)

    def create_timing_cache(self, data: bytes) -> Cache | None:
        return None if data == b"truncated" else Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._cache = cache
        return True

    def get_timing_cache(self) -> Cache:
        return self._cache


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        if data.startswith(b"broken"):
            self._logger.log(0, "magic tag does not match")  # type: ignore[attr-defined]
            return None
        return Engine()


class Inspector:
    def get_engine_information(self, format: LayerInformationFormat) -> str:
        return json.dumps(
            {"Layers": [{"Name": "sum", "LayerType": "reduce", "Outputs": [{"Datatype": "FP32"}]}]}
        )


class Engine:
    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (2, 6) if name == "image" else (2, CLASSES)

    def create_execution_context(self) -> Context:
        return Context()

    def create_engine_inspector(self) -> Inspector:
        return Inspector()


class Context:
    profiler: object = None

    def __init__(self) -> None:
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return shape == (2, 6)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return Engine().get_tensor_shape(name)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 0x7766554433221100
        executed.append(self)
        self.execute()
        return True

    def execute(self) -> None:
        """Sum the thirds of both images."""
        image = (ctypes.c_float * 12).from_address(self._addresses["image"])
        logits = (ctypes.c_float * 6).from_address(self._addresses["logits"])
        for index in range(6):
            logits[index] = image[2 * index] + image[2 * index + 1]
        if self.profiler is not None:
            self.profiler.report_layer_time("sum", 0.5)  # type: ignore[attr-defined]
