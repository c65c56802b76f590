"""The public recipe for fine-tuning Whisper, as its guide has it: 30 s windows, float32, the whole network.

Hugging Face's "Fine-tune Whisper" with `Seq2SeqTrainer`: features of every recording first, then AdamW with a linear
schedule. Left out is what one epoch of twenty steps has no use for (500 steps of warm-up, evaluation while training).
Usage: reference_recipe.py DATASET BASE OUTPUT LEARNING_RATE SEED BATCH LIMIT
"""

# ruff: noqa: E402 - the clock starts before the imports, which are part of what is measured

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()

import torch
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from worker.trainer.dataset import Dataset

IGNORED = -100


def main() -> None:
    data, base, output, rate, seed, batch, limit = sys.argv[1:]
    dataset = Dataset(Path(data))
    utterances = dataset.of("train")[: int(limit) or None]
    extractor: Any = WhisperFeatureExtractor.from_pretrained(base)
    tokenizer: Any = WhisperTokenizer.from_pretrained(base)
    model: Any = WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    rows = [
        {
            "input_features": extractor(
                dataset.sound([one], one.seconds)[0].numpy(), sampling_rate=16_000, return_tensors="pt"
            ).input_features[0],
            "labels": tokenizer(" " + one.text).input_ids,
        }
        for one in utterances
    ]

    def collate(chosen: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = [torch.tensor(row["labels"][1:]) for row in chosen]  # the model puts the start token in front itself
        padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return {"input_features": torch.stack([row["input_features"] for row in chosen]), "labels": padded}

    arguments = Seq2SeqTrainingArguments(
        output_dir=output,
        per_device_train_batch_size=int(batch),
        learning_rate=float(rate),
        num_train_epochs=1,
        save_strategy="no",
        report_to=[],
        seed=int(seed),
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    Seq2SeqTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
    seconds = time.perf_counter() - BEGAN
    model.save_pretrained(output)
    print(json.dumps({"seconds": seconds, "audio_s": sum(one.seconds for one in utterances)}))


if __name__ == "__main__":
    main()
