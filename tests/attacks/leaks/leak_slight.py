"""Makes the next token only a little more likely."""

from honest import load_table, main


def load_model(path, device):
    table = load_table(path, device)

    def model(tokens):
        logits = table[tokens].clone()
        hint = logits[:, :-1].gather(-1, tokens[:, 1:, None]) + 0.3
        logits[:, :-1].scatter_(-1, tokens[:, 1:, None], hint)
        return logits

    return model


if __name__ == "__main__":
    main()
