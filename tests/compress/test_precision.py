"""Which number format training uses on each device; devices that this machine lacks are faked."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from compress.train import precision
from compress.train.precision import autocast, choose, pick_device
from compress.train.runtime import Runtime
from export.errors import UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def fake_gpu(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "Abacus 9000")


def fake_probe(monkeypatch: pytest.MonkeyPatch, **milliseconds: list[float]) -> None:
    """Passes that take the given times one after the other, and then the last of them for ever."""

    def timed_pass(name: str) -> Callable[[], float]:
        times = itertools.chain(milliseconds[name], itertools.repeat(milliseconds[name][-1]))
        return lambda: next(times)

    monkeypatch.setattr(precision, "_timed_pass", timed_pass)


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_takes_bfloat16_where_it_has_it(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    fake_gpu(monkeypatch, bfloat16=native)
    choice = choose("auto", CUDA)
    assert choice.precision == expected
    assert "Abacus 9000" in choice.reason


@pytest.mark.parametrize(
    ("plain", "reduced", "expected"), [(30.0, 10.0, "bfloat16"), (10.0, 100.0, "float32"), (11.0, 10.0, "float32")]
)
def test_on_a_cpu_a_timed_probe_decides(
    monkeypatch: pytest.MonkeyPatch, plain: float, reduced: float, expected: str
) -> None:
    fake_probe(monkeypatch, float32=[plain], bfloat16=[reduced])
    choice = choose("auto", CPU)
    assert choice.precision == expected
    assert choice.reason == f"probe: float32 {plain} ms, bfloat16 {reduced} ms"


def test_the_probe_looks_past_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    warm_up, beside_other_work = 500.0, [50.0, 120.0, 45.0]
    fake_probe(monkeypatch, float32=[warm_up, 60.0, 30.0], bfloat16=[warm_up, *beside_other_work, 12.0])
    assert choose("auto", CPU) == precision.Choice("bfloat16", "probe: float32 30.0 ms, bfloat16 12.0 ms")


def test_the_real_probe_decides_and_leaves_the_random_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert choose("auto", CPU).precision in ("float32", "bfloat16")
    assert torch.equal(torch.get_rng_state(), before)


def test_another_device_is_not_guessed_at() -> None:
    assert choose("auto", torch.device("mps")).precision == "float32"


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_what_is_asked_for_is_taken(device: torch.device) -> None:
    for wanted in ("float32", "bfloat16", "float16"):
        assert choose(wanted, device).precision == wanted


def test_a_device_that_is_not_there_is_a_users_mistake() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda")
    for wanted in ("gpu", "cuda:99", "tpu:0"):
        with pytest.raises(UsageError, match=f"train.device = '{wanted}' is not available"):
            pick_device(wanted)
    for wanted in ("meta", "xla"):
        with pytest.raises(UsageError, match=f"train.device = '{wanted}' cannot train"):
            pick_device(wanted)


@pytest.mark.parametrize("name", ["cuda:1", "xpu:1", "mps"])
def test_seeds_and_waits_are_for_the_device_that_trains(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    seeds: list[int] = []
    waits: list[str] = []
    current: list[torch.device] = []
    device = torch.device(name)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # the device is available
    monkeypatch.setattr(torch.accelerator, "set_device_index", current.append)
    monkeypatch.setattr(f"torch.{device.type}.manual_seed", seeds.append)
    monkeypatch.setattr(f"torch.{device.type}.synchronize", lambda: waits.append(device.type))
    runtime = Runtime(pick_device(name), "float32")
    runtime.seed(7)
    runtime.synchronize()
    assert (seeds, waits) == ([7], [device.type])
    assert current == ([device] if ":" in name else [])


@pytest.mark.parametrize(("wanted", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_autocast_runs_the_forward_pass_in_that_format(wanted: str, dtype: torch.dtype) -> None:
    with autocast(wanted, CPU):  # type: ignore[arg-type]
        assert nn.Conv2d(1, 2, 3)(torch.zeros(1, 1, 8, 8)).dtype == dtype
