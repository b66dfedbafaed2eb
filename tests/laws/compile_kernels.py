"""Compile the Triton kernels for an H100, which needs no GPU; Triton's interpreter must be off."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from safe_components.estep import _newton_triton
from safe_components.mstep import _fused_triton


def compiled_size(kernel, floats, integers, warps, **constants):
    """Bytes of the kernel whose arguments point to ``floats``, but for its constants and ``integers``."""
    types = integers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        kernel,
        {name: types.get(name, floats) for name in kernel.arg_names},
        {(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    return len(triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": warps}).asm["cubin"])


sizes = {"STATES": 300, "PARTICLES": 60, "N": 3, "HEIGHT": 16, "WIDTH": 64}
integers = {"iterations": "*i64", "max_iterations": "i32"}
print(
    compiled_size(_newton_triton._minimize_kernel, "*fp64", integers, 16, TOL=1e-9, HAS_PRIOR=True, **sizes),
    compiled_size(_fused_triton._terms_kernel, "*fp32", {"states": "i32"}, 1, SIZE=3, STATES=16, WIDTH=4),
    compiled_size(
        _fused_triton._gradient_kernel, "*fp32", {"count": "i32", "members": "i32"}, 8, SIZE=3, ENTRIES=256
    ),
)
