"""Owns accelerators and systems on a chip, through the ``zeus`` package (0.16; extra ``meters``).

- NVIDIA: NVML's total energy counter (Volta and newer); below, the power is summed. NVML's manual gives
  +-5 % of the power reading; tests of more than 70 boards find an error in proportion to the power of that
  size, and that some boards sample only a part of the time (Yang et al., arXiv:2312.02741).
- AMD: the energy accumulator of AMD SMI, where ``zeus`` finds it plausible, else the power. AMD states no
  accuracy; 5 % is taken as for NVIDIA.
- Apple silicon: the energy model of the chip (IOReport), not a sensor: ``modelled``, 10 % taken.
- Jetson: the INA3221 monitors on the board, read by ``zeus`` in a process of its own; 5 % taken.

``zeus`` follows CUDA_VISIBLE_DEVICES and HIP_VISIBLE_DEVICES, so a process meters the devices that it uses.
It does not support MIG slices.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from ledger.core.errors import UnavailableError
from ledger.core.records import Method
from ledger.energy.meters.counting import PowerMeter, RisingCounter, unreadable
from ledger.energy.meters.total import TotalMeter

__all__ = ["AcceleratorMeter", "SystemOnChipMeter", "accelerator_meter"]

_UJ_PER_MJ = 1000  # mJ: millijoule
_GPU_ACCURACY_MILLI = 50
_APPLE_ACCURACY_MILLI = 100
_JETSON_ACCURACY_MILLI = 50


class AcceleratorMeter:
    """One device with a total energy counter.

    Args:
        device: a ``zeus.device.gpu.common.GPU``.
        name: goes into the records.
        clock_ns: a steady clock.
    """

    method: Method = "measured"
    accuracy_milli = _GPU_ACCURACY_MILLI

    def __init__(self, device: Any, *, name: str, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.name = name
        self._device = device
        self._clock_ns = clock_ns
        self._counter = RisingCounter()

    def read(self) -> int:
        """See ``Meter.read``."""
        try:
            value = int(self._device.get_total_energy_consumption()) * _UJ_PER_MJ
        except Exception as error:  # zeus has an exception for each code of each vendor, and bugs of its own
            raise unreadable(self.name, error) from None
        return self._counter.add(value, self._clock_ns())


def accelerator_meter(devices: Any = None) -> TotalMeter:
    """A meter of all accelerators that this process may use.

    Args:
        devices: a ``zeus.device.gpu.common.GPUs``; those of this host if absent.

    Raises:
        UnavailableError: there are none, or ``zeus`` is not installed.
    """
    pid = os.getpid()
    meters = [_device_meter(device) for device in (_gpus() if devices is None else devices).gpus]
    if not meters:
        raise unreadable("accelerators", "this process may use none", "run without them")

    def again() -> list[Any]:
        """The libraries' handles are not valid in a forked child."""
        nonlocal pid
        if os.getpid() == pid or devices is not None:
            return []
        opened = [_device_meter(device) for device in _gpus(anew=True).gpus]
        pid = os.getpid()
        return opened

    return TotalMeter(meters, again=again)


def _device_meter(device: Any) -> Any:
    vendor = "AMD SMI" if type(device).__name__.endswith("AMDGPU") else "NVML"
    try:
        name = f"{vendor}: {device.get_name()}"[:80]
        if device.supports_get_total_energy_consumption():
            return AcceleratorMeter(device, name=name)
    except Exception as error:
        raise unreadable(vendor, error) from None

    def power_mw() -> int:
        try:
            return int(device.get_instant_power_usage())
        except Exception as error:
            raise unreadable(name, error) from None

    return PowerMeter(power_mw, name=f"{name}, power", accuracy_milli=_GPU_ACCURACY_MILLI)


def _gpus(*, anew: bool = False) -> Any:
    try:
        from zeus.device import gpu

        if anew:
            gpu._gpus = None  # it holds handles of the parent
            for check in (gpu.nvml_is_available, gpu.amdsmi_is_available):
                check.cache_clear()  # they initialize the library, which a forked child must do again
        return gpu.get_gpus()
    except ImportError as error:
        raise unreadable("accelerators", error, "pip install 'tallystick[meters]'") from None
    except Exception as error:
        raise unreadable("accelerators", error, "check the driver; run without accelerators") from None


class SystemOnChipMeter:
    """Apple silicon or a Jetson module: everything on the chip, or on the module's power input.

    Args:
        chip: a ``zeus.device.soc.common.SoC``; this host's if absent.
        clock_ns: a steady clock.

    Raises:
        UnavailableError: this is no such system, or ``zeus`` is not installed.
    """

    def __init__(self, chip: Any = None, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._chip = _soc() if chip is None else chip
        self._clock_ns = clock_ns
        self._counter = RisingCounter()
        jetson = "Jetson" in type(self._chip).__name__
        self.name = "Jetson INA3221" if jetson else "Apple silicon IOReport"
        self.method: Method = "measured" if jetson else "modelled"
        self.accuracy_milli = _JETSON_ACCURACY_MILLI if jetson else _APPLE_ACCURACY_MILLI
        self.read()

    def read(self) -> int:
        """See ``Meter.read``."""
        try:
            value = _soc_uj(self._chip.get_total_energy_consumption())
        except UnavailableError:
            raise
        except Exception as error:
            raise unreadable(self.name, error) from None
        return self._counter.add(value, self._clock_ns())


def _soc() -> Any:
    try:
        from zeus.device.soc import get_soc

        return get_soc()
    except ImportError as error:
        raise unreadable("system on a chip", error, "pip install 'tallystick[meters]'") from None
    except Exception as error:
        raise unreadable("system on a chip", error, "run without it") from None


def _soc_uj(measured: Any) -> int:
    """All of the chip: the sum of its parts (Apple), or the input, else the sum of the rails (Jetson)."""
    total = getattr(measured, "total_energy_mj", None)
    if total is None:
        names = (
            "cpu_total_mj",
            "dram_mj",
            "gpu_mj",
            "gpu_sram_mj",
            "ane_mj",
            "cpu_energy_mj",
            "gpu_energy_mj",
        )
        parts = [getattr(measured, name, None) for name in names]
        known = [part for part in parts if part is not None]
        if not known:
            raise unreadable("system on a chip", "it shows no energy")
        total = sum(known)
    return int(total * _UJ_PER_MJ)
