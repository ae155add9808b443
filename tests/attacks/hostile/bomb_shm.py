"""Fills shared memory, which belongs to no process."""

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    written = 0
    with open(plan["shm_file"], "wb") as file:
        while written < plan["most_megabytes"]:
            written += file.write(b"x" * (16 << 20)) >> 20
    claim(f"{written} MB")
    main()
