"""Checks of this machine and of the home folder."""

import os
import platform
import shutil
import stat
import sys
from pathlib import Path

from shoal.swarm.errors import ShoalError
from shoal.swarm.home import Home

from .check import Finding

GIB = 1 << 30
MIN_MEMORY_GIB, MIN_DISK_GIB = 1.0, 2.0


def python() -> Finding:
    where = f"{platform.system()} {platform.machine()}"
    return Finding("python", "ok", f"{platform.python_version()} on {where}, {sys.executable}")


def torch() -> Finding:
    try:
        import torch as library
    except ImportError as error:
        return Finding("torch", "fail", str(error), "install shoal again; a thin client works without torch")
    threads = library.get_num_threads()
    if library.cuda.is_available():
        free, total = library.cuda.mem_get_info()
        name = library.cuda.get_device_name()
        detail = f"{library.__version__}, {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {threads} CPU threads"
        return Finding("torch", "ok", detail)
    return Finding("torch", "ok", f"{library.__version__}, CPU with {threads} threads (no CUDA device)")


def memory() -> Finding:
    import psutil

    found = psutil.virtual_memory()
    detail = f"{found.available / GIB:.1f} of {found.total / GIB:.1f} GiB available"
    if found.available < MIN_MEMORY_GIB * GIB:
        return Finding("memory", "warn", detail, "host few layers, or set --max-memory")
    return Finding("memory", "ok", detail)


def disk(home: Home) -> Finding:
    place = next(folder for folder in (home.root, *home.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free / GIB:.1f} GiB free at {place}"
    if free < MIN_DISK_GIB * GIB:
        return Finding("disk", "warn", detail, "models of a hub need room; choose another --home or make room")
    return Finding("disk", "ok", detail)


def home_folder(home: Home) -> Finding:
    if not home.root.exists():
        return Finding("home", "ok", f"{home.root} does not exist yet; the first start makes it")
    mode = stat.S_IMODE(home.root.stat().st_mode)
    if not os.access(home.root, os.R_OK | os.W_OK | os.X_OK):
        return Finding("home", "fail", f"{home.root} cannot be written", "make it yours, or choose another --home")
    if mode & 0o077:
        return Finding("home", "warn", f"{home.root} is open to others ({mode:o})", f"chmod 700 {home.root}")
    readable = [file.name for file in _secrets(home) if file.exists() and file.stat().st_mode & 0o077]
    if readable:
        names = ", ".join(readable)
        return Finding("home", "fail", f"others can read {names}", f"chmod 600 the files in {home.root}")
    return Finding("home", "ok", f"{home.root}, for you only")


def _secrets(home: Home) -> tuple[Path, ...]:
    return home.identity, home.api_key_file, home.swarm, home.invites


def identity(home: Home) -> Finding:
    from shoal.swarm.identity import Identity

    try:
        found = Identity.load(home.identity)
    except ShoalError as error:
        return Finding("identity", "fail", str(error), "without it this machine is a stranger to its swarm")
    return Finding("identity", "ok", found.peer_id if found else "none yet; the first start makes one")


def swarm(home: Home) -> Finding:
    from shoal.swarm.members import membership_file

    try:
        found = membership_file.load(home.swarm)
    except ShoalError as error:
        return Finding("swarm", "fail", str(error), "ask the swarm's owner for a new invite")
    if found is None:
        return Finding("swarm", "ok", "none yet; `shoal up` founds one, `shoal join` enters one")
    return Finding("swarm", "ok", f"{found.swarm.name} ({'public' if found.swarm.public else 'private'})")


def settings(home: Home) -> Finding:
    from shoal.node.settings import FILE, load_settings

    try:
        load_settings(home, {})
    except ShoalError as error:
        return Finding("settings", "fail", str(error), "mend or remove it")
    exists = (home.root / FILE).exists()
    return Finding("settings", "ok", f"{home.root / FILE}" if exists else "no config.toml: defaults")
