"""Turns raw screens of an emulator into images: the lighter of two frames, in grey or RGB, resized.

ALE's raw screens have numbers of colours for pixels. Reading them as they are, and looking up colours only of what has
changed, is far cheaper than having ALE look up all of them.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

cv2.setNumThreads(0)  # one thread: resizing is called from threads that own a core already

PAL_LINES = 250  # of a screen: only the games made for PAL have as many

# Red, green and blue of the 128 even numbers: as getScreenRGB shows them, in all games of the format together.
_NTSC = bytes.fromhex(
    "0000004a4a4a6f6f6f8e8e8eaaaaaac0c0c0d6d6d6ececec48480069690f86861da2a22abbbb35d2d240e8e84afcfc54"
    "7c2c00904811a26221b47a30c3903dd2a44adfb755ecc860901c00a33915b55328c66c3ad5824ae39759f0aa67fcbc74"
    "940000a71a1ab83232c84848d65c5ce46f6ff08080fc909084006497197aa8308fb846a2c659b3d46cc3e07cd2ec8ce0"
    "50008468199a7d30ad9246c0a459d0b56ce0c57ceed48cfc140090331aa34e32b56848c67f5cd5956fe3a980f0bc90fc"
    "000094181aa72d32b84248c8545cd6656fe47580f08490fc001c88183b9d2d57b04272c2548ad265a0e175b5ef84c8fc"
    "0030641850802d6d984288b054a0c565b7d975cceb84e0fc00403018624e2d8169429e8254b89965d1ae75e7c284fcd4"
    "0044001a661a32843248a0485cba5c6fd26f80e88090fc90143c00355f18527e2d6e9c4287b7549ed065b4e775c8fc84"
    "3038005059166d762b88923ea0ab4fb7c25fccd86ee0ec7c482c00694d14866a26a28638bb9f47d2b656e8cc63fce070"
)
_PAL = bytes.fromhex(
    "0000002b2b2b525252767676979797b6b6b6d2d2d2ececec0000002b2b2b525252767676979797b6b6b6d2d2d2ececec"
    "80580096711aab8732be9c48cfaf5cdfc06feed180fce090445c005e791a7693328cac48a0c25cb3d76fc4ea80d4fc90"
    "70340089511aa06b32b68448c99a5cdcaf6fecc280fcd4900064141a803532985248b06e5cc5876fd99e80ebb490fcc8"
    "700014891a35a03252b6486ec95c87dc6f9eec80b4fc90c8005c5c1a7676328e8e48a4a45cb8b86fcbcb80dcdc90ecec"
    "70005c841a74963289a8489eb75cb0c66fc1d380d1e090e0003c70195a892f75a0448eb657a5c968badc79ceec88e0fc"
    "5800706e1a898332a09648b6a75cc9b76fdcc680ecd490fc002070193f892f5aa04474b6578bc968a1dc79b5ec88c8fc"
    "3400804a1a965f32ab7248be835ccf936fdfa280eeb090fc0000881a1a9d3232b04848c25c5cd26f6fe18080ef9090fc"
    "0000002b2b2b525252767676979797b6b6b6d2d2d2ececec0000002b2b2b525252767676979797b6b6b6d2d2d2ececec"
)


def colors(lines: int, grey: bool) -> NDArray[np.uint8]:
    """Returns what ALE shows of each number, 0..255, in a game whose screen has so many ``lines``: [256], or [256, 3]
    in RGB.

    Odd numbers are PAL's alone, where a frame of an odd number of lines loses its colours: the grey of the number
    before. ALE's own grey screen has the blue of the number behind there (and black at the end); so have we.
    """
    rgb = np.frombuffer(_PAL if lines == PAL_LINES else _NTSC, np.uint8).reshape(-1, 3)
    greys = (rgb @ [0.2989, 0.587, 0.114]).round().astype(np.uint8)
    if grey:
        return np.stack([greys, np.append(rgb[1:, 2], np.uint8(0))], axis=1).reshape(-1)
    return np.stack([rgb, np.repeat(greys[:, None], 3, axis=1)], axis=1).reshape(-1, 3)


class Shrinker:
    """Makes images of pairs of raw frames: each pixel is the lighter one of the pair. Only what has changed since the
    pair before is made anew. The bits are those of ALE's grey or RGB screens, their maximum and cv2.resize by area.

    Where height / size is a fraction p / q that floating point holds exactly (210 / 84 = 5 / 2), every p rows of a
    frame become q rows of the image by themselves, with the same weights: only strips of p rows that changed are
    resized, all in one call. Elsewhere weights are rounded differently from strip to strip: strips are for looking up
    colours only, and a frame of which one changed is resized as a whole.
    """

    def __init__(self, num_envs: int, screen: tuple[int, int], size: int, grey: bool) -> None:
        height, width = screen
        rows, rows_out = (1 / (size / height)).as_integer_ratio()  # the scale as cv2 computes it
        self._by_strip = size % rows_out == 0
        self._rows = rows if self._by_strip else max(n for n in range(1, 11) if height % n == 0)  # of a strip
        self._colors = colors(height, grey).reshape(1, 256, -1)
        channels = self._colors.shape[2]
        self._screens = np.zeros((num_envs, height, width, channels), np.uint8)  # where they are resized as a whole
        self.images = np.zeros((num_envs, size, size, channels), np.uint8)

    def shrink(self, frames: NDArray[np.uint8], before: NDArray[np.uint8], envs: slice) -> None:
        """Makes ``images`` [envs, size, size, 1 or 3] those of ``frames`` [2, envs, height, width]; they are those of
        ``before``."""
        _, _, height, width = frames.shape
        strips = frames.reshape(2, -1, self._rows, width)
        # The screen is 160 wide: rows are whole words of 8 bytes.
        words, words_before = (pair.reshape(2, strips.shape[1], -1).view(np.uint64) for pair in (frames, before))
        first, second = words != words_before
        changed = (first | second).any(axis=1).nonzero()[0]
        if not len(changed):
            return
        numbers = strips.take(changed, axis=1).reshape(-1, width)
        _, size, _, channels = self.images.shape
        pair = cv2.LUT(numbers if channels == 1 else cv2.merge([numbers] * 3), self._colors)
        first, second = pair.reshape(2, -1, width, channels)
        lighter = np.maximum(first, second, out=first)
        images = self.images[envs]
        if self._by_strip:
            of_strips = images.reshape(strips.shape[1], -1, size, channels)
            image = _resize(lighter, len(changed) * of_strips.shape[1], size)
            of_strips[changed] = image.reshape(-1, *of_strips.shape[1:])
        else:
            of_strips = self._screens[envs].reshape(*strips.shape[1:], channels)
            of_strips[changed] = lighter.reshape(-1, *of_strips.shape[1:])
            for env in np.unique(changed * self._rows // height):
                images[env] = _resize(self._screens[envs][env], size, size)


def _resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Returns an image [h, w, C] resized to [height, width, C]; cv2 leaves C off where it is 1."""
    resized = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return resized.reshape(height, width, image.shape[2])
