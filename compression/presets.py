"""The named ways to send an update. A round's two directions use the same preset."""

from .dense_codec import BucketCodec, PlainCodec
from .sparse_codec import SparseCodec
from .sparsify import exact_share
from .update_codec import Codec

PRESETS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        PlainCodec("none", half=False),
        PlainCodec("fp16", half=True),
        BucketCodec("int8", bits=8),
        BucketCodec("fp4", bits=4),
        # The fine-tuning setting of CocktailSGD: a tenth drawn, a fifth of it kept, 4 bits in buckets of 128.
        SparseCodec("cocktail", random=exact_share(0.1), top=exact_share(0.2), values="levels"),
        SparseCodec("sparse", top=exact_share(1 / 64), values="sign"),
        SparseCodec("sparse2", top=exact_share(1 / 64), values="lookup"),
    )
}


def preset(name: str) -> Codec:
    """raises: ValueError for a name that is no preset"""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
