"""A little text of many kinds and scripts, on which a tokenizer's appetite is measured (see ``estimate``).

It is part of how documents are cut: changing it moves cuts, so ``cutting.RULE`` must grow with it.
"""

from __future__ import annotations

SAMPLE = (
    "A reference is a short piece of text that is turned into one memory.\n"
    "Most of what people write is prose like this, in sentences of ten to thirty words each.\n"
    "The old lighthouse stood on the cliff, and every evening the keeper climbed its stairs to "
    "light the lamp.\n"
    '"Where did you put the map?" she asked. "I thought it was in your bag," said Tom, who had lost '
    "it again.\n"
    "Government spending on research rose by nearly a quarter between the two surveys, according to "
    "the committee's report.\n"
    "Returns true if the object can be changed after its creation; otherwise an exception of type "
    "ValueError is raised.",
    "Prices rose 3.5 % in 2021, to $1,204.99 (from 1,164.25).\n"
    "12:45:07  192.168.0.1  GET /index.html?page=2&sort=asc  200  5123\n"
    "2024-02-29T10:00:00Z build 4711 finished: 18 passed, 2 failed\n"
    "0x1F 0b1010 1e-9 6.02214076 299792458 31 415 926 535",
    "def cut(document, limit=128):\n"
    '    """Return the chunks of a document."""\n'
    "    chunks = []\n"
    "    for start, end in spans(document.text):\n"
    "        if end - start > limit and not force:\n"
    '            raise ValueError(f"too long: {end - start}")\n'
    "        chunks.append(Chunk(document.text[start:end], start, end))\n"
    "    return chunks",
    "static int read_block(struct reader *r, uint8_t *out, size_t n) {\n"
    "    if (r->used + n > r->size) { return -EINVAL; }\n"
    "    memcpy(out, &r->data[r->used], n);\n"
    "    r->used += n;  /* never past the end */\n"
    "    return 0;\n"
    "}",
    "Installation\n============\n\n"
    "* Run ``make install`` as *root*; see :ref:`options` and :func:`os.path.join`.\n"
    "* Set ``PATH=$HOME/bin:$PATH`` in ~/.profile\n\n"
    ".. note:: New in version 3.2, MAX_PATH_LENGTH and getDefaultLocale() may be None.",
    "| Name | Size | Notes |\n|------|-----:|-------|\n| alpha-1 | 10 kB | see [the "
    "docs](https://example.org/a/b#c) |\n"
    '<p class="lead">Hello, <b>World</b> &amp; all!</p>\n'
    '{"id": 17, "name": "Ada", "tags": ["x", "y"], "ok": true, "score": 0.25}',
    "WARNING: DO NOT REMOVE THIS FILE. THE NASA AND UNESCO PROGRAMMES USE IT.\nDr. Maria Lopez "
    "(Universidad de Chile), Prof. Kwame Mensah",
    "Der Vogel saß schon früh auf dem Dach, während überall noch die Straßenlaternen brannten.\n"
    "L'été dernier, nous avons marché jusqu'à la forêt où s'élève une très vieille église.\n"
    "El niño preguntó cuántos años tenía aquella montaña tan alta y lejana.\n"
    "Žluťoučký kůň běžel přes pole, a děti se smály. Gdzie jest najbliższy dworzec kolejowy?\n"
    "Buổi sáng, những người dân trong làng ra đồng từ rất sớm.",
    "Весной река выходит из берегов, и старый мост приходится закрывать на несколько недель.\n"
    "Η βιβλιοθήκη ανοίγει κάθε πρωί στις οκτώ και κλείνει αργά το βράδυ.",
    "ذهب الأطفال إلى المدرسة في الصباح الباكر، ثم عادوا قبل غروب الشمس.\nהספרייה פתוחה בכל יום "
    "מהבוקר ועד הערב.",
    "गाँव के बच्चे सुबह जल्दी उठकर नदी के किनारे खेलने जाते हैं।\nหมู่บ้านเล็กๆ แห่งนี้ตั้งอยู่ริมแม่น้ำ และมีตลาดทุกเช้า",
    "春天来了，河边的柳树发出了新芽，孩子们在草地上放风筝。\n"
    "该函数返回一个列表，其中包含所有匹配的文件名；如果没有找到文件，则返回空列表。\n"
    "在安装软件包之前，请使用 apt update 命令更新软件包列表（需要 root 权限）。",
    "図書館は朝九時に開きます。子どもたちは静かに本を読んでいました。\n"
    "このオプションを指定すると、コマンドはファイルを上書きする前に確認を求めます。",
    "마을 도서관은 매일 아침 아홉 시에 문을 열고 저녁 여섯 시에 닫습니다.",
    "“Yes”, she said — and left… € 20 → £ 17 ± 5 %, x² ≤ ½ · π\n😀 👍🏽 🚀 🎉",
)
