"""torchvision's residual networks, and the paper's models on them, written in torch for the tests.

Layers and names are those of the published state_dicts; nothing else of those libraries is here.
"""

import torch
from torch import nn
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
  """`basic`: 3x3, 3x3. Otherwise 1x1, 3x3 (strided), 1x1."""

  def __init__(self, channels, width, stride, basic):
    super().__init__()
    out = width if basic else 4 * width
    shapes = [(3, width, stride), (3, out, 1)]
    if not basic:
      shapes = [(1, width, 1), (3, width, stride), (1, out, 1)]
    before, self.count = channels, len(shapes)
    for i, (size, after, step) in enumerate(shapes, 1):
      conv = nn.Conv2d(before, after, size, step, padding=size // 2, bias=False)
      self.add_module(f"conv{i}", conv)
      self.add_module(f"bn{i}", nn.BatchNorm2d(after))
      before = after
    self.downsample = None
    if stride != 1 or channels != out:
      conv = nn.Conv2d(channels, out, 1, stride, bias=False)
      self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out))

  def forward(self, x):
    y = x
    for i in range(1, self.count + 1):
      y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
      y = F.relu(y) if i < self.count else y
    return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
  def __init__(self, sizes=(2, 2, 2, 2), *, basic=True, width=64, fc="fc", outputs=1000):
    super().__init__()
    self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    channels, self.depth, self.fc_name = width, len(sizes), fc
    for i, count in enumerate(sizes):
      blocks = []
      for j in range(count):
        blocks.append(Block(channels, width * 2**i, 2 if i > 0 and j == 0 else 1, basic))
        channels = width * 2**i * (1 if basic else 4)
      self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
    if outputs:
      self.add_module(fc, nn.Linear(channels, outputs))

  def stages(self, images):
    """Maps [b c h w] after each stage, of images [b h w 3] in [0, 1]."""
    x = ((images - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
    maps = []
    for i in range(self.depth):
      x = getattr(self, f"layer{i + 1}")(x)
      maps.append(x)
    return maps

  def forward(self, images):
    return getattr(self, self.fc_name)(self.stages(images)[-1].mean((2, 3)))


class TypeAware(nn.Module):
  """The middle of the type-aware model: a trunk with fc_embed, and a mask for each space."""

  def __init__(self, embeddingnet, spaces):
    super().__init__()
    self.embeddingnet = embeddingnet
    if spaces:
      self.masks = nn.Embedding(spaces, 64)
      self.masks.weight.data.normal_(0.9, 0.7)

  def forward(self, images, condition=None):
    x = self.embeddingnet(images)
    return F.normalize(x if condition is None else x * F.relu(self.masks(condition)))


class Triplet(nn.Module):
  """What the released checkpoints hold: the model under `embeddingnet`, and a branch for titles."""

  def __init__(self, *, spaces, words=50, learned_metric=False):
    super().__init__()
    self.embeddingnet = TypeAware(ResNet((2, 2, 2), fc="fc_embed", outputs=64), spaces)
    first = nn.Sequential(nn.Linear(words, 64), nn.BatchNorm1d(64), nn.ReLU())
    self.text_branch = nn.ModuleDict({"fc1": first, "fc2": nn.Linear(64, 64)})
    if learned_metric:
      self.metric_branch = nn.Linear(64, 1, bias=False)


class Attributes(nn.Module):
  """The attribute model: the children of a ResNet in a Sequential, and a convolution."""

  def __init__(self, sizes=(1, 1, 1, 1), width=8, attributes=5):
    super().__init__()
    net = ResNet(sizes, basic=False, width=width, outputs=0)
    layers = [getattr(net, f"layer{i}") for i in range(1, 5)]
    self.embeddingnet = nn.Sequential(
      net.conv1, net.bn1, nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), *layers
    )
    self.heatmap_net = nn.Conv2d(32 * width, attributes, 3, padding=1, bias=False)

  def forward(self, images):
    x = ((images - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    return self.heatmap_net(self.embeddingnet(x))


def randomize(module, seed=0):
  """Statistics and affine parameters of batch normalisation away from 0 and 1; evaluation mode."""
  generator = torch.Generator().manual_seed(seed)

  def draw(tensor, low, high):
    tensor.data.uniform_(low, high, generator=generator)

  for part in module.modules():
    if isinstance(part, nn.Conv2d):
      fan_in = part.weight[0].numel()
      part.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
    if isinstance(part, nn.BatchNorm2d):
      draw(part.weight, 0.5, 1.0)
      draw(part.bias, -0.2, 0.2)
      draw(part.running_mean, -0.3, 0.3)
      draw(part.running_var, 0.5, 1.5)
  return module.eval()
