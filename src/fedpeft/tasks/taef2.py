"""TAEF2, a small autoencoder of pictures (Ollin Boer Bohan, TAESD): 8 times smaller a side, 32
channels, MIT licence.

Rebuilt from the tensors' names. A folder of it has `encoder.safetensors` and `decoder.safetensors`.
"""

from pathlib import Path

from torch import Tensor, nn

from fedpeft.storage.files import load_tensors

WIDTH = 64
LATENT = 32
GROUPS = 4


class Taef2(nn.Module):
    """Pictures (n, 3, h, w) in [0, 1], sides divisible by 8, to latents (n, 32, h/8, w/8), and
    back."""

    channels, factor, scale = LATENT, 8, 1.0

    def __init__(self) -> None:
        super().__init__()
        first, last = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, LATENT, 3, padding=1)
        smaller = [[_conv(stride=2), *(_Block(k == 2) for _ in range(3))] for k in range(3)]
        self.encoder = nn.Sequential(
            first, _Block(), *(one for part in smaller for one in part), last
        )
        larger = [
            [*(_Block(k == 0) for _ in range(blocks)), nn.Upsample(scale_factor=2), _conv()]
            for k, blocks in enumerate((3, 3, 3))
        ]
        back = [
            nn.Conv2d(LATENT, WIDTH, 3, padding=1),
            nn.ReLU(),
            *(one for part in larger for one in part),
        ]
        self.decoder = nn.Sequential(_Clamp(), *back, _Block(), nn.Conv2d(WIDTH, 3, 3, padding=1))

    @classmethod
    def load(cls, folder: Path) -> "Taef2":
        """The weights of a folder; strict in names and shapes."""
        made = cls()
        for name in ("encoder", "decoder"):
            made.get_submodule(name).load_state_dict(
                load_tensors(folder / f"{name}.safetensors")[0]
            )
        return made.requires_grad_(False).eval()

    def encode(self, pictures: Tensor) -> Tensor:
        latents: Tensor = self.encoder(pictures)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        pictures: Tensor = self.decoder(latents)
        return pictures.clamp(0, 1)


class _Block(nn.Module):
    """Three convolutions and a residual; before them, where it mixes, a normalised branch of 1x1
    convolutions."""

    def __init__(self, mixes: bool = False) -> None:
        super().__init__()
        three = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(three[0], nn.ReLU(), three[1], nn.ReLU(), three[2])
        self.pool = _mixing() if mixes else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pool is None else x + self.pool(x)
        y: Tensor = (self.conv(x) + x).relu()
        return y


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * (x / 3).tanh()


def _conv(stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, stride=stride, padding=1, bias=False)


def _mixing() -> nn.Sequential:
    wide = WIDTH * GROUPS
    one, two = nn.Conv2d(WIDTH, wide, 1, bias=False), nn.Conv2d(wide, WIDTH, 1, bias=False)
    return nn.Sequential(one, nn.GroupNorm(GROUPS, wide), nn.ReLU(), two)
