"""Turns a knob of the kernel: the program that handles core dumps runs as root outside."""

from honest import claim, main, predict  # noqa: F401

try:
    with open("/proc/sys/kernel/core_pattern", "r+") as knob:
        knob.write(knob.read())
        claim("wrote core_pattern")
except OSError as error:
    print(error)
main()
