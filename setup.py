"""The one thing pyproject.toml cannot say: the C extension is optional, and a build without it must not look native.

QCTHREADS_PURE=1            build no extension
QCTHREADS_REQUIRE_NATIVE=1  fail loudly where it cannot be built (for release wheels)
"""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

PURE = os.environ.get("QCTHREADS_PURE") == "1"
REQUIRED = os.environ.get("QCTHREADS_REQUIRE_NATIVE") == "1"
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded CPython has none before 3.15

# What the extension is made of; elsewhere there is none.
SOURCES = {
    "linux": (
        *("_native.pyx", "linux_affinity.c", "linux_mempolicy.c", "linux_topology.c", "linux_process.c"),
        *("linux_sampler.c", "linux_recorder.c", "linux_files.c", "bandwidth.c"),
    ),
    "darwin": ("_native_darwin.pyx", "darwin.c", "bandwidth.c"),
    "win32": ("_native_windows.pyx", "windows.c"),
}


def extension(cover, *sources):
    """One module, of the same name everywhere. setuptools hands the .pyx to Cython; cythonize() drops `optional`."""
    return Extension(
        "qcthreads.host._native",
        sources=[f"src/qcthreads/host/{cover}", *(f"csrc/{source}" for source in sources)],
        depends=[*map(str, Path("csrc").glob("*.h")), *map(str, Path("src/qcthreads/host").glob("_*.px[di]"))],
        include_dirs=["csrc"],
        define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else [],
        extra_compile_args=["/std:c11" if sys.platform == "win32" else "-std=c11"],
        py_limited_api=LIMITED_API,
        optional=not REQUIRED,
    )


class BuildPy(build_py):
    """Says in the package that it was built pure."""

    def run(self):
        super().run()
        if PURE:
            leave_reason(self, "built pure (QCTHREADS_PURE=1)", in_source=self.editable_mode)


class BuildExt(build_ext):
    """Makes the distribution a pure one where the extension could not be built; the tag of the wheel follows."""

    def run(self):
        super().run()
        missing = [
            ext for ext in self.extensions if not Path(self.build_lib, self.get_ext_filename(ext.name)).is_file()
        ]
        if not missing:
            leave_reason(self, None, in_source=self.inplace)
            return
        self.extensions = []
        self.distribution.ext_modules = None
        wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
        if wheel is not None:
            wheel.root_is_pure = True
        leave_reason(self, "not built: no working compiler at install", in_source=self.inplace)


def leave_reason(command, reason, *, in_source):
    """Write why there is no extension beside the module that reads it; take away what an earlier build left."""
    package = Path(command.get_finalized_command("build_py").get_package_dir("qcthreads.host"))
    place = package if in_source else Path(command.build_lib, "qcthreads", "host")
    if reason is None:
        place.joinpath("_build.txt").unlink(missing_ok=True)
        return
    place.mkdir(parents=True, exist_ok=True)
    place.joinpath("_build.txt").write_text(f"{reason}\n", encoding="utf-8")
    for pattern in ("_native*.so", "_native*.pyd"):
        for old in place.glob(pattern):
            old.unlink()


setup(
    ext_modules=[] if PURE or sys.platform not in SOURCES else [extension(*SOURCES[sys.platform])],
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
