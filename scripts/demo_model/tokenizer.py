"""The CLIP byte-pair tokenizer, made from a merges.txt."""

from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

LENGTH, BOS, EOS, PAD = 77, 49406, 49407, 0


def load_tokenizer(merges_txt: Path) -> Tokenizer:
    """a `tokenizers` object with the vocabulary of CLIP"""
    lines = merges_txt.read_text(encoding="utf8").split("\n")
    merges = [tuple(m.split()) for m in lines[1 : 49152 - 256 - 2 + 1]]
    order = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    chars = [chr(c) for c in order]
    for n, _ in enumerate(b for b in range(256) if b not in order):
        chars.append(chr(256 + n))
    vocab = (
        chars
        + [c + "</w>" for c in chars]
        + ["".join(m) for m in merges]
        + ["<|startoftext|>", "<|endoftext|>"]
    )
    if len(vocab) != EOS + 1:
        raise SystemExit(
            f"{merges_txt} is not the merges.txt of CLIP: it makes {len(vocab)} tokens instead of {EOS + 1}."
        )
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
