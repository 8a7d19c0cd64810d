"""ONNX Runtime sessions: the one place that makes them.

N batch, H height, W width, C channels, K classes.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.errors import BundleError, ShapeError, UsageError
from export.images import U8, Geometry
from export.machine import has_bfloat16, usable_cores
from export.manifest import Manifest, TensorSignature
from export.sessions import LargerThanUsual, MemoryPool

CPU = "CPUExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

MASK = "mask"
LOGITS = "logits"
IMAGE = "image"

# Its errors also come as exceptions, and once is enough; its warnings are about missing providers, refused below.
ort.set_default_logger_severity(4)


class OnnxModel:
    """A graph that takes uint8 images NHWC and gives uint8 masks NHW (and logits, when exported).

    Safe to call from several threads at once.
    """

    def __init__(
        self,
        source: Path | bytes,
        *,
        threads: int | None = None,
        providers: Sequence[str] = (CPU,),
        optimised: bool = True,
        memory_pool: MemoryPool = "keep",
        usual_pixels: int = 0,
        runs_at_once: int = 1,
        integers: bool = False,
        half_floats: bool = False,
    ) -> None:
        """A run uses `threads` threads (default: all cores the process may use); up to `runs_at_once` go on together.
        `optimised` False runs the graph as written. With the `memory_pool` "shrink", runs that are `LargerThanUsual`
        give memory back; `usual_pixels` (batch x height x width) are assumed at first. `integers` says that the graph
        has Q/DQ pairs; with `half_floats` a provider other than the CPU's may compute the rest in 16 bits, where it
        supports that.

        Raises UsageError for a provider that is not available, BundleError for a file that is no model.
        """
        missing = sorted(set(providers) - set(ort.get_available_providers()))
        if missing:
            raise UsageError(
                f"provider {', '.join(missing)} is not in this onnxruntime; available: "
                f"{', '.join(ort.get_available_providers())}"
            )
        self.threads = threads or usable_cores()
        content = str(source) if isinstance(source, Path) else source
        try:
            self._session = ort.InferenceSession(
                content,
                session_options(self.threads, optimised=optimised, memory_pool=memory_pool),
                providers=[
                    (name, _provider_options(name, self.threads, runs_at_once, integers=integers, half=half_floats))
                    for name in providers
                ],
                enable_fallback=0,  # it would try another provider, and print about it on standard output
            )
            self.inputs = tuple(_signature(node) for node in self._session.get_inputs())
            self.outputs = tuple(_signature(node) for node in self._session.get_outputs())
        except Exception as error:  # classes of onnxruntime's bindings, with no common base but Exception
            raise BundleError(
                source if isinstance(source, Path) else "model.onnx", [f"onnxruntime cannot load the graph: {error}"]
            ) from error
        self.providers = tuple(self._session.get_providers())
        self._is_large = LargerThanUsual(usual_pixels) if memory_pool == "shrink" else (lambda _pixels: False)

    @property
    def only_size(self) -> tuple[int, int] | None:
        """Height and width of a graph that takes one size alone, else None."""
        height, width = self.inputs[0].shape[1:3]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def masks(self, images_NHWC: U8) -> U8:
        """Class indices NHW; where the graph gives only logits, their argmax.

        Raises ShapeError when the images are not what the graph takes.
        """
        if all(output.name != MASK for output in self.outputs):
            best: U8 = self.logits(images_NHWC).argmax(axis=1).astype(np.uint8)
            return best
        return self._run(MASK, images_NHWC).astype(np.uint8, copy=False)

    def logits(self, images_NHWC: U8) -> NDArray[np.float32]:
        """Logits NKHW of a graph that was exported with them."""
        return self._run(LOGITS, images_NHWC).astype(np.float32, copy=False)

    def _run(self, output: str, images_NHWC: U8) -> NDArray[np.generic]:
        try:
            options = _shrinking() if self._is_large(math.prod(images_NHWC.shape[:3])) else None
            result: NDArray[np.generic] = self._session.run([output], {IMAGE: images_NHWC}, options)[0]
        except Exception as error:
            raise ShapeError(
                f"the graph takes {self.inputs[0].dtype} {list(self.inputs[0].shape)} and was given "
                f"{images_NHWC.dtype} {list(images_NHWC.shape)}: {error}"
            ) from error
        return result


class Segmenter:
    """Images of any size to masks of that size: geometry around an `OnnxModel`."""

    def __init__(self, model: OnnxModel, *, size: tuple[int, int] | None, multiple: int) -> None:
        self.model = model
        self.size = size
        self.multiple = multiple

    @classmethod
    def of(cls, manifest: Manifest, model: OnnxModel) -> "Segmenter":
        return cls(model, size=manifest.size, multiple=manifest.size_multiple)

    def geometry(self, image_HWC: U8) -> Geometry:
        """How this image is fitted to the model and its mask restored."""
        return Geometry.plan(*image_HWC.shape[:2], size=self.size, multiple=self.multiple)

    def segment(self, image_HWC: U8) -> U8:
        """Class indices HW, at the size of the image."""
        geometry = self.geometry(image_HWC)
        return geometry.restore(self.model.masks(geometry.fit(image_HWC)[None])[0])

    def probabilities(self, image_HWC: U8) -> NDArray[np.float32]:
        """Probabilities KHW, at the size of the image; the graph has to give logits."""
        geometry = self.geometry(image_HWC)
        return geometry.restore_figures(softmax(self.model.logits(geometry.fit(image_HWC)[None])[0]))


def softmax(logits_KHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of the classes KHW."""
    powers_KHW = np.exp(logits_KHW - logits_KHW.max(axis=0))
    return np.asarray(powers_KHW / powers_KHW.sum(axis=0), dtype=np.float32)


def gives_logits(manifest: Manifest) -> bool:
    """Whether this bundle's graph gives logits, from which probabilities are computed."""
    return any(output.name == LOGITS for output in manifest.outputs)


def _provider_options(name: str, threads: int, runs_at_once: int, *, integers: bool, half: bool) -> dict[str, str]:
    """Options that a provider does not take from the session's own."""
    if name == TENSORRT:
        # Without the first, TensorRT refuses a graph with Q/DQ pairs; the second is for the layers that have none. It
        # ignores what the GPU lacks. Source: ONNX Runtime, "TensorRT Execution Provider", and its issue 13381.
        return {"trt_int8_enable": str(integers), "trt_fp16_enable": str(integers and half)}
    if name != OPENVINO:
        return {}
    # OpenVINO has threads of its own, all cores by default, and one stream, in which the runs of several callers take
    # turns. It caches what it prepares for each size of image: 5,000 layers by default, over a MiB a size. A run of the
    # same size as the last needs none of that. It would use bfloat16 wherever there is AVX-512, even without
    # instructions for it, so bfloat16 is requested only with them. Source: OpenVINO, "Performance Hints and Thread
    # Scheduling", and config.h and system_conf.cpp of its CPU plugin.
    properties = {
        "NUM_STREAMS": str(runs_at_once),
        "INFERENCE_NUM_THREADS": str(runs_at_once * threads),
        "CPU_RUNTIME_CACHE_CAPACITY": "64",
        "INFERENCE_PRECISION_HINT": "bf16" if integers and half and has_bfloat16() else "f32",
    }
    return {"device_type": "CPU", "load_config": json.dumps({"CPU": properties})}


def available_providers() -> tuple[str, ...]:
    """What this build of the runtime can run graphs with."""
    return tuple(ort.get_available_providers())


def tensors(model: bytes, names: Sequence[str]) -> Callable[[U8], list[NDArray[np.float32]]]:
    """A function from an image HWC to the outputs `names` of `model`, run as written."""
    session = cpu_session(model, session_options(usable_cores(), optimised=False))

    def run(image_HWC: U8) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = session.run(list(names), {IMAGE: image_HWC[None]})
        return found

    return run


def outputs(model: bytes, feeds: Mapping[str, NDArray[Any]], *, optimised: bool) -> list[NDArray[Any]]:
    """All outputs of one run of `model`, `optimised` as it serves or as written."""
    session = cpu_session(model, session_options(usable_cores(), optimised=optimised))
    found: list[NDArray[Any]] = session.run(None, dict(feeds))
    return found


def cpu_session(model: bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session of the runtime's own kernels; its exceptions are the runtime's."""
    return ort.InferenceSession(model, options, providers=[CPU], enable_fallback=0)


def session_options(threads: int, *, optimised: bool = True, memory_pool: MemoryPool = "keep") -> ort.SessionOptions:
    """Options that every session here has: sequential, `threads` intra-op threads, spinning off.

    Spinning threads of one session starve the next (compress/README.md).
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # This optimizer would quantize weights that were left in float on purpose, wherever Q/DQ pairs surround a layer.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "WeightBiasQuantization")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = memory_pool != "off"
    return options


def _shrinking() -> ort.RunOptions:
    """Options of a run that gives back what the CPU's pool no longer needs.

    The runtime refuses a device for which the session has no such pool, so no GPU is named.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _signature(node: ort.NodeArg) -> TensorSignature:
    dtype = node.type.removeprefix("tensor(").removesuffix(")")
    # Unnamed dynamic dimensions come as None; a bundle names all of its own.
    return TensorSignature(name=node.name, dtype=dtype, shape=tuple("?" if d is None else d for d in node.shape))
