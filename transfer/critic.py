"""ViV1T's critic: tells from a core's features which animal they are of.

What comes in: features (batch, channels, frames, height, width) of at least 10 frames and pixels each way. What goes
out: logits (batch, animals). A core that fools it is one whose features do not depend on the animal. Source: ViV1T's
competition version (https://github.com/bryanlimy/ViV1T), which defines it and does not train with it; its state-dict
keys.
"""

from torch import Tensor, nn


class Critic(nn.Module):
    """Two convolutions, each with GELU, max-pooling, batch norm and dropout; the mean; two linear layers.

    Args:
        channels: of the core.
        animals: classes.
        hidden: channels of the convolutions.
        dropout: of channels after each convolution, and between the linear layers.
    """

    def __init__(self, channels: int, animals: int, hidden: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv3d(channels, hidden, 3), nn.Conv3d(hidden, hidden, 3)
        self.batch_norm1, self.batch_norm2 = nn.BatchNorm3d(hidden), nn.BatchNorm3d(hidden)
        self.gelu, self.max_pool, self.dropout3d = nn.GELU(), nn.MaxPool3d(2), nn.Dropout3d(dropout)
        self.linear1, self.linear2 = nn.Linear(hidden, animals), nn.Linear(animals, animals)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (batch, animals)."""
        for convolution, norm in ((self.conv1, self.batch_norm1), (self.conv2, self.batch_norm2)):
            features = self.dropout3d(norm(self.max_pool(self.gelu(convolution(features)))))
        return self.linear2(self.dropout(self.gelu(self.linear1(features.mean((2, 3, 4))))))
