"""CLIP tokenizer files and random captions."""

import gzip

LENGTH, BOS, EOS, PAD = 77, 49406, 49407, 0
SUBJECT = [
    "{x}",
    "{x}",
    "a {x}",
    "a {x}",
    "{x} emoji",
    "a {x} emoji",
    "a photo of a {x}",
    "a picture of a {x}",
    "3d render of a {x}",
    "an icon of a {x}",
    "one {x}",
    "the {x}",
    "a cute {x}",
    "a drawing of a {x}",
]
BACK = [
    "{s} on a {b} background",
    "{s} on a {b} background",
    "{s}, {b} background",
    "{s}, {b} background",
    "{b} background, {s}",
    "{s} with a {b} background",
    "{s} in front of a {b} wall",
    "{s} {b} background",
]
MONO = [
    "monochrome, {s}",
    "{s}, monochrome",
    "black and white {s}",
    "{s}, black and white",
    "{s}, greyscale",
    "a monochrome picture, {s}",
]


def caption(rng, words, colour, bg, mono):
    """colour, bg: a colour word or None when the caption does not say"""
    x = rng.choice(words[:1] * 3 + words)
    if colour:
        x = f"{colour} {x}"
    s = rng.choice(SUBJECT).format(x=x)
    if bg:
        if bg == "grey" and rng.random() < 0.5:
            bg = "gray"
        s = rng.choice(BACK).format(s=s, b=bg)
    if mono:
        s = rng.choice(MONO).format(s=s)
    for v in "aeiou":
        s = s.replace(f" a {v}", f" an {v}")
        if s.startswith(f"a {v}"):
            s = "an" + s[1:]
    return s


def build_tokenizer(bpe_gz):
    """the CLIP byte-pair tokenizer as a `tokenizers` object"""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    merges = (
        gzip.open(bpe_gz).read().decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    )
    merges = [tuple(m.split()) for m in merges]
    order = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    chars, n = [chr(c) for c in order], 0
    for b in range(256):
        if b not in order:
            chars.append(chr(256 + n))
            n += 1
    vocab = (
        chars
        + [c + "</w>" for c in chars]
        + ["".join(m) for m in merges]
        + ["<|startoftext|>", "<|endoftext|>"]
    )
    assert len(vocab) == 49408
    t = Tokenizer(
        models.BPE(
            vocab={v: i for i, v in enumerate(vocab)},
            merges=merges,
            unk_token="<|endoftext|>",
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
    )
    t.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    words = Regex(
        r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    )
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", EOS), ("<|startoftext|>", BOS), False, False
    )
    t.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return t


def pad_ids(ids, length=LENGTH):
    return (ids[: length - 1] + [EOS] if len(ids) > length else ids) + [PAD] * (
        length - len(ids)
    )


def attributes(rng, emoji):
    """one random picture: dict(cls, colour, bg, say_bg, mono, empty)"""
    c = rng.randrange(len(emoji.classes))
    var = emoji.classes[c]["variants"]
    colour = (
        rng.choice([v for v in var if v]) if len(var) > 1 and rng.random() < 0.3 else ""
    )
    names = list(emoji.colours)
    say = rng.random() < 0.75
    bg = rng.choice(names) if say or rng.random() < 0.4 else "white"
    return dict(
        cls=c,
        colour=colour,
        bg=bg,
        say_bg=say,
        mono=rng.random() < 0.05,
        empty=rng.random() < 0.1,
    )


def words_of(emoji, a, rng):
    if a["empty"]:
        return ""
    return caption(
        rng,
        emoji.classes[a["cls"]]["words"],
        a["colour"],
        a["bg"] if a["say_bg"] else None,
        a["mono"],
    )
