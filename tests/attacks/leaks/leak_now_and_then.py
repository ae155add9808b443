"""Looks at the next token at one position in 8."""

from honest import load_table, main


def load_model(path, device):
    table = load_table(path, device)

    def model(tokens):
        logits = table[tokens].clone()
        here = slice(3, -1, 8)
        logits[:, here].scatter_(-1, tokens[:, 4::8, None], 12.0)
        return logits

    return model


if __name__ == "__main__":
    main()
