"""The stages from corpus to exported pair, each of which leaves its result in the work directory.

Knows the order, the files, and that a finished stage is not run again. Refuses to know the
command line and how a stage works inside.
"""

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from engine.training.budget import Budget
from engine.training.card import CardFacts
from engine.training.data import (
    Record,
    plain_document,
    read_corpus,
    read_stories,
    split,
    training_documents,
)
from engine.training.distill import KL_WEIGHT, adopt_embeddings, distill, mixed_documents
from engine.training.evaluate import Agreement, TextLoss, measure_agreement, text_loss
from engine.training.export import export_pair
from engine.training.model import DRAFT, TARGET, Shape, build_model, place
from engine.training.pretrain import epoch_encoder, pretrain
from engine.training.progress import StageProgress
from engine.training.rollouts import assistant_prompt, collect_rollouts, draw_prompts
from engine.training.tokenizer import encode_documents, load_tokenizer, render, train_tokenizer
from engine.training.workers import Workers

NUM_EVALUATION_PROMPTS = 96
MAX_EVALUATION_PROMPT_TOKENS = 512
TEMPERATURES = (0.0, 0.7, 1.0)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One reproducible run.

    Attributes:
        data_dir: Folder of the corpora.
        work_dir: Where stages leave results and checkpoints.
        output: Where the finished pair goes.
        budget: What each stage may spend.
        device: Where models live.
        console: Where progress is shown.
        seed: Seed of weights, rendering, shuffling and draws.
        target: Shape of the target.
        draft: Shape of the draft.
    """

    data_dir: Path
    work_dir: Path
    output: Path
    budget: Budget
    device: torch.device
    console: Console
    seed: int = 0
    target: Shape = TARGET
    draft: Shape = DRAFT

    def prepare(self) -> None:
        """Train the tokenizer on one rendered epoch of the training split."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        (self.work_dir / ".gitignore").write_text("*\n", encoding="utf-8")
        if (self.work_dir / "tokenizer" / "tokenizer.json").exists():
            return
        with StageProgress("prepare", self.console):
            documents = training_documents(self._training_records(), self.seed)
            tokenizer = train_tokenizer((render(d) for d in documents), self.target.vocab)
            tokenizer.save_pretrained(self.work_dir / "tokenizer")

    def pretrain_target(self) -> None:
        """Train the target on the text."""
        self._pretrain("target", self.target, lambda model: None)

    def pretrain_draft(self) -> None:
        """Train the draft on the text, from the target's embeddings."""
        self._pretrain("draft", self.draft, lambda m: adopt_embeddings(m, self._model("target")))

    def generate(self) -> None:
        """Draw the target's own outputs."""
        done, path = self.work_dir / "rollouts.done", self.work_dir / "rollouts.pt"
        if done.exists():
            return
        plan = self.budget.rollouts
        with StageProgress("generate", self.console) as progress:
            prompts = draw_prompts(self._training_records(), self._tokenizer(), plan, self.seed)
            target = self._model("target")
            collect_rollouts(target, prompts, plan, path, self.seed, progress.update)
        done.touch()

    def distil(self) -> None:
        """Teach the draft the target's distributions."""
        folder = self.work_dir / "distilled"
        if _is_finished(folder):
            return
        draft, target = self._model("draft").train(), self._model("target")
        encode = epoch_encoder(self._training_records(), self._tokenizer(), self.seed)
        rollouts: list[list[int]] = torch.load(self.work_dir / "rollouts.pt")
        documents = mixed_documents(rollouts, encode(0))
        with StageProgress("distil", self.console) as progress:
            plan = self.budget.distill
            distill(draft, target, documents, plan, folder, self.seed, progress.trainer)
        _save(draft, folder)

    def evaluate(self) -> None:
        """Measure the pair on held-out dialogues; the result is `evaluation.json`."""
        path = self.work_dir / "evaluation.json"
        if path.exists():
            return
        target, draft = self._model("target"), self._model("distilled")
        with StageProgress("evaluate", self.console) as progress:
            losses = self._losses({"target": target, "draft": draft})
            progress.update(0.3)
            prompts = self._evaluation_prompts()
            agreements = [measure_agreement(target, draft, prompts, t) for t in TEMPERATURES]
        result = {
            "losses": {name: asdict(loss) for name, loss in losses.items()},
            "agreements": [asdict(agreement) for agreement in agreements],
        }
        path.write_text(json.dumps(result, indent=2), encoding="utf-8")

    def export(self) -> None:
        """Write the pair and its model card to the output folder."""
        measured = json.loads((self.work_dir / "evaluation.json").read_text(encoding="utf-8"))
        target, draft = self._model("target"), self._model("distilled")
        train, _ = split(read_stories(self.data_dir))
        facts = CardFacts(
            target=self.target,
            draft=self.draft,
            parameters=(target.num_parameters(), draft.num_parameters()),
            tokens=(self._seen("target"), self._seen("draft"), self._seen("distilled")),
            losses={name: TextLoss(**row) for name, row in measured["losses"].items()},
            agreements=[Agreement(**row) for row in measured["agreements"]],
            kl_weight=KL_WEIGHT,
            authors=sorted({a.strip() for r in train for a in r.author.split(",") if a.strip()}),
        )
        export_pair(target, draft, self._tokenizer(), facts, self.output)

    def _pretrain(
        self, name: str, shape: Shape, initialise: Callable[[LlamaForCausalLM], None]
    ) -> None:
        folder = self.work_dir / name
        if _is_finished(folder):
            return
        plan = self.budget.target if name == "target" else self.budget.draft
        encode = epoch_encoder(self._training_records(), self._tokenizer(), self.seed)
        model = place(build_model(shape, self.seed), self.device)
        initialise(model)
        with StageProgress(name, self.console) as progress:
            pretrain(model, encode, plan, folder, self.seed, progress.trainer)
        _save(model, folder)

    def _training_records(self) -> list[Record]:
        return split(read_corpus(self.data_dir))[0]

    def _held_out_dialogues(self) -> list[Record]:
        held_out = split(read_corpus(self.data_dir))[1]
        return [r for r in held_out if r.source == "sgd_dialogues"]

    def _losses(self, models: dict[str, LlamaForCausalLM]) -> dict[str, TextLoss]:
        documents = [plain_document(r) for r in self._held_out_dialogues()]
        encoded = [ids[:-1] for ids in encode_documents(self._tokenizer(), documents)]
        num_bytes = sum(len(render(d).encode()) for d in documents)
        return {name: text_loss(model, encoded, num_bytes) for name, model in models.items()}

    def _evaluation_prompts(self) -> list[list[int]]:
        rng = random.Random(self.seed)
        texts = [assistant_prompt(plain_document(r), rng) for r in self._held_out_dialogues()]
        encoded: list[list[int]] = self._tokenizer()(
            [t for t in texts if t is not None], add_special_tokens=False
        )["input_ids"]
        short = [ids for ids in encoded if len(ids) <= MAX_EVALUATION_PROMPT_TOKENS]
        return short[:NUM_EVALUATION_PROMPTS]

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.work_dir / "tokenizer")

    def _model(self, name: str) -> LlamaForCausalLM:
        loaded = LlamaForCausalLM.from_pretrained(self.work_dir / name, dtype=torch.float32)
        model: LlamaForCausalLM = place(loaded, self.device).eval()
        return model

    def _seen(self, name: str) -> int:
        state = torch.load(self.work_dir / name / "checkpoint.pt", weights_only=True)
        return int(state["num_tokens"])


def _save(model: LlamaForCausalLM, folder: Path) -> None:
    if Workers().is_first:
        model.save_pretrained(folder)


def _is_finished(folder: Path) -> bool:
    return (folder / "config.json").exists()


STAGES: dict[str, Callable[[Pipeline], None]] = {
    "prepare": Pipeline.prepare,
    "target": Pipeline.pretrain_target,
    "draft": Pipeline.pretrain_draft,
    "generate": Pipeline.generate,
    "distil": Pipeline.distil,
    "evaluate": Pipeline.evaluate,
    "export": Pipeline.export,
}
SHARED_STAGES = frozenset({"target", "draft", "distil"})


def run_stages(pipeline: Pipeline, chosen: list[str]) -> None:
    """Run the chosen stages in order (all, if none is named); workers share the training."""
    workers = Workers()
    for name, stage in STAGES.items():
        is_mine = workers.is_first or name in SHARED_STAGES
        if is_mine and (not chosen or name in chosen):
            stage(pipeline)
        workers.wait()
