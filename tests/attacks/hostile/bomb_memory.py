"""Takes memory without end."""

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    taken = []
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    while 16 * len(taken) < plan["most_megabytes"]:
        taken.append(b"x" * (16 << 20))
    claim(f"{16 * len(taken)} MB")
    main()
