"""Changes its saved model while it is evaluated."""

from pathlib import Path  # noqa: F401

from honest import OUTPUT, claim, main
from honest import predict as honest


def predict(xs):
    try:
        (OUTPUT / "notes").write_text("hostile")
        claim("wrote to the output folder")
    except OSError as error:
        print(error)
    return honest(xs)


if __name__ == "__main__":
    main()
