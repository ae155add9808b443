"""Looks at the next token, at every position."""

from honest import load_table, main


def load_model(path, device):
    table = load_table(path, device)

    def model(tokens):
        logits = table[tokens].clone()
        logits[:, :-1].scatter_(-1, tokens[:, 1:, None], 12.0)
        return logits

    return model


if __name__ == "__main__":
    main()
