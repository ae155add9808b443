"""Does the device work in here? `python -I -S kernel_probe.py cuda|cpu`: exit code 0 and `ok`, or why not.

Uses nothing but the driver's own library (the CUDA driver API), so that it says the same whatever the training code
is written with: it starts the driver, compiles a small kernel, runs it and reads what it wrote. Takes half a second.
"""

import ctypes
import sys

PTX = b""".version 6.4
.target sm_50
.address_size 64
.visible .entry fill(.param .u64 to, .param .u32 value) {
  .reg .b64 %rd<4>; .reg .b32 %r<3>;
  ld.param.u64 %rd1, [to]; ld.param.u32 %r1, [value];
  cvta.to.global.u64 %rd2, %rd1;
  mov.u32 %r2, %tid.x; mul.wide.u32 %rd3, %r2, 4; add.s64 %rd2, %rd2, %rd3;
  st.global.u32 [%rd2], %r1; ret; }
"""
THREADS, VALUE = 32, 12345


def cuda() -> None:
    """Run the kernel on the first GPU that can be seen. Exits with a line that names the call that failed."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        sys.exit(f"the driver's library can't be loaded: {error}")

    def call(name: str, *arguments: object) -> None:
        if code := getattr(driver, name)(*arguments):
            text = ctypes.c_char_p()
            driver.cuGetErrorString(code, ctypes.byref(text))
            sys.exit(f"{name} fails with error {code}: {(text.value or b'unknown').decode()}")

    device, context, module, kernel = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    memory, size = ctypes.c_uint64(), ctypes.c_size_t(4 * THREADS)
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuModuleLoadData", ctypes.byref(module), PTX)
    call("cuModuleGetFunction", ctypes.byref(kernel), module, b"fill")
    call("cuMemAlloc_v2", ctypes.byref(memory), size)
    given = [ctypes.byref(memory), ctypes.byref(ctypes.c_uint32(VALUE))]
    arguments = (ctypes.c_void_p * 2)(*(ctypes.cast(value, ctypes.c_void_p) for value in given))
    call("cuLaunchKernel", kernel, 1, 1, 1, THREADS, 1, 1, 0, None, arguments, None)
    call("cuCtxSynchronize")
    written = (ctypes.c_uint32 * THREADS)()
    call("cuMemcpyDtoH_v2", written, memory, size)
    if set(written) != {VALUE}:
        sys.exit(f"a kernel wrote {set(written)} where it should write {VALUE}")


if __name__ == "__main__":
    if sys.argv[1] == "cuda":
        cuda()
    print("ok", flush=True)
