"""What is compiled before a network is measured on a GPU."""

from benchmarks.gpu_warm import compiled, kinds


def test_one_layer_of_every_kind():
    found = {name: shape for _, name, shape in kinds("acmix_resnet50", 64, size=64)}
    assert len(found) == 7
    assert found["layer1.0.conv2"] == (64, 64, 16, 16)
    assert found["layer4.0.conv2"] == (64, 512, 4, 4)


def test_a_network_without_acmix_has_nothing_to_compile():
    assert not list(compiled("conv_resnet14", 1, "float32"))
