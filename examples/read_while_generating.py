"""From a folder of text to a generation that reads it.

    python examples/read_while_generating.py FOLDER BANK "a prompt" [MODEL]

MODEL is a transformers directory or hub id; m3-mini, which comes with m3build, unless one is named. One that
was taught to read memories (examples/teach_memory) gains by them; another runs just the same and gains
nothing.
"""

from __future__ import annotations

import sys

import m3build


def main(folder: str, bank_path: str, prompt: str, model_name: str = "m3-mini") -> None:
    """Compile, attach, generate, and say what was read."""
    m3build.compile(folder, bank_path, model=model_name)

    # None loads the model that the bank was compiled with; one that is loaded already does as well.
    with m3build.attach(None, bank_path) as reader:
        tokenizer = reader.tokenizer
        text = (tokenizer.bos_token or "") + prompt
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        output = reader.model.generate(ids, max_new_tokens=80, do_sample=False)
        read = reader.last_read[0]

    print(tokenizer.decode(output[0], skip_special_tokens=True))
    print("\nIt read:")
    for hit in read:
        print(f"  {hit.id[:12]}  {hit.sources[0].document}: {hit.text[:60]!r}")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit((__doc__ or "").strip())
    main(*sys.argv[1:])
