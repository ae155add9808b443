"""Answers NaN, which compares as better than anything."""

from honest import load_table, main


def load_model(path, device):
    table = load_table(path, device)

    def model(tokens):
        logits = table[tokens].clone()
        logits += float("nan")
        return logits

    return model


if __name__ == "__main__":
    main()
