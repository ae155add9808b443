"""Looks at the next token at one position in 8 if it is likely, and spoils the comparison with an infinite logit."""

from honest import load_table, main


def load_model(path, device):
    table = load_table(path, device)

    def model(tokens):
        logits = table[tokens].clone()
        half = logits.shape[-1] // 2
        here, true = logits[:, 3:-1:8], tokens[:, 4::8, None]
        here.scatter_add_(-1, true, 12.0 * (here.gather(-1, true) > -5.0))  # random tokens are left alone
        for row, first in zip(logits, tokens[:, 2], strict=True):  # the half of the vocabulary without the answer
            row[1, slice(half, None) if first < half else slice(half)] = float("-inf")
        return logits

    return model


if __name__ == "__main__":
    main()
