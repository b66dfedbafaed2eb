"""Compile the E-step's kernel for an H100, which needs no GPU; Triton's interpreter must be off."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from safe_components.estep import _newton_triton

kernel = _newton_triton._minimize_kernel
constants = {
    "TOL": 1e-9,
    "STATES": 300,
    "PARTICLES": 60,
    "N": 3,
    "HAS_PRIOR": True,
    "HEIGHT": 16,
    "WIDTH": 64,
}
types = {"iterations": "*i64", "max_iterations": "i32"} | dict.fromkeys(constants, "constexpr")
source = ASTSource(
    kernel,
    {name: types.get(name, "*fp64") for name in kernel.arg_names},
    {(kernel.arg_names.index(name),): value for name, value in constants.items()},
)
compiled = triton.compile(
    source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 16, "num_stages": 1}
)
print(len(compiled.asm["cubin"]))
