from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product

import pytest
import torch
from batches import batch_of
from test_objectives import IMAGES, Case, config
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vision_transformer import VisionTransformer

from fedssl.config import build
from fedssl.models.bundle import build_bundle
from fedssl.models.encoder import Encoder
from fedssl.models.image import ImageEncoder, small_resnet
from fedssl.models.small3d import small3d
from fedssl.models.vit import VisionTransformerEncoder
from fedssl.objectives.byol import Byol
from fedssl.objectives.croco import Croco
from fedssl.objectives.diet import Diet
from fedssl.objectives.gmml import Gmml
from fedssl.objectives.mae import Mae
from fedssl.objectives.objective import UNKNOWN, Batch, Objective, Population, Step
from fedssl.objectives.rotnet import RotNet
from fedssl.objectives.simclr import SimClr
from fedssl.objectives.simsiam import SimSiam
from fedssl.objectives.speed import Speed
from fedssl.objectives.supervised import Supervised
from fedssl.objectives.vcop import Vcop
from fedssl.objectives.vi_simsiam import ViSimSiam
from fedssl.privacy.contract import PrivacyContract
from fedssl.privacy.gradients import EngineName, Gradients, clip_factors, engine

ENGINES: tuple[EngineName, ...] = ("functional", "ghost", "hooks")
SIZE = 4
Oracle = tuple[dict[str, Tensor], Tensor]


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def oracle(model: nn.ModuleDict, objective: Objective, batch: Batch, clip: float) -> Oracle:
    """One example after the other, by the definition."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    norms = []
    for place in range(len(batch.places)):
        alone = batch.where(torch.arange(len(batch.places)) == place)
        loss = objective.step(model, alone).loss
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        norms.append(norm.double())
        for name, gradient in zip(parameters, gradients, strict=True):
            sums[name] += gradient * min(1.0, clip / max(norm.item(), 1e-300))
    return sums, torch.stack(norms)


def assert_equal(found: Gradients, expected: Oracle, rtol: float = 1e-9) -> None:
    sums, norms = expected
    assert list(found.sums) == list(sums)
    torch.testing.assert_close(found.norms, norms, rtol=rtol, atol=1e-12)
    for name, value in sums.items():
        error = (found.sums[name] - value).norm()
        assert error <= rtol * value.norm() + 1e-12, (name, error.item(), value.norm().item())


class SumOfSquares(Objective):
    """Half the squared length of what the backbone makes of each view, which has any shape."""

    contract = PrivacyContract("per_example")

    def __init__(self, layout: Callable[[Batch], Tensor] = lambda batch: torch.cat(batch.views)) -> None:
        self.layout = layout

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        return {}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        made: Tensor = model["backbone"](self.layout(batch))
        return Step(0.5 * made.square().sum() / len(batch.places), {})


def bundle_of(network: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"backbone": network}).double()


def network_2d() -> Encoder:
    return small_resnet(1, width=4, norm="group")


def cnn() -> Encoder:
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3))
    return ImageEncoder(nn.Sequential(*layers), 8, (0.5,), (0.25,))


def network_3d() -> Encoder:
    layers = (nn.Conv3d(1, 8, 3, (1, 2, 2), 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv3d(8, 8, 3, 2, 1))
    return Encoder(nn.Sequential(*layers), 8)


def frozen_3d() -> Encoder:
    encoder = small3d(1, width=4)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm3d):  # statistics that are not those of a fresh layer
            module.running_mean = uniform(module.num_features)
            module.running_var = 0.5 + uniform(module.num_features, seed=1)
    return encoder


def vit() -> Encoder:
    body = VisionTransformer(8, 4, 1, 2, 16, 32, num_classes=1)
    body.heads = nn.Identity()
    body.conv_proj = nn.Conv2d(1, 16, 4, 4)
    return VisionTransformerEncoder(body, (0.5,), (0.25,))


NETWORKS: Mapping[str, Callable[[], Encoder]] = {
    "cnn": cnn, "resnet": network_2d, "3d": network_3d, "frozen 3d": frozen_3d, "vit": vit,
}  # fmt: skip
OBJECTIVES: Mapping[str, Callable[[], Objective]] = {
    "supervised": Supervised,
    "diet": lambda: Diet(num_classes=9),
    "rotnet": RotNet,
    "simsiam": lambda: SimSiam(16, 16, 8, "group"),
    "vi_simsiam": lambda: ViSimSiam(16, 16, 8, "group"),
    "byol": lambda: Byol(16, 16, "group"),
    "mae": lambda: Mae(8, 4, 1, width=16, depth=1, num_heads=2),
    "gmml": lambda: Gmml(8, 4, 1, hidden=16),
    "croco": lambda: Croco(1, 1, 8, 4, 1, 0.5, width=16, depth=1, num_heads=2),
    "vcop": lambda: Vcop(hidden=8, dropout=0.0),
    "speed": lambda: Speed(dropout=0.0),
}
FRAMES = {"vcop": 4, "speed": 4, "rotnet": 3, "mae": 2, "croco": 2}  # a network of images sees each frame
CASES = [
    ("supervised", "cnn"), ("supervised", "resnet"), ("supervised", "vit"), ("diet", "resnet"), ("rotnet", "cnn"),
    ("rotnet", "resnet"), ("rotnet", "3d"), ("simsiam", "cnn"), ("simsiam", "resnet"), ("vi_simsiam", "cnn"),
    ("byol", "cnn"), ("byol", "resnet"), ("byol", "vit"), ("mae", "cnn"), ("mae", "resnet"), ("mae", "vit"),
    ("gmml", "resnet"), ("croco", "vit"), ("vcop", "cnn"), ("vcop", "3d"), ("vcop", "frozen 3d"), ("speed", "3d"),
    ("speed", "frozen 3d"),
]  # fmt: skip
BEYOND_GHOST = {("supervised", "vit"), ("byol", "vit"), ("mae", "vit"), ("croco", "vit")}
BEYOND_OPACUS = BEYOND_GHOST | {(name, network) for name, network in CASES if name in ("mae", "gmml")}
BEYOND_OPACUS |= {(name, network) for name, network in CASES if network == "frozen 3d"}


def case(name: str, network: str) -> tuple[nn.ModuleDict, Objective, Batch]:
    objective = OBJECTIVES[name]()
    model = build_bundle(NETWORKS[network], objective, 0, Population(9, 5), frozen_norms=True).double()
    objective.begin_round(model, first=True)
    model.train()
    shape = (SIZE, 1, FRAMES.get(name, 1), 8, 8)
    views = (uniform(*shape, seed=seed) for seed in range(len(objective.views)))
    numbers = torch.arange(SIZE)
    batch = batch_of(*views, targets=numbers, uniforms=uniform(SIZE, objective.num_uniforms, seed=9), labels=numbers)
    return model, objective, batch


@pytest.mark.parametrize(("name", "network"), CASES)
def test_every_engine_gives_what_each_example_alone_gives(name: str, network: str) -> None:
    model, objective, batch = case(name, network)
    clip = oracle(model, objective, batch, 1.0)[1].median().item()  # some examples are clipped and some are not
    expected = oracle(model, objective, batch, clip)
    step = objective.step(model, batch)
    for each in ENGINES:
        if (name, network) in {"functional": set(), "ghost": BEYOND_GHOST, "hooks": BEYOND_OPACUS}[each]:
            with pytest.raises(ValueError, match=r"must be the weight or bias of .*privacy\.engine must be functional"):
                engine(each)(model, objective, batch, clip)
            continue
        found = engine(each)(model, objective, batch, clip)
        assert_equal(found, expected)
        assert found.loss == pytest.approx(step.loss.item(), rel=1e-9)
        assert found.metrics == pytest.approx({key: float(value) for key, value in step.metrics.items()}, rel=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_in_single_precision_engines_agree_to_five_digits(name: EngineName) -> None:
    model, objective, batch = case("rotnet", "resnet")
    single = replace(batch, views=tuple(view.float() for view in batch.views))
    expected = oracle(model, objective, batch, 1.0)
    found = engine(name)(model.float(), objective, single, 1.0)
    for key, value in expected[0].items():
        assert (found.sums[key] - value).norm() <= 1e-5 * value.norm()
        assert found.sums[key].dtype == torch.float32
    torch.testing.assert_close(found.norms, expected[1], rtol=1e-5, atol=0)


LAYERS: Mapping[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (6,)),
    "linear of many positions": (nn.Linear(6, 5), (3, 4, 6)),
    "wide linear": (nn.Linear(40, 30), (2, 40)),
    "conv1d": (nn.Conv1d(3, 4, 3, 2, 1), (3, 9)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0)), (3, 7, 6)),
    "conv2d of few positions": (nn.Conv2d(16, 32, 3), (16, 4, 4)),
    "conv2d in groups": (nn.Conv2d(4, 6, 3, groups=2, dilation=2, bias=False), (4, 7, 7)),
    "conv2d of few positions in groups": (nn.Conv2d(32, 32, 3, groups=2), (32, 4, 4)),
    "conv2d same": (nn.Conv2d(3, 4, 4, padding="same"), (3, 5, 5)),
    "conv2d circular": (nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="circular"), (3, 5, 5)),
    "conv3d": (nn.Conv3d(2, 3, 2, (1, 2, 1), (0, 1, 1)), (2, 3, 4, 5)),
    "transposed conv2d": (nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), (4, 3, 3)),
    "transposed conv2d in groups": (nn.ConvTranspose2d(4, 6, 4, 4, groups=2), (4, 2, 2)),
    "wide transposed conv2d": (nn.ConvTranspose2d(32, 16, 2, 2), (32, 2, 2)),
    "group norm": (nn.GroupNorm(2, 6), (6, 4)),
    "group norm of features": (nn.GroupNorm(2, 8), (8,)),
    "layer norm": (nn.LayerNorm((3, 4)), (2, 3, 4)),
    "frozen batch norm": (nn.BatchNorm2d(3).eval(), (3, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_has_the_gradients_of_each_example_alone_also_when_called_twice(name: str) -> None:
    layer, shape = LAYERS[name]
    views = tuple(uniform(SIZE, *shape, seed=seed) for seed in (1, 2))

    class Twice(SumOfSquares):
        def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
            first, second = (super(Twice, self).step(model, replace(batch, views=views)) for views in calls(batch))
            return Step(first.loss + 0.3 * second.loss, {})

    def calls(batch: Batch) -> Iterator[tuple[Tensor, ...]]:
        yield batch.views
        yield batch.views[:1]

    model = bundle_of(layer)
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * uniform(*parameter.shape, seed=seed))
    for objective, clip in product((SumOfSquares(), Twice()), (1e9, 0.01)):
        batch = batch_of(*views)
        assert_equal(engine("ghost")(model, objective, batch, clip), oracle(model, objective, batch, clip))


WEIGHTED = ("fedmatch", "fixmatch", "pseudo_label", "fed_consist", "rscfed")  # by how many examples are labelled


@pytest.mark.parametrize("name", IMAGES)
def test_every_registered_objective_is_grouped_by_example_or_refused(name: str) -> None:
    objective = build(config(name), "objective")
    if objective.contract.coupling != "per_example":
        with pytest.raises(ValueError, match=f"coupling must be per_example, got {objective.contract.coupling}"):
            engine("ghost")(nn.ModuleDict(), objective, batch_of(torch.zeros(2, 1)), 0.1)
        return
    built = Case(name)
    built.model.train()
    labelled, both = built.batch([0, 2, 4]), built.batch([0, 1, 2, 3])
    if name not in WEIGHTED:
        for each in ENGINES[:2]:
            expected = oracle(built.model, built.objective, labelled, 0.1)
            assert_equal(engine(each)(built.model, built.objective, labelled, 0.1), expected)
    if name in (*WEIGHTED, "supervised"):
        with pytest.raises(ValueError, match=r"privacy\.engine must be functional"):
            engine("ghost")(built.model, built.objective, both, 0.1)
        return
    assert_equal(
        engine("ghost")(built.model, built.objective, both, 0.1), oracle(built.model, built.objective, both, 0.1)
    )


@pytest.mark.parametrize("name", ["ghost", "hooks"])
def test_rows_are_grouped_however_an_objective_lays_them_out(name: EngineName) -> None:
    model = bundle_of(nn.Linear(5, 3))
    batch = batch_of(*(uniform(SIZE, 5, seed=seed) for seed in range(3)))
    for layout in (
        lambda batch: torch.cat(batch.views),  # view after view
        lambda batch: torch.stack(batch.views, dim=1).flatten(0, 1),  # example after example
        lambda batch: batch.views[0].repeat_interleave(2, dim=0),
    ):
        objective = SumOfSquares(layout)
        assert_equal(engine(name)(model, objective, batch, 0.1), oracle(model, objective, batch, 0.1))


@pytest.mark.parametrize("name", ["ghost", "hooks"])
@pytest.mark.parametrize(
    "layout",
    [
        lambda batch: torch.cat((batch.views[0], batch.views[1].flip(0))),
        lambda batch: batch.views[0] + batch.views[1].mean(dim=0),
        lambda batch: batch.views[0].T.repeat(1, 2)[:, : batch.views[0].shape[1]],
        lambda batch: torch.cat(batch.views)[:-1],
    ],
    ids=["the second view in another order", "a mean over examples", "features as rows", "a row too few"],
)
def test_rows_that_are_not_of_one_example_each_are_refused(name: EngineName, layout: Callable[[Batch], Tensor]) -> None:
    batch = batch_of(uniform(SIZE, SIZE), uniform(SIZE, SIZE, seed=1))
    with pytest.raises(ValueError, match="rows of backbone must be of one example each"):
        engine(name)(bundle_of(nn.Linear(SIZE, 3)), SumOfSquares(layout), batch, 0.1)


def test_changing_a_result_in_place_is_understood_and_changing_an_input_is_refused() -> None:
    batch = batch_of(uniform(SIZE, 5))
    good = bundle_of(nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)))
    assert_equal(engine("ghost")(good, SumOfSquares(), batch, 0.1), oracle(good, SumOfSquares(), batch, 0.1))

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(5)
            self.linear = nn.Linear(5, 5)
            for parameter in self.linear.parameters():
                parameter.requires_grad = False  # PyTorch itself forbids it where a weight needs the input

        def forward(self, rows: Tensor) -> Tensor:
            made = rows + 0
            normed = self.norm(made.detach())
            made += self.linear(normed)
            return made

    with pytest.raises(ValueError, match=r"the input of backbone\.norm must not be changed in place"):
        engine("ghost")(bundle_of(Residual()), SumOfSquares(), batch, 0.1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, rows: Tensor) -> Tensor:
        return self.second(self.first(rows))


class Elsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(self.linear(rows), self.linear.weight)


class Cosine(nn.Linear):
    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(rows, F.normalize(self.weight))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, rows: Tensor) -> Tensor:
        return self.linear(rows) * self.temperature


@pytest.mark.parametrize("name", ["ghost", "hooks"])
@pytest.mark.parametrize(
    ("network", "says"),
    [
        (Tied(), r"backbone\.second\.weight must not be backbone\.first\.weight too"),
        (Elsewhere(), r"backbone\.linear\.weight must be used by its layer alone"),
        (Cosine(4, 3), r"backbone\.weight must be the weight or bias of .*, got Cosine"),
        (Scaled(), r"backbone\.temperature must be the weight or bias of .*, got Scaled"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), "got ParametrizationList"),
        (nn.MultiheadAttention(4, 1), r"backbone\.in_proj_weight must be .*, got MultiheadAttention"),
    ],
    ids=["tied", "elsewhere", "cosine", "scaled", "weight norm", "attention"],
)
def test_what_hooks_cannot_see_is_refused_by_name(name: EngineName, network: nn.Module, says: str) -> None:
    with pytest.raises(ValueError, match=f"{says}.*; otherwise privacy.engine must be functional"):
        engine(name)(bundle_of(network), SumOfSquares(), batch_of(uniform(SIZE, 4)), 1.0)


@pytest.mark.parametrize("network", [Tied(), Elsewhere(), Cosine(4, 3), Scaled()], ids=lambda each: type(each).__name__)
def test_the_functional_engine_takes_any_network_and_parameters_without_dimensions(network: nn.Module) -> None:
    model, batch = bundle_of(network), batch_of(uniform(SIZE, 4))
    for clip in (1e9, 0.05):
        found = engine("functional")(model, SumOfSquares(), batch, clip)
        assert_equal(found, oracle(model, SumOfSquares(), batch, clip))
    if isinstance(network, Scaled):
        assert found.sums["backbone.temperature"].shape == ()
        assert found.sums["backbone.temperature"] != 0


def test_opacus_has_no_rule_in_evaluation_mode() -> None:
    with pytest.raises(ValueError, match="layers must be in training mode for Opacus, got backbone"):
        engine("hooks")(bundle_of(nn.Linear(4, 3)).eval(), SumOfSquares(), batch_of(uniform(SIZE, 4)), 1.0)


@pytest.mark.parametrize("name", ENGINES)
def test_coupled_objectives_and_layers_are_refused(name: EngineName) -> None:
    batch = batch_of(uniform(SIZE, 4))
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))
    with pytest.raises(ValueError, match=r"no layer must mix the examples of a batch, got backbone\.1"):
        engine(name)(bundle_of(norm), SumOfSquares(), batch, 1.0)
    with pytest.raises(ValueError, match="coupling must be per_example, got batch"):
        engine(name)(bundle_of(nn.Linear(4, 4)), SimClr(), batch, 1.0)
    with pytest.raises(ValueError, match="clip must be above 0, got 0"):
        engine(name)(bundle_of(nn.Linear(4, 4)), SumOfSquares(), batch, 0.0)
    with pytest.raises(ValueError, match="engine must be one of ghost, functional, hooks, got fast"):
        engine("fast")


def test_an_unlabelled_example_gives_nothing_and_ghost_refuses_it_among_labelled_ones() -> None:
    model, objective, batch = case("supervised", "cnn")
    mixed = replace(batch, labels=torch.tensor([0, UNKNOWN, 2, 3]))
    found = engine("functional")(model, objective, mixed, 0.5)
    assert found.norms[1] == 0
    assert_equal(found, oracle(model, objective, mixed, 0.5))
    with pytest.raises(ValueError, match="of one example each, as many of every one"):
        engine("ghost")(model, objective, mixed, 0.5)


def test_a_factor_is_the_clip_over_the_norm_and_never_above_one() -> None:
    norms = torch.tensor([0.0, 0.5, 1.0, 2.0, 8.0, torch.inf, torch.nan])
    assert clip_factors(norms, 1.0).tolist() == [1.0, 1.0, 1.0, 0.5, 0.125, 0.0, 0.0]
    assert clip_factors(torch.tensor([1e-300], dtype=torch.float64), 1e-310).item() == pytest.approx(1e-10)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("objective", ["rotnet", "simsiam", "supervised"])
def test_an_example_that_is_not_finite_adds_nothing_and_harms_no_other(
    name: EngineName, broken: float, objective: str
) -> None:
    model, made, batch = case(objective, "cnn")
    views = tuple(view.clone() for view in batch.views)
    for view in views:
        view[0, :, :, 2, 3] = broken
    found = engine(name)(model, made, replace(batch, views=views), 0.1)
    rest = oracle(model, made, batch.where(torch.arange(SIZE) > 0), 0.1)
    assert not found.norms[0].isfinite()
    assert_equal(replace(found, norms=found.norms[1:]), rest)


@pytest.mark.parametrize("name", ENGINES)
def test_a_gradient_of_zero_stays_zero(name: EngineName) -> None:
    found = engine(name)(
        bundle_of(nn.Linear(4, 3, bias=False)), SumOfSquares(), batch_of(torch.zeros(2, 4).double()), 1.0
    )
    assert found.norms.tolist() == [0, 0]
    assert not found.sums["backbone.weight"].any()


@pytest.mark.parametrize("name", ENGINES)
def test_an_empty_batch_sums_to_zeros_and_one_example_is_clipped(name: EngineName) -> None:
    model, objective, batch = case("rotnet", "cnn")
    empty = engine(name)(model, objective, batch.where(torch.zeros(SIZE, dtype=torch.bool)), 1.0)
    assert len(empty.norms) == 0
    assert not any(value.any() for value in empty.sums.values())
    one = batch.where(torch.arange(SIZE) == 2)
    assert_equal(engine(name)(model, objective, one, 0.1), oracle(model, objective, one, 0.1))


@pytest.mark.parametrize("name", ENGINES)
def test_only_trainable_parameters_have_sums_and_those_without_a_gradient_have_zeros(name: EngineName) -> None:
    model, objective, batch = case("byol", "cnn")
    model["unused"] = nn.Linear(2, 2).double()
    model["predictor"][0].weight.requires_grad = False
    found = engine(name)(model, objective, batch, 0.1)
    assert list(found.sums) == [key for key, value in model.named_parameters() if value.requires_grad]
    assert not any(key.startswith("teacher") for key in found.sums)
    assert not found.sums["unused.weight"].any()
    assert_equal(found, oracle(model, objective, batch, 0.1))


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_leaves_everything_as_it_was_and_gives_the_same_bits_again(name: EngineName) -> None:
    model, objective, batch = case("byol", "resnet")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    def state() -> dict[str, object]:
        parts = {key: sorted(vars(module)) for key, module in model.named_modules()}
        hooks = [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()]
        own = [sorted(vars(parameter)) for parameter in model.parameters()]
        numbers = [torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters()]
        return {"parts": parts, "hooks": hooks, "own": own, "grad": numbers, "rng": torch.get_rng_state().tolist()}

    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    before = state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, again = (engine(name)(model, objective, batch, 0.1) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert state() == before
    assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, again.sums[key]) for key, value in first.sums.items())
    assert torch.equal(first.norms, again.norms)
    assert not any(value.requires_grad for value in (first.norms, *first.sums.values()))


@pytest.mark.parametrize("name", ENGINES)
def test_dropout_draws_from_the_default_generator_once_a_step(name: EngineName) -> None:
    model, batch = (
        bundle_of(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))),
        batch_of(uniform(SIZE, 8)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = (engine(name)(model, SumOfSquares(), batch, 1.0).norms for _ in range(2))
        torch.manual_seed(0)
        again = engine(name)(model, SumOfSquares(), batch, 1.0).norms
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
