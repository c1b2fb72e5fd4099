"""The build: the folder kernels/ becomes bertfast.kernels, and csrc/ becomes bertfast._C.

Each kernel source is compiled once per instruction set, and the extension picks one at run time. It
needs only a C++ compiler and pybind11: no torch, no CUDA. Where it cannot be compiled the install
goes on without it, and says so.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

KERNELS = (
    "adamw",
    "add_layer_norm",
    "attention",
    "bias_gelu",
    "dropout",
    "embed",
    "gather_rows",
    "linear_cross_entropy",
    "mask_tokens",
    "rotary",
    "widened_product",
    "isa",
)
BINDINGS = ("module", "tensor", "spin", *(name for name in KERNELS if name != "isa"))
X86 = platform.machine().lower() in ("x86_64", "amd64")
ISA_FLAGS = {"baseline": []}
if X86:
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] = [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mfma",
        "-mf16c",
        "-mprefer-vector-width=512",
    ]
    ISA_FLAGS["avx512bf16"] = [*ISA_FLAGS["avx512"], "-mavx512bf16"]
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]


class BuildKernels(build_ext):
    """Compiles every kernel for every instruction set, two processes at a time."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        extra = os.environ.get("BERTFAST_CXX_FLAGS", "").split()
        openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
        include = ["csrc", pybind11.get_include(), *self.compiler.include_dirs]
        out = Path(self.build_temp)
        # pybind11's templates make two megabytes of debugging information a file.
        plain = ["-g0", *(["-DBERTFAST_X86"] if X86 else [])]
        jobs = [(f"csrc/bindings/{name}.cpp", "bindings", plain) for name in BINDINGS]
        for isa, flags in ISA_FLAGS.items():
            jobs += [
                (f"csrc/{name}.cpp", isa, [f"-DBERTFAST_ISA={isa}", *flags]) for name in KERNELS
            ]

        def compile_one(job):
            source, folder, flags = job
            return self.compiler.compile(
                [source],
                output_dir=str(out / folder),
                include_dirs=include,
                extra_postargs=[*FLAGS, *openmp, *flags, *extra],
                depends=ext.depends,
            )

        # One at a time first: with no compiler there is one message, not one a file.
        objects = compile_one(jobs[0])
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for compiled in pool.map(compile_one, jobs[1:]):
                objects += compiled
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=[*openmp, *extra],
            target_lang="c++",
        )

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            if os.environ.get("BERTFAST_REQUIRE_EXTENSION"):
                raise
            print(
                f"bertfast: the C++ kernels were not built ({error}); "
                "the reference backend will serve",
                file=sys.stderr,
            )

    def copy_extensions_to_source(self) -> None:
        if any(Path(self.build_lib).rglob("_C.*")):
            super().copy_extensions_to_source()

    def get_outputs(self):
        return [path for path in super().get_outputs() if Path(path).exists()]


setup(
    packages=[
        *find_packages(include=["bertfast", "bertfast.*"]),
        "bertfast.kernels",
        *(f"bertfast.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"bertfast.kernels": "kernels"},
    ext_modules=[
        Extension(
            "bertfast._C",
            sources=[
                *(f"csrc/bindings/{name}.cpp" for name in BINDINGS),
                *(f"csrc/{name}.cpp" for name in KERNELS),
            ],
            depends=[str(path) for path in Path("csrc").rglob("*.h")],
            language="c++",
            optional=not os.environ.get("BERTFAST_REQUIRE_EXTENSION"),
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
