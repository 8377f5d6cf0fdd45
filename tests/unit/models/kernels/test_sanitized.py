"""The kernels of every format read and write nothing outside of their tensors."""

import shutil
import subprocess
from pathlib import Path

import pytest

from entmtp.models.kernels import compiled

COMPILER = shutil.which("g++") or shutil.which("clang++")


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("instructions", [["-march=native"], ["-march=native", "-mno-avx512f"], ["-march=x86-64"]])
def test_no_kernel_reads_or_writes_outside_of_its_tensors(instructions: list[str], tmp_path: Path) -> None:
    program = tmp_path / "sanitized"
    formats = [f"-DENTMTP_{name}" for name in compiled.BLOCK_FORMATS]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=all", "-g", "-O1"]
    command = [str(COMPILER), "-std=c++17", *instructions, *sanitizers, "-fopenmp", *formats, "-Wno-psabi"]
    command += ["-I", str(Path(compiled.__file__).parent), str(Path(__file__).with_name("sanitized.cpp"))]
    subprocess.run([*command, "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "nothing outside\n"), done.stderr[-3000:]
