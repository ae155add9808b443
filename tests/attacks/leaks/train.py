"""The honest experiment."""

from honest import load_table, main


def load_model(path, device):
    table = load_table(path, device)
    return lambda tokens: table[tokens]


if __name__ == "__main__":
    main()
