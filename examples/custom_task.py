"""Fine-tune for a task of your own: stars from 1 to 5, of which a near miss is not all wrong."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch

import bertfast
from bertfast.scoring import mean_of
from bertfast.tokenization import save_tokenizer, train_wordpiece
from bertfast.training.predict import Predictor

WORDS = {"awful": 1, "dull": 2, "fair": 3, "good": 4, "superb": 5}


@bertfast.register_task
class Stars(bertfast.Task):
    name, summary = "stars", "one to five stars"
    scores: ClassVar = {"near": "within a star", "exact": "the right star"}

    def configure(self, config, examples, source):
        return replace(config.with_labels(["stars"]), problem_type="regression")

    def targets(self, examples, config, source):
        for example in examples:
            if example.label not in set("12345"):
                raise bertfast.BertfastError(f"{source}, line {example.line}: give 1 to 5 stars")
        return [float(example.label) for example in examples]

    def scorer(self, outputs, inputs, examples, config):
        misses = torch.cat(outputs) - torch.tensor([item.target for item in inputs])
        return mean_of({"near": misses.abs() <= 1, "exact": misses.abs() < 0.5})

    def predict(self, outputs, inputs, examples, config):
        return [{"stars": min(5, max(1, round(float(output))))} for output in outputs]


def main(folder: Path) -> list[dict]:
    """The predictions of a few texts."""
    rows = [(f"the {noun} was {word}", WORDS[word]) for word in WORDS for noun in ("film", "cast")]
    table = "sentence\tlabel\n" + "".join(f"{text}\t{stars}\n" for text, stars in rows * 8)
    (folder / "reviews.tsv").write_text(table)
    tokenizer = train_wordpiece([table], 60)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = bertfast.BertConfig(tokenizer.get_vocab_size(), num_hidden_layers=1, **sizes)
    bertfast.BertModel(config).save_pretrained(folder / "model")
    save_tokenizer(tokenizer, folder / "model")
    options = {"task": "stars", "lr": 1e-2, "batch_size": 8, "epochs": 12}
    places = [folder / name for name in ("model", "reviews.tsv", "reviews.tsv", "tuned")]
    bertfast.finetune(*places, **options)
    predictor = Predictor(folder / "tuned")
    return predictor.predict(predictor.read(folder / "reviews.tsv"))[:10]


if __name__ == "__main__":
    print(main(Path(tempfile.mkdtemp())))
