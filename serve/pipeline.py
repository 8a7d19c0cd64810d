"""From the bytes of an upload to an encoded mask: the work of one request, in a worker thread.

H height, W width, N batch, C channels.
"""

from export.bands import counted_pixels
from export.errors import ImageError
from export.images import U8, decode
from export.manifest import Manifest
from serve.answers import Answer, Encoder
from serve.limits import ContentType
from serve.metrics import Stages
from serve.predictor import Predictor
from serve.problems import ProblemError

_STATUS = {"malformed": 400, "unsupported": 415, "channels": 415, "too_large": 413}


def segment(
    body: bytes,
    content_type: ContentType,
    predictor: Predictor,
    encode: Encoder,
    *,
    max_pixels: int,
    stages: Stages,
) -> Answer:
    """Decode, fit, predict, restore, encode; the mask has the size of the image.

    Raises ProblemError 4xx for a body that is no image, or one that is not taken.
    """
    manifest = predictor.manifest
    with stages.time("decode"):
        image_HWC = decoded(content_type.image(body), manifest, max_pixels=max_pixels)
    with stages.time("preprocess"):
        geometry = manifest.geometry(*image_HWC.shape[:2])
        height, width = geometry.padded
        pixels = counted_pixels(height, width, manifest.channels)
        if pixels > max_pixels:
            # A single row of pixels is small, but padded to the model's multiple it is many times that.
            detail = (
                f"padded for the model the image has {pixels} pixels ({width}x{height}), at most {max_pixels} are taken"
            )
            raise ProblemError(413, "too_large", f"{detail}; send a smaller one, or cut it into pieces")
        images_NHWC = geometry.fit(image_HWC)[None]
    with stages.time("inference"):
        masks_NHW = predictor.predict(images_NHWC)
        stages.images(1)
    with stages.time("postprocess"):
        mask_HW = geometry.restore(masks_NHW[0])
    with stages.time("encode"):
        return encode(mask_HW, manifest)


def decoded(image: bytes, manifest: Manifest, *, max_pixels: int) -> U8:
    """The image HWC in a file, with the channels of the model.

    Raises ProblemError 4xx for what is none, or one that is not taken.
    """
    try:
        return decode(image, manifest.channels, max_pixels=max_pixels)
    except ImageError as error:
        raise ProblemError(_STATUS.get(error.reason, 400), error.reason, str(error)) from error
