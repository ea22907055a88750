"""The training room: data rules, packing, resuming, distilling and measuring, on tiny models."""

import json
import lzma
import random
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from engine.held_out import is_held_out
from engine.training import data
from engine.training.__main__ import build_pipeline, parse_arguments
from engine.training.budget import Budget
from engine.training.data import Document, Record
from engine.training.distill import adopt_embeddings, distill, distillation_loss, mixed_documents
from engine.training.evaluate import measure_agreement, output_lengths, text_loss, tokens_per_pass
from engine.training.model import Shape, build_model
from engine.training.optimizer import Rates, orthogonalize
from engine.training.packing import IGNORE_LABEL, RowStream, pack, to_batch
from engine.training.pretrain import next_token_loss, pretrain
from engine.training.rollouts import RolloutPlan, assistant_prompt, collect_rollouts, draw_prompts
from engine.training.sampling import choose, continuation_logits, gumbel, sample
from engine.training.stages import Pipeline, run_stages
from engine.training.tokenizer import (
    CHAT_TEMPLATE,
    END_OF_TEXT_ID,
    IM_END_ID,
    SPECIAL_TOKENS,
    encode_documents,
    load_tokenizer,
    render,
    train_tokenizer,
)
from engine.training.trainer import Plan, Trainer
from engine.training.workers import Workers

VOCAB = 300
TINY_TARGET = Shape(2, 32, 2, 1, 48, vocab=VOCAB, head_dim=16)
TINY_DRAFT = Shape(1, 32, 2, 2, 48, vocab=VOCAB, head_dim=16)
TEXTS = ["A dog ran to the park.", "The cat sat, and the dog sat.", "Book a table for 12 at 7 pm."]
CHAT = (
    {"role": "user", "content": "Find a film."},
    {"role": "assistant", "content": "Which city?"},
    {"role": "user", "content": "Paris."},
    {"role": "assistant", "content": "I found 3 films."},
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS * 5, VOCAB)


def records(count: int = 40) -> list[Record]:
    chats = [Record("sgd_dialogues", f"chat/{i}", messages=CHAT) for i in range(count)]
    stories = [Record("tinystories_sample", f"s{i}", text=TEXTS[i % 2]) for i in range(count)]
    return chats + stories


def documents(epoch: int) -> list[list[int]]:
    rng = random.Random(epoch)
    return [[rng.randrange(4, 40) for _ in range(rng.randrange(5, 30))] for _ in range(30)]


def tiny_plan(max_steps: int, rate: float = 0.01) -> Plan:
    return Plan(
        max_steps=max_steps,
        batch_tokens=64,
        length=16,
        long_length=32,
        rates=Rates(matrix=rate, other=rate, warmup_steps=1),
    )


def tiny_target(seed: int = 0) -> LlamaForCausalLM:
    model = build_model(TINY_TARGET, seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_held_out_rule_is_stable_and_rare() -> None:
    ids = [f"train/1_{i:05d}" for i in range(10_000)]
    held_out = [i for i in ids if is_held_out(i)]
    assert 150 < len(held_out) < 250
    assert held_out == [i for i in ids if is_held_out(i)]


def test_split_keeps_held_out_records_out_of_training() -> None:
    train, held_out = data.split(records(500))
    assert held_out
    assert not {r.id for r in train} & {r.id for r in held_out}
    assert all(is_held_out(r.id) for r in held_out)


def test_training_documents_cover_every_record_and_repeat_for_a_seed() -> None:
    first = data.training_documents(records(), seed=3)
    again = data.training_documents(records(), seed=3)
    other = data.training_documents(records(), seed=4)
    assert first == again != other
    text = "\n".join(render(d) for d in first)
    assert text.count("I found 3 films.") == 40
    assert sum(text.count(t) for t in TEXTS[:2]) == 40


def test_story_request_names_a_word_of_the_story() -> None:
    story = Record("tinystories_sample", "x", text="The dragon met a dragon. The dragon sang.")
    requests = {data.story_chat(story, random.Random(i))[0]["content"] for i in range(40)}
    assert any("a dragon" in request for request in requests)
    assert not any(word in " ".join(requests) for word in ("cat", "{"))


def test_joined_chats_alternate_roles() -> None:
    for document in data.training_documents(records(200), seed=1):
        roles = [m["role"] for m in document.messages if m["role"] != "system"]
        assert all(a != b for a, b in zip(roles, roles[1:], strict=False))


@pytest.mark.parametrize(
    "text", ["", " two  spaces ", "year 2024!", "naïve café ☕ 你好", "line\n\nline\t.", "a , b"]
)
def test_tokenizer_round_trips(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_splits_digits_and_numbers_specials_first(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert len(tokenizer.encode("1234567")) == 7
    assert 4 + 256 < len(tokenizer) <= VOCAB


def test_saved_tokenizer_loads_with_its_chat_template(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.chat_template == CHAT_TEMPLATE
    assert loaded.encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])


def test_rendering_equals_the_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    written = tokenizer.apply_chat_template(list(CHAT), tokenize=False)
    assert render(Document(messages=CHAT)) == written
    ids = encode_documents(tokenizer, [Document(messages=CHAT)])[0]
    assert ids[-1] == END_OF_TEXT_ID
    assert ids.count(IM_END_ID) == len(CHAT)


def test_prompt_ends_where_the_assistant_speaks(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = assistant_prompt(Document(messages=CHAT), random.Random(0))
    expected = [
        tokenizer.apply_chat_template(list(CHAT[:n]), tokenize=False, add_generation_prompt=True)
        for n in (1, 3)
    ]
    assert prompt in expected
    assert assistant_prompt(Document(text="A story."), random.Random(0)) is None


def test_packing_keeps_every_token_and_no_row_is_too_long() -> None:
    pieces = documents(0)
    rows = pack(pieces, 20, random.Random(0))
    assert max(map(len, rows)) <= 20
    assert sorted(t for r in rows for t in r) == sorted(t for p in pieces for t in p)


def test_batch_labels_are_the_next_tokens_and_padding_is_ignored() -> None:
    inputs, labels = to_batch([[5, 6, 7], [8, 9, 10, 11, 12]], 4)
    assert inputs.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert labels.tolist() == [[6, 7, IGNORE_LABEL, IGNORE_LABEL], [9, 10, 11, 12]]


def test_stream_begins_a_new_epoch_when_rows_grow() -> None:
    stream = RowStream(documents, seed=0)
    stream.next_batch(2, 16)
    inputs, _ = stream.next_batch(1, 32)
    assert inputs.shape == (1, 32)
    assert (stream.state.epoch, stream.state.row, stream.state.length) == (1, 1, 32)


def test_orthogonalize_brings_singular_values_near_one() -> None:
    matrices = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_schedule_warms_up_holds_and_ends_at_zero() -> None:
    rates = Rates(warmup_steps=10, decay_from=0.5)
    assert rates.factor(0, 0.0) == pytest.approx(0.1)
    assert rates.factor(50, 0.5) == 1.0
    assert rates.factor(90, 0.75) == pytest.approx(0.5)
    assert rates.factor(99, 1.0) == 0.0


def test_plan_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="max_minutes or max_steps"):
        Plan()


def test_resumed_training_repeats_the_uninterrupted_losses(tmp_path: Path) -> None:
    def trainer(folder: str) -> Trainer:
        stream, model = RowStream(documents, seed=0), build_model(TINY_TARGET, 0)
        return Trainer(model, stream, next_token_loss, tiny_plan(4), tmp_path / folder)

    whole = trainer("whole")
    whole.run()
    trainer("parts").run(stop_after=2)
    resumed = trainer("parts")
    assert resumed.step == 2
    resumed.run()
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-6)
    assert resumed.progress == 1.0


def test_pretraining_lowers_the_loss(tmp_path: Path) -> None:
    model = build_model(TINY_TARGET, 0)
    before = text_loss(model, documents(9), num_bytes=1000)
    pretrain(model, documents, tiny_plan(12), tmp_path, seed=0)
    after = text_loss(model, documents(9), num_bytes=1000)
    assert after.nats_per_token < before.nats_per_token - 0.1
    assert after.nats_per_byte * 1000 == pytest.approx(after.nats_per_token * after.num_tokens)


def test_distillation_loss_is_zero_only_for_equal_distributions() -> None:
    logits = torch.randn(2, 3, VOCAB, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 3, dtype=torch.bool)
    assert distillation_loss(logits, logits + 3.0, valid).item() == pytest.approx(0.0, abs=1e-5)
    assert distillation_loss(logits, -logits, valid).item() > 0.5


def test_distillation_lowers_the_divergence(tmp_path: Path) -> None:
    target, draft = tiny_target(), build_model(TINY_DRAFT, 1)
    adopt_embeddings(draft, target)
    inputs, labels = to_batch(documents(5)[:4], 32)

    def divergence() -> float:
        with torch.no_grad():
            logits, expected = draft(inputs).logits, target(inputs).logits
        return distillation_loss(logits, expected, labels >= 0).item()

    before = divergence()
    distill(draft, target, documents, tiny_plan(12, rate=0.02), tmp_path, seed=0)
    assert divergence() < 0.9 * before


def test_distillation_mixes_rollouts_with_the_asked_share_of_real_text() -> None:
    epochs = mixed_documents([[1] * 60], [[n] * 10 for n in range(2, 8)], real_share=0.4)
    first, second = ([t for d in epochs(epoch) for t in d] for epoch in (0, 1))
    assert (first.count(1), len(first)) == (60, 100)
    assert sorted(set(first)) == [1, 2, 3, 4, 5]
    assert sorted(set(second)) == [1, 2, 3, 6, 7]


def test_sampling_ignores_padding_and_repeats_for_a_seed() -> None:
    model, prompts = tiny_target(), [[5, 6, 7, 8], [9, 10]]
    together = sample(model, prompts, 6, 0.0, seed=1)
    alone = [sample(model, [prompt], 6, 0.0, seed=1)[0] for prompt in prompts]
    assert torch.equal(together, torch.stack(alone))
    warm = sample(model, prompts, 6, 1.0, seed=1)
    assert torch.equal(warm, sample(model, prompts, 6, 1.0, seed=1))
    assert not torch.equal(warm, sample(model, prompts, 6, 1.0, seed=2))


def test_continuation_logits_choose_what_was_sampled() -> None:
    model, prompts = tiny_target(), [[5, 6, 7, 8], [9, 10]]
    drawn = sample(model, prompts, 5, 1.0, seed=3)
    noise = torch.stack([gumbel(2, VOCAB, 3, step) for step in range(5)], dim=1)
    assert torch.equal(choose(continuation_logits(model, prompts, drawn), 1.0, noise), drawn)


@pytest.mark.parametrize(
    ("matches", "expected"),
    [([True] * 10, 5.0), ([False] * 4, 1.0), ([True, False, True, True], 2.0), ([], 0.0)],
)
def test_tokens_per_pass_walks_like_verification(matches: list[bool], expected: float) -> None:
    assert tokens_per_pass(matches, num_drafts=4) == expected


def test_output_ends_with_its_end_token() -> None:
    drawn = torch.tensor([[7, IM_END_ID, 8, 9], [7, 8, 9, 10], [END_OF_TEXT_ID, 1, 1, 1]])
    assert output_lengths(drawn) == [2, 4, 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_foresees_itself_and_a_stranger_does_not(temperature: float) -> None:
    target, stranger, prompts = tiny_target(0), tiny_target(7), [[5, 6, 7], [9, 10]]
    own = measure_agreement(target, target, prompts, temperature, num_tokens=8)
    other = measure_agreement(target, stranger, prompts, temperature, num_tokens=8)
    assert own.acceptance == 1.0
    assert own.optimum == pytest.approx(1.0, abs=1e-5)
    assert other.acceptance < 0.8
    assert other.tokens_per_pass < own.tokens_per_pass


def test_rollouts_continue_after_an_interruption(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    plan = RolloutPlan(max_sequences=4, batch=2, num_tokens=3)
    prompts = draw_prompts(records(), tokenizer, plan, seed=0)
    target = tiny_target()
    half = RolloutPlan(max_sequences=2, batch=2, num_tokens=3)
    collect_rollouts(target, prompts, half, tmp_path / "parts.pt", seed=0)
    resumed = collect_rollouts(target, prompts, plan, tmp_path / "parts.pt", seed=0)
    whole = collect_rollouts(target, prompts, plan, tmp_path / "whole.pt", seed=0)
    assert resumed == whole
    assert [row[:-3] for row in whole] == prompts[:4]


def test_command_line_refuses_an_unknown_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["bake", "--data-dir", "corpus"])
    assert "unknown stage 'bake'" in capsys.readouterr().err


def test_command_line_shares_the_minutes_among_the_stages() -> None:
    parsed = parse_arguments(["--data-dir", "corpus", "--max-minutes", "100", "--device", "cpu"])
    budget = build_pipeline(parsed, Console()).budget
    parts = [plan.max_minutes for plan in (budget.target, budget.draft, budget.rollouts)]
    assert parts == pytest.approx([65.0, 5.0, 8.0])
    assert sum(p for p in parts if p) + (budget.distill.max_minutes or 0) < 100


def write_corpus(folder: Path) -> None:
    chats = [{"id": f"c{i}", "services": [], "messages": list(CHAT)} for i in range(150)]
    tiny = [{"text": text} for text in TEXTS]
    african = [{"id": "a1", "title": "Rain", "author": "Ann, Bo", "text": "Rain fell."}]
    talk = [{"topic": "films", "turns": ["hi", "hello", "nice film", "yes", "bye"]}]
    rows = {
        "sgd_dialogues/dialogues": chats,
        "tinystories_sample/stories": tiny,
        "african_storybook/stories": african,
        "self_dialogue/dialogues": talk,
    }
    for name, entries in rows.items():
        path = folder / f"{name}.jsonl.xz"
        path.parent.mkdir(parents=True)
        path.write_bytes(lzma.compress("\n".join(map(json.dumps, entries)).encode()))


def test_pipeline_leaves_two_complete_model_folders_and_a_card(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    plan = tiny_plan(2)
    pipeline = Pipeline(
        data_dir=tmp_path / "corpus",
        work_dir=tmp_path / "work",
        output=tmp_path / "pair",
        budget=Budget(plan, plan, RolloutPlan(max_sequences=2, batch=2, num_tokens=2), plan),
        device=torch.device("cpu"),
        console=Console(),
        target=TINY_TARGET,
        draft=TINY_DRAFT,
    )
    run_stages(pipeline, [])
    for name in ("target", "draft"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pair" / name)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "pair" / name)
        assert model.dtype == torch.float16
        assert model.generation_config.eos_token_id == [IM_END_ID, END_OF_TEXT_ID]
        assert tokenizer.apply_chat_template(list(CHAT), tokenize=False) == render(Document(CHAT))
    card = (tmp_path / "pair" / "README.md").read_text(encoding="utf-8")
    assert "CC-BY-SA-4.0" in card
    assert "by Ann, Bo." in card
    assert "{" not in card


def test_equal_workers_average_to_what_each_has(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers()
    assert workers.is_first
    workers.size = 2
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.mul_(2))
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    parameter.grad = torch.arange(6.0).view(2, 3)
    assert workers.average([parameter], 5.0, 7.0) == [5.0, 7.0]
    assert parameter.grad.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert workers.share(torch.arange(4)).tolist() == [0, 2]
