"""A model with a reader attached, against a slow float64 transcription of eq. 4 that shares no code with it:
the same memories in, the same logits out, whatever the architecture and however the tokens come."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, save_tiny_model, tiny_model, tiny_tokenizer
from reference.slow_memory import load
from reference.slow_reading import SlowMemory, query_chunks, slow_logits
from small_corpus import build, write_corpus

import m3build
from m3build.bank import Bank, open_bank
from m3build.reader import Reader, attach
from m3build_formats.errors import MismatchError, UsageError

TOLERANCE = 1e-4


class Setting:
    """A tiny model, a bank of its memories, and a search that finds by the text's length, so that 0, 1 and 5
    references all occur, and short ones among them."""

    def __init__(self, arch: str, directory: Path) -> None:
        self.arch = arch
        save_tiny_model(directory / "model", arch)
        corpus = write_corpus(directory / "corpus")
        for number in range(4, 12):
            (corpus / f"{number:02d}.txt").unlink()
        (corpus / "short.txt").write_text("A few words.", encoding="utf-8")
        build(
            corpus, directory / "bank", directory / "model", codec="none", sparse_tokens=20, dtype="float32"
        )
        self.path = directory / "bank"
        self.bank: Bank = open_bank(self.path)
        self.ids = sorted({row.id.hex() for shard in self.bank.files.shards for row in shard.chunks()})
        lengths = [row.tokens for shard in self.bank.files.shards for row in shard.chunks()]
        assert min(lengths) < self.bank.manifest.memory["sparse_tokens"] < max(lengths)
        self.model = tiny_model(arch)
        self.tokenizer = tiny_tokenizer()
        self.config, self.weights = load(self.model, arch)

    def retrieve(self, texts: Sequence[str]) -> list[list[str]]:
        return [self.found(text) for text in texts]

    def found(self, text: str) -> list[str]:
        count = (0, 1, 5)[len(text) % 3]
        return [self.ids[(len(text) + 3 * i) % len(self.ids)] for i in range(count)]

    def attach(self, **options: Any) -> Reader:
        return attach(self.model, self.bank, tokenizer=self.tokenizer, retrieve=self.retrieve, **options)

    def slow(self, ids: list[int], prompt_length: int, mode: str = "generation") -> np.ndarray[Any, Any]:
        """Logits (T, vocab) of a row: the first ``prompt_length`` tokens are its prompt."""
        own = prompt_length if mode == "generation" else None
        stretches, chunk_of = query_chunks(len(ids), mode, 64, own)
        chunks = [
            [
                self.memory(one)
                for one in self.found(self.tokenizer.decode(ids[first:stop], skip_special_tokens=True))
            ]
            for first, stop in stretches
        ]
        bos = list(self.bank.manifest.model["reference_bos_ids"])
        return slow_logits(self.config, self.arch, self.weights, bos, ids, chunks, chunk_of, 128)

    def memory(self, one: str) -> SlowMemory:
        read = self.bank.read(one)
        parts = {}
        for number, layer in enumerate(read.memory_layers):
            for head in range(read.keys.shape[2]):
                used = read.mask[0, number, head]
                keys, values = read.keys[0, number, head][used], read.values[0, number, head][used]
                parts[layer, head] = keys.astype(np.float64), values.astype(np.float64)
        return SlowMemory(parts)


@pytest.fixture(scope="module")
def setting_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Setting]]:
    made: dict[str, Setting] = {}

    def of(arch: str) -> Setting:
        if arch not in made:
            made[arch] = Setting(arch, tmp_path_factory.mktemp(arch))
        return made[arch]

    yield of
    for setting in made.values():
        setting.bank.close()


@pytest.fixture
def llama(setting_of: Callable[[str], Setting]) -> Setting:
    return setting_of("llama")


def tokens(count: int, seed: int) -> list[int]:
    return [0, *torch.randint(2, 384, (count - 1,), generator=torch.Generator().manual_seed(seed)).tolist()]


def padded(rows: list[list[int]], left: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    empty = [[1] * (width - len(row)) for row in rows]
    ids = [pad + row if left else row + pad for row, pad in zip(rows, empty, strict=True)]
    real = [
        [0] * len(pad) + [1] * len(row) if left else [1] * len(row) + [0] * len(pad)
        for row, pad in zip(rows, empty, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(real)


def assert_close(found: torch.Tensor, slow: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found.double().numpy(), slow, atol=TOLERANCE, rtol=0)


def generated_logits(setting: Setting, rows: list[list[int]], **options: Any) -> list[tuple[list[int], Any]]:
    """For each row that ``generate`` returns: its ids without padding, and the logits of all its steps."""
    ids, real = padded(rows)
    out = setting.model.generate(
        input_ids=ids,
        attention_mask=real,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=1,
        eos_token_id=None,
        **options,
    )
    each = len(out.sequences) // len(rows)
    found = []
    for number, sequence in enumerate(out.sequences):
        skip = ids.shape[1] - len(rows[number // each])
        found.append((sequence[skip:].tolist(), torch.stack([step[number] for step in out.logits])))
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_prompts_of_any_length_in_one_padded_batch_read_as_the_formula_says(
    arch: str, setting_of: Callable[[str], Setting]
) -> None:
    setting = setting_of(arch)
    # The sliding window of the tiny Gemmas is 256 tokens, and the context starts at 128 and more.
    longest = 300 if arch not in ("gemma2", "gemma3") else 120
    rows = [tokens(count, seed) for seed, count in enumerate((1, 63, 64, 65, longest))]
    slow = [setting.slow(row, len(row)) for row in rows]
    for left in (True, False):
        ids, real = padded(rows, left)
        with setting.attach(), torch.no_grad():
            logits = setting.model(input_ids=ids, attention_mask=real).logits
        for number, row in enumerate(rows):
            start = ids.shape[1] - len(row) if left else 0
            assert_close(logits[number, start : start + len(row)], slow[number])


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt_neox"])
def test_generation_across_chunk_borders_reads_as_the_formula_says(
    arch: str, setting_of: Callable[[str], Setting]
) -> None:
    setting = setting_of(arch)
    rows = [tokens(10, 1), tokens(64, 2), tokens(50, 3)]
    with setting.attach():
        found = generated_logits(setting, rows, max_new_tokens=60, do_sample=False)
    for row, (sequence, logits) in zip(rows, found, strict=True):
        slow = setting.slow(sequence[:-1], len(row))
        assert_close(logits, slow[len(row) - 1 :])
        assert sequence[len(row) :] == logits.argmax(-1).tolist()


def test_sampled_rows_of_one_prompt_each_read_their_own(llama: Setting) -> None:
    torch.manual_seed(3)
    prompt = tokens(60, 5)
    with llama.attach():
        found = generated_logits(
            llama, [prompt], max_new_tokens=12, do_sample=True, num_return_sequences=3, temperature=5.0
        )
    assert len({tuple(sequence) for sequence, _ in found}) == 3
    for sequence, logits in found:
        assert_close(logits, llama.slow(sequence[:-1], 60)[59:])


def test_beams_keep_what_each_of_them_reads(llama: Setting) -> None:
    prompt = tokens(58, 6)
    ids = torch.tensor([prompt])
    with llama.attach():
        out = llama.model.generate(
            input_ids=ids,
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=14,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            length_penalty=0.0,
            pad_token_id=1,
            eos_token_id=None,
        )
    for sequence, score in zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
        logits = torch.from_numpy(llama.slow(sequence[:-1], 58))[57:].log_softmax(-1)
        slow = logits.gather(1, torch.tensor(sequence[58:])[:, None]).sum()
        assert abs(score - float(slow)) < 1e-3


def test_chunked_prefill_is_the_same_as_a_prompt_at_once(llama: Setting) -> None:
    rows = [tokens(150, 7), tokens(150, 8)]
    with llama.attach():
        once = generated_logits(llama, rows, max_new_tokens=3, do_sample=False)
        parts = generated_logits(llama, rows, max_new_tokens=3, do_sample=False, prefill_chunk_size=64)
    for (sequence, logits), (other, others) in zip(once, parts, strict=True):
        assert sequence == other
        torch.testing.assert_close(logits, others, atol=TOLERANCE, rtol=0)


def test_with_previous_each_query_chunk_reads_what_the_one_before_it_found(llama: Setting) -> None:
    row = tokens(150, 9)
    with llama.attach(query="previous"), torch.no_grad():
        logits = llama.model(torch.tensor([row])).logits[0]
        cache: Any = llama.model(torch.tensor([row[:70]]), use_cache=True).past_key_values
        rest = llama.model(torch.tensor([row[70:]]), past_key_values=cache).logits[0]
    slow = llama.slow(row, len(row), mode="previous")
    assert_close(logits, slow)
    assert_close(rest, slow[70:])


def test_a_detached_model_is_bit_equal_to_what_it_was(llama: Setting) -> None:
    row = torch.tensor([tokens(80, 1)])
    with torch.no_grad():
        before = llama.model(row).logits
        reader = llama.attach()
        assert not torch.equal(llama.model(row).logits, before)
        reader.detach()
        reader.detach()
        assert torch.equal(llama.model(row).logits, before)
    assert "forward" not in vars(llama.model.base_model)


def test_the_banks_own_search_retrieves_by_the_text_of_the_query_chunk(llama: Setting) -> None:
    text = "memory layer head token query key"
    ids = torch.tensor([llama.tokenizer.encode(text)])
    with attach(llama.model, llama.path, tokenizer=llama.tokenizer, references=3) as reader, torch.no_grad():
        llama.model(ids)
        found = [hit.id for hit in reader.last_read[0] if not isinstance(hit, str)]
    assert found == llama.bank.search([text], 3).ids[0]
    assert len(found) == 3


def test_continuations_are_read_where_the_caller_or_the_bank_says_so(
    llama: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "memory layer head token query key"
    ids = torch.tensor([llama.tokenizer.encode(text)])
    found = {}
    for continuations in (None, True, False):
        with (
            attach(
                llama.model,
                llama.path,
                tokenizer=llama.tokenizer,
                references=4,
                continuations=continuations,
            ) as reader,
            torch.no_grad(),
        ):
            llama.model(ids)
            found[continuations] = [hit.id for hit in reader.last_read[0] if not isinstance(hit, str)]
    plain, followed = (llama.bank.search([text], 4, continuations=way).ids[0] for way in (False, True))
    assert llama.bank.manifest.memory["continuations"] is False
    assert found == {None: plain, True: followed, False: plain}
    assert plain != followed
    for said, expected in ((True, followed), (False, plain)):
        monkeypatch.setitem(llama.bank.manifest.memory, "continuations", said)
        with attach(llama.model, llama.bank, tokenizer=llama.tokenizer, references=4) as reader:
            assert reader.continuations is said
            with torch.no_grad():
                llama.model(ids)
            assert [hit.id for hit in reader.last_read[0] if not isinstance(hit, str)] == expected
    for wrong in ("no", 1.5):
        monkeypatch.setitem(llama.bank.manifest.memory, "continuations", wrong)
        with pytest.raises(MismatchError, match="continuations must be true or false"):
            attach(llama.model, llama.bank, tokenizer=llama.tokenizer)
        with pytest.raises(UsageError, match="give True or False"):
            attach(llama.model, llama.path, tokenizer=llama.tokenizer, continuations=wrong)  # type: ignore[arg-type]


def test_no_references_read_nothing_but_the_reference_bos(llama: Setting) -> None:
    row = tokens(20, 1)
    with llama.attach(references=0), torch.no_grad():
        logits = llama.model(torch.tensor([row])).logits[0]
    bos = list(llama.bank.manifest.model["reference_bos_ids"])
    assert_close(logits, slow_logits(llama.config, "llama", llama.weights, bos, row))


def test_a_copied_cache_goes_its_own_way(llama: Setting) -> None:
    row = tokens(63, 2)
    with llama.attach(), torch.no_grad():
        first: Any = llama.model(torch.tensor([row]), use_cache=True).past_key_values
        second = copy.deepcopy(first)
        for cache, own in ((first, [5, 6]), (second, [7, 8])):
            for token in own:
                logits = llama.model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1:]
            assert_close(logits, llama.slow(row + own, 63)[-1:])


def test_threads_that_share_a_model_do_not_meet(llama: Setting) -> None:
    rows = [tokens(40 + 30 * number, number) for number in range(4)]
    found: dict[int, Any] = {}

    def run(number: int) -> None:
        with torch.no_grad():
            found[number] = llama.model(torch.tensor([rows[number]])).logits[0]

    with llama.attach():
        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, row in enumerate(rows):
        assert_close(found[number], llama.slow(row, len(row)))


def test_a_model_in_bfloat16_reads_the_same_within_its_rounding(llama: Setting) -> None:
    row = tokens(70, 4)
    model = tiny_model("llama").to(torch.bfloat16)
    reader = attach(model, llama.bank, tokenizer=llama.tokenizer, retrieve=llama.retrieve)
    with reader, torch.no_grad():
        logits = model(torch.tensor([row])).logits[0].float()
    slow = llama.slow(row, len(row))
    apart = float(np.abs(logits.numpy() - slow).max())
    assert 0 < apart < 0.05 * float(np.abs(slow).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: tiny_model("llama", seed=1), "other keys and values"),
        (lambda: tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5}), "RoPE"),
        (lambda: tiny_model("qwen3"), "attention|keys|made with"),
    ],
)
def test_another_model_is_refused_by_what_differs(
    llama: Setting, change: Callable[[], Any], message: str
) -> None:
    with pytest.raises(MismatchError, match=message) as caught:
        attach(change(), llama.bank, tokenizer=llama.tokenizer)
    assert caught.value.exit_code == 4


def test_what_a_reader_cannot_follow_is_refused(llama: Setting) -> None:
    model = llama.model
    with pytest.raises(UsageError, match="tokenizer="):
        attach(model, llama.bank)
    with pytest.raises(UsageError, match="own and previous"):
        llama.attach(query="next")
    row = torch.tensor([tokens(10, 1)])
    with torch.no_grad():
        old = model(row, use_cache=True).past_key_values
    with llama.attach(), torch.no_grad():
        with pytest.raises(UsageError, match="has a reader already"):
            llama.attach()
        with pytest.raises(UsageError, match="before the reader was attached"):
            model(row, past_key_values=old)
        with pytest.raises(UsageError, match="input_ids"):
            model(inputs_embeds=model.get_input_embeddings()(row))
        with pytest.raises(MismatchError, match="attention mask"):
            model(row, attention_mask=torch.ones(1, 1, 10, 10, dtype=torch.bool))
        with pytest.raises(UsageError, match="position_ids"):
            model(row, position_ids=torch.arange(5, 15)[None])
        cache = model(row, use_cache=True).past_key_values
        with pytest.raises(MismatchError, match="assisted"):
            cache.crop(-1)
        with pytest.raises(UsageError, match="1 rows, the input has 2"):
            model(row.expand(2, -1), past_key_values=cache)


def test_a_bank_given_as_a_path_is_closed_with_the_reader(llama: Setting) -> None:
    reader = m3build.attach(llama.model, llama.path, tokenizer=llama.tokenizer)
    reader.detach()
    assert not reader.bank.files.shards
