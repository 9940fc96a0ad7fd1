"""How far a clipped sum moves when one example leaves the batch: never further than the clip, or not private."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from batches import batch_of
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vision_transformer import VisionTransformer

from fedssl.models.bundle import build_bundle
from fedssl.models.encoder import Encoder
from fedssl.models.image import ImageEncoder
from fedssl.models.video_vit import VideoTransformer
from fedssl.models.vit import VisionTransformerEncoder
from fedssl.objectives.byol import Byol
from fedssl.objectives.croco import Croco
from fedssl.objectives.ctp import Ctp
from fedssl.objectives.diet import Diet
from fedssl.objectives.gmml import Gmml
from fedssl.objectives.mae import Mae
from fedssl.objectives.objective import Batch, Objective, Population
from fedssl.objectives.rho_clips import RhoClips
from fedssl.objectives.rotnet import RotNet, rotations
from fedssl.objectives.simclr import SimClr
from fedssl.objectives.simsiam import SimSiam
from fedssl.objectives.speed import Speed
from fedssl.objectives.supervised import Supervised
from fedssl.objectives.vcop import Vcop
from fedssl.objectives.vi_simsiam import ViSimSiam
from fedssl.objectives.video_mae import VideoMae
from fedssl.privacy.gradients import Gradients, clip_factors, engine
from fedssl.privacy.gradients_ghost import ghost

TRIALS, SIZE = 20, 3
PER_EXAMPLE: dict[str, Callable[[], Objective]] = {
    "supervised": Supervised,
    "diet": lambda: Diet(num_classes=SIZE),
    "rotnet": RotNet,
    "simsiam": lambda: SimSiam(8, 8, 8, "group"),
    "vi_simsiam": lambda: ViSimSiam(8, 8, 8, "group"),
    "byol": lambda: Byol(8, 8, "group"),
    "mae": lambda: Mae(8, 4, 1, width=8, num_heads=2),
    "gmml": lambda: Gmml(8, 4, 1, hidden=8),
    "vcop": lambda: Vcop(hidden=8, dropout=0.0),
    "speed": lambda: Speed(dropout=0.0),
    "ctp": lambda: Ctp(2, num_patches=2, hidden=8, height=8, width=8, channels=1),
    "video_mae": lambda: VideoMae(2, 1, 8, 4, 2, 1, 0.5, width=12, depth=1, num_heads=2),
    "croco": lambda: Croco(1, 1, 8, 4, 1, 0.5, width=8, depth=1, num_heads=2),
    "rho_clips": lambda: RhoClips(Byol(8, 8, "group"), 3, clip_frames=2),
}
OF_CLIPS = (Vcop, Speed, Ctp, VideoMae, Croco, RhoClips)


def encoder_of(objective: Objective) -> Encoder:
    if isinstance(objective, VideoMae):
        return Encoder(VideoTransformer(1, 2, 4, width=12, depth=1, num_heads=2), 12)
    if isinstance(objective, Croco):
        body = VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=1)
        body.conv_proj = nn.Conv2d(1, 8, 4, 4)
        return VisionTransformerEncoder(body, (0.5,), (0.25,))
    layers = (nn.Conv2d(1, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
    return ImageEncoder(nn.Sequential(*layers), 8, (0.5,), (0.25,))


def drawn(objective: Objective, trial: int, size: int = SIZE) -> tuple[nn.ModuleDict, Batch]:
    """A network with weights of random sizes, and a batch."""
    model = build_bundle(lambda: encoder_of(objective), objective, trial, Population(size, size))
    objective.begin_round(model, first=True)
    rng = torch.Generator().manual_seed(trial)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.randn((), generator=rng).exp())
    frames = 2 if isinstance(objective, OF_CLIPS) else 1
    views = (torch.rand(size, 1, frames, 8, 8, generator=rng) for _ in objective.views)
    uniforms = torch.rand(size, objective.num_uniforms, generator=rng, dtype=torch.float64)
    numbers = torch.randperm(size, generator=rng)
    return model, batch_of(*views, targets=numbers, uniforms=uniforms, labels=numbers)


def flat(sums: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in sums.values()])


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_the_sum_moves_by_at_most_the_clip_whichever_example_leaves(name: str) -> None:
    objective = PER_EXAMPLE[name]()
    chosen = engine("functional" if name in ("video_mae", "croco") else "ghost")  # the latter knows no attention
    moves = [furthest_in_batch(chosen, objective, *drawn(objective, trial)) for trial in range(TRIALS)]
    assert max(moves) <= 1 + 1e-5
    assert max(moves) > 1 - 1e-5  # the bound is attained: a smaller one would be wrong


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_a_loss_that_depends_on_the_number_of_an_example_says_so(name: str) -> None:
    objective = PER_EXAMPLE[name]()
    chosen = engine("functional" if name in ("video_mae", "croco") else "ghost")
    model, batch = drawn(objective, 0)
    renamed = replace(batch, places=batch.places.roll(1))
    one, other = (flat(chosen(model, objective, each, 1.0).sums) for each in (batch, renamed))
    assert one.equal(other) != objective.contract.numbered


def test_without_an_example_the_others_have_other_numbers_and_the_sum_moves_further_than_the_clip() -> None:
    objective = Diet(num_classes=24)
    model, batch = drawn(objective, 0, size=24)
    clip = 1e-6
    whole = flat(engine("ghost")(model, objective, batch, clip).sums)
    rest = batch.where(torch.arange(24) > 0)
    moved = whole - flat(engine("ghost")(model, objective, replace(rest, places=rest.places - 1), clip).sums)
    assert moved.norm().item() / clip > 1.5


def furthest_in_batch(
    sums_of: Callable[..., Gradients], objective: Objective, model: nn.ModuleDict, batch: Batch
) -> float:
    """How far an engine's sum moves at most when an example leaves, in clips; some gradients are clipped."""
    clip = 0.7 * sums_of(model, objective, batch, 1.0).norms.median().item()
    whole, places = flat(sums_of(model, objective, batch, clip).sums), torch.arange(len(batch.places))
    rest = [sums_of(model, objective, batch.where(places != place), clip).sums for place in places]
    return max((whole - flat(sums)).norm().item() / clip for sums in rest)


def clipped_sum(losses: Tensor, parameters: list[Tensor], clip: float) -> Tensor:
    """The naive way: each loss's gradient is clipped, whatever it depends on."""
    total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=losses.dtype)
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        gradient = torch.cat([each.flatten() for each in gradients])
        total += gradient * clip_factors(gradient.norm(), clip)
    return total


def furthest_move(losses_of: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, rows: Tensor) -> float:
    """How far the naive sum moves at most when an example leaves, in clips; every gradient is clipped."""
    parameters = list(model.parameters())
    clip = 1e-6
    whole = clipped_sum(losses_of(model, rows), parameters, clip)
    rest = [torch.cat((rows[:place], rows[place + 1 :])) for place in range(len(rows))]
    return max((whole - clipped_sum(losses_of(model, few), parameters, clip)).norm().item() / clip for few in rest)


def search(
    losses_of: Callable[[nn.Module, Tensor], Tensor], make: Callable[[], nn.Module], rows: tuple[int, ...]
) -> float:
    """The furthest move over random networks and batches."""
    moves = []
    for trial in range(TRIALS):
        with torch.random.fork_rng():
            torch.manual_seed(trial)
            moves.append(furthest_move(losses_of, make().double(), torch.randn(rows, dtype=torch.float64)))
    return max(moves)


def rotation_losses(model: nn.Module, images: Tensor) -> Tensor:
    rotated, turns = rotations(images.unsqueeze(2))
    return F.cross_entropy(model(rotated.flatten(1)), turns, reduction="none")


def grouped_rotation_losses(model: nn.Module, images: Tensor) -> Tensor:
    return rotation_losses(model, images).view(4, -1).mean(dim=0)


def normalised_losses(model: nn.Module, rows: Tensor) -> Tensor:
    return F.cross_entropy(model(rows[:, 1:]), (rows[:, 0] > 0).long(), reduction="none")


def test_views_clipped_one_by_one_move_further_than_the_clip_and_grouped_ones_do_not() -> None:
    def make() -> nn.Module:
        return nn.Linear(16, 4)

    alone = search(rotation_losses, make, (3, 1, 4, 4))
    assert 1.3 < alone <= 4 + 1e-9  # four views are worth up to four clips
    assert search(grouped_rotation_losses, make, (3, 1, 4, 4)) == pytest.approx(1, abs=1e-9)


def unchecked(model: nn.ModuleDict, objective: Objective, batch: Batch, clip: float) -> Gradients:
    return ghost(model, objective, batch, clip, torch.ones(len(batch.places), dtype=torch.float64))


def test_a_contrastive_loss_moves_further_than_the_clip_when_one_of_eight_leaves() -> None:
    objective = SimClr(hidden=8, dim=2, temperature=0.1, norm="group")
    model, batch = drawn(objective, 0)
    with pytest.raises(ValueError, match="coupling must be per_example"):
        engine("ghost")(model, objective, batch, 1.0)
    moves = [furthest_in_batch(unchecked, objective, *drawn(objective, trial, 8)) for trial in range(TRIALS)]
    assert max(moves) > 1.5


def test_batch_norm_without_weights_moves_further_than_the_clip_when_one_of_eight_leaves() -> None:
    def network(norm: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), norm, nn.ReLU(), nn.Linear(4, 2))

    assert search(normalised_losses, lambda: network(nn.BatchNorm1d(4, affine=False)), (8, 3)) > 1.5
    grouped = search(normalised_losses, lambda: network(nn.GroupNorm(1, 4, affine=False)), (8, 3))
    assert grouped == pytest.approx(1, abs=1e-9)
