"""Provenance: which code, versions, machine and device a number comes from."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import torch

from tinylatent.core.identity import checksum

PACKAGES = ("tinylatent", "torch", "numpy", "scipy")
CODE = ("tinylatent.methods", "tinylatent.tasks")
"""Groups of entry points whose code makes a number."""


def environment(device: torch.device | str | None = None) -> dict[str, str]:
    """Commit, checksum of the code, versions, Python, processor, device and plugins, as a flat record of strings.

    Args:
        device: where the numbers are computed; None leaves it out.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    found = {
        "commit": commit(),
        "code": code(),
        "python": platform.python_version(),
        **versions,
        "machine": f"{platform.system()} {platform.machine()}, {processor()}",
        "threads": str(torch.get_num_threads()),
    }
    if device is not None:
        found["device"] = device_name(torch.device(device))
    if others := plugins():
        found["plugins"] = ", ".join(others)
    return found


def device_name(device: torch.device) -> str:
    """The GPU's name with the version of CUDA; the type of any other device, such as "cpu"."""
    if device.type != "cuda":
        return device.type
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def plugins() -> list[str]:
    """Name and version of every other package that registers a method, a task or anything else, in order of names."""
    found = set()
    for package in importlib.metadata.distributions():
        if package.name != "tinylatent" and any(
            point.group.startswith("tinylatent.") for point in package.entry_points
        ):
            found.add(f"{package.name} {package.version}")
    return sorted(found)


def memory() -> int:
    """Bytes of memory this process may use: the machine's, or fewer where a limit is set."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    found += [most] if most != resource.RLIM_INFINITY else []
    for path in map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            found.append(int(path.read_text(encoding="utf-8")))
    return min(found)


@cache
def code() -> str:
    """A checksum of the sources of every package that registers a method or a task, this one's among them.

    They are read once: what runs is what was there when this process began.
    """
    points = [point for group in CODE for point in importlib.metadata.entry_points(group=group)]
    found = []
    for package in {point.module.partition(".")[0] for point in points} | {"tinylatent"}:
        spec = importlib.util.find_spec(package)
        homes = [] if spec is None else [Path(home) for home in spec.submodule_search_locations or ()]
        if spec is not None and not homes:
            homes = [Path(spec.origin or "")]
        for home in homes:
            for file in sorted(home.rglob("*.py")) if home.is_dir() else [home]:
                name = file.relative_to(home.parent).as_posix()
                found.append(checksum(name.encode() + b"\0" + (file.read_bytes() if file.is_file() else b"")))
    return checksum("".join(sorted(found)).encode())[:12]


def differences(environments: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """The distinct values of everything in which environments differ, in their order, but for the number of threads.

    What some do not tell is no difference, and commits are none where the code is the same.
    """
    told = [*environments]
    found = {}
    for name in dict.fromkeys(name for each in told for name in each):
        values = [*dict.fromkeys(each[name] for each in told if name in each)]
        if len(values) > 1 and name != "threads":
            found[name] = values
    if all("code" in each for each in told):
        found.pop("commit", None)
    return found


def processor() -> str:
    """The processor's name and number of cores, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown processor'}, {os.cpu_count()} cores"


def commit() -> str:
    """The commit of the code that runs, with "+changes" if files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return "unknown"
    try:
        revision = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--", "tinylatent", "tasks", "theory")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{revision}+changes" if changed else revision


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
