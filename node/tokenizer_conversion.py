"""A tokenizer.json for models that ship another kind of tokenizer (sentencepiece, vocab and merges)."""

import hashlib
from pathlib import Path

OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "vocab.txt")


def converted_tokenizer(folder: Path, kept_in: Path) -> Path | None:
    """A folder with tokenizer.json made by transformers from what `folder` has; None when not needed or not possible.

    The same files and the same transformers give the same bytes. A model without any tokenizer is served all the same:
    its clients then work in ids.
    """
    sources = [folder / name for name in OTHER_TOKENIZERS if (folder / name).is_file()]
    if (folder / "tokenizer.json").is_file() or not sources:
        return None
    digest = hashlib.sha256()
    for source in (*sources, *(folder / name for name in ("tokenizer_config.json", "config.json"))):
        if source.is_file():
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    place = kept_in / digest.hexdigest()[:32]
    if (place / "tokenizer.json").is_file():
        return place
    from transformers import AutoTokenizer  # seconds to import, hardly ever needed

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        text = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return None  # needs a package or code that is not here
    place.mkdir(parents=True, exist_ok=True)
    part = place / "tokenizer.json.part"
    part.write_text(text, encoding="utf-8")
    part.replace(place / "tokenizer.json")
    return place
