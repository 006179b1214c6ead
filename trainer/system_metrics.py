"""What the machine does while a run trains: CPU, memory, disk and GPUs of rank 0's node."""

from pathlib import Path

import psutil
import torch


class SystemMetrics:
    """Measures when it is called; shares of time are since the call before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, psutil.Process()
        psutil.cpu_percent()  # the first call of each begins the time that the next one is about
        self.process.cpu_percent()

    def __call__(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        values: dict[str, float] = {
            "system/cpu_percent": psutil.cpu_percent(),  # 100: all cores
            "system/process/cpu_percent": self.process.cpu_percent(),  # 100: one core
            "system/process/memory_bytes": self.process.memory_info().rss,
            "system/memory_bytes": memory.total - memory.available,
            "system/disk_free_bytes": psutil.disk_usage(str(self.folder)).free,
        }
        if torch.cuda.is_initialized():  # else a look at them would take memory of a GPU
            for number in range(torch.cuda.device_count()):
                values |= _gpu(number)
        return values


def _gpu(number: int) -> dict[str, float]:
    values = {"allocated_bytes": float(torch.cuda.memory_allocated(number))}
    try:
        values["utilization_percent"] = float(torch.cuda.utilization(number))
        values["memory_bytes"] = float(torch.cuda.device_memory_used(number))
    except (ModuleNotFoundError, RuntimeError):  # no pynvml, or a driver that does not tell
        pass
    return {f"system/gpu_{number}/{name}": value for name, value in values.items()}
