"""Heatmaps: the network's own, and those of the grad-cam library."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pylon.baselines import Baseline
from pylon.heatmaps import METHODS, PAIRS_AT_A_TIME, average, heatmaps_of, probability
from pylon.model import Pylon, PylonOutput, pool_maps

ENCODER = "tu-test_resnet"


@pytest.fixture
def images():
    return torch.randn(2, 1, 256, 256, generator=torch.Generator().manual_seed(0))


def test_method_map_returns_the_networks_own_maps(images):
    model = Pylon(ENCODER, None, classes=3, decoder_channels=8).eval()
    heatmaps, probabilities = heatmaps_of(model, images, [1, 0, 1], [2, 0, 0])
    with torch.no_grad():
        output = model(images)
    assert torch.equal(heatmaps[0], output.maps[1, 2].sigmoid())
    assert torch.equal(heatmaps[2], output.maps[1, 0].sigmoid())
    logits = output.logits[[1, 0, 1], [2, 0, 0]]
    assert torch.equal(probabilities, logits.double().sigmoid().float())


def test_a_probability_does_not_depend_on_the_number_of_logits():
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 5
    alone = torch.cat([probability(logits[k : k + 1]) for k in range(len(logits))])
    assert torch.equal(probability(logits), alone)
    assert probability(torch.tensor([torch.inf, torch.nan])).isnan().all()


def test_map_of_average_pooling_is_min_max_scaled(images):
    """A sigmoid would saturate: logits of 20 and of 40 both become 1, and the maximum is lost."""
    torch.manual_seed(0)
    model = Baseline("backbone", ENCODER, None, classes=3, pool="avg").eval()
    with torch.no_grad():
        model.segmentation_head[0].weight.mul_(1e5)
        maps = model(images).maps[[0, 1], [2, 1]]
    heatmaps, _ = heatmaps_of(model, images, [0, 1], [2, 1])
    assert maps.abs().amin() > 100
    assert heatmaps.amin(dim=(1, 2)).tolist() == [0, 0]
    assert heatmaps.amax(dim=(1, 2)).tolist() == [1, 1]
    assert torch.equal(heatmaps.flatten(1).argmax(dim=1), maps.flatten(1).argmax(dim=1))


@pytest.mark.parametrize("method", ["map", *METHODS])
@pytest.mark.parametrize("make", [
    lambda: Pylon(ENCODER, None, classes=3, decoder_channels=8),
    lambda: Baseline("backbone", ENCODER, None, classes=3, pool="avg"),
    lambda: Baseline("linknet", ENCODER, None, classes=3),
])  # fmt: skip
def test_every_method_works_with_every_kind_of_network(make, method, images):
    torch.manual_seed(0)
    model = make().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    heatmaps, probabilities = heatmaps_of(model, images, [0, 1, 1], [0, 0, 2], method)
    with torch.no_grad():
        expected = model(images).logits[[0, 1, 1], [0, 0, 2]].sigmoid()
    torch.testing.assert_close(probabilities, expected)
    assert heatmaps.dtype == torch.float32
    assert len(heatmaps) == 3
    if method != "map":
        assert heatmaps.shape == (3, 256, 256)
        assert heatmaps.amin() >= 0
        assert heatmaps.amax() <= 1
        assert not model.deepest._forward_hooks
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_gradcam_of_the_classic_net_is_its_class_activation_map(images):
    """On a net with average pooling and one linear layer, Grad-CAM is CAM, except for a ReLU.

    Shown by Selvaraju et al. 2017.
    """
    torch.manual_seed(0)
    model = Baseline("backbone", ENCODER, None, classes=3, pool="avg").eval()
    with torch.no_grad():
        # otherwise the 1e-7 that the library adds would be visible
        model.segmentation_head[0].weight.abs_().mul_(100)
    heatmaps, _ = heatmaps_of(model, images, [0, 1], [2, 1], "gradcam")
    with torch.no_grad():
        maps = (
            model(images).maps[[0, 1], [2, 1]]
            - model.segmentation_head[0].bias[[2, 1]][:, None, None]
        )
    assert (maps.amax(dim=(1, 2)) > 0).all()  # otherwise there is nothing to compare
    for heatmap, cam in zip(heatmaps, maps.relu(), strict=True):
        large = F.interpolate(cam[None, None], (256, 256), mode="bilinear")[0, 0]
        large = (large - large.min()) / (large.max() - large.min())
        torch.testing.assert_close(heatmap, large, atol=1e-3, rtol=0)


def test_gradcam_depends_on_the_class(images):
    torch.manual_seed(0)
    model = Pylon(ENCODER, None, classes=3, decoder_channels=8).eval()
    (one, other), _ = heatmaps_of(model, images, [0, 0], [0, 1], "gradcam")
    assert not torch.equal(one, other)


def test_pairs_beyond_those_explained_together_have_their_own_class_and_image(images):
    torch.manual_seed(0)
    model = Baseline("backbone", ENCODER, None, classes=4, pool="avg").eval()
    with torch.no_grad():
        model.segmentation_head[0].weight.abs_()  # or some maps would be 0 everywhere
    image_of = [0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1]
    class_of = [0, 1, 2, 3, 0, 1, 2, 3, 2, 3, 1]
    assert len(image_of) > PAIRS_AT_A_TIME
    heatmaps, probabilities = heatmaps_of(model, images, image_of, class_of, "gradcam")
    for k in range(PAIRS_AT_A_TIME, len(image_of)):
        (alone,), score = heatmaps_of(model, images, image_of[k:][:1], class_of[k:][:1], "gradcam")
        torch.testing.assert_close(heatmaps[k], alone, atol=1e-4, rtol=0)
        torch.testing.assert_close(probabilities[k : k + 1], score)
        # which is not the map of the pair that many places before
        assert (heatmaps[k] - heatmaps[k - PAIRS_AT_A_TIME]).abs().max() > 0.01


def test_unknown_method_is_rejected(images):
    model = Pylon(ENCODER, None, classes=3, decoder_channels=8).eval()
    with pytest.raises(ValueError, match=r"^method .*gradcam.* got scorecam"):
        heatmaps_of(model, images, [0], [0], "scorecam")


class Sloped(nn.Module):
    """Its map is the image plus a value for each column."""

    def __init__(self, columns, pool="max", times=1):
        super().__init__()
        self.columns = torch.tensor(columns)
        self.pool = pool
        self.times = times  # rows of the map for each row of the image

    def forward(self, images):
        maps = (images + self.columns).repeat_interleave(self.times, dim=2)
        return PylonOutput(pool_maps(maps, self.pool), maps)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_average_of_networks_and_mirror_images(count, mirrored):
    image = torch.tensor([[[[0.0, 1.0]]]])
    networks = [Sloped([0.0, 2.0]), Sloped([0.0, 0.0], times=3)][:count]
    average(networks, mirrored)
    found = [(3, 0, 3), (1, 0, 1)][:count]  # logit, and map of two pixels, of each network
    # of the mirror image, (1, 0), the maps are (1, 2) and (1, 0)
    found += [(2, 2, 1), (1, 0, 1)][:count] if mirrored else []
    expected = torch.tensor(found).double().sigmoid().mean(dim=0)
    heatmaps, probabilities = heatmaps_of(networks[0], image, [0], [0])
    torch.testing.assert_close(probabilities, expected[:1].float())
    torch.testing.assert_close(heatmaps, expected[None, None, 1:].float())


def test_average_of_maps_that_are_no_probabilities():
    """Their values are averaged: (0, 3) and (2, 1); each logit is the mean of a map, 1.5."""
    network = Sloped([0.0, 2.0], pool="avg")
    average([network], mirrored=True)
    output = network(torch.tensor([[[[0.0, 1.0]]]]))
    torch.testing.assert_close(output.maps, torch.tensor([[[[1.0, 2.0]]]]))
    torch.testing.assert_close(output.logits, torch.tensor([[1.5]]))


def test_average_of_very_sure_networks_is_finite():
    network = Sloped([0.0, 90.0])
    average([network], mirrored=True)
    logits = network(torch.tensor([[[[0.0, 1.0]]]])).logits
    torch.testing.assert_close(logits, torch.tensor([[90.3799]]))  # 90 - log((1 + 1 / e) / 2)
