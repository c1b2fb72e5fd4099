"""Pretrain with an objective of your own: masked words, and how many tokens a sequence has."""

import tempfile
from pathlib import Path

from torch import nn

import bertfast
from bertfast.tokenization import save_tokenizer, train_wordpiece


class WithLength(nn.Module):
    """A masked-LM model that also tells a sequence's length, in tens of tokens."""

    def __init__(self, model):
        super().__init__()
        self.model, self.head = model, nn.Linear(model.config.hidden_size, 4)

    def forward(self, batch, *, seed):
        words = self.model(batch, seed=seed)
        states = self.model.base(batch, seed=seed).last_hidden_state
        firsts = states[batch.cu_seqlens[:-1].clamp(max=len(states) - 1).long()]
        # Slack sequences have the label -100, which the loss leaves out.
        length = nn.functional.cross_entropy(self.head(firsts), batch.per_sequence["tens"])
        parts = {"mlm_loss": words.loss, "length_loss": length}
        counts = {"mlm_correct": words.mlm_correct, "mlm_count": words.mlm_count}
        return {"loss": words.loss + length, **parts, **counts}


@bertfast.register_objective
class MaskedLength(bertfast.Objective):
    name, summary = "mlm+length", "and the length of a sequence"

    def build(self, setup):
        return WithLength(super().build(setup))

    def finish(self, batch, spans, rows):
        batch.per_sequence["tens"] = (batch.cu_seqlens.diff() // 10).clamp(max=3).long()
        return batch

    def saved(self, model):
        return {"": model.model}


def main(folder: Path, steps: int = 30) -> dict:
    """The last line of the run's metrics."""
    text = "the old film was good .\nthe new film was long .\nit was a dull cast ."
    (folder / "corpus.txt").write_text("\n\n".join([text] * 10))
    save_tokenizer(train_wordpiece([text], 60), folder / "tok")
    sizes = {"shape": "bert-tiny", "steps": steps, "batch_tokens": 256, "seq_len": 32}
    places = [folder / "corpus.txt"], folder / "tok", folder / "run"
    return bertfast.pretrain(*places, objective="mlm+length", **sizes).last


if __name__ == "__main__":
    line = main(Path(tempfile.mkdtemp()))
    print(f"mlm loss {line['mlm_loss']:.3f}, length loss {line['length_loss']:.3f}")
