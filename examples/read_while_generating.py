"""From a folder of text to a generation that reads it.

    python examples/read_while_generating.py MODEL FOLDER BANK "a prompt"

MODEL is a transformers directory or hub id. One that was taught to read memories (examples/teach_memory)
gains by them; another runs just the same and gains nothing.
"""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import m3build


def main(model_name: str, folder: str, bank_path: str, prompt: str) -> None:
    """Compile, attach, generate, and say what was read."""
    m3build.compile(folder, bank_path, model=model_name)

    model = AutoModelForCausalLM.from_pretrained(model_name)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_name)
    text = (tokenizer.bos_token or "") + prompt
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with m3build.attach(model, bank_path, tokenizer=tokenizer) as reader:
        output = model.generate(ids, max_new_tokens=80, do_sample=False)
        read = reader.last_read[0]

    print(tokenizer.decode(output[0], skip_special_tokens=True))
    print("\nIt read:")
    for hit in read:
        print(f"  {hit.id[:12]}  {hit.sources[0].document}: {hit.text[:60]!r}")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit((__doc__ or "").strip())
    main(*sys.argv[1:])
